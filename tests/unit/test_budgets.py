"""Who goes on to a larger budget, and what is expected of it, by value."""

from mpinas.coordination.budgets import Curves, promotable


def test_the_best_share_goes_on_once_by_rank_and_hypervolume():
    points = {1: (1.0, 9.0), 2: (5.0, 5.0), 3: (9.0, 1.0), 4: (6.0, 6.0), 5: (9.0, 9.0), 6: (5.1, 5.0)}
    assert promotable(points, (), 0.1) == []
    assert promotable(points, (), 1 / 6) == [2], "it alone dominates the most"
    assert sorted(promotable(points, (), 0.5)) == [1, 2, 3]
    assert sorted(promotable(points, {2}, 0.5)) == [1, 3]
    assert promotable(points, (), 1.0)[-2:] == [4, 5]
    assert promotable({}, (), 0.5) == []


def test_of_equals_none_takes_the_others_share():
    points = {1: (1.0, 1.0), 2: (1.0, 1.0), 3: (2.0, 2.0)}
    assert sorted(promotable(points, (), 0.67)) == [1, 2]


def test_nothing_is_concluded_from_few_and_then_from_the_median_and_the_best():
    curves = Curves()
    for full in (0.5, 0.6, 0.4, 0.8):
        curves.add({0: 1.0}, full)
    assert (curves.expected(0, 2.0), curves.hopeful(0, 2.0)) == (2.0, 0.0)
    curves.add({0: 1.0, 1: 0.75}, 0.7)
    assert (curves.expected(0, 2.0), curves.hopeful(0, 2.0)) == (1.2, 0.8)
    assert (curves.expected(1, 2.0), curves.hopeful(1, 2.0)) == (2.0, 0.0), "a rung of its own"
    curves.add({0: 0.0}, 0.5)
    assert curves.expected(0, 2.0) == 1.2, "no share of nothing"
