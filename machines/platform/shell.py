"""The terminal of a session over a WebSocket: `GET /sessions/{id}/shell` (wire facts, 5.4).

::

    client -> text    {"type":"resize","cols":80,"rows":24}        1 to 10000 each
              binary  keys
    platform -> binary  output
                text    {"type":"exit"}       the session or its program has ended
                        {"type":"detached"}   another client has attached; attach again at will
                        {"type":"error","error":...,"message":...}

Subprotocol `unsandbox-shell`.  After `exit`, `detached`, or one of the errors marked below, the
platform closes (1000, or 1008 after an error); other errors are told and the socket goes on.

=====================  ======  ===================================================================
error                  closes  when
=====================  ======  ===================================================================
session_starting       yes     it is still being created
session_frozen         yes     it is frozen (also when that happens while attached; the program
                               stands still, and can be attached again after unfreeze)
session_terminated     yes     it had ended before
input_stalled          yes     the program has taken no keys for 30 s
message_too_large      no      a message of more than 64 KiB; it is dropped
invalid_message        no      text that is no JSON object, or of an unknown type or size
=====================  ======  ===================================================================

**Who may attach.**  A signed request (section 1.1) is verified like any other, and a session of
another key is 404.  The published command-line client signs nothing: a request without any of the
three headers is let in by the session's id alone, which is therefore as good as a password and is
kept out of the log.  Either way it counts against the rate of the session's key, and that key must
be in good standing.  A refusal comes before the upgrade, as a plain HTTP answer.

**What stays.**  The program is the session's shell on a terminal of its own: it shares files with
commands sent by `/execute`, not variables.  Without a multiplexer the session ends when its client
leaves (reason `disconnected`) or the program ends (`exited`).  With one the platform keeps the
terminal: who attaches again sees the last of its output first; when the program ends only the
terminal is over, and the next client gets a new one.  One client at a time: a second one takes
over.

Nothing survives the platform's end: its sessions are over, and their sockets are told `exit`.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import anyio.to_thread
import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from engine.errors import StoreBusy, TurtlesError
from machines.platform import auth, keys, limits
from machines.platform.recordings import Recordings
from machines.platform.refusals import sandbox_refusals, terminated
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle
from machines.platform.sandbox.errors import SandboxFrozen, SandboxGone
from machines.platform.session_rows import State, frozen, running
from machines.platform.terminal import LINES_MAX, InputStalled, Terminal, View
from machines.platform.unsigned import busy

if TYPE_CHECKING:
    from machines.platform.api import Api
    from persistence.database import Row

SUBPROTOCOL = "unsandbox-shell"
MESSAGE_BYTES_MAX = 65_536
# Activity is noted on every fifth tick: about every five seconds.
TICKS_PER_NOTE = 5
# What a client that reads nothing may still be sent after its view has ended.
FAREWELL_SECONDS = 5.0
_SIGNED = (b"authorization", b"x-timestamp", b"x-signature")
_ENVIRONMENT = {"TERM": "xterm-256color"}
_ERROR = "error"
_Lines = Annotated[int, msgspec.Meta(ge=1, le=LINES_MAX)]

log = structlog.get_logger("turtles.platform.shell")


class _Resize(msgspec.Struct, tag="resize", tag_field="type"):
    cols: _Lines
    rows: _Lines


_RESIZE = msgspec.json.Decoder(_Resize)


class Shells:
    """The terminals of every session, and the sockets that look at them."""

    def __init__(self, api: Api, recordings: Recordings) -> None:
        self._api = api
        self._recordings = recordings
        self._terminals: dict[str, asyncio.Task[Terminal]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        self._active: set[str] = set()
        self._ticks = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # Opening a terminal waits for the sandbox; it must not use up the threads of requests.
        self._threads = anyio.CapacityLimiter(16)
        # What asks a sandbox may wait for it; who is only looked up must not wait behind that.
        self._openings = anyio.CapacityLimiter(32)
        api.sessions.watch(self._session_changed)

    def tick(self) -> None:
        """Note the activity of terminals, now and then.  Runs in a thread."""
        self._ticks += 1
        if self._ticks % TICKS_PER_NOTE == 0:
            self.note_activity()

    def note_activity(self) -> None:
        """Begin the idle time of the sessions whose terminals did something anew."""
        with self._lock:
            active, self._active = self._active, set()
        if active:
            with self._api.context.database.transaction() as sql:
                for session_id in active:
                    self._api.sessions.touch(sql, session_id)

    # -- a socket ------------------------------------------------------------------------------

    async def serve(self, websocket: WebSocket) -> None:
        """One client, from its upgrade to its end."""
        try:
            row = await self._in_thread(self._admit, websocket)
        except Problem as problem:
            await websocket.send_denial_response(problem.response())
            return
        except StoreBusy:
            await websocket.send_denial_response(busy().response())
            return
        offered = websocket.scope["subprotocols"]
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        session_id = row["session_id"]
        view = View(_nothing)
        try:
            running(row, session_id)
            terminal = await self._terminal(row)
        except Problem as problem:
            if problem.status == 410 and row["state"] == "running":
                view.end("exit")  # it has ended just now
            view.end(_ERROR, error=problem.error, message=problem.message)
            await self._farewell(websocket, view)
            return
        except StoreBusy:
            view.end(_ERROR, error=busy().error, message=busy().message)
            await self._farewell(websocket, view)
            return
        await self._attend(websocket, row, terminal)

    def _admit(self, websocket: WebSocket) -> Row:
        """The session that this client may see.

        Raises:
            Problem: 404, 401, 429.
        """
        name = websocket.path_params["session_id"]
        headers = websocket.scope["headers"]
        if any(header in _SIGNED for header, _ in headers):
            raw_path = websocket.scope.get("raw_path") or websocket.scope["path"].encode()
            query = websocket.scope["query_string"]
            signed = auth.from_headers("GET", raw_path.partition(b"?")[0], query, b"", headers)
            return self._api.sessions.find(self._api.enter(signed, False).public_key, name)
        row = self._api.sessions.named(name)
        if row is None:
            raise Problem(404, "not_found", f"session {name[:80]!r}: there is none of that id.")
        self._count(row["public_key"])
        return row

    def _count(self, public_key: str) -> None:
        """What `Api.enter` does for a signed request, for the owner of the session."""
        now_ms = self._api.context.clock_ms()
        with self._api.context.database.transaction() as sql:
            key = keys.find(sql, public_key)
            assert key is not None  # sessions belong to keys that exist
            auth.check_standing(key, now_ms)
            per_tier = self._api.requests_per_minute_per_tier
            allowed = limits.requests_per_minute(key.tier, per_tier)
            limits.admit(sql, public_key, allowed, now_ms)

    async def _attend(self, websocket: WebSocket, row: Row, terminal: Terminal) -> None:
        session_id = row["session_id"]
        view = terminal.attach()
        log.info("shell_attached", session=_shortened(session_id))
        sending = asyncio.create_task(_send(websocket, view))
        receiving = asyncio.create_task(_receive(websocket, terminal, view))
        ended = asyncio.create_task(view.ended.wait())
        tasks = (sending, receiving, ended)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if view.ending is not None:
                await asyncio.wait({sending}, timeout=FAREWELL_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            left = terminal.detach(view) and view.ending is None
            log.info("shell_closed", session=_shortened(session_id), ending=_kind(view))
            if left and row["multiplexer"] is None:
                terminal.close()
                await self._end(session_id, "disconnected")
        for failure in ends:
            if isinstance(failure, Exception):
                raise failure
        if view.ending is not None:
            await self._farewell(websocket, view)

    async def _farewell(self, websocket: WebSocket, view: View) -> None:
        """Say how it ended and close; a client that does not listen is not waited for."""
        code = 1008 if _kind(view) == _ERROR else 1000
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await websocket.send_text(_encode(view.ending))
                await websocket.close(code)

    # -- terminals -----------------------------------------------------------------------------

    async def _terminal(self, row: Row) -> Terminal:
        """The session's terminal; a new one when it has none.

        Raises:
            Problem: 409 frozen, 410 ended, 503, 400.
        """
        self._loop = asyncio.get_running_loop()
        session_id = row["session_id"]
        opening = self._terminals.get(session_id)
        if opening is None or (_opened(opening) and not opening.result().is_open):
            opening = self._terminals[session_id] = asyncio.create_task(self._open(row))
        try:
            # Others may wait for the same terminal; one that leaves does not undo it.
            terminal = await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._terminals.get(session_id) is opening:
                del self._terminals[session_id]
            raise
        # It may have ended or been frozen before there was a terminal to be told.
        now = await self._in_thread(self._api.sessions.named, session_id)
        try:
            running(now, session_id)
        except Problem:
            if now is None or now["state"] == "terminated":
                self._drop(session_id)
            raise
        return terminal

    async def _open(self, row: Row) -> Terminal:
        session_id = row["session_id"]
        audited = bool(row["audited"])

        def record(output: bytes) -> None:
            if audited:
                self._recordings.note(session_id, output)

        def active() -> None:
            with self._lock:
                self._active.add(session_id)

        def hung_up() -> None:
            self._terminals.pop(session_id, None)
            if row["multiplexer"] is None:
                ending = asyncio.create_task(self._end(session_id, "exited"))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)

        master = await anyio.to_thread.run_sync(self._open_master, row, limiter=self._openings)
        return Terminal(master, record=record, active=active, hung_up=hung_up)

    def _open_master(self, row: Row) -> int:
        session_id = row["session_id"]
        try:
            with sandbox_refusals():
                return self._api.backend.open_terminal(
                    Handle(session_id),
                    (self._api.probing.shell_program(row["shell"]),),
                    environment=_ENVIRONMENT,
                )
        except SandboxFrozen as error:
            raise frozen(session_id) from error
        except SandboxGone as error:
            self._api.sessions.died(session_id)
            raise terminated(session_id, error.reason) from error

    async def _end(self, session_id: str, reason: str) -> None:
        """End a session; when that fails now, its time limits will."""
        try:
            await self._in_thread(self._api.sessions.died, session_id, reason)
        except TurtlesError as error:
            log.warning("shell_not_ended", session=_shortened(session_id), error=str(error))

    def _session_changed(self, session_id: str, state: State) -> None:
        """Any thread: a session was frozen or has ended."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and everything with it
                self._loop.call_soon_threadsafe(self._follow, session_id, state)

    def _follow(self, session_id: str, state: State) -> None:
        opening = self._terminals.get(session_id)
        if opening is None or not _opened(opening):
            return
        if state == "terminated":
            self._drop(session_id)
        else:
            problem = frozen(session_id)
            opening.result().dismiss(_ERROR, error=problem.error, message=problem.message)

    def _drop(self, session_id: str) -> None:
        opening = self._terminals.pop(session_id, None)
        if opening is not None and _opened(opening):
            opening.result().close()

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)


async def _send(websocket: WebSocket, view: View) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        while (output := await view.next()) is not None:
            await websocket.send_bytes(output)


async def _receive(websocket: WebSocket, terminal: Terminal, view: View) -> None:
    while (message := await websocket.receive())["type"] == "websocket.receive":
        if view.ending is not None:
            return
        try:
            await _obey(message, terminal)
        except InputStalled:
            view.end(_ERROR, error="input_stalled", message="the program takes no keys.")
        except Problem as problem:
            said = {"type": _ERROR, "error": problem.error, "message": problem.message}
            with suppress(WebSocketDisconnect, RuntimeError):
                await websocket.send_text(_encode(said))


async def _obey(message: Any, terminal: Terminal) -> None:
    """Do what a client's message asks.

    Raises:
        Problem: it cannot be understood.
    """
    typed: bytes | None = message.get("bytes")
    text: str | None = message.get("text")
    if len(typed or text or "") > MESSAGE_BYTES_MAX:
        raise Problem(
            413, "message_too_large", f"a message holds at most {MESSAGE_BYTES_MAX} bytes."
        )
    if typed is not None:
        await terminal.write(typed)
    elif text is not None:
        terminal.resize(*_size(text))


def _size(text: str) -> tuple[int, int]:
    """Columns and rows of `{"type":"resize","cols":80,"rows":24}`."""
    try:
        message = _RESIZE.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise Problem(
            400,
            "invalid_message",
            'expected {"type":"resize","cols":N,"rows":N} with 1 to '
            f"{LINES_MAX} each, or keys as a binary message.",
        ) from error
    return message.cols, message.rows


def _encode(message: Any) -> str:
    return msgspec.json.encode(message).decode()


def _opened(opening: asyncio.Task[Terminal]) -> bool:
    return opening.done() and not opening.cancelled() and opening.exception() is None


def _kind(view: View) -> str | None:
    return None if view.ending is None else str(view.ending["type"])


def _shortened(session_id: str) -> str:
    """Enough to find it, too little to attach to it."""
    return session_id[:17] + "..."


def _nothing() -> None:
    pass
