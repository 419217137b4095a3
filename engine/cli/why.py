"""`why RUN`: one answer to "why does nothing happen?".

A run waits for one or more of: a due time (timer, next attempt), an event, a child run, a worker,
a person.  Each reason found becomes one line that says what would move the run, and until when.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from engine.cli import output
from engine.cli.looking import summary
from engine.cli.naming import find_run
from engine.run import HELD

if TYPE_CHECKING:
    from engine.app import App
    from engine.ports import StoredRun
    from engine.run import Run
    from engine.table import Table


async def explain(app: App, name: str) -> dict[str, Any]:
    """Everything that is known about what a run waits for."""
    stored = await find_run(app, name)
    run = stored.run
    table = app.codec.table(run.machine)
    now_ms = app.clock.now_ms()
    inbox = app.store.inbox.waiting(run.run_id)
    return {
        **summary(stored),
        "now_ms": now_ms,
        "reasons": _reasons(app, stored, table, now_ms),
        "deadline_ms": run.deadline_ms,
        "effect": output.plain(run.effect),
        "child": run.child,
        "events": await _events(app, run, table),
        "inbox": [{"event": one.event, "key": one.key, "at_ms": one.at_ms} for one in inbox],
        "cancel_requested": run.cancel_requested,
        "closing": run.closing,
    }


async def _events(app: App, run: Run, table: Table) -> list[dict[str, Any]]:
    """The events that would move the run, with the fields of their payloads."""
    if run.status in HELD:
        return []  # they would be kept, and move nothing
    return [
        {
            "event": one.event,
            "payload": list(kind.__struct_fields__) if kind else [],
            "leads_to": one.reason,
        }
        for one in await app.allowed(run.run_id)
        if one.allowed
        for kind in [table.payloads.get(one.event)]
    ]


def _reasons(app: App, stored: StoredRun, table: Table, now_ms: int) -> list[str]:
    run = stored.run
    if run.terminal:
        return [f"it has ended ({run.status}); nothing will move it again"]
    if run.status == "paused":
        return [f"an operator paused it; go on with: turtles resume {run.run_id}"]
    if run.status == "quarantined":
        return [
            f"it was set aside for a person: {run.last_error or 'no reason recorded'}",
            f"when the cause is gone, go on with: turtles resume {run.run_id}",
        ]
    if table.fingerprint != run.version:
        return [
            f"it was made by version {run.version} of {run.machine}; this program has "
            f"{table.fingerprint}, so no worker here takes it"
        ]
    return [*_waits(app, run, table, now_ms), *_worker(app, stored, now_ms)]


def _waits(app: App, run: Run, table: Table, now_ms: int) -> list[str]:
    place = table.places[run.state]
    found = []
    if run.closing:
        found.append(f"it is closing as {run.closing}; left to undo: {', '.join(run.undo) or '-'}")
    if run.cancel_requested:
        found.append("a cancel request waits until this state can be left")
    if run.child:
        found.append(_child(app, run.child))
    if run.effect:
        found += _effect(run, now_ms)
    if run.deadline_ms is not None:
        when = _when(run.deadline_ms, now_ms)
        found.append(f"the timer of {run.state} sends {place.on_timeout!r} {when}")
    if place.waits and not run.closing:
        found.append(f"{run.state} waits for an event from outside, without a time limit")
    return found


def _child(app: App, run_id: str) -> str:
    stored = app.store.runs.get(run_id)
    how = (
        f"{stored.run.machine}, {stored.run.state}, {stored.run.status}" if stored else "not there"
    )
    return f"its child {run_id} ({how}) has not ended; see: turtles why {run_id}"


def _effect(run: Run, now_ms: int) -> list[str]:
    effect = run.effect
    assert effect is not None
    what = f"effect {effect.name!r}" + (f" undoing {effect.undo_of}" if effect.undo_of else "")
    if effect.open:
        line = f"{what}: how attempt {effect.attempts} ended is not known yet; asking first, "
    else:
        line = f"{what}: attempt {effect.attempts + 1} is due, "
    found = [line + _when(effect.next_ms, now_ms)]
    if effect.last_error:
        found.append(f"its last attempt said: {effect.last_error}")
    return found


def _worker(app: App, stored: StoredRun, now_ms: int) -> list[str]:
    workers = {one.worker_id: (one, until) for one, until in app.store.workers.all()}
    if stored.owner is not None and stored.owner in workers:
        one, until = workers[stored.owner]
        return [f"worker {one.worker_id} (pid {one.pid}) has it, lease {_when(until, now_ms)}"]
    others = [one for one, until in workers.values() if one.pid != os.getpid() and until > now_ms]
    if others or stored.due_ms is None:
        return []
    return ["no worker is running here: start one with: turtles work"]


def _when(at_ms: int, now_ms: int) -> str:
    if at_ms <= now_ms:
        return "now"
    return f"until {output.moment(at_ms)} (in {output.lasting(at_ms - now_ms)})"


def print_explanation(explained: dict[str, Any]) -> None:
    """The explanation for a person."""
    output.write(
        f"{explained['machine']} {explained['run_id']} is {explained['status']} "
        f"in {explained['state']}:"
    )
    for reason in explained["reasons"]:
        output.write(f"  - {reason}")
    if explained["events"]:
        output.write("it would take:")
    for one in explained["events"]:
        fields = f" with {', '.join(one['payload'])}" if one["payload"] else ""
        output.write(f"  - {one['event']}{fields} ({one['leads_to']})")
    for one in explained["inbox"]:
        when = output.moment(one["at_ms"])
        output.write(f"in its inbox: {one['event']} (key {one['key']}) since {when}")
