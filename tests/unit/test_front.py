"""The front of a changing set, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from mpinas.coordination.front import Front, dominates

ACTS = st.lists(
    st.tuples(st.integers(0, 9), st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(0, 4)))), max_size=60
)


@given(ACTS)
def test_members_are_those_whom_nobody_dominates_whatever_came_changed_or_left(acts):
    front, points = Front(), {}
    for id_, point in acts:
        if point is None:
            front.remove(id_)
            points.pop(id_, None)
        else:
            front.put(id_, point)
            points[id_] = point
        expected = {a for a in points if not any(dominates(points[b], points[a]) for b in points)}
        assert set(front.members) == expected
        assert all(front.members[each] == points[each] for each in expected)
        assert all((each in front) == (each in expected) for each in range(10))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4))), st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_who_would_join_is_who_joins(points, new):
    front = Front()
    for id_, point in enumerate(points):
        front.put(id_, point)
    foretold = front.would_join(new)
    front.put(99, new)
    assert foretold == (99 in front)


def test_domination_by_value():
    assert dominates((1.0, 2.0), (1.0, 3.0))
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert not dominates((1.0, 3.0), (2.0, 2.0))
