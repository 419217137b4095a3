"""The journal: what was written, in order, and folding to the stored run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contracts import Verdict
from engine.journal import fold
from persistence.journal import tagged, untagged


def test_entries_read_back_in_order_and_fold_to_the_run(store, make):
    store.runs.start([make.start("r1")])
    claimed = make.claim(store, "r1")
    run, written = claimed.run, []
    for number in range(5):
        write = make.step(run, claimed.fence, context=b"%d" % number, at_ms=2000 + number)
        assert store.runs.commit([write])[0].ok
        run = write.after
        written.append(write.entry)
    entries = store.journal.read("r1")
    assert entries[1:] == written
    folded = fold(entries)
    assert (folded.seq, folded.state, folded.status, folded.context) == (
        run.seq,
        run.state,
        run.status,
        run.context,
    )


def test_reading_pages(store, make):
    store.runs.start([make.start("r1")])
    claimed = make.claim(store, "r1")
    run = claimed.run
    for _ in range(4):
        write = make.step(run, claimed.fence)
        store.runs.commit([write])
        run = write.after
    assert [entry.seq for entry in store.journal.read("r1", after_seq=1, limit=2)] == [2, 3]
    assert [entry.seq for entry in store.journal.read("r1", after_seq=3)] == [4, 5]
    assert store.journal.read("r1", after_seq=5) == []
    assert store.journal.read("nobody") == []


def test_verdicts_are_kept_without_the_values_they_saw(store, make):
    verdicts = (Verdict("enough", "guard", False), Verdict("né+ver", "ensures", True))
    start = make.start("r1")
    entry = make.entry(None, start.run, "$start", 1000, verdicts=verdicts, payload=b"\x00")
    store.runs.start([type(start)(run=start.run, entry=entry)])
    assert store.journal.read("r1") == [entry]


@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        (b'{"event":"paid","amount_atomic":5}', b'{"amount_atomic":5}'),
        (b'{"event":"paid"}', b"{}"),
        (b'{"event":"paid_late","n":1}', b'{"event":"paid_late","n":1}'),
        (b'{"n":1}', b' {"n":1}'),
        (b"7", b"7"),
    ],
)
def test_a_payload_is_kept_without_the_name_of_its_event(payload, kept):
    assert untagged("paid", payload) == kept
    assert tagged("paid", kept) == payload


_PIECES = st.lists(
    st.sampled_from([b'{"event":"paid"', b'{"event":"', b",", b"}", b"{", b" ", b'"n":1', b"\xff"])
)


@given(_PIECES.map(b"".join) | st.binary())
def test_any_payload_reads_back_as_it_was(payload):
    assert tagged("paid", untagged("paid", payload)) == payload
