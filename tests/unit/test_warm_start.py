"""Genomes to begin with: read from fronts and lists, refused in one line."""

import json

import msgspec
import pytest
from virtual_time import SPACE, World

from mpinas.config import Experiment
from mpinas.errors import UserError
from mpinas.history.journal import Journal
from mpinas.history.run_folder import RunFolder
from mpinas.history.warm_start import start_genomes


def test_fronts_and_lists_each_genome_once_in_their_order(tmp_path):
    world = World(groups=1, evaluations=6).run()
    experiment = msgspec.convert({"task": {"name": "digits"}, "training": {"epochs": 2}}, Experiment)
    folder = RunFolder.create(tmp_path / "run", experiment)
    journal = Journal(folder.journal_file)
    for time, event in world.journal:
        journal.append(time, event)
    journal.close()
    front = [world.genomes[id_] for id_ in world.ledger.front if id_ != 0]
    assert front
    own = {"width": 30, "depth": 10}
    listed = tmp_path / "genomes.json"
    listed.write_text(json.dumps([own, front[0], own]))
    found = start_genomes([str(listed), str(tmp_path / "run")], SPACE)
    assert found == (own, front[0], *front[1:])
    assert start_genomes([], SPACE) == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        ("[1]", "not a JSON list of genomes"),
        ("{", "not a JSON list of genomes"),
        ('[{"width": 99, "depth": 1}]', "no genome of this space: gene 'width' = 99 is none of"),
        ('[{"width": 1}]', "no genome of this space: genome has genes"),
    ],
)
def test_what_is_no_genome_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "genomes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        start_genomes([str(path)], SPACE)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        start_genomes([str(tmp_path)], SPACE)
