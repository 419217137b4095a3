"""What the journal alone proves: where the run is, and that nothing is missing."""

from __future__ import annotations

import msgspec
import pytest

from engine.contracts import Verdict, pack, unpack
from engine.decide import begin, decide
from engine.journal import JournalBroken, explained, fold, replay
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


def stored(entries):
    """The entries as a journal keeps them: without the values that verdicts saw."""
    return [
        msgspec.structs.replace(one, verdicts=unpack(pack(one.verdicts))) for one in entries
    ]  # fmt: skip


def test_the_values_that_verdicts_saw_are_found_in_contexts_and_payloads(entries, zoo):
    table = compile_table(zoo.Shop)
    shown = explained(table, stored(entries))
    assert [{one.clause: one.saw for one in entry.verdicts} for entry in shown] == [
        {"amount_positive": {"context.amount": 1}},
        {"amount_positive": {"context.amount": 1}},
        {
            "is_welcome": {"event.count": 2},
            "notes_add_up": {"old.notes": 0, "new.notes": 2, "event.count": 2},
            "amount_positive": {"context.amount": 1},
        },
    ]
    assert [msgspec.structs.replace(one, verdicts=()) for one in shown] == [
        msgspec.structs.replace(one, verdicts=()) for one in entries
    ]


def test_a_guard_is_shown_what_was_before_and_an_invariant_what_came_of_it(entries, zoo):
    table = compile_table(zoo.Shop)
    later = msgspec.structs.replace(entries[-1], context=zoo.Order(receipt="x", notes=2, amount=7))
    (_, _, last) = explained(table, stored([*entries[:-1], later]))
    saw = {one.clause: one.saw for one in last.verdicts}
    assert saw["amount_positive"] == {"context.amount": 7}
    assert saw["notes_add_up"]["old.notes"] == 0


def test_a_clause_that_the_machine_has_no_more_is_shown_without_values(entries, zoo):
    gone = Verdict("was_kind", "guard", True)
    changed = msgspec.structs.replace(entries[-1], verdicts=(gone,), event="nothing_any_more")
    (_, _, last) = explained(compile_table(zoo.Shop), [*entries[:-1], changed])
    assert last.verdicts == (gone,)


async def test_an_app_shows_a_journal_with_what_its_verdicts_saw(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        await harness.app.settle()
        await harness.app.send(run_id, zoo.Noted(count=3))
        await harness.app.settle()
        last = (await harness.app.journal(run_id))[-1]
        assert {one.clause: one.saw for one in last.verdicts}["is_welcome"] == {"event.count": 3}
        assert [one.saw for one in bench.store.journal.read(run_id)[-1].verdicts] == [{}] * 3
