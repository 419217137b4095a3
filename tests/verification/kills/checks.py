"""What must hold after every death, and when all is over.  Each check yields what does not.

`after_death` asks a store that was just opened again, before anybody works:

- the inspector has no findings; a file is sound, and every journal in it folds to its run;
- whatever the client was told is there: each run accepted, each event in the inbox or settled;
- every call that reached the outside has an attempt that was counted before, under its key.

`at_end` asks when nothing is due any more, and adds:

- every run has ended, as it should; every journal is decided again alike;
- what may be done once was done once, under one key; what is recorded as done was done;
- a run that ended without reaching its purpose has undone what it did, newest first;
- each event was settled once: as many notes are counted as were applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from engine.app import App
from engine.errors import TurtlesError
from engine.ids import idempotency_key
from engine.journal import fold, replay
from engine.ports import StoredRun
from persistence.store import SqlStore
from tests.verification.kills.notes import Notes
from tests.verification.kills.purchase import ONCE, PATHS, UNDO

ENDS = {
    "good": ("done", "completed"),
    "bad": ("returned", "failed"),
    "stopped": (None, "cancelled"),
    "lapsing": ("lapsed", "failed"),
}
"""How each order has to end: state (None: any) and status."""


def after_death(store: SqlStore, notes: Notes) -> Iterator[str]:
    """Everything that is not as it must be at any moment."""
    with store.database.reading() as sql:
        runs = {row["run_id"] for row in sql.all("SELECT run_id FROM turtles_run")}
        events = sql.all("SELECT run_id, key FROM turtles_inbox")
        effects = sql.all("SELECT run_id, seq, name, calls FROM turtles_effect")
    for finding in store.inspector.findings():
        yield f"finding: {finding.rule} {finding.problem}"
    yield from _promises(notes, runs, {(row["run_id"], row["key"]) for row in events})
    counted = {
        idempotency_key(row["run_id"], row["seq"], row["name"]): row["calls"] for row in effects
    }
    yield from _calls(notes, counted)
    if store.key_file is not None:  # in memory no file can be damaged; the rest is left to the end
        yield from _sound(store)


def _promises(notes: Notes, runs: set[str], events: set[tuple[str, str]]) -> Iterator[str]:
    for _, order, step, run_id, key in notes.all("ack"):
        if run_id not in runs:
            yield f"acknowledged, and lost: run {order}"
        elif step != "start" and (run_id, key) not in events:
            yield f"acknowledged, and lost: {step} of {order}"


def _calls(notes: Notes, counted: dict[str, int]) -> Iterator[str]:
    called = Counter(words[1] for kind in ("tried", "looked") for words in notes.all(kind))
    for key, times in called.items():
        if times > counted.get(key, 0):
            yield f"{times} calls under {key}, and {counted.get(key, 0)} attempts are recorded"


def _sound(store: SqlStore) -> Iterator[str]:
    with store.database.reading() as sql:
        answer = sql.scalar("PRAGMA integrity_check")
    if answer != "ok":
        yield f"integrity: {answer}"
    for stored in _runs(store):
        yield from _folds(store, stored)


def _runs(store: SqlStore) -> list[StoredRun]:
    """Every run; `runs.select` would compile its query anew each time."""
    with store.database.reading() as sql:
        names = [str(row["run_id"]) for row in sql.all("SELECT run_id FROM turtles_run")]
    return [stored for stored in map(store.runs.get, names) if stored is not None]


def _folds(store: SqlStore, stored: StoredRun) -> Iterator[str]:
    run = stored.run
    try:
        folded = fold(store.journal.read(run.run_id))
    except TurtlesError as error:
        yield str(error)
        return
    if (folded.seq, folded.state, folded.context) != (run.seq, run.state, run.context):
        yield f"journal of {run.run_id} folds to {folded.state} at {folded.seq}, not to the run"


async def at_end(app: App, store: SqlStore, notes: Notes) -> list[str]:
    """Everything that is not as it must be when nothing is due any more."""
    found = [*after_death(store, notes), *_sound(store)]
    for _, order, step, run_id, _key in notes.all("ack"):
        if step == "start":
            outcome = await app.outcome(run_id)
            state, status = ENDS[order]
            if outcome.status != status or state not in (None, outcome.state):
                found.append(f"{order} is {outcome.status} in {outcome.state}, expected {status}")
    for stored in _runs(store):
        found += await _run(app, notes, stored)
    found += _ledger(notes)
    found += await _settled(app, store, notes)
    return found


async def _run(app: App, notes: Notes, stored: StoredRun) -> list[str]:
    run = stored.run
    entries = await app.journal(run.run_id)
    table = app.tables[run.machine]
    found = [f"replay of {run.run_id}: {one}" for one in replay(table, entries)]
    if not run.terminal:
        found.append(f"{run.machine} {run.run_id} is {run.status} in {run.state}: it never ended")
        return found
    did = {words[1]: words[2] for words in notes.all("did") if words[3] == run.run_id}
    for effect in await app.effects(run.run_id):
        if effect.status == "done" and effect.name != "track" and effect.key not in did:
            found.append(f"{effect.name} of {run.run_id} is recorded as done, and never was")
    forth = [name for name in did.values() if name in UNDO]
    back = [name for name in did.values() if name not in UNDO]
    if run.status == "completed" and (forth, back) != (PATHS[run.machine], []):
        found.append(f"{run.machine} completed and did {forth}, undid {back}")
    if run.status != "completed" and back != [UNDO[name] for name in reversed(forth)]:
        found.append(f"{run.machine} {run.status}: did {forth}, undid {back}")
    return found


def _ledger(notes: Notes) -> Iterator[str]:
    """Nothing was done twice, under the same key or under another one."""
    keys = Counter(words[1:3] for words in notes.all("did"))
    for (key, name), count in keys.items():
        if count > 1 and name in ONCE:
            yield f"{name} was done {count} times under {key}"
    deeds = Counter((name, run) for _, name, run in {words[1:4] for words in notes.all("did")})
    for (name, run), count in deeds.items():
        if count > 1:
            yield f"{name} of {run} was done under {count} keys"


async def _settled(app: App, store: SqlStore, notes: Notes) -> list[str]:
    found, applied = [], Counter[str]()
    for _, order, step, run_id, key in notes.all("ack"):
        receipt = None if step == "start" else store.inbox.receipt(run_id, key)
        if receipt is not None and receipt.status == "accepted":
            found.append(f"{step} of {order} is still waiting")
        if receipt is not None and receipt.status == "applied" and step.startswith("note"):
            applied[run_id] += 1
    for _, order, step, run_id, _key in notes.all("ack"):
        if step == "start":
            counted = (await app.outcome(run_id)).context.notes
            if counted != applied[run_id]:
                found.append(f"{order} counts {counted} notes, {applied[run_id]} were applied")
    return found
