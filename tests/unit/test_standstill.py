"""When a main thread counts as hung."""

from __future__ import annotations

from mpinas.parallel.standstill import LOOK_S, Post, Standstill


class Watched:
    """A post, and looks at it in virtual time."""

    def __init__(self, limit_s: float) -> None:
        self.now_s = 0.0
        self.post = Post()
        self.standstill = Standstill(self.post, limit_s, lambda: self.now_s)

    def after(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.standstill.look()


def test_work_without_a_step_for_longer_than_the_limit_is_a_standstill():
    it = Watched(limit_s=6)
    it.post.work = "candidate 7"
    assert [it.after(2) for _ in range(5)] == [False, False, False, False, True]


def test_every_step_and_every_new_work_begins_anew():
    it = Watched(limit_s=6)
    for number in range(10):
        it.post.work = f"candidate {number}"
        assert not any(it.after(2) for _ in range(4))
        it.post.step()
        assert not any(it.after(2) for _ in range(4))


def test_who_waits_for_an_order_stands_for_as_long_as_it_takes():
    it = Watched(limit_s=6)
    assert not any(it.after(2) for _ in range(100))


def test_a_process_that_was_stopped_as_a_whole_has_not_hung():
    it = Watched(limit_s=3600)
    it.post.work = "candidate 7"
    assert not it.after(1)
    assert not it.after(7200)
    assert not any(it.after(LOOK_S) for _ in range(350))
