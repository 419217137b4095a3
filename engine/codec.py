"""Between typed values and stored bytes: msgspec JSON, with secrets sealed on the way.

A stored context or payload that does not fit its type any more is a clear error that names the
run and the field, never an empty value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from engine.errors import BadPayload, UnknownMachine
from engine.events import Context, Event
from engine.journal import Entry
from engine.limits import CONTEXT_BYTES_MAX, PAYLOAD_BYTES_MAX, check_size
from engine.run import Run
from engine.secret import Secret, is_secret_type, secret_of
from engine.secrets import SecretsCodec
from engine.table import Table

T = TypeVar("T")


def digest_of(context: bytes) -> str:
    """What is kept of the first context of a run that is removed, to know a repeated start by.

    Args:
        context: as it was stored, its secrets sealed; the same context gives the same bytes as
            long as its type and the master key are the same.
    """
    return hashlib.sha256(context).hexdigest()


class Codec:
    """Encodes runs, entries and payloads for a store, and decodes them again."""

    def __init__(self, secrets: SecretsCodec, tables: Mapping[str, Table]) -> None:
        self._secrets = secrets
        self._tables = tables
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

    @cached_property
    def _encoder(self) -> msgspec.json.Encoder:
        return msgspec.json.Encoder(enc_hook=self._seal, order="deterministic")

    def _seal(self, value: Any) -> Any:
        if isinstance(value, Secret):
            return self._secrets.seal(msgspec.json.encode(value.reveal()).decode())
        raise BadPayload(f"cannot be stored: {type(value).__name__}; use msgspec types and Secret")

    def _open(self, kind: Any, value: Any) -> Any:
        if is_secret_type(kind):
            return Secret(msgspec.json.decode(self._secrets.open(value)))
        raise BadPayload(f"cannot be read back: {kind!r}")

    def encode(self, value: Any) -> bytes:
        """The stored form of any struct."""
        return self._encoder.encode(value)

    def decode(self, kind: type[T], body: bytes, what: str) -> T:
        """A value of `kind`.

        Raises:
            BadPayload: `what` names the thing; the message names the field.
        """
        decoder = self._decoders.get(kind)
        if decoder is None:
            decoder = msgspec.json.Decoder(kind, dec_hook=self._open)
            self._decoders[kind] = decoder
        try:
            value: T = decoder.decode(body)
        except msgspec.ValidationError as error:
            raise BadPayload(f"{what}: {error}; expected {kind.__name__}") from error
        except msgspec.DecodeError as error:
            raise BadPayload(f"{what}: not JSON ({error})") from error
        return value

    def table(self, machine: str) -> Table:
        """The table of a registered machine."""
        try:
            return self._tables[machine]
        except KeyError:
            known = ", ".join(sorted(self._tables)) or "none"
            raise UnknownMachine(
                f"machine {machine!r} is not known here. Known: {known}."
            ) from None

    def context(self, table: Table, given: Context | Mapping[str, Any]) -> Context:
        """A context of the machine's type, from one or from its fields; secrets may be plain.

        Raises:
            BadPayload: names the machine and the field.
        """
        if isinstance(given, table.context):
            return given
        if isinstance(given, Context) and issubclass(table.context, type(given)):
            # A stand-in's context adds to the child's.
            given = {name: getattr(given, name) for name in given.__struct_fields__}
        if not isinstance(given, Mapping):
            raise BadPayload(
                f"context of machine {table.name}: expected {table.context.__name__}, "
                f"got {type(given).__name__}"
            )
        try:
            built: Context = msgspec.convert(
                dict(given),
                table.context,
                dec_hook=lambda kind, value: (
                    secret_of(kind, value) if is_secret_type(kind) else value
                ),
            )
        except (msgspec.ValidationError, TypeError) as error:
            raise BadPayload(f"context of machine {table.name}: {error}") from error
        return built

    def seal_run(self, run: Run) -> Run:
        """The run with its context encoded."""
        body = self.encode(run.context)
        check_size(f"context of run {run.run_id}", body, CONTEXT_BYTES_MAX)
        return run.but(context=body)

    def open_run(self, run: Run) -> Run:
        """The run with its context decoded."""
        kind = self.table(run.machine).context
        return run.but(context=self.decode(kind, run.context, f"context of run {run.run_id}"))

    def seal_entry(self, entry: Entry, worker: str, *, context: bytes) -> Entry:
        """The entry with its payload encoded, signed by its worker.

        Args:
            context: the entry's context as `seal_run` has encoded it; it is the run's.
        """
        payload = self.seal_payload(entry.payload, f"event {entry.event} of run {entry.run_id}")
        return msgspec.structs.replace(
            entry,
            context=context,
            payload=payload,
            worker=worker,
        )

    def open_entry(self, machine: str, entry: Entry) -> Entry:
        """The entry with context and payload decoded."""
        what = f"entry {entry.seq} of run {entry.run_id}"
        table = self.table(machine)
        body: Any = entry.payload
        return msgspec.structs.replace(
            entry,
            context=self.decode(table.context, entry.context, what),
            payload=self.open_payload(table, entry.event, body, what),
        )

    def seal_payload(self, payload: Event | None, what: str) -> bytes | None:
        """The payload encoded, or None."""
        if payload is None:
            return None
        body = self.encode(payload)
        check_size(f"payload of {what}", body, PAYLOAD_BYTES_MAX)
        return body

    def open_payload(self, table: Table, event: str, body: bytes | None, what: str) -> Event | None:
        """The payload decoded by the machine's type for the event, or None."""
        kind = table.payloads.get(event)
        if body is None or kind is None:
            return None
        return self.decode(kind, body, f"payload of {what}")
