"""A run of flow 7: what it is asked for, what moves it, and what it reports."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.clock import minutes, seconds
from engine.events import Event, GaveUp
from machines.clients.ports import Record
from machines.clients.ports.executions import NetworkMode
from machines.clients.ports.sessions import SessionOrder, SessionView
from machines.flows.keyed import Keyed

TTL_SECONDS_DEFAULT = 3600
TTL_SECONDS_MAX = 86_400
IDLE_MS = minutes(15)
"""Every activity gives a session so much more time (paper, session lifecycle)."""
CELL_SECONDS_MAX = 900
VCPUS_MAX = 8
COMMAND_CHARACTERS_MAX = 10_000
CELLS_BYTES_MAX = 64 * 1024
RESULTS_MAX = 12
"""So many results are kept, the newest ones."""
OUTPUT_BYTES_MAX = 4 * 1024
"""Of each stream of each result, as it is stored."""

RefusalKind = Literal["no_slot", "unauthorized", "unavailable", "out_of_range", "rejected"]


class CellResult(Record):
    """How one cell ended.

    Args:
        outcome: `unknown`: it may have run, and is not run again; `refused`: it did not run.
        exit_code: of a cell that ended by itself, and of no other.
    """

    outcome: Literal["completed", "timed_out", "unknown", "refused"]
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False
    duration_ms: int = 0


class SessionRun(Keyed, kw_only=True):
    """Which session to keep, what to run in it first, and how it stands.

    Args:
        cells: what is still to be run, in order; a script at first, later what messages ask for.
        end_after: end the session when the script is done; otherwise messages drive it.
        cell_seconds: the time limit of each cell.
        slot_attempts: so often the key is found without a free slot before that is told.
        look_ms: the least pause between two looks at the platform.
        frozen: as the platform told last.  slots: what the session takes of the key's now.
        expires_ms, idles_ms: when its time to live, or its idle time, is over: the platform's
            truth as it was told last, on our clock.
        amount: of the operation under way: the seconds to add, or the vCPUs to have.
        cancelling: the run was told to stop.
        done: cells that have ended.  results: those of the last ones.
        dropped: cells that were not run, because somebody else froze the session.
        problem: why the last operation was refused; the session goes on.
    """

    shell: str = "bash"
    network_mode: NetworkMode = "zerotrust"
    ttl_seconds: int = TTL_SECONDS_DEFAULT
    vcpu: int = 1
    cells: tuple[str, ...] = ()
    end_after: bool = False
    cell_seconds: int = 60
    slot_attempts: int = 30
    look_ms: int = seconds(5)
    session_id: str = ""
    frozen: bool = False
    slots: int = 0
    expires_ms: int = 0
    idles_ms: int = 0
    amount: int = 0
    cancelling: bool = False
    done: int = 0
    dropped: int = 0
    results: tuple[CellResult, ...] = ()
    problem: str = ""
    reason: str = ""


class SessionReport(Record):
    """What a parent learns.  `success`: every cell ran, by itself, to exit code 0."""

    shell: str
    success: bool
    done: int
    left: int
    results: tuple[CellResult, ...]
    reason: str


# -- what somebody outside may ask for ------------------------------------------------------------


class Order(Record, tag_field="do", forbid_unknown_fields=True):
    """Base of what may be asked of a session that is there."""


class Execute(Order, tag="execute"):
    """Run this in the session."""

    command: str
    timeout_seconds: int = 60


class Freeze(Order, tag="freeze"):
    """Stop its processes; it keeps memory and files, and holds no slot."""


class Unfreeze(Order, tag="unfreeze"):
    """Let its processes go on."""


class Extend(Order, tag="extend"):
    """Add to its time to live."""

    seconds: int


class Boost(Order, tag="boost"):
    """Give it so many vCPUs."""

    vcpu: int


class End(Order, tag="end"):
    """End it."""


class Ask(Event, tag="ask"):
    """A message: ``{"event": "ask", "order": {"do": "execute", "command": "x = 42"}}``."""

    order: End | Freeze | Unfreeze | Execute | Extend | Boost


# -- what the platform answers --------------------------------------------------------------------


class Created(Event, tag="created"):
    """The session is there and runs."""

    session_id: str
    vcpu: int
    expires_ms: int
    idles_ms: int


class Refused(Event, tag="refused"):
    """There is no session, and why."""

    kind: RefusalKind
    detail: str


class CellEnded(Event, tag="cell_ended"):
    """The first of the cells has ended."""

    result: CellResult
    at_ms: int


class Seen(Event, tag="seen"):
    """It lives, and is so."""

    frozen: bool
    vcpu: int
    expires_ms: int
    idles_ms: int


class Over(Event, tag="over"):
    """It has ended; `idle`: fifteen idle minutes came before the end of its time to live."""

    reason: str
    idle: bool = False


class Declined(Event, tag="declined"):
    """The operation was refused, and was not done."""

    detail: str


class Unanswered(GaveUp, tag="unanswered"):
    """No answer after all attempts."""


def order_of(context: SessionRun) -> SessionOrder:
    """What is sent."""
    return SessionOrder(
        shell=context.shell,
        network_mode=context.network_mode,
        ttl_seconds=context.ttl_seconds,
        vcpu=context.vcpu,
    )


def problem_of(context: SessionRun) -> Refused | None:
    """Why an order need not be sent; pure."""
    for name, value, most in (
        ("ttl_seconds", context.ttl_seconds, TTL_SECONDS_MAX),
        ("cell_seconds", context.cell_seconds, CELL_SECONDS_MAX),
        ("vcpu", context.vcpu, VCPUS_MAX),
    ):
        if not 1 <= value <= most:
            return Refused(kind="out_of_range", detail=f"{name}: got {value}, expected 1 to {most}")
    if context.end_after and not context.cells:
        return Refused(kind="rejected", detail="end_after: there are no cells to end after")
    if not all(is_command(cell) for cell in context.cells):
        return Refused(
            kind="rejected",
            detail=f"cells: expected commands of 1 to {COMMAND_CHARACTERS_MAX} characters each",
        )
    size = len(msgspec.json.encode(context.cells))
    if size > CELLS_BYTES_MAX:
        return Refused(
            kind="rejected", detail=f"cells: {size} bytes in all, at most {CELLS_BYTES_MAX}"
        )
    return None


def is_possible(order: Order, *, frozen: bool) -> bool:
    """Whether a platform would consider it for a session that is frozen, or not; pure."""
    match order:
        case Execute(command=command, timeout_seconds=limit):
            return not frozen and is_command(command) and 1 <= limit <= CELL_SECONDS_MAX
        case Boost(vcpu=size):
            return not frozen and 1 <= size <= VCPUS_MAX
        case Extend(seconds=more):
            return 1 <= more <= TTL_SECONDS_MAX
        case Freeze():
            return not frozen
        case Unfreeze():
            return frozen
        case _:
            return True


def is_command(text: str) -> bool:
    """Whether this may be run as a cell."""
    return text.strip() != "" and len(text) <= COMMAND_CHARACTERS_MAX


def seen_of(view: SessionView) -> Seen:
    """A live session as an event."""
    return Seen(
        frozen=view.status == "frozen",
        vcpu=view.vcpu,
        expires_ms=view.expires_ms,
        idles_ms=view.idles_ms,
    )


def over_of(view: SessionView, *, frozen: bool) -> Over:
    """An ended session as an event.  What was frozen was not idle."""
    idle = view.reason == "expired" and not frozen and view.idles_ms < view.expires_ms
    return Over(reason=view.reason or "terminated", idle=idle)
