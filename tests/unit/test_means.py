"""What a task of the user's own has read is looked at before it is trained on."""

from dataclasses import replace

import numpy as np
import pytest

from mpinas.config import Experiment, Task
from mpinas.errors import UserError
from mpinas.models import make_space
from mpinas.parallel.means import gather_means
from mpinas.tasks import Samples
from mpinas.tasks.kinds import Regression


class Own(Regression):
    name, input_shape, outputs, baseline = "own", (8, 9, 9), 2, "lpbf-cnn"

    def __init__(self, training, validation, test):
        self.parts, self.test = (training, validation), test

    def load(self):
        return self.parts

    def load_test(self):
        return self.test


def samples(count, dtype=np.uint8, shape=(8, 9, 9), outputs=2):
    return Samples(np.zeros((count, *shape), dtype), np.zeros((count, outputs), np.float32))


def means_of(training=samples(9), validation=samples(3), test=None):  # noqa: B008 - never changed
    task = Own(training, validation, test)
    experiment = Experiment(task=Task(name="own.py:Own"))
    return gather_means(task, make_space("cnn3d", task.input_shape), experiment, (0, 1), 1)


def test_labelled_samples_of_the_shape_are_taken_and_a_test_may_be_without_labels():
    test = replace(samples(2), targets=None)
    means = means_of(test=test)
    assert [len(part) for part in means.samples] == [9, 3]
    assert means.test is test


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"validation": samples(0)}, "validation samples: there are none"),
        ({"test": samples(0)}, "test samples: there are none"),
        (
            {"training": samples(9, np.float32)},
            r"training samples: inputs are float32 \(9, 8, 9, 9\) and must be uint8",
        ),
        (
            {"test": samples(2, shape=(9, 9, 9))},
            r"test samples: inputs are uint8 \(2, 9, 9, 9\) and must .*\(n, 8, 9, 9\)",
        ),
        ({"training": replace(samples(9), targets=None)}, "training samples: there are no targets"),
        ({"validation": replace(samples(3), targets=samples(4).targets)}, "4 targets for 3 inputs"),
        (
            {"test": replace(samples(2), targets=np.float32([[0, 1], [np.nan, 0]]))},
            "some targets are no finite numbers",
        ),
        ({"training": samples(9, outputs=1)}, r"targets are \(9, 1\) and must be \(9, 2\)"),
    ],
)
def test_others_are_refused_by_the_part_that_they_are_in(parts, says):
    with pytest.raises(UserError, match=rf"^task\.name = 'own\.py:Own': .*{says}"):
        means_of(**parts)
