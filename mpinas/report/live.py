"""A run while it goes on: a live display on a terminal, plain timed lines anywhere else."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.candidate import Candidate
from mpinas.coordination.failures import NO_CHECKPOINT, NOT_RUN
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.report.terminal import terminal_size

#: Stands behind a latency that should not be relied on, and behind one that no device has measured.
DOUBTFUL = "~"
PREDICTED = "predicted"


def line_of(event: ev.Event, ledger: Ledger) -> str | None:  # noqa: PLR0911, PLR0912 - one case a kind of event
    """One line of a log, or None for what a reader of the log need not know."""
    match event:
        case ev.Begun():
            done = len(ledger.evaluated)
            begins = f"resumed: {done} candidates evaluated before" if done else "search begins"
            return f"{begins} (task {ledger.task}, SIMULATED data)" if ledger.simulated else begins
        case msg.Ready(rank, host, device):
            return f"trainer {rank} ready on {host}, {device}"
        case msg.Withdrawn(rank, detail):
            return _line_of_withdrawn(rank, detail)
        case ev.Measured() | ev.MeasurementFailed() | ev.Doubted() | ev.Judged() | ev.JudgingFailed():
            return _line_of_device(event, ledger)
        case ev.Rejected(candidate, reason):
            return f"candidate {candidate} rejected: {reason}"
        case ev.GivenUp(candidate, work, reason):
            return f"{name_of(candidate)}: no more orders to {work}: {reason}"
        case ev.ExportFailed(candidate, detail):
            return f"candidate {candidate} failed: export: {detail}"
        case ev.Predicted(candidate, latencies_s):
            values = ", ".join(milliseconds(median_s) for median_s, _ in latencies_s.values())
            return f"candidate {candidate}: no answer from the device yet; goes by {values}, {PREDICTED}"
        case ev.Promoted(candidate, rung):
            return f"candidate {candidate} goes on to {ledger.terms.rungs[rung]} epochs"
        case msg.EvaluationFailed(_, candidate, _, reason, detail):
            failed = ledger.candidates[candidate].state is State.FAILED
            outcome = "begins anew" if reason == NO_CHECKPOINT else "failed" if failed else "will be tried again"
            return f"{name_of(candidate)} {outcome}: {reason}: {detail}"
        case msg.Progress(candidate=msg.SUPERNET, epoch=epoch, epochs=epochs, error=largest):
            return f"supernet: epoch {epoch} of {epochs}, error of the largest subnet {largest:.4f}"
        case msg.SupernetTrained(metrics=metrics, train_seconds=took_s):
            return f"supernet trained in {took_s:.1f} s: error of its best subnet {metrics['error']:.4f}"
        case msg.SupernetFailed(reason=reason, detail=detail):
            return f"supernet failed: {reason}: {detail}"
        case msg.Evaluated(_, candidate, _, metrics, seconds):
            it = ledger.candidates[candidate]
            place = " *front*" if candidate in ledger.front else ""
            latencies = "".join(f", {latency_of(it, device)}" for device in it.readings)
            who = f"{name_of(candidate)} evaluated in {seconds:.1f} s{_epochs(it, ledger)}"
            return f"{who}: error {metrics['error']:.4f}{latencies}{place}"
        case msg.Retrained(_, candidate, _, metrics, test_metrics, seconds):
            test = f", test error {test_metrics['error']:.4f}" if test_metrics else ""
            return f"{name_of(candidate)} trained again in {seconds:.1f} s: error {metrics['error']:.4f}{test}"
        case msg.RetrainingFailed(_, candidate, _, reason, detail):
            return f"{name_of(candidate)} could not be trained again: {reason}: {detail}"
        case msg.Assessed(_, candidate, _, metrics):
            error = f"test error {metrics['error']:.4f}, " if metrics else ""
            return f"{name_of(candidate)} assessed: {error}ONNX file written"
        case msg.AssessmentFailed(_, candidate, _, reason, detail):
            return f"{name_of(candidate)} could not be assessed: {reason}: {detail}"
        case ev.DeviceLost(detail, device):
            which = f"device{_on(device, ledger).removeprefix(' on')}"
            return f"{which} lost: {detail}; measurements wait, training goes on"
        case ev.DeviceBack(detail, device):
            return f"device{_on(device, ledger).removeprefix(' on')} there: {detail}"
        case ev.Enough(reason):
            return f"{reason}: nothing new is begun"
        case ev.StopRequested(reason):
            return f"{reason}: stopping; `--resume` goes on from here"
        case ev.Finished(reason):
            return f"finished: {reason}"
        case _:
            return None


def _line_of_device(
    event: ev.Measured | ev.MeasurementFailed | ev.Doubted | ev.Judged | ev.JudgingFailed, ledger: Ledger
) -> str:
    """What a device has said of a candidate."""
    match event:
        case ev.Measured(candidate, device=device, doubts=doubts):
            device = device or ledger.terms.devices[0]
            line = f"{name_of(candidate)} measured{_on(device, ledger)}: p50 {milliseconds(event.measurement['p50_s'])}"
            if not doubts:
                return line
            again = "measured again" if (candidate, device) in ledger.unsettled else f"{DOUBTFUL} used, in doubt"
            return f"{line}; {', '.join(doubts)}: {again}"
        case ev.MeasurementFailed(candidate, reason, detail, device):
            it = ledger.candidates[candidate]
            reading = it.readings.get(device or ledger.terms.devices[0])
            if reading is None or it.state is State.FAILED:
                ends = "failed"
            elif reading.refused:
                ends = f"cannot be on the front{_on(device, ledger)}"
            else:
                ends = f"stays {PREDICTED if reading.predicted else 'in doubt'}{_on(device, ledger)}"
            return f"{name_of(candidate)} {ends}: measurement: {reason}: {detail}"
        case ev.Doubted(request_ids, detail):
            return f"{len(request_ids)} measurement(s) in doubt: {detail}"
        case ev.Judged(candidate, device, error, expected, by=by):
            accepted = "accepted" if ledger.terms.accepts(error, expected) else "NOT ACCEPTED"
            there = f"error {error:.4f} on its samples, {expected:.4f} expected"
            return f"{name_of(candidate)} {accepted} on {by or device}: {there}"
        case ev.JudgingFailed(candidate, device, reason, detail):
            outcome = "not checked" if reason in NOT_RUN else "NOT ACCEPTED"
            return f"{name_of(candidate)} {outcome} on {device}: {reason}: {detail}"


def withdrawn(ledger: Ledger) -> list[str]:
    """The trainers of the last job whose GPU failed, in words."""
    return [_line_of_withdrawn(it.rank, it.withdrawn) for it in ledger.trainers.values() if it.withdrawn]


def _line_of_withdrawn(rank: int, detail: str) -> str:
    return f"trainer {rank} gets no more orders: its GPU failed ({detail})"


def _epochs(candidate: Candidate, ledger: Ledger) -> str:
    """After how many epochs, where there are several budgets."""
    return f" ({candidate.epochs_done} epochs)" if ledger.terms.last_rung > 0 else ""


def name_of(candidate: int) -> str:
    """A candidate for people."""
    return {BASELINE: "baseline", msg.SUPERNET: "supernet"}.get(candidate, f"candidate {candidate}")


def latency_of(candidate: Candidate, device: str) -> str:
    """Its latency on a device for people, marked where it is in doubt."""
    reading = candidate.readings.get(device)
    if reading is None:
        return "-"
    mark = f" {PREDICTED}" if reading.predicted else f" {DOUBTFUL}" if reading.doubts else ""
    return milliseconds(reading.latency_s) + mark


def latency_columns(ledger: Ledger) -> list[str]:
    """Heads of the columns of latencies, one for each device."""
    devices = ledger.terms.devices
    return ["latency p50"] if len(devices) == 1 else [f"p50 {device}" for device in devices]


def _on(device: str, ledger: Ledger) -> str:
    return f" on {device}" if len(ledger.terms.devices) > 1 else ""


def milliseconds(seconds: float | None) -> str:
    """A latency for people."""
    return "-" if seconds is None else f"{seconds * 1e3:.3f} ms"


class LineDisplay:
    """Plain timed lines, one an event that matters."""

    def __init__(self, out: TextIO, evaluations: int) -> None:
        self._out = out
        self._evaluations = evaluations
        self._began: float | None = None

    def show(self, event: ev.Event, time: float, ledger: Ledger) -> None:
        """Print the event's line."""
        if self._began is None:
            self._began = time
        line = line_of(event, ledger)
        if line is not None:
            done = f"{len(ledger.evaluated)}/{self._evaluations}"
            print(f"[{time - self._began:7.1f} s {done:>7}] {line}", file=self._out, flush=True)

    def tick(self, time: float, ledger: Ledger) -> None:
        """Lines need no clock."""

    def close(self) -> None:
        """Nothing is open."""


#: When all candidates have been evaluated and the search is not at its end.
BEST_GO_ON = "the best are trained on and tested"


class LiveDisplay:
    """A display that is redrawn in place: progress, time left, groups, the front, the latest lines."""

    def __init__(self, console: Console, evaluations: int) -> None:
        self._evaluations = evaluations
        self._began: float | None = None
        #: Candidates that earlier jobs have evaluated.
        self._done_before = 0
        self._lines: deque[str] = deque(maxlen=6)
        self._drawn = 0.0
        #: Of the last event: what `close` draws.
        self._last: tuple[float, Ledger] | None = None
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        console.show_cursor(True)  # else it stays hidden where a launcher kills this process

    def show(self, event: ev.Event, time: float, ledger: Ledger) -> None:
        """Take the event's line in."""
        if self._began is None:
            self._began, self._done_before = time, len(ledger.evaluated)
        line = line_of(event, ledger)
        if line is not None:
            self._lines.append(f"[{time - self._began:7.1f} s] {line}")
        self._last = (time, ledger)
        self.tick(time, ledger)

    def tick(self, time: float, ledger: Ledger) -> None:
        """Draw, at most four times a second."""
        if time - self._drawn >= 0.25:
            self._drawn = time
            self._live.update(self.render(time, ledger), refresh=True)

    def close(self) -> None:
        """Leave the last picture on the terminal."""
        if self._last is not None:
            self._live.update(self.render(*self._last))
        self._live.stop()

    def render(self, time: float, ledger: Ledger) -> RenderableType:
        """The whole picture at this moment."""
        done = len(ledger.evaluated)
        elapsed = time - (self._began or time)
        counts = ", ".join(f"{len(ids)} {state.lower()}" for state, ids in ledger.standing.items() if ids)
        head = Table.grid(padding=(0, 1))
        here = done - self._done_before
        left = f"about {duration(elapsed / here * (self._evaluations - done))} left" if here > 0 else ""
        if done >= self._evaluations:
            left = BEST_GO_ON
        head.add_row(
            f"{done}/{self._evaluations} candidates", ProgressBar(self._evaluations, done, width=30),
            duration(elapsed), left,
        )  # fmt: skip
        parts: list[RenderableType] = [head, Text(counts, style="dim")]
        if ledger.device_lost:
            parts.append(Text(f"device lost: {ledger.device_lost}", style="bold red"))
        parts += [self._groups(time, ledger), self._front(ledger), Text("\n".join(self._lines), style="dim")]
        return Group(*parts)

    def _groups(self, time: float, ledger: Ledger) -> Table:
        table = Table("ranks", "do", "epoch", "since", box=None, padding=(0, 2, 0, 0))
        for group in list(ledger.groups.values())[:12]:
            order = group.order
            epoch = "" if order.work == "assess" else str(ledger.known(order.candidate).epoch)
            what = order.work if order.candidate == msg.SUPERNET else f"{order.work} {order.candidate}"
            table.add_row(_ranks(group.members), what, epoch, duration(time - group.since))
        if len(ledger.groups) > 12:
            table.add_row("…", f"and {len(ledger.groups) - 12} groups more", "", "")
        if ledger.idle:
            table.add_row(f"{len(ledger.idle)} of {len(ledger.trainers)}", "wait", "", "")
        return table

    def _front(self, ledger: Ledger) -> Table:
        table = Table("front", "error", *latency_columns(ledger), "", box=None, padding=(0, 2, 0, 0))
        members = sorted(ledger.front, key=lambda id_: ledger.candidates[id_].latency_s or 0.0)
        for id_ in members[:10]:
            it = ledger.candidates[id_]
            name = "baseline" if id_ == BASELINE else str(id_)
            verdict = "NOT ACCEPTED" if ledger.accepted(it) is False else ""
            latencies = (latency_of(it, device) for device in ledger.terms.devices)
            table.add_row(name, f"{it.error:.4f}", *latencies, verdict)
        if len(members) > 10:
            table.add_row("…", f"and {len(members) - 10} more")
        if any(ledger.candidates[id_].doubts for id_ in members):
            table.caption, table.caption_justify = f"{DOUBTFUL} = measurement in doubt", "left"
        return table


def _ranks(members: tuple[int, ...]) -> str:
    """World ranks for people, in little room."""
    return ", ".join(map(str, members)) if len(members) <= 4 else f"{members[0]} … {members[-1]} ({len(members)})"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


class LoggedDisplay:
    """A live display whose lines are kept in a file, too."""

    def __init__(self, live: LiveDisplay, log: Path, evaluations: int) -> None:
        self._live = live
        self._file = open(log, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the job runs
        self._lines = LineDisplay(self._file, evaluations)

    def show(self, event: ev.Event, time: float, ledger: Ledger) -> None:
        """Show and write the event's line."""
        self._lines.show(event, time, ledger)
        self._live.show(event, time, ledger)

    def tick(self, time: float, ledger: Ledger) -> None:
        """Draw, at most four times a second."""
        self._live.tick(time, ledger)

    def close(self) -> None:
        """Leave the last picture on the terminal."""
        self._file.close()
        self._live.close()


def open_display(out: TextIO, evaluations: int, log: Path) -> LineDisplay | LoggedDisplay:
    """A live display where a terminal shows `out`, and its lines in the file `log`; else lines on `out`."""
    size = terminal_size(out, os.environ)
    if size is None:
        return LineDisplay(out, evaluations)
    console = Console(file=out, force_terminal=True, width=size[0], height=size[1])
    return LoggedDisplay(LiveDisplay(console, evaluations), log, evaluations)
