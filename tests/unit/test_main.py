"""The two programs where nobody takes what they say, and on terminals without a size."""

import os
import subprocess
import sys

import pytest

COMMANDS = [("mpinas", "--help"), ("mpinas", "space", "show", "cnn3d"), ("edge_bridge", "--help")]


def run(*words, out, **environment):
    return subprocess.run(
        [sys.executable, "-m", *words], stdout=out, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk_under_the_output_is_one_line(words):
    with open("/dev/full", "w") as full:
        done = run(*words, out=full)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "standard output: cannot be written (No space left on device)" in done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_that_has_gone_is_nobodys_fault(words):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = run(*words, out=pipe)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_a_size_gets_the_whole_table():
    told = run("mpinas", "space", "show", "cnn3d", out=subprocess.PIPE, COLUMNS="0").stdout
    assert told == run("mpinas", "space", "show", "cnn3d", out=subprocess.PIPE, COLUMNS="80").stdout
    assert "genomes for 16 frames" in told
