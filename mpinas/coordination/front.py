"""The Pareto front of a growing set whose points may change: who is on it, kept up to date one point at a time.

All objectives are minimised. Must not know what the points stand for.
"""

from __future__ import annotations

from mpinas.search.promotion import promotion_order

Point = tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Is `a` nowhere worse than `b`, and somewhere better?"""
    for x, y in zip(a, b, strict=True):  # a loop: this is asked for every member of the front, at every evaluation
        if x > y:
            return False
    return a != b


class Front:
    """Members by id, in the order in which they joined.

    Whoever is dominated is remembered with one member that dominates it, so that a member's leaving brings back those
    that it had hidden without a look at everybody else.
    """

    def __init__(self) -> None:
        self.members: dict[int, Point] = {}
        self._points: dict[int, Point] = {}
        #: By member: who is dominated by it, as (id, point); a pair whose point is not the id's any more is stale.
        self._hidden: dict[int, list[tuple[int, Point]]] = {}
        #: Who has joined, moved or left since somebody last looked.
        self._changed: set[int] = set()

    def __contains__(self, id_: int) -> bool:
        return id_ in self.members

    def changes(self) -> set[int]:
        """Who has joined, moved or left since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def put(self, id_: int, point: Point) -> None:
        """Add a point, or change it."""
        if self._points.get(id_) == point:
            return
        hidden = self._take_out(id_)
        self._points[id_] = point
        self._place(id_, point)
        if id_ in self.members:
            # A point that moves a little still hides most of what it hid: thousands, in a long search.
            still = [pair for pair in hidden if dominates(point, pair[1])]
            self._hidden[id_] += still
            hidden = [pair for pair in hidden if not dominates(point, pair[1])]
        self._bring_back(hidden)

    def remove(self, id_: int) -> None:
        """Forget a point, if it is known."""
        self._points.pop(id_, None)
        self._bring_back(self._take_out(id_))

    def would_join(self, point: Point) -> bool:
        """Would it be a member?"""
        return not any(dominates(member, point) for member in self.members.values())

    def _take_out(self, id_: int) -> list[tuple[int, Point]]:
        """Whom a member has hidden, which is none any more."""
        if self.members.pop(id_, None) is None:
            return []
        self._changed.add(id_)
        return self._hidden.pop(id_)

    def _bring_back(self, hidden: list[tuple[int, Point]]) -> None:
        for other, point in hidden:
            if self._points.get(other) == point and other not in self.members:
                self._place(other, point)

    def _place(self, id_: int, point: Point) -> None:
        worse = []
        for member, theirs in self.members.items():
            if dominates(theirs, point):
                self._hidden[member].append((id_, point))
                return
            if dominates(point, theirs):
                worse.append(member)
        self._changed.update(worse, (id_,))
        hidden: list[tuple[int, Point]] = []
        for member in worse:
            hidden += [*self._hidden.pop(member), (member, self.members.pop(member))]
        self.members[id_] = point
        self._hidden[id_] = hidden


class Fronts:
    """The front of what is measured, and the front as it would be if all predicted latencies were right.

    Only the first is a result. Whoever is on either is kept, so that a measurement that comes late finds its files.
    """

    def __init__(self) -> None:
        self.measured = Front()
        self.hoped = Front()

    def place(self, id_: int, point: Point | None, *, predicted: bool) -> tuple[bool, set[int]]:
        """Put a candidate where it belongs now; without a point, nowhere.

        Returns
        -------
        (the measured front has changed, who has joined, moved on or left either)
        """
        if point is None:
            self.measured.remove(id_)
            self.hoped.remove(id_)
        else:
            self.hoped.put(id_, point)
            if predicted:
                self.measured.remove(id_)
            else:
                self.measured.put(id_, point)
        changed = self.measured.changes()
        return bool(changed), changed | self.hoped.changes()

    def __contains__(self, id_: int) -> bool:
        return id_ in self.measured or id_ in self.hoped

    def everybody(self) -> set[int]:
        """Who is on either."""
        return {*self.measured.members, *self.hoped.members}

    def best(self, count: int) -> list[int]:
        """Of the measured, those first that alone dominate the most."""
        ids = list(self.measured.members)
        return [ids[index] for index in promotion_order([self.measured.members[id_] for id_ in ids])[:count]]
