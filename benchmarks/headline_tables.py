"""The page docs/results.md from the headline figures of all runs. Must not know where runs lie, nor how they are read.

A run is told as plain values: its kind and seed, the command that made it, the machine, and its figures
(`headline_figures`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headline_figures import PUBLISHED

Run = Mapping[str, Any]
Form = Callable[[float], str]

#: What the kinds of runs are, in the order of the page.
KINDS = {
    "paper": "the paper's space: genes and training genes of `swin3d` around the published video Swin transformer, "
    "with 16 frames, **at 28 x 28 instead of 224 x 224 pixels and in few epochs**, so that a CPU can train them",
    "swin-free": "the wider space `swin3d-free` (frames, picture and windows are searched, too), same baseline",
    "wide": "the wider space `cnn3d`, in single precision or 8-bit integers, on the same windows, with the same epochs "
    "and against the same baseline as `paper`",
    "cnn": "the space `cnn3d` on windows of 8 frames, with longer trainings, against the 3D CNN published with the "
    "data, which is harder to beat",
    "random": "as `cnn`, proposed at random",
    "compress": "no search: the baseline of `cnn`, pruned, distilled and quantised",
}
ALL_SIMULATED = (
    "**All data are simulated** (`mpinas data simulate`, docs/data.md): no real recording was at hand. The figures say "
    "how what was found compares with the baseline on these data, not how good either is at a real machine."
)
SEARCHES = ("paper", "swin-free", "wide", "cnn", "random")


def milliseconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms"


def times(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio(value: float) -> str:
    return f"{value:.2f}"


def share(value: float) -> str:
    return f"{value:.3f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


#: Headings, keys of the figures and how they are written.
HEADLINE: dict[str, tuple[str, Form]] = {
    "x faster, no worse": ("times_faster", times),
    "its x better": ("its_times_better", ratio),
    "x better at best": ("times_better", ratio),
    f"x faster of the {PUBLISHED['times_better']}x better": ("times_faster_where_better", times),
    "x better of that one": ("its_times_better_where_better", ratio),
    f"x better of the {PUBLISHED['times_faster']}x faster": ("times_better_where_faster", ratio),
}
COSTS: dict[str, tuple[str, Form]] = {
    "hypervolume": ("hypervolume", share),
    "evaluated": ("evaluated", whole),
    "trainer seconds": ("trainer_s", whole),
    "baseline: latency": ("baseline_latency_s", milliseconds),
    "baseline: test error": ("baseline_error", share),
}


def spread(values: Sequence[float | None], form: Form) -> str:
    """Mean ± standard deviation of what there is, and of how many: "9.1 ± 0.4", "9.1 in 1 of 3", "none"."""
    there = [each for each in values if each is not None]
    if not there:
        return "none"
    deviation = f" ± {form(statistics.stdev(there))}" if len(there) > 1 else ""
    of = f" in {len(there)} of {len(values)}" if len(there) < len(values) else ""
    return f"{form(statistics.mean(there))}{deviation}{of}"


def page(runs: Sequence[Run], missing: Sequence[str]) -> str:
    """The whole page. `missing`: names of runs that there are none of, or that have not ended."""
    parts = [
        "# Results",
        "Written by `python benchmarks/headline.py table -o docs/results.md` from what finished runs say "
        "(docs/results.json keeps it); nothing is typed in.",
        *preface(runs, missing),
        *_searches([run for run in runs if run["kind"] in SEARCHES]),
        *_compression([run for run in runs if run["kind"] == "compress"]),
    ]
    return "\n\n".join(parts) + "\n"


def preface(runs: Sequence[Run], missing: Sequence[str]) -> list[str]:
    """What must be known before any number is read."""
    lost = [f"**Missing**, because not run or not ended: {', '.join(missing)}."] if missing else []
    if not runs:
        return lost
    simulated, kinds = (sorted({run["kind"] for run in of}) for of in ([r for r in runs if r["simulated"]], runs))
    machines = "; ".join(sorted({run["machine"] for run in runs}))
    threads = " or ".join(str(each) for each in sorted({run["threads"] for run in runs}))
    return [
        ALL_SIMULATED if simulated == kinds else f"Simulated data: {', '.join(simulated) or 'none'}.",
        f"Machine: {machines}. Every latency is the median of single runs at batch size 1 of the ONNX file, by ONNX "
        f"Runtime on this machine's CPU (threads: {threads}), measured by the device agent beside the trainers, which "
        "run at a lower priority. Errors are those on the test file, of the model in the precision it runs in; "
        "networks are chosen by their validation errors. Of a search, baseline and candidates had the same data, "
        "epochs and batch size.",
        *lost,
    ]


def _searches(runs: Sequence[Run]) -> list[str]:
    kinds = [kind for kind in SEARCHES if any(run["kind"] == kind for run in runs)]
    if not kinds:
        return []
    by_kind = {kind: [run for run in runs if run["kind"] == kind] for kind in kinds}
    rows = [headline_row(kind, of) for kind, of in by_kind.items()]
    claims = [times(PUBLISHED["times_faster"]), ratio(PUBLISHED["times_better"])]
    published = ["published (arXiv 2505.19995)", "", claims[0], "", claims[1], *[""] * 6]
    costs = [[f"`{kind}`", *_cells(COSTS, of), whole(sum(run["figures"]["refused"] for run in of))]
             for kind, of in by_kind.items()]  # fmt: skip
    return [
        "## Faster and better than the human-designed baseline",
        "Mean ± standard deviation over the seeds, of members of the Pareto front. `no worse`: of those whose "
        "validation error is no larger than the baseline's. `best`: with the smallest validation error. `keeps up`: "
        "the latency of the fastest that is no worse is no longer than the camera (20 kHz) takes for a window; in how "
        "many of the seeds.",
        markdown(["run", "seeds", *HEADLINE, "its latency", "window lasts", "keeps up"], [published, *rows]),
        "\n".join(f"- `{kind}`: {KINDS[kind]}" for kind in kinds),
        "`hypervolume`: share of the box between zero and the baseline (validation error, latency) that the front "
        "dominates. `evaluated`: networks trained and judged, the baseline among them. `not accepted`: front members "
        "left out, over all seeds, because they have no test error, or one on the device that was not expected.",
        markdown(["run", *COSTS, "not accepted"], costs),
        commands([run for of in by_kind.values() for run in of]),
    ]


def headline_row(kind: str, runs: Sequence[Run]) -> list[str]:
    """Its cells in the first table."""
    figures = [run["figures"] for run in runs]
    windows = sorted({each["window_s"] for each in figures})
    return [
        f"`{kind}`",
        str(len(runs)),
        *_cells(HEADLINE, runs),
        spread([each["latency_s"] for each in figures], milliseconds),
        ", ".join(map(milliseconds, windows)),
        f"{sum(each['keeps_up'] for each in figures)} of {len(figures)}",
    ]


def _cells(columns: Mapping[str, tuple[str, Form]], runs: Sequence[Run]) -> list[str]:
    return [spread([run["figures"][key] for run in runs], form) for key, form in columns.values()]


def _compression(runs: Sequence[Run]) -> list[str]:
    if not runs:
        return []
    return [
        "## Compression of the baseline instead of search",
        f"Mean ± standard deviation; seeds: {len(runs)}. Pruned and quantised networks begin with the weights of the "
        "trained baseline and are trained as long once more: they have seen the data twice as often as the baseline, "
        "and as the candidates of a search.",
        markdown(
            ["method", "channels kept", "precision", "x faster", "x better, test", "x better, validation"],
            compression_rows(runs),
        ),
        commands(runs),
    ]


def compression_rows(runs: Sequence[Run]) -> list[list[str]]:
    """One for each way of compression that any of the runs has, in the order of their appearance."""
    ways: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        for each in run["figures"]:
            ways.setdefault((each["method"], each["keep"], each["precision"]), []).append(each)
    return [
        [
            way[0],
            f"{way[1]:.1%}".replace(".0%", "%"),
            way[2],
            spread([each["times_faster"] for each in found], times),
            spread([each["times_better"] for each in found], ratio),
            spread([each["times_better_validation"] for each in found], ratio),
        ]
        for way, found in ways.items()
    ]


def commands(runs: Sequence[Run]) -> str:
    """What made each of these."""
    return "```sh\n" + "\n".join(f"{run['command']}  # {run['name']}" for run in runs) + "\n```"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
