"""Who trains together, by value."""

import pytest

from mpinas.coordination.groups import Trainer, choose, group_size, to_enlarge


@pytest.mark.parametrize(
    ("idle", "works", "smallest", "largest", "size"),
    [
        (4, 100, 1, 0, 1),  # work for all: small groups
        (4, 4, 1, 0, 1),
        (4, 2, 1, 0, 2),  # less: shared out
        (4, 1, 1, 0, 4),  # the last one has all ranks
        (4, 1, 1, 2, 2),  # but no more than its batch is enough for
        (5, 2, 1, 0, 2),
        (1, 5, 2, 0, 0),  # too few: wait
        (3, 5, 2, 0, 2),
        (3, 1, 2, 0, 3),
        (4096, 1, 1, 16, 16),
    ],
)
def test_groups_fit_the_work(idle, works, smallest, largest, size):
    assert group_size(idle, works, smallest, largest) == size


def hosts(**ranks):
    return [Trainer(rank, host, "cpu") for host, those in ranks.items() for rank in those]


def test_a_group_stays_on_one_host_where_it_can():
    idle = hosts(a=[1, 2, 3], b=[5, 6], c=[9])
    assert choose(idle, 1) == (1,)
    assert choose(idle, 2) == (5, 6), "the host with just enough, so that three stay together"
    assert choose(idle, 3) == (1, 2, 3)
    assert choose(idle, 4) == (1, 2, 3, 5), "on as few hosts as possible"
    assert choose(idle, 6) == (1, 2, 3, 5, 6, 9)


@pytest.mark.parametrize(
    ("idle", "running", "largest", "expected"),
    [
        (2, [(1, 1, 60.0), (2, 1, 90.0)], 0, [2, 1]),  # each can have twice its trainers
        (3, [(1, 1, 60.0)], 0, [1]),
        (1, [(1, 1, 60.0), (2, 1, 90.0)], 0, []),  # not enough for both, and it is not for one to have
        (2, [(1, 2, 60.0)], 0, [1]),
        (2, [(1, 2, 60.0)], 3, []),  # its batch is not enough for four
        (3, [(1, 1, 4.0)], 0, []),  # it has ended before another group is there
        (4, [(1, 1, 60.0), (2, 1, 70.0), (3, 1, 80.0), (4, 1, 1.0)], 0, [3, 2, 1]),
        (5, [(1, 1, 60.0), (2, 4, 90.0)], 0, [1]),
        (5, [], 0, []),
    ],
)
def test_small_groups_make_way_where_enough_trainers_are_idle(idle, running, largest, expected):
    assert to_enlarge(idle, running, largest) == expected
