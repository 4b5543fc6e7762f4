"""10,000 journals spoilt at random: each is refused in words, or is read as a beginning of what was written.

Seeded, so that what fails once fails again.
"""

import random
from collections import Counter

import pytest
from virtual_time import World

from mpinas.coordination.ledger import Ledger
from mpinas.errors import UserError
from mpinas.history.journal import Journal, read

MUTATIONS = 10_000


def of_run(path, seed):
    """The bytes of a short run's journal, and its events."""
    world = World(groups=2, evaluations=6, seed=seed).run()
    assert len(world.ledger.front) > 1
    book = Journal(path)
    for time, event in world.journal:
        book.append(time, event)
    book.close()
    return path.read_bytes(), world


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, so that parts of one can stand in the other."""
    folder = tmp_path_factory.mktemp("runs")
    return of_run(folder / "one", 0), of_run(folder / "other", 1)


def lines_of(data):
    return data.splitlines(keepends=True)


def flip_bits(data, rng, other):
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 50])):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def cut_end(data, rng, other):
    return data[: rng.randrange(len(data))]


def cut_middle(data, rng, other):
    begin, end = sorted(rng.sample(range(len(data)), 2))
    return data[:begin] + data[end:]


def swap_lines(data, rng, other):
    lines = lines_of(data)
    a, b = rng.sample(range(len(lines)), 2)
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def double_lines(data, rng, other):
    lines, at, count = lines_of(data), rng.randrange(len(lines_of(data))), rng.choice([1, 1, 2, 7])
    return b"".join([*lines[: at + count], *lines[at:]])


def remove_lines(data, rng, other):
    lines, at, count = lines_of(data), rng.randrange(len(lines_of(data))), rng.choice([1, 1, 2, 7])
    return b"".join([*lines[:at], *lines[at + count :]])


def insert_bytes(data, rng, other):
    at, count = rng.randrange(len(data) + 1), rng.choice([1, 1, 4, 100])
    return data[:at] + rng.choice([rng.randbytes(count), b"\n" * count, b"\0" * count, b"\r\n", b" "]) + data[at:]


def blank_page(data, rng, other):
    """As a power cut may leave it."""
    at, count = rng.randrange(len(data)), rng.choice([16, 512, 4096])
    return data[:at] + b"\0" * len(data[at : at + count]) + data[at + count :]


def join_halves(data, rng, other):
    mine, theirs = lines_of(data), lines_of(other)  # the first three lines are the same in both
    return b"".join([*mine[: rng.randrange(4, len(mine))], *theirs[rng.randrange(3, len(theirs)) :]])


def join_at_the_same_line(data, rng, other):
    mine, theirs = lines_of(data), lines_of(other)
    at = rng.randrange(4, min(len(mine), len(theirs)))
    return b"".join([*mine[:at], *theirs[at:]])


def change_a_number(data, rng, other):
    places = [at for at, byte in enumerate(data) if chr(byte).isdigit()]
    at = rng.choice(places)
    return data[:at] + str(rng.randrange(10)).encode() + data[at + 1 :]


WAYS = (flip_bits, cut_end, cut_middle, swap_lines, double_lines, remove_lines, insert_bytes, blank_page, join_halves,
        join_at_the_same_line, change_a_number)  # fmt: skip


def outcome(path):
    """(events, why there are none)."""
    try:
        return read(path), ""
    except UserError as error:
        return [], str(error)


def test_a_spoilt_journal_is_refused_or_read_as_far_as_it_is_whole(runs, tmp_path):
    (data, world), (other, _) = runs
    rng = random.Random(7)
    path = tmp_path / "journal.jsonl"
    found = {way: Counter() for way in WAYS}
    for number in range(MUTATIONS):
        way = WAYS[number % len(WAYS)]
        spoilt = way(data, rng, other)
        path.write_bytes(spoilt)
        events, refusal = outcome(path)
        if refusal:
            assert refusal.startswith(f"{path}: ")
            assert "\n" not in refusal
            found[way]["refused"] += 1
            continue
        assert events == world.journal[: len(events)], (number, way.__name__)
        found[way]["whole" if len(events) == len(world.journal) else "shorter"] += 1
    assert found[cut_end].keys() == {"shorter"}, "a torn end is no damage"
    for way in (swap_lines, join_halves, join_at_the_same_line):
        assert found[way].keys() == {"refused"}, way.__name__
    for way in (flip_bits, change_a_number):
        assert found[way]["refused"] > 0.8 * found[way].total(), way.__name__


def test_every_beginning_of_a_journal_is_a_run(runs, tmp_path):
    """What a cut leaves can be folded, and its front is that of the run at that moment."""
    (data, world), _ = runs
    path = tmp_path / "journal.jsonl"
    lines = lines_of(data)
    ledger = Ledger(world.ledger.terms)
    for count in range(1, len(lines) + 1):
        path.write_bytes(b"".join(lines[:count]) + lines[min(count, len(lines) - 1)][:-1][: count % 30])
        events = read(path)
        assert len(events) == count - 1
        if count > 1:
            ledger.apply(world.journal[count - 2][1], world.journal[count - 2][0])
        assert Ledger(world.ledger.terms).apply_all(events).front == ledger.front
