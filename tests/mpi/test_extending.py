"""The worked example of docs/extending.md, as it stands there: a real job on a task and a space from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import Launch
from launching import ROOT


def blocks(language: str) -> list[str]:
    """Code of the document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)


def test_the_worked_example_is_short_and_runs(tmp_path: Path, mpirun: Launch):
    assert len((ROOT / "docs" / "extending.md").read_text().splitlines()) < 100
    (code,), (experiment,), (commands,) = blocks("python"), blocks("toml"), blocks("sh")
    simulation = commands.rpartition("mpirun")[0]
    there = tmp_path / "there"  # not where the job is started
    there.mkdir()
    (there / "sparks.py").write_text(code)
    (there / "sparks.toml").write_text(experiment)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", simulation], cwd=there, env=os.environ | {"PATH": path}, timeout=60, check=True)
    mpirun(3, "-m", "mpinas", "search", "there/sparks.toml", "--run", "run")
    done = mpirun(1, "-m", "mpinas", "results", "run", "--json")
    found = json.loads(done.stdout)
    assert found["task"] == "sparks"
    assert found["simulated_data"]
    assert found["counts"]["EVALUATED"] == 8
    genomes = [each["genome"] for each in found["candidates"]]
    assert genomes[0]["baseline"] == f"{there / 'sparks.py'}:HandMade"
    assert all(set(genome) == {"frames", "width", "depth", "learning_rate"} for genome in genomes[1:])
    best = min(each["metrics"]["error"] for each in found["candidates"] if each["metrics"])
    assert best < 0.35, "speeds are spread by 0.35: something was learned"
    assert all(each["accepted"] for each in found["candidates"] if each["id"] in found["front"])
    (there / "sparks.py").write_text(
        code.replace("def sums", "def summe").replace("class Sparks(Regression)", "class Sparks")
    )
    refused = mpirun(2, "-m", "mpinas", "search", "there/sparks.toml", "--run", "other", check=False)
    assert refused.returncode == 2
    assert "has no 'device_metric': see docs/extending.md" in refused.stderr
    assert not (tmp_path / "other").exists()
