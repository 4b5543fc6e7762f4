"""The rules by which a device judges itself, value by value."""

from __future__ import annotations

import pytest

from edge_bridge.device.drift import Drift, DriftPlan, Verdict

PLAN = DriftPlan(every_requests=3, every_s=100.0, most_wait_s=30.0)
LEARNED = (1.0, 1.02, 0.98, 1.01, 5.0)


def watch(learned=LEARNED) -> Drift:
    drift = Drift(PLAN, learned)
    assert drift.read(1.0, 0.0) is Verdict.GOOD
    return drift


def test_the_expected_reading_is_the_median_of_the_first_that_agree_but_for_one():
    drift = Drift(PLAN)
    verdicts = []
    for number, reading in enumerate(LEARNED):
        assert (drift.expected_s, drift.learned_readings) == (None, ())
        assert drift.due(float(number), waited_for=False)
        verdicts.append(drift.read(reading, float(number)))
    assert verdicts == [Verdict.LEARNING] * 4 + [Verdict.GOOD]
    # The one that was disturbed is not what later measurements are told.
    assert (drift.expected_s, drift.last_p50_s, drift.learned_readings) == (1.01, 1.01, LEARNED)
    assert drift.read(1.05, 5.0) is Verdict.GOOD
    assert drift.expected_s == 1.01


def test_readings_that_disagree_are_learned_from_when_they_agree_or_have_done_so_too_long():
    drift = Drift(PLAN)
    assert [drift.read(each, 0.0) for each in (9.0, 5.0, 2.0, 1.0, 1.0)] == [Verdict.LEARNING] * 5
    assert [drift.read(1.0, 0.0) for _ in range(2)] == [Verdict.LEARNING, Verdict.GOOD]
    assert drift.learned_readings == (2.0, 1.0, 1.0, 1.0, 1.0)
    wild = Drift(PLAN)
    assert [wild.read(1.5**each, 0.0) for each in range(PLAN.most_learning)][-2:] == [Verdict.LEARNING, Verdict.GOOD]
    assert wild.expected_s == 1.5 ** (PLAN.most_learning - 3)


def test_a_device_that_is_faster_than_it_was_learned_anew_without_waiting():
    drift = watch()
    assert drift.read(0.5, 1.0) is Verdict.AGAIN
    assert drift.read(0.5, 1.0) is Verdict.FASTER
    assert (drift.expected_s, drift.cooling) == (None, False)
    assert drift.due(1.0, waited_for=False)
    assert [drift.read(0.5, 2.0) for _ in range(5)][-1] is Verdict.GOOD
    assert drift.expected_s == 0.5


def test_a_reading_is_due_at_start_after_requests_and_after_time():
    drift = Drift(PLAN, LEARNED)
    assert drift.due(0.0, waited_for=False)
    drift.read(1.0, 0.0)
    assert not drift.due(1.0, waited_for=True)
    for _ in range(3):
        assert not drift.due(1.0, waited_for=True)
        drift.measured()
    assert drift.due(1.0, waited_for=False)
    drift.read(1.0, 2.0)
    assert not drift.due(101.9, waited_for=True)
    assert drift.due(102.0, waited_for=True)
    # A device that has measured nothing since, and is not asked to, rests.
    assert not drift.due(102.0, waited_for=False)
    drift.measured()
    assert drift.due(102.0, waited_for=False)


@pytest.mark.parametrize(("reading", "in_band"), [(1.11, True), (1.112, False), (0.91, True), (0.908, False)])
def test_the_band(reading, in_band):
    drift = watch()
    assert drift.read(reading, 1.0) is (Verdict.GOOD if in_band else Verdict.AGAIN)
    assert drift.in_band is in_band


def test_a_reading_that_was_disturbed_is_forgotten():
    drift = watch()
    assert drift.read(2.0, 1.0) is Verdict.AGAIN
    assert drift.cooling
    assert drift.due(1.0, waited_for=False)
    assert drift.read(1.0, 1.1) is Verdict.GOOD
    assert not drift.cooling


def test_a_device_that_comes_back_waits_longer_each_time():
    drift = watch()
    drift.read(2.0, 1.0)
    assert drift.read(1.8, 2.0) is Verdict.COOLING
    assert drift.wait_until_s == 7.0
    assert not drift.due(6.9, waited_for=True)
    assert drift.due(7.0, waited_for=False)
    assert drift.read(1.5, 7.0) is Verdict.COOLING
    assert drift.wait_until_s == 17.0
    assert drift.read(1.1, 17.0) is Verdict.GOOD
    assert (drift.cooling, drift.in_band) == (False, True)
    # The next time begins from the first wait.
    drift.read(2.0, 20.0)
    drift.read(2.0, 20.0)
    assert drift.wait_until_s == 25.0


def test_a_device_that_stays_out_goes_on_without_waiting_again():
    drift = watch()
    now_s, waits = 1.0, []
    while (verdict := drift.read(2.0, now_s)) is not Verdict.OUT:
        waits.append((verdict, drift.wait_until_s - now_s))
        now_s = drift.wait_until_s
    assert waits == [(Verdict.AGAIN, 0.0)] + [(Verdict.COOLING, each) for each in (5.0, 10.0, 15.0)]
    assert (drift.cooling, drift.in_band, drift.off_by()) == (False, False, pytest.approx(0.98, abs=0.01))
    assert not drift.due(now_s + 1, waited_for=True)
    assert drift.read(2.0, now_s + 200) is Verdict.OUT
    assert drift.read(1.0, now_s + 300) is Verdict.GOOD
    assert drift.in_band


def test_a_device_that_may_not_wait_goes_on_at_once():
    drift = Drift(DriftPlan(first_wait_s=0.0, most_wait_s=0.0), LEARNED)
    assert [drift.read(2.0, 0.0) for _ in range(3)] == [Verdict.AGAIN, Verdict.OUT, Verdict.OUT]
