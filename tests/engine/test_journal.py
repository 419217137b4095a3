"""What the journal alone proves: where the run is, and that nothing is missing."""

from __future__ import annotations

import msgspec
import pytest

from engine.decide import begin, decide
from engine.journal import JournalBroken, fold, replay
from engine.table import compile_table


@pytest.fixture
def entries(zoo):
    table = compile_table(zoo.Shop)
    steps = [begin(table, run_id="r1", context=zoo.Order(), now_ms=1)]
    for event, payload in [("charged", zoo.Charged(receipt="x")), ("noted", zoo.Noted(count=2))]:
        steps.append(decide(table, steps[-1].after, event, payload, 2))
    return [step.entry for step in steps]


def test_fold_gives_the_last_state(entries, zoo):
    folded = fold(entries)
    assert (folded.seq, folded.state, folded.status) == (3, "packing", "waiting")
    assert folded.context == zoo.Order(receipt="x", notes=2)


def test_a_journal_has_entries():
    with pytest.raises(JournalBroken, match="no entries; every run begins with one"):
        fold([])


def test_a_gap_a_repetition_and_a_swap_are_found(entries):
    for broken, number in [
        (entries[1:], 1), ([entries[0], entries[2]], 2), ([*entries[:2], entries[1]], 3),
        ([entries[0], entries[2], entries[1]], 2),
    ]:  # fmt: skip
        with pytest.raises(JournalBroken, match=f"journal of r1, entry {number}: expected seq"):
            fold(broken)


def test_an_entry_that_begins_elsewhere_is_found(entries):
    wrong = msgspec.structs.replace(entries[2], source="shipping")
    with pytest.raises(JournalBroken, match="expected to begin in 'packing', found 'shipping'"):
        fold([*entries[:2], wrong])


def test_replay_is_reachable_from_here(entries, zoo):
    assert replay(compile_table(zoo.Shop), entries) == []
    with pytest.raises(JournalBroken):
        replay(compile_table(zoo.Shop), entries[1:])
