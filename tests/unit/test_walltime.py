"""Durations as Slurm writes them, and the end of a Slurm job: by the environment, or by what scontrol prints."""

from __future__ import annotations

import os
import stat
import time

import pytest

from mpinas.slurm.walltime import ask_scontrol, format_duration, job_end, parse_duration

HOUR = 3600.0

# what Slurm prints with --oneliner, shortened at both ends; times are local
LINE = (
    "JobId={job} {more}JobName={name} UserId=anna(1000) GroupId=users(100) MCS_label=N/A JobState=RUNNING "
    "RunTime=00:10:00 TimeLimit=02:00:00 TimeMin=N/A SubmitTime=2026-11-22T07:59:00 EligibleTime=2026-11-22T07:59:00 "
    "AccrueTime=2026-11-22T07:59:00 StartTime=2026-11-22T08:00:00 EndTime={end} Deadline=N/A SuspendTime=None "
    "Partition=main Command=/home/anna/job.sbatch WorkDir=/home/anna\n"
)


def line(job: int, end: str = "2026-11-22T10:00:00", name: str = "mpinas", more: str = "") -> str:
    return LINE.format(job=job, end=end, name=name, more=more)


def must_not_ask(job: str) -> str:
    raise AssertionError(f"scontrol was asked for {job}")


@pytest.fixture(params=[("UTC", 0.0), ("<+05>-5", -5 * HOUR)], ids=["UTC", "five hours east"])
def ten_o_clock(request, monkeypatch):
    """2026-11-22 10:00 on the wall clock, in seconds since the epoch."""
    zone, shift = request.param
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        yield 1_795_341_600.0 + shift
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * 60),
        ("30:15", 30 * 60 + 15),
        ("1:30:00", 1.5 * HOUR),
        ("01:30:00", 1.5 * HOUR),
        ("100:00:05", 100 * HOUR + 5),
        ("2-12", 60 * HOUR),
        ("1-00:30", 24.5 * HOUR),
        ("1-00:30:10", 24.5 * HOUR + 10),
        (" 5:00\n", 300),
    ],
)
def test_a_duration_is_read_as_sbatch_reads_it(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "1.5", "1:5", "1:00:00:00", "1-", "2-1:2", "1:99:00", "1:00:60", "UNLIMITED", "٣", "1h"]
)
def test_what_is_no_duration_is_refused_in_words(text):
    with pytest.raises(ValueError, match=r"is no duration: write HH:MM:SS"):
        parse_duration(text)


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="'0:00:00' is no time at all"):
        parse_duration("0:00:00")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00"),
        (59.9, "0:00:59"),
        (5400.0, "1:30:00"),
        (90_061.0, "1-01:01:01"),
        (-0.5, "0:00:00"),
        (-65.0, "-0:01:05"),
    ],
)
def test_a_duration_is_written_as_slurm_writes_it(seconds, text):
    assert format_duration(seconds) == text


def test_outside_a_job_nobody_is_asked():
    assert job_end({}, must_not_ask) is None
    assert job_end({"SLURM_JOB_END_TIME": "1795341600"}, must_not_ask) is None


def test_the_environment_tells_before_anybody_is_asked():
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1795334400", "SLURM_JOB_END_TIME": "1795341600"}
    assert job_end(job, must_not_ask) == 1_795_341_600.0
    del job["SLURM_JOB_START_TIME"]
    assert job_end(job, must_not_ask) == 1_795_341_600.0


def test_a_job_without_a_limit_has_no_end():
    a_year_hence = str(1_795_341_600 + 365 * 86_400)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1795341600", "SLURM_JOB_END_TIME": a_year_hence}
    assert job_end(job, must_not_ask) is None
    assert job_end({"SLURM_JOB_ID": "7"}, lambda job: line(7, end="Unknown")) is None


def test_what_scontrol_prints_is_local_time(ten_o_clock):
    asked = []

    def ask(job: str) -> str:
        asked.append(job)
        return line(7)

    assert job_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "N/A"}, ask) == ten_o_clock
    assert asked == ["7"]


def test_a_heterogeneous_job_ends_with_the_first_of_its_components(ten_o_clock):
    leader = line(40, end="2026-11-22T10:30:00", more="HetJobId=40 HetJobOffset=0 ")
    second = line(41, more="HetJobId=40 HetJobOffset=1 ")
    assert job_end({"SLURM_JOB_ID": "40"}, lambda job: leader + second) == ten_o_clock


def test_other_tasks_of_an_array_are_not_ours(ten_o_clock):
    other = line(41, end="2026-11-22T09:00:00", more="ArrayJobId=40 ArrayTaskId=1 ")
    ours = line(40, more="ArrayJobId=40 ArrayTaskId=2 ")
    assert job_end({"SLURM_JOB_ID": "40"}, lambda job: other + ours) == ten_o_clock


def test_a_name_that_looks_like_a_time_does_not_confuse(ten_o_clock):
    lines = line(7, name="StartTime=1 EndTime=2020-01-01T00:00:00")
    assert job_end({"SLURM_JOB_ID": "7"}, lambda job: lines) == ten_o_clock


@pytest.mark.parametrize("text", ["", "Invalid job id specified\n", line(7, end="soon"), line(8)])
def test_where_nobody_can_tell_there_is_no_end(text):
    assert job_end({"SLURM_JOB_ID": "7"}, lambda job: text) is None


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Put a script named scontrol first on PATH."""

    def install(text: str) -> None:
        path = tmp_path / "scontrol"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return install


def test_scontrol_is_asked_for_one_line_in_the_standard_format(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    scontrol('echo "$SLURM_TIME_FORMAT $@"')
    assert ask_scontrol("7") == "standard --oneliner show job 7\n"


def test_scontrol_that_fails_or_is_missing_says_nothing(scontrol, monkeypatch):
    scontrol("echo half an answer; exit 1")
    assert ask_scontrol("7") == ""
    monkeypatch.setenv("PATH", "")
    assert ask_scontrol("7") == ""


def test_scontrol_that_hangs_is_given_up(scontrol, monkeypatch):
    monkeypatch.setattr("mpinas.slurm.walltime.SCONTROL_LIMIT_S", 0.2)
    scontrol("exec tail -f /dev/null")
    assert ask_scontrol("7") == ""
