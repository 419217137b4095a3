"""The oracles over a whole database, as production left it: `verify --history` and `doctor`.

::

    report = check_history(app)          # any `engine.view.View`: store, codec, tables, clock
    assert report.ok, list(history_lines(report))

Nothing is written.  Runs are read in pages (`engine.ports.Inspector.histories`), each with its
journal, effects and inbox as they were at one moment, so memory does not grow with the database
and a run that moves meanwhile does not contradict itself.  A finding still counts only if it is
there again at a second look, or the run has moved on in between.

Each run goes one of these ways::

    unknown machine      noted; the storage rules are checked, and that the journal folds
    another version      the same, and what needs no code of that version
    secrets closed       the same: without the right key contexts cannot be read
    this version         followed (`engine.verification.follow`); at any doubt every oracle looks

A finding of severity `error` is a broken promise; a `warning` is a run that needs a person, such
as one that is quarantined or that nobody works for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import msgspec

from engine.clock import minutes
from engine.contracts import unpack
from engine.errors import BadPayload, SecretsError, StoreCorrupt, TurtlesError, UsageError
from engine.journal import Entry
from engine.ports import History, StoredRun
from engine.run import HELD
from engine.table import Table
from engine.verification import oracles
from engine.verification.environment import Environment, environment_of
from engine.verification.findings import (
    DEFECT,
    REMEDIES,
    HistoryFinding,
    HistoryReport,
    Note,
    history_json,
    history_lines,
)
from engine.verification.follow import follow
from engine.verification.oracles import Breach
from engine.view import View

__all__ = [
    "HistoryFinding",
    "HistoryReport",
    "Note",
    "check_history",
    "examine_history",
    "history_json",
    "history_lines",
    "pages",
    "require_database",
]
RUNS_AT_ONCE = 100
ENTRIES_AT_ONCE = 50_000
LOOKS = 5
STUCK_AFTER_MS = minutes(10)
"""A run that has been due for so long, and that no worker holds, is reported."""
Progress = Callable[[int, int], None]
"""Called after every page with the runs and the transitions looked at so far."""


def require_database(path: Path) -> None:
    """Refuse what cannot be a database of runs, before anything is opened.

    Raises:
        UsageError: there is no such file, or it is no file.
        StoreCorrupt: it is not an SQLite database.
    """
    if not path.is_file():
        seen = "a directory" if path.is_dir() else "nothing"
        raise UsageError(f"history {path}: expected a database file, found {seen}. "
                         "Give the runs.db of a data directory.")  # fmt: skip
    with path.open("rb") as file:
        head = file.read(16)
    if head != b"SQLite format 3\x00":
        raise StoreCorrupt(
            f"history {path}: not an SQLite database. "
            "Give the runs.db of a data directory; nothing was changed."
        )


async def examine_history(app: View, *, progress: Progress | None = None) -> HistoryReport:
    """`check_history` as the commands call it: `look(factory, data_dir, examine_history)`."""
    return check_history(app, progress=progress)


def check_history(
    view: View,
    *,
    environments: Iterable[Environment] | None = None,
    progress: Progress | None = None,
) -> HistoryReport:
    """Every oracle over everything in a store.

    Args:
        view: an `App`, or any view; its tables say which machines are known.
        environments: whose `always` must hold; by default those that were imported.
        progress: told after every page.

    Raises:
        StoreError: the database cannot be read.
    """
    began = perf_counter()
    if environments is None:
        known = (environment_of(table.machine) for table in view.tables.values())
        environments = [one for one in known if one is not None]
    walk = _Walk(view, {one.machine.__name__: one for one in environments})
    walk.storage()
    for history in pages(view):
        walk.look(history)
        if progress is not None and walk.report.runs % RUNS_AT_ONCE == 0:
            progress(walk.report.runs, walk.report.transitions)
    report = walk.finish()
    if progress is not None:
        progress(report.runs, report.transitions)
    report.took_seconds = perf_counter() - began
    return report


def pages(view: View) -> Iterator[History]:
    """Every run of a store with all its rows, in the order of the ids, a page at a time."""
    last = ""
    inspector = view.store.inspector
    while page := inspector.histories(last, runs=RUNS_AT_ONCE, entries=ENTRIES_AT_ONCE):
        yield from page
        last = page[-1].run_id


class _Walk:
    def __init__(self, view: View, environments: Mapping[str, Environment]) -> None:
        self.view = view
        self.always = {
            machine: one for machine, one in environments.items() if one.properties("always")
        }
        self.report = HistoryReport(store=view.store.name)
        self.now_ms = view.clock.now_ms()
        self.leases = {one.worker_id: until for one, until in view.store.workers.all()}
        self._notes: Counter[str] = Counter()
        self._noted: dict[str, str] = {}
        self._said: list[str] = []
        """What could not be checked of the run that was looked at last."""

    def storage(self) -> None:
        """The rules of the store, one query each."""
        inspector = self.view.store.inspector
        for finding in (*inspector.findings(), *inspector.relations()):
            self._add(Breach(finding.rule, finding.problem), finding.run_id)

    def look(self, history: History) -> None:
        """One run."""
        report = self.report
        report.runs += 1
        report.transitions += len(history.entries)
        report.effects += len(history.effects)
        breaches = self._breaches(history)
        for _ in range(LOOKS if breaches else 0):
            again = _again(self.view, history.run_id)
            if again is None:
                return
            moved = _moment(again) != _moment(history)
            history, breaches = again, self._breaches(again)
            if not moved or not breaches:
                break
        for text in self._said:
            self._notes[text] += 1
            self._noted.setdefault(text, history.run_id)
        for breach in breaches:
            self._add(breach, history.run_id)
        if history.stored is not None:
            for breach in _needs_a_person(history.stored, self.leases, self.now_ms):
                self._add(breach, history.run_id, "warning")

    def finish(self) -> HistoryReport:
        """The report, with one note for each thing that could not be checked."""
        self.report.notes = [
            Note(text, runs, self._noted[text]) for text, runs in self._notes.most_common()
        ]
        return self.report

    def _add(
        self, breach: Breach, run_id: str | None, severity: Literal["error", "warning"] = "error"
    ) -> None:
        remedy = REMEDIES.get(breach.rule, DEFECT).replace("RUN", run_id or "RUN")
        self.report.add(HistoryFinding(breach.rule, run_id, breach.problem, remedy, severity))

    def _breaches(self, history: History) -> list[Breach]:
        """What is wrong with one run; whatever it takes, the next run is looked at."""
        found: dict[Breach, None] = {}
        self._said = []
        try:
            for breach in self._of_run(history):
                found[breach] = None
        except SecretsError as error:
            self._said.append(f"secrets stayed closed: {error}")
        except TurtlesError as error:
            found[Breach("unreadable", str(error))] = None
        except Exception as error:  # noqa: BLE001 - rows of any content, code of any machine
            raised = Breach("unreadable", f"looking at it raised {type(error).__name__}")
            found[raised] = None
        return list(found)

    def _of_run(self, history: History) -> Iterator[Breach]:
        stored = history.stored
        if history.unreadable is not None or stored is None:
            yield Breach("unreadable", history.unreadable or "no run")
            return
        yield from _of_rows(stored, history)
        table = self.view.tables.get(stored.run.machine)
        if table is None:
            self._said.append(
                f"machine {stored.run.machine} is not known here, so its runs were folded "
                "and not decided again")  # fmt: skip
            yield from oracles.check_contracts(_with_verdicts(history))
        elif table.fingerprint != stored.run.version:
            self._said.append(
                f"made by version {stored.run.version} of {table.name}, the code here is "
                f"{table.fingerprint}: folded and not decided again")  # fmt: skip
            yield from oracles.check_contracts(_with_verdicts(history))
        else:
            yield from self._of_version(stored, history, table)

    def _of_version(self, stored: StoredRun, history: History, table: Table) -> Iterator[Breach]:
        """What the machine's code can tell of a run that it has made."""
        yield from oracles.check_causes(table, history.entries, history.effects, history.inbox)
        if history.cut:
            self._said.append(
                f"journals longer than {ENTRIES_AT_ONCE:,} entries were decided again up to there"
            )
        doubt: str | None = None
        closed: SecretsError | None = None
        try:
            doubt = follow(table, self.view.codec, history)
        except SecretsError as error:
            closed = error
        if doubt is None and closed is None:
            if table.name in self.always:
                yield from self._always(history, table)
            return
        seen = list(_closed(stored, history, table))
        yield from seen
        if closed is not None:
            raise closed
        opened = list(self._opened(stored, history, table))
        yield from opened
        if not seen and not opened and not list(_of_rows(stored, history)):
            yield Breach("standing", doubt or "")

    def _always(self, history: History, table: Table) -> Iterator[Breach]:
        opened = [self.view.codec.open_entry(table.name, entry) for entry in history.entries]
        yield from oracles.check_always(self.always[table.name], opened, history.effects)

    def _opened(self, stored: StoredRun, history: History, table: Table) -> Iterator[Breach]:
        codec = self.view.codec
        judged = _with_verdicts(history)
        yield from oracles.check_contracts(judged)
        opened = [codec.open_entry(table.name, entry) for entry in judged]
        yield from oracles.check_replay(table, opened)
        yield from oracles.check_invariants(table, opened)
        yield from oracles.check_children(opened, table)
        if table.name in self.always:
            yield from oracles.check_always(self.always[table.name], opened, history.effects)
        context = codec.open_run(stored.run).context
        if not history.cut:
            yield from oracles.check_context(context, opened)
            yield from _check_output(table, stored, context, codec.encode)


def _closed(stored: StoredRun, history: History, table: Table) -> Iterator[Breach]:
    """What can be seen without reading a context."""
    row = oracles.standing_of(stored)
    if not history.cut:
        yield from oracles.check_effects(row, table, history.entries, history.effects)
    yield from oracles.check_records(table, history.entries, history.effects)


def _with_verdicts(history: History) -> list[Entry]:
    """The entries with what their clauses said.

    Raises:
        BadPayload: a row does not hold verdicts.
    """
    judged = []
    for entry, body in zip(history.entries, history.verdicts, strict=True):
        try:
            verdicts = unpack(body)
        except msgspec.MsgspecError as error:
            raise BadPayload(f"verdicts of entry {entry.seq}: {error}") from error
        judged.append(msgspec.structs.replace(entry, verdicts=verdicts))
    return judged


def _of_rows(stored: StoredRun, history: History) -> Iterator[Breach]:
    """What can be seen without any code of the machine."""
    entries: tuple[Entry, ...] = history.entries
    row = oracles.standing_of(stored)
    if not history.cut:
        yield from oracles.check_fold(row, entries)
        yield from oracles.check_after_end(row, entries)
    yield from oracles.check_fences(stored, entries, history.fences)
    yield from oracles.check_due(stored)
    yield from oracles.check_reason(row)


def _check_output(
    table: Table, stored: StoredRun, context: Any, encode: Callable[[Any], bytes]
) -> Iterator[Breach]:
    if not stored.run.terminal or stored.run.seq == 1:
        return
    output = table.output({"context": context})
    if (None if output is None else encode(output)) != stored.output:
        yield Breach("output", "the stored output is not what the machine's code gives")


def _needs_a_person(stored: StoredRun, leases: dict[str, int], now_ms: int) -> Iterator[Breach]:
    run = stored.run
    if run.status == "quarantined" and run.last_error:
        yield Breach("quarantined", f"in {run.state}: {run.last_error}")
    if run.terminal or run.status in HELD or stored.due_ms is None:
        return
    held = stored.owner is not None and leases.get(stored.owner, 0) > now_ms
    if stored.due_ms < now_ms - STUCK_AFTER_MS and not held:
        yield Breach("stuck", f"stuck in {run.state} since {_moment_said(stored.due_ms)}: "
                              "it is due, and no worker with a lease has it")  # fmt: skip


def _moment_said(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def _again(view: View, run_id: str) -> History | None:
    """The same run a moment later; None when it is gone."""
    found = view.store.inspector.histories(run_id=run_id, entries=ENTRIES_AT_ONCE)
    return found[0] if found else None


def _moment(history: History) -> Any:
    stored = history.stored
    return None if stored is None else (stored.run.seq, stored.fence, stored.updated_ms)
