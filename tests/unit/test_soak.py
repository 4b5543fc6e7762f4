"""The pure part of benchmarks/soak.py: slopes by value, what counts of a life, and the table."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from soak_figures import (  # noqa: E402 - found through the path just set
    Ended,
    History,
    Sample,
    Slope,
    Strike,
    good,
    of_processes,
    pooled,
    slope,
    table,
    warm,
)

KIB_A_SECOND = 1024 / 3600  # 1 MiB an hour
ENDED = Ended(0, "USR2", 75, False, 600.0, 300, 2, 1, 0, 0, 0)


def life(role="relay", pid=1, seconds=600, a_second=0.0, evaluated_a_second=0.5):
    """A process that takes 50 MiB in its first minute, and then grows."""
    return [
        Sample(
            job=0,
            role=role,
            pid=pid,
            began=7,
            age_s=float(age_s),
            own_kib=round(51200 * min(1, age_s / 60) + a_second * age_s),
            rss_kib=90000,
            evaluated=int(age_s * evaluated_a_second),
        )
        for age_s in range(0, seconds, 5)
    ]


def hourly(process):
    return slope(process, lambda each: each.age_s / 3600)


def test_the_slope_is_that_after_the_warm_up():
    found = hourly(warm(life(a_second=KIB_A_SECOND), 60, 300))
    assert found.value == pytest.approx(1024, rel=0.02)
    assert found.low <= found.value <= found.high
    assert found.span == pytest.approx(540 / 3600, rel=0.1)


def test_memory_that_is_flat_has_no_slope():
    assert hourly(warm(life(), 60, 300)) == Slope(0.0, 0.0, 0.0, pytest.approx(510 / 3600))


def test_a_few_wild_samples_do_not_change_the_slope():
    process = warm(life(a_second=KIB_A_SECOND), 60, 300)
    wild = [replace(each, own_kib=10**6) if index % 20 == 3 else each for index, each in enumerate(process)]
    assert hourly(wild).value == pytest.approx(1024, rel=0.1)


def test_a_life_that_is_short_after_its_warm_up_does_not_count():
    assert warm(life(seconds=200), 60, 300) == []
    assert warm(life(seconds=30), 60, 300) == []
    assert hourly(life(seconds=50)) is None


def test_a_process_is_known_by_its_id_and_its_beginning():
    again = [replace(each, began=9) for each in life(seconds=20)]
    other = life(seconds=20, role="agent")
    assert of_processes([*reversed(life(seconds=10)), *other, *again], "relay") == [life(seconds=10), again]


def test_slopes_weigh_as_much_as_was_seen_of_them():
    both = pooled([Slope(10.0, 8.0, 14.0, 3.0), Slope(2.0, 2.0, 2.0, 1.0)])
    assert both == Slope(8.0, 6.5, 11.0, 4.0)
    assert pooled([]) is None


def test_the_table_tells_the_history_of_rank_0_from_a_leak():
    grows = 2 * 0.5 + KIB_A_SECOND  # 2 KiB for each candidate, two seconds each; and 1 MiB an hour
    rank_0 = [replace(each, evaluated=each.evaluated + 400) for each in life("rank 0", a_second=grows)]
    record = [*rank_0, *life("relay"), ENDED, History(1000, 2000.0)]
    told = table(record, 60, 300)
    assert "By design it remembers 2.0 KiB of each" in told
    assert "at 1800 an hour 3.52 MiB an hour, which leaves 1.0" in told
    assert (
        "| relay | 1, 0.14 h | 50.0 MiB | 50.0 MiB, 87.9 MiB | 0.00 (0.00 to 0.00) | 0.00 (0.00 to 0.00) in 8 min |"
        in told
    )
    assert "| agent | none long enough | | | | |" in told


def test_rank_0_is_not_judged_while_its_models_grow():
    told = table([*life("rank 0"), ENDED, History(300, 600.0)], 60, 300)
    assert "| rank 0 | 1, 0.14 h |" in told
    assert "| rank 0, from 384 candidates on | none long enough | | | | |" in told
    assert "Rank 0: not seen for long enough after 384 candidates" in told


def test_the_table_counts_faults_and_what_became_of_the_search():
    record = [
        Strike(0, "SIGKILL relay"),
        Strike(0, "USR2", 2.0),
        ENDED,
        Strike(1, "USR2", 4.0),
        replace(ENDED, job=1, resumed=True),
    ]
    told = table(record, 60, 300)
    assert "| SIGKILL relay | 1 | goes on |" in told
    assert "| USR2 | 2 | 3.0 s / 4.0 s |" in told
    assert "20 minutes, 2 jobs, 1 of them resumed: 600 evaluations, 0 twice, 0 lost; 4 attempts" in told


@pytest.mark.parametrize("wrong", [{"twice": 1}, {"lost": 1}, {"hung": 1}, {"remark": "by itself"}])
def test_what_must_not_happen_is_noticed(wrong):
    assert good([ENDED, Strike(0, "TERM", 1.0)])
    assert not good([ENDED, replace(ENDED, **wrong)])
