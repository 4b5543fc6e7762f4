"""Try each fault many times on real processes, and keep the table of docs/reliability.md.

    python benchmarks/bridge_faults.py [--trials 20] [--only NAME]… [--json | --read JSON…] [--write PAGE]

The trials themselves are in `tests/bridge/faults.py`. Wants root for the cut link and the full disk, and libfaketime
for the clock; a fault that cannot be tried here is left out, with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bridge")]

from faults import FAULTS, Fault, Outcome, try_fault  # noqa: E402 - from the tests' folder
from pages import replace_table  # noqa: E402

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
#: Long faults are waited for by at most so many trials at once, begun one after the other.
AT_ONCE, APART_S = 10, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), default=[])
    parser.add_argument("--json", action="store_true", help="print every outcome as JSON instead of the table")
    parser.add_argument("--write", type=Path, help="page whose table is to be replaced")
    parser.add_argument("--read", type=Path, nargs="+", help="try nothing: take what earlier runs printed with --json")
    arguments = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {}
    left_out: dict[str, str] = {}
    commands = [] if arguments.read else [shlex.join(["python", "benchmarks/bridge_faults.py", *sys.argv[1:]])]
    for file in arguments.read or []:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        commands.append(earlier["command"])
        for each in earlier["outcomes"]:
            outcomes.setdefault(each["fault"], []).append(Outcome(**each))
    for name in [] if arguments.read else arguments.only or FAULTS:
        obstacle = FAULTS[name].obstacle()
        if obstacle is not None:
            left_out[FAULTS[name].name] = obstacle
            print(f"{FAULTS[name].name}: left out, {obstacle}", file=sys.stderr)
            continue
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.trials)
        outcomes[FAULTS[name].name] = _try_all(FAULTS[name], list(seeds))
    if arguments.json:
        every = [dataclasses.asdict(each) for tried in outcomes.values() for each in tried]
        found = {"command": commands[0], "cores": os.cpu_count(), "outcomes": every, "left_out": left_out}
        print(json.dumps(found, indent=1))
    else:
        print(table(outcomes, left_out, commands))
    if arguments.write:
        replace_table(arguments.write, BEGIN, END, table(outcomes, left_out, commands))
    if any(_bad(each) for tried in outcomes.values() for each in tried):
        sys.exit(1)


def table(outcomes: dict[str, list[Outcome]], left_out: dict[str, str], commands: list[str]) -> str:
    """One row for each fault, and how it was filled."""
    rows = [
        "| fault | trials | requests | lost | error answers | measured twice | hangs | back in service, p50 / max |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, tried in outcomes.items():
        back_s = [each.back_s for each in tried]
        counts = [
            len(tried),
            *(sum(getattr(each, what) for each in tried) for what in ("requests", "lost", "errors", "twice", "hung")),
        ]
        times = f"{statistics.median(back_s):.2f} s / {max(back_s):.2f} s"
        rows.append(f"| {name} | {' | '.join(map(str, counts))} | {times} |")
    rows += [f"| {name} | 0 | left out: {why} | | | | | |" for name, why in left_out.items()]
    told = ", ".join(f"`{each}`" for each in commands)
    return "\n".join([*rows, "", f"Filled by {told} on {date.today()}, {os.cpu_count()} cores."])


def _try_all(fault: Fault, seeds: list[int]) -> list[Outcome]:
    """One after the other; several at once where most of a trial is waiting for the fault to end."""
    at_once = min(AT_ONCE, 1 + int(statistics.mean(fault.lasts_s) / 5))
    waits = [APART_S * index if index < at_once else 0.0 for index in range(len(seeds))]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(_try, [fault] * len(seeds), seeds, waits))


def _try(fault: Fault, seed: int, wait_s: float) -> Outcome:
    time.sleep(wait_s)
    folder = Path(tempfile.mkdtemp(prefix="mpinas-fault-"))
    try:
        outcome = try_fault(fault, folder, seed)
    except Exception as error:
        last = (str(error).strip().splitlines() or [repr(error)])[-1]
        print(f"{fault.name}, seed {seed}: the trial itself failed, see {folder}: {last}", file=sys.stderr)
        return Outcome(fault.name, seed, 0, 0, 0, 0, 1, math.inf, f"trial failed: {last}"[:500])
    kept = ""
    if _bad(outcome) or outcome.remark:
        kept = f", logs in {folder}"
    else:
        shutil.rmtree(folder)
    print(f"{outcome}{kept}", file=sys.stderr, flush=True)
    return outcome


def _bad(outcome: Outcome) -> bool:
    allowed = next(fault.errors for fault in FAULTS.values() if fault.name == outcome.fault)
    return bool(outcome.lost or outcome.twice or outcome.hung or outcome.errors > allowed or outcome.back_s > 5.0)


if __name__ == "__main__":
    main()
