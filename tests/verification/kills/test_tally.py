"""How sequences are shared out and counted."""

from __future__ import annotations

from tests.verification.kills.tally import Sequence, Share, Tally


def make(seed, number, count):
    return Sequence(f"{seed}:{number}", (f"{number} here", "1 there"), ("odd",) * (number == 3))


def test_processes_together_try_every_boundary_once():
    shares = [Share(1, 7, None, process, 3) for process in range(3)]
    numbers = [list(share.numbers()) for share in shares]
    assert sorted(number for some in numbers for number in some) == list(range(1, 8))


def test_when_all_were_tried_the_seed_chooses():
    numbers = Share(1, 4, 100, 1, 2).numbers()
    first = [next(numbers) for _ in range(5)]
    assert set(first[:2]) < {1, 2, 3, 4}
    assert first[2:] == [6, 8, 10]


def test_it_stops_when_enough_have_died():
    total = Tally()
    for tally in Share(1, 200, 101).tallies(make):
        total.add(tally)
    assert (total.sequences, total.deaths, total.recovering) == (51, 102, 51)
    assert len(total.boundaries) == 51


def test_what_was_wrong_is_kept():
    total = Tally()
    for tally in Share(1, 30, None).tallies(make):
        total.add(tally)
    assert total.sequences == 30
    assert [bad.token for bad in total.bad] == ["1:3"]
