"""What a task of the user's own has read is looked at before it is trained on."""

from dataclasses import replace

import numpy as np
import pytest

from mpinas.config import Experiment, Task
from mpinas.errors import UserError
from mpinas.models import make_space
from mpinas.parallel.means import gather_means
from mpinas.tasks import Samples
from mpinas.tasks.kinds import Classification, Regression


class Given:
    name, input_shape, baseline = "own", (8, 9, 9), "lpbf-cnn"

    def __init__(self, training, validation, test):
        self.parts, self.test = (training, validation), test

    def load(self):
        return self.parts

    def load_test(self):
        return self.test


class Own(Given, Regression):
    outputs = 2


class Classes(Given, Classification):
    outputs = 3


def samples(count, dtype=np.uint8, shape=(8, 9, 9), outputs=2):
    return Samples(np.zeros((count, *shape), dtype), np.zeros((count, outputs), np.float32))


def means_of(training=samples(9), validation=samples(3), test=None, kind=Own):  # noqa: B008 - never changed
    task = kind(training, validation, test)
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


def of_classes(*targets, dtype=np.int64):
    return replace(samples(len(targets)), targets=np.array(targets, dtype))


def test_classes_are_numbered_from_0():
    means_of(of_classes(0, 1, 2), of_classes(2, 0), kind=Classes)
    for validation, says in [
        (of_classes(0, 3), "class numbers are 0 to 3 and must be 0 to 2"),
        (of_classes(-100, 1), "class numbers are -100 to 1 and must be 0 to 2"),
        (of_classes(0, 1, dtype=np.float32), r"targets are float32 \(2,\) and must be class numbers, integers \(2,\)"),
        (of_classes([0], [1]), r"targets are int64 \(2, 1\) and must be class numbers"),
    ]:
        with pytest.raises(UserError, match=f"validation samples: {says}"):
            means_of(of_classes(0, 1, 2), validation, kind=Classes)


class Damaged(Own):
    def load(self):
        raise OSError("not a zip file")


def test_data_that_a_task_of_ones_own_cannot_load_are_named():
    task = Damaged(None, None, None)
    experiment = Experiment(task=Task(name="own.py:Own", train=("a.npz",), test=("b.npz",)))
    with pytest.raises(
        UserError, match=r"'own.py:Own': its data cannot be loaded \(a.npz, b.npz\): OSError: not a zip"
    ):
        gather_means(task, make_space("cnn3d", task.input_shape), experiment, (0, 1), 1)
