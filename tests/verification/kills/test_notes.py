"""The world's notes: whole lines, found again by the next process."""

from __future__ import annotations

from tests.verification.kills.notes import NotedClock, Notes


def test_the_next_process_reads_what_the_last_one_wrote(tmp_path):
    first = Notes(tmp_path / "notes")
    first.write("did", "key-1", "charge", "run-1")
    first.write("bad", "two\nlines")
    NotedClock(first).advance(5)
    names = [first.new_id(0), first.new_id(0)]
    first.close()
    second = Notes(tmp_path / "notes")
    assert second.all("did") == [("did", "key-1", "charge", "run-1")]
    assert second.texts("bad") == ["two | lines"]
    assert NotedClock(second).now_ms() == NotedClock(Notes()).now_ms() + 5
    assert second.new_id(0) not in names
    second.close()


def test_time_never_goes_back(tmp_path):
    notes = Notes()
    clock = NotedClock(notes)
    before = clock.now_ms()
    clock.advance_to(0)
    assert NotedClock(notes).now_ms() == before
