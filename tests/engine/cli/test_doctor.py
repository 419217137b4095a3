"""`doctor` finds what is broken, and nothing else."""

from __future__ import annotations

import sqlite3

import pytest

from engine.cli import build_cli
from engine.ports import Finding


@pytest.fixture
def broken(demo):
    """Change the store behind everybody's back."""
    demo.order("o1")

    def change(statement):
        database = sqlite3.connect(demo.data_dir / "runs.db")
        with database:
            database.execute(statement)
        database.close()

    return change


def test_a_clean_directory_is_clean(demo):
    demo.order("o1")
    demo("run", "Shipment", "--input", '{"amount_cents": 5}')
    answer = demo("doctor")
    assert (answer.code, answer.out) == (0, "clean: 2 runs\n")
    assert demo("doctor", "--json").json == {"ok": True, "runs": 2, "findings": []}


def test_a_journal_that_ends_elsewhere_is_found(demo, broken):
    broken("UPDATE turtles_run SET state = 'forgotten'")
    answer = demo("doctor", "--json")
    assert answer.code == 1
    problems = " ".join(one["problem"] for one in answer.json["findings"])
    assert "stored at seq 1 in forgotten, but the journal ends at seq 1 in awaiting" in problems


def test_a_changed_context_is_found(demo, broken):
    broken("UPDATE turtles_run SET context = CAST(replace(context, '100', '101') AS BLOB)")
    answer = demo("doctor")
    assert answer.code == 1
    assert "the stored context is not the one of journal entry 1" in answer.out


def test_a_missing_entry_is_found(demo, broken):
    broken("DELETE FROM turtles_transition")
    answer = demo("doctor")
    assert answer.code == 1
    assert "journal: no entries" in answer.out


def test_code_that_decides_otherwise_than_recorded_is_found(demo, broken):
    broken("UPDATE turtles_transition SET verdicts = CAST('[]' AS BLOB)")
    answer = demo("doctor")
    assert answer.code == 1
    assert "its machine's code decides otherwise than recorded: entry 1 ($start" in answer.out


def test_a_run_of_another_version_is_not_decided_again(demo, broken):
    broken("UPDATE turtles_transition SET verdicts = CAST('[]' AS BLOB)")
    broken("UPDATE turtles_run SET version = 'an older one'")
    assert "decides otherwise" not in demo("doctor").out


def test_a_journal_that_cannot_be_read_is_found_and_the_next_run_is_looked_at(demo, broken):
    demo.order("o2")
    broken("UPDATE turtles_transition SET verdicts = X'7B' WHERE rowid = 1")
    answer = demo("doctor", "--json")
    assert (answer.code, answer.json["runs"]) == (1, 2)
    (finding,) = answer.json["findings"]
    assert finding["rule"] == "unreadable"
    assert "verdicts of entry 1" in finding["problem"]


def test_what_only_a_history_shows_is_found(demo, broken):
    broken("UPDATE turtles_run SET deadline_ms = deadline_ms - 1000")
    answer = demo("doctor")
    assert answer.code == 1
    assert "due: run " in answer.out


def test_a_run_that_waits_for_a_person_is_no_finding(demo, broken):
    broken("UPDATE turtles_run SET status = 'quarantined', last_error = 'why', due_ms = NULL,"
           " held_from = 'waiting'")  # fmt: skip
    assert demo("doctor").out == "clean: 1 runs\n"


def test_a_file_that_others_can_read_is_found_with_its_remedy(demo):
    demo.order("o1")
    file = demo.data_dir / "runs.db"
    file.chmod(0o644)
    answer = demo("doctor")
    assert answer.code == 1
    assert f"mode 644 lets others in. Run: chmod 600 {file}" in answer.out


def test_a_program_adds_its_own_checks(demo):
    demo.order("o1")
    seen = []

    def check(data_dir):
        seen.append(data_dir)
        return [Finding("mine", None, "something else is wrong")]

    class Program:
        cli = build_cli(demo.program.make_app, checks=[check])

    answer = type(demo)(demo.data_dir, Program)("doctor")
    assert answer.code == 1
    assert "mine: something else is wrong" in answer.out
    assert seen == [demo.data_dir]
