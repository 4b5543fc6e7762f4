"""What a simulated job runs on, in numbers and durations. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from mpinas.simulation.durations import Duration, Fixed

_SECONDS = {name: Fixed(value) for name, value in (("train", 300.0), ("assess", 5.0), ("export", 0.7), ("device", 2.0))}


@dataclass(frozen=True, slots=True)
class Machine:
    """Trainers, exporters and devices, and how long each takes.

    Attributes
    ----------
    trainers
        Ranks that train.
    exporters
        Processes that write untrained candidates as ONNX files.
    devices
        How many there are of each profile; an answer of a device takes its seconds and a round trip of the link.
    train
        A candidate's full budget of epochs, by one trainer.
    serial_share
        Of a training by one trainer, what a group of several does no faster (Amdahl's law).
    assess
        Test file and ONNX file of one finalist.
    measure, judge
        One candidate on one device, before and after its training.
    outages
        From when to when, in seconds from the start, no device is there.
    failed_share
        Of the candidates, in training.
    proposal_s
        How long the coordinator takes for one step of its idle work, a proposal.
    progress
        Whether trainers report every epoch.
    """

    trainers: int
    exporters: int = 1
    devices: int = 1
    train: Duration = _SECONDS["train"]
    serial_share: float = 0.05
    assess: Duration = _SECONDS["assess"]
    export: Duration = _SECONDS["export"]
    measure: Duration = _SECONDS["device"]
    judge: Duration = _SECONDS["device"]
    round_trip_s: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    failed_share: float = 0.0
    proposal_s: float = 0.0
    ranks_per_node: int = 4
    progress: bool = True


def speed_up(serial_share: float, size: int) -> float:
    """How many times faster a group of `size` trains than one trainer.

    Source: G. Amdahl, Validity of the single processor approach, AFIPS 1967.
    """
    return 1.0 / (serial_share + (1.0 - serial_share) / size)
