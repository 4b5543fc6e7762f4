"""Faults against a bridge of real processes, each as a trial whose outcome is counted.

A trial: relay, device and job, each a process; the job asks for a few small models; while one of them is being
measured, at a moment drawn from the seed, the fault strikes, lasts a while and ends. Then all must be answered.
At last all is started again and another job asks for the same: the store has to know it all. Used by
`test_faults.py` (each fault once, quick) and `benchmarks/bridge_faults.py` (each twenty times).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import bridge_models
import msgspec
from bridge_link import CutLink, why_no_link
from bridge_processes import LIMIT_S, ROOT, Bridge, Process, children_of

from edge_bridge.wire.quantities import Settings

#: A model takes about 0.3 s, so that "back in service" is not the time of one measurement.
SETTINGS = Settings(min_seconds=0.3, max_seconds=5.0, warmup_max_seconds=0.1, attempts=1)
#: After the fault's end everything must be answered within so long.
ANSWER_S = 60.0
#: A process that was asked to end and is still there after so long hangs.
END_S = 5.0
MARK = "MPINAS_TRIAL"
_MEASURED_LINE = re.compile(r"request ([0-9a-f]{8}): p50 ")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one trial.

    Attributes
    ----------
    lost
        Requests without any answer `ANSWER_S` after the fault's end.
    errors
        Requests answered by an error instead of a measurement.
    twice
        Requests whose measuring was completed more than once, as the device's own log tells.
    hung
        Processes that did not end within `END_S` of SIGTERM, or that outlived their parents.
    back_s
        From the fault's end to the next word about a measurement that reaches the job.
    """

    fault: str
    seed: int
    requests: int
    lost: int
    errors: int
    twice: int
    hung: int
    back_s: float
    remark: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break a bridge.

    Attributes
    ----------
    strike, end
        Begin and end it; what was killed is started again by `end`.
    lasts_s
        Range that the time between the two is drawn from.
    errors
        Error answers that the fault is allowed to cost.
    obstacle
        Why it cannot be tried here, or None.
    needs
        What has to be set up for it: "link" (the device's), "job link", "disk", "clock" or nothing.
    models
        Asked for in a trial; more where the service goes on while the fault lasts.
    """

    name: str
    strike: Callable[[Rig, random.Random], None]
    end: Callable[[Rig], None]
    lasts_s: tuple[float, float]
    errors: int = 0
    obstacle: Callable[[], str | None] = lambda: None
    needs: str = ""
    models: int = 6


class Service(Process):
    """A process of a trial, with a mark in its environment that its children inherit."""

    def __init__(self, log: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self.log = log
        with open(log, "wb") as stream:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": f"{ROOT}", "PYTHONWARNINGS": "", **environment},
            )


class Rig:
    """The processes of one trial, and what the job has said."""

    def __init__(self, folder: Path, needs: str, models: int) -> None:
        self.folder = folder
        self.bridge = Bridge(folder)
        self.mark = uuid.uuid4().hex
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._services: list[Service] = []
        self._needs = needs
        self._count = 0
        self.link: CutLink | None = CutLink() if "link" in needs else None
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        if needs == "disk":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.state)], check=True, timeout=20)
        (folder / "models").mkdir()
        for seed in range(models):
            (folder / "models" / f"{seed}.onnx").write_bytes(bridge_models.linear(64, seed))
        self.relay = self.device = self.job = None  # type: Service | None
        self.asked: dict[str, int] = {}

    def start_relay(self) -> None:
        host = self.link.host if self.link else "127.0.0.1"
        keys = ("--key", str(self.folder / "relay.key"), "--allow", str(self.bridge.allowed))
        self.relay = self._start("relay", "relay", "--connection", str(self.bridge.file), "--bind", host, *keys)

    def start_device(self) -> None:
        paths = ("--key", str(self.folder / "device.key"), "--state", str(self.state))
        # Without the watch by the reference model: on a busy machine it doubts, rightly, and has models measured anew.
        options = ("--name", "dut", "--no-reference")
        self.device = self._start("device", "device", str(self.bridge.file), *paths, *options)

    def start_job(self) -> None:
        script = str(Path(__file__).parent / "bridge_job.py")
        settings = msgspec.json.encode(SETTINGS).decode()
        arguments = (str(self.bridge.file), str(self.folder / "job.key"), str(self.folder / "models"), settings)
        prefix = self.link.prefix if self.link and self._needs == "job link" else ()
        self.job = self._spawn("job", [*prefix, sys.executable, script, *arguments])
        threading.Thread(target=self._read, args=(self.job,), daemon=True).start()

    def clock(self, who: str) -> Path:
        """File with the false time of a kind of process."""
        return self.folder / f"clock-{who}"

    def wait(self, wanted: Callable[[dict[str, Any]], bool], limit_s: float) -> bool:
        """Listen to the job until the wanted line has come; say whether it has."""
        end_s = time.monotonic() + limit_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left_s)
            except queue.Empty:
                break
            self.said.append(line)
            if line["kind"] == "asked":
                self.asked[line["id"]] = int(line["model"].partition(".")[0])
            if wanted(line):
                return True
        return False

    def answered(self) -> dict[str, str]:
        """Requests with an answer, and its kind."""
        return {line["id"]: line["kind"] for line in self.said if line["kind"] in ("measured", "failed")}

    def completed(self) -> Counter[str]:
        """How often each measurement was completed, from the logs of all the devices there were."""
        texts = [service.log.read_text(errors="replace") for service in self._services if "device" in service.log.name]
        return Counter(each for text in texts for each in _MEASURED_LINE.findall(text))

    def deepest(self, pid: int) -> int:
        """The model's process; between two models the one that makes them."""
        while children := children_of(pid):
            pid = children[-1]
        return pid

    def stop(self) -> list[str]:
        """End everything as a service manager would; return what did not end."""
        hung = []
        for service in (self.job, self.device, self.relay):
            if service is None or service.popen.poll() is not None:
                continue
            service.popen.terminate()
            try:
                service.popen.wait(END_S)
            except subprocess.TimeoutExpired:
                hung.append(service.log.name)
        end_s = time.monotonic() + END_S
        while (strays := self._marked()) and time.monotonic() < end_s:
            time.sleep(0.02)
        return hung + [f"stray process {pid}" for pid in strays if not hung]

    def close(self) -> None:
        """Remove everything, whatever state it is in."""
        for service in self._services:
            service.close()
        for pid in self._marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.link:
            self.link.close()
        if self._needs == "disk":
            subprocess.run(["umount", "-l", str(self.state)], check=False, timeout=20)

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, who: str, *arguments: str) -> Service:
        prefix = self.link.prefix if self._needs == "link" and self.link and who == "device" else ()
        service = self._spawn(who, [*prefix, sys.executable, "-m", "edge_bridge", *arguments])
        service.line()  # it listens, or the relay has taken it
        return service

    def _spawn(self, who: str, command: Sequence[str]) -> Service:
        self._count += 1
        environment = {MARK: self.mark}
        if self._needs == "clock":
            self.clock(who).write_text("+0")
            environment |= _false_clock(self.clock(who))
        service = Service(self.folder / f"{who}-{self._count}.log", command, environment)
        self._services.append(service)
        return service

    def _read(self, job: Service) -> None:
        assert job.popen.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed with the trial
            for line in job.popen.stdout:
                self._lines.put(json.loads(line))

    def _marked(self) -> list[int]:
        return list(_processes_with(f"{MARK}={self.mark}".encode()))


def try_fault(fault: Fault, folder: Path, seed: int) -> Outcome:
    """Run one trial of a fault in an empty folder."""
    rng = random.Random(seed)
    models = fault.models
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(Rig(folder, fault.needs, models))
        rig.start_relay()
        rig.start_device()
        rig.start_job()
        victim = rng.randrange(1, 4)
        begun = rig.wait(lambda line: line.get("phase") == "measuring" and rig.asked[line["id"]] == victim, LIMIT_S)
        assert begun, f"the bridge did not come to model {victim} even without a fault: {rig.said[-3:]}, {folder}"
        time.sleep(rng.uniform(0.0, 0.3))
        fault.strike(rig, rng)
        time.sleep(rng.uniform(*fault.lasts_s))
        ended_s = time.monotonic()
        fault.end(rig)
        rig.wait(lambda _: len(rig.answered()) == models, ANSWER_S)
        words = [line["at_s"] for line in rig.said if line["kind"] in ("measured", "progress")]
        back_s = min((at_s - ended_s for at_s in words if at_s > ended_s), default=float("inf"))
        answers = rig.answered()
        failures = [line for line in rig.said if line["kind"] == "failed"]
        remarks = [f"{line['reason']}: {line['detail']}" for line in failures]
        hung = rig.stop()
        lost = models - len(answers)
        if not hung:
            lost += _ask_again(rig, models)
            hung = rig.stop()
        completed = rig.completed()
        twice = [each for each, count in completed.items() if count > 1]
        blind = [each for each, kind in answers.items() if kind == "measured" and not completed[each[:8]]]
        # A device that was killed between keeping a result and writing the line leaves one out.
        assert len(blind) <= 1, f"the device's log does not tell what it measured: {blind}, {folder}"
        return Outcome(
            fault=fault.name,
            seed=seed,
            requests=models,
            lost=lost,
            errors=len(failures),
            twice=len(twice),
            hung=len(hung),
            back_s=back_s,
            remark="; ".join([*remarks, *hung, *(f"{each} twice" for each in twice)]),
        )


def _ask_again(rig: Rig, models: int) -> int:
    """Start everything again and ask for the same; return how many were not answered."""
    rig.said.clear()
    rig.start_relay()
    rig.start_device()
    rig.start_job()
    rig.wait(lambda _: len(rig.answered()) == models, ANSWER_S)
    return models - len(rig.answered())


def _processes_with(mark: bytes) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                yield int(entry.name)


# The faults


def _kill(who: str) -> Callable[[Rig, random.Random], None]:
    return lambda rig, _: getattr(rig, who).kill()


def _kill_model(rig: Rig, rng: random.Random) -> None:
    assert rig.device is not None
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(rig.deepest(rig.device.popen.pid), signal.SIGKILL)


def _stop_agent(rig: Rig, rng: random.Random) -> None:
    assert rig.device is not None
    os.kill(rig.device.popen.pid, signal.SIGSTOP)


def _stop_tree(rig: Rig, rng: random.Random) -> None:
    assert rig.device is not None
    pids = [rig.device.popen.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        pids += children_of(pid)


def _continue(rig: Rig) -> None:
    assert rig.device is not None
    pids = [rig.device.popen.pid]
    for pid in pids:
        pids += children_of(pid)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def _cut(rig: Rig, rng: random.Random) -> None:
    assert rig.link is not None
    rig.link.cut()


def _mend(rig: Rig) -> None:
    assert rig.link is not None
    rig.link.mend()


def _fill(rig: Rig, rng: random.Random) -> None:
    with open(rig.state / "filler", "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            # In small pieces, so that not a page is left.
            stream.write(b"\0" * 1024)


def _free(rig: Rig) -> None:
    (rig.state / "filler").unlink()


def _jump(rig: Rig, rng: random.Random) -> None:
    for who in rng.sample(["relay", "device", "job"], rng.randint(1, 3)):
        rig.clock(who).write_text(rng.choice(["+1d", "-1d"]))


def _jump_back(rig: Rig) -> None:
    for who in ("relay", "device", "job"):
        rig.clock(who).write_text("+0")


def _nothing(rig: Rig) -> None:
    """The fault is over by itself."""


def _false_clock(file: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(_faketime()),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def _faketime() -> Path | None:
    places = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), *Path("/usr/local/lib").glob("faketime/*.so.1")]
    return places[0] if places else None


def _why_no_clock() -> str | None:
    return None if _faketime() else "a clock jump wants libfaketime (Debian: faketime)"


def _why_no_disk() -> str | None:
    return None if os.geteuid() == 0 else "a full disk wants root, for a small tmpfs"


def cut(seconds: float) -> Fault:
    """The link between device and relay drops everything for so long."""
    return Fault(f"link cut {seconds:g} s", _cut, _mend, (seconds, seconds), obstacle=why_no_link, needs="link")


#: By the name that `benchmarks/bridge_faults.py --only` takes.
FAULTS: dict[str, Fault] = {
    "kill-relay": Fault("SIGKILL relay", _kill("relay"), lambda rig: rig.start_relay(), (0.0, 2.0)),
    "kill-device": Fault("SIGKILL device", _kill("device"), lambda rig: rig.start_device(), (0.0, 2.0)),
    "kill-model": Fault("SIGKILL model child", _kill_model, _nothing, (0.0, 0.0), errors=1),
    "kill-job": Fault("SIGKILL job", _kill("job"), lambda rig: rig.start_job(), (0.0, 2.0)),
    "stop-agent": Fault("SIGSTOP device agent", _stop_agent, _continue, (0.5, 14.0)),
    "stop-tree": Fault("SIGSTOP device and its children", _stop_tree, _continue, (0.5, 14.0)),
    "cut-1": cut(1.0),
    "cut-10": cut(10.0),
    "cut-60": cut(60.0),
    "cut-job-10": replace(cut(10.0), name="link cut 10 s, at the job", needs="job link"),
    "full-disk": Fault("disk full", _fill, _free, (0.5, 2.0), obstacle=_why_no_disk, needs="disk", models=12),
    "clock": Fault("clock jump", _jump, _jump_back, (0.5, 2.0), obstacle=_why_no_clock, needs="clock", models=12),
}
