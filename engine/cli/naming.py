"""From what a person typed to a run, a context or a payload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from engine.errors import BadPayload, UnknownMachine, UnknownRun, UsageError
from engine.ports import Query, StoredRun
from engine.secret import is_secret_type, secret_of
from engine.view import missing_run

if TYPE_CHECKING:
    from engine.app import App
    from engine.events import Event
    from engine.table import Table

T = TypeVar("T")
NEWEST = 10_000
"""Among how many runs the beginning of an id is looked for."""


async def find_run(app: App, name: str) -> StoredRun:
    """The run of that id, with that beginning of its id, or `MACHINE:KEY`.

    Raises:
        UnknownRun: none, or several; `RunRemoved` if it has been removed.
        UnknownMachine: of `MACHINE:KEY`.
    """
    machine, colon, key = name.partition(":")
    if colon:
        return await _by_key(app, machine, key)
    stored = app.store.runs.get(name)
    if stored is not None:
        return stored
    newest = app.store.runs.select(Query(limit=NEWEST))
    found = [one for one in newest if name and one.run.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(one.run.run_id for one in found[:3])
        raise UnknownRun(
            f"run {name!r}: {len(found)} runs begin so ({some}, ...). Type more of it."
        )
    raise missing_run(name, app.store.retention.gone(name), app.store.name)


async def _by_key(app: App, machine: str, key: str) -> StoredRun:
    run_id = await app.find(machine, key)
    stored = run_id and app.store.runs.get(run_id)
    gone = app.store.retention.gone(run_id) if run_id and not stored else None
    if run_id and gone is not None:
        raise missing_run(run_id, gone, app.store.name)
    if not stored:
        raise UnknownRun(
            f"no run of {machine} with key {key!r} in {app.store.name}. "
            f"List them with: turtles list --machine {machine}"
        )
    return stored


def find_table(app: App, machine: str) -> Table:
    """The table of a machine.

    Raises:
        UnknownMachine: names those there are.
    """
    table = app.tables.get(machine)
    if table is None:
        known = ", ".join(sorted(app.tables)) or "none"
        raise UnknownMachine(f"no machine {machine!r}. There are: {known}.")
    return table


def read_context(table: Table, given: str) -> Any:
    """The first context of a run, from JSON or `@file`.

    Raises:
        BadPayload: not JSON, or not of the machine's type; names the field.
        UsageError: the file cannot be read.
    """
    return _decode(table.context, _text(given), f"--input of machine {table.name}")


def read_event(table: Table, event: str, given: str | None) -> Event | str:
    """An event, from its name and the JSON of its payload (or `@file`).

    Raises:
        UnknownEvent: the machine has no such event.
        BadPayload: of another shape, or missing, or not expected.
    """
    kind = table.payloads.get(event)
    if given is None and kind is not None and not any(_required(kind)):
        given = "{}"
    if given is None or kind is None:
        if given is not None and event in table.events:
            raise BadPayload(f"event {event!r} of {table.name} carries no payload, got one.")
        table.check_payload(event, None)
        return event
    what = f"--payload of event {event!r} of {table.name}"
    body = _decode(dict[str, Any], _text(given), what)
    tagged = msgspec.json.encode({**body, "event": event})
    return _decode(kind, tagged, what)


def _required(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind) if field.required]


def _text(given: str) -> bytes:
    if not given.startswith("@"):
        return given.encode()
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        raise UsageError(f"file {given[1:]}: cannot be read ({error.strerror})") from error


def _decode(kind: type[T], body: bytes, what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise BadPayload(f"{what}: {error}. Expected {_shape(kind)}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPayload(f"{what}: not JSON ({error}). Expected {_shape(kind)}.") from error


def _secret(kind: Any, value: Any) -> Any:
    if is_secret_type(kind):
        return secret_of(kind, value)
    raise BadPayload(f"cannot be given on a command line: {kind!r}")


def _shape(kind: Any) -> str:
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return "a JSON object"
    fields = msgspec.structs.fields(kind)
    inner = ", ".join(
        f'"{f.encode_name}": {getattr(f.type, "__name__", f.type)}'
        + ("" if f.required else " (optional)")
        for f in fields
    )
    return f"an object {{{inner}}}"
