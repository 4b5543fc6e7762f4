"""How long may this job run? Durations as Slurm writes them, and the end of the Slurm job that we are in.

Pure but for `ask_scontrol`. It reads no clock, and knows nothing of signals or of what is done with the time left.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime

#: Slurm gives a job without a limit an end this far from its start.
YEAR_S = 365 * 86_400.0
#: `scontrol` answers in milliseconds, or the controller is not there.
SCONTROL_LIMIT_S = 10.0

# The forms of sbatch's --time: MIN, MIN:SEC, HOUR:MIN:SEC and, with days, D-HOUR, D-HOUR:MIN, D-HOUR:MIN:SEC.
_FORMS = tuple(
    re.compile(form, re.ASCII)
    for form in (
        r"(?P<minutes>\d+)(:(?P<seconds>[0-5]\d))?",
        r"(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)",
        r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>[0-5]\d)(:(?P<seconds>[0-5]\d))?)?",
    )
)
_UNIT_S = {"days": 86_400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}


def parse_duration(text: str) -> float:
    """Seconds of a duration written as for `sbatch --time`.

    "90" is 90 minutes, as there; "30:00" half an hour, "1:30:00" an hour and a half, "2-12" two days and a half,
    "1-00:30" and "1-00:30:00" a day and half an hour.

    Raises
    ------
    ValueError
        It is none of these, or no time at all; the message is for the user.
    """
    for form in _FORMS:
        if found := form.fullmatch(text.strip()):
            total = sum(_UNIT_S[unit] * int(number) for unit, number in found.groupdict(default="0").items())
            if total == 0:
                raise ValueError(f"{text!r} is no time at all")
            return total
    raise ValueError(f"{text!r} is no duration: write HH:MM:SS, MM:SS, D-HH:MM:SS, D-HH, or minutes")


def format_duration(seconds: float) -> str:
    """A duration as Slurm writes it: H:MM:SS, or D-HH:MM:SS; fractions of a second are dropped."""
    sign, whole = ("-", -int(seconds)) if seconds <= -1 else ("", int(seconds))
    days, rest = divmod(whole, 86_400)
    hours, minutes = divmod(rest // 60, 60)
    clock = f"{minutes:02}:{rest % 60:02}"
    return f"{sign}{days}-{hours:02}:{clock}" if days else f"{sign}{hours}:{clock}"


def job_end(environment: Mapping[str, str], ask: Callable[[str], str]) -> float | None:
    """When Slurm will end the job that `environment` is of.

    Parameters
    ----------
    environment
        Of this process. SLURM_JOB_END_TIME is believed (Slurm 23 and newer set it, as the job starts).
    ask
        Job id -> what `scontrol --oneliner show job` says of it, "" where that fails: `ask_scontrol`.

    Returns
    -------
    Seconds since the epoch; None outside a job, in one without a limit, and where nobody can tell.
    """
    job = environment.get("SLURM_JOB_ID", "")
    if not job:
        return None
    end = _number(environment.get("SLURM_JOB_END_TIME", ""))
    if end is None:
        return _end_told(ask(job), job)
    start = _number(environment.get("SLURM_JOB_START_TIME", ""))
    return None if start is not None and end - start >= YEAR_S else end


def ask_scontrol(job_id: str) -> str:
    """What Slurm knows of a job, one line a component; "" where it does not say within 10 s."""
    try:
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job_id],
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},  # users set others
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SCONTROL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _number(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() else None


def _end_told(lines: str, job: str) -> float | None:
    """Earliest end of the components of a job.

    A heterogeneous job has a line for each component, and ends with the first of them. Asked for the last task of an
    array, Slurm tells of the others too: those are not ours.
    """
    ends = []
    for line in lines.splitlines():
        names = re.match(r"JobId=(\d+)(?: .*?HetJobId=(\d+))?", line)
        # with its neighbours: a job may be named "EndTime=..."
        times = re.search(r" StartTime=\S+ EndTime=(\S+) Deadline=", line)
        if names is not None and times is not None and job in names.groups():
            ends.append(_local_time(times[1]))
    return min((end for end in ends if end is not None), default=None)


def _local_time(text: str) -> float | None:
    """Seconds since the epoch; None for "Unknown", as without a limit.

    In the hour that clocks repeat in autumn, its first passing: the job ends too early rather than too late.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
