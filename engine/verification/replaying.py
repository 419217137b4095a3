"""Going the way of a token again, and what to say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engine.definition import Machine
from engine.errors import TurtlesError, UsageError
from engine.ports import Store
from engine.table import Table
from engine.verification.breach import Breach
from engine.verification.environment import environment_of
from engine.verification.explore import repeat
from engine.verification.schedules import replay_schedule
from engine.verification.tokens import WAY, Token, read_token, said_with_states, warning_of
from engine.verification.verify import worst

NOT_DETERMINISTIC = "replay"


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A way that was gone again.

    Args:
        warning: what is not as it was when the token was made.
        way: each step, and where the runs are after it if that has changed.
    """

    machine: str
    kind: str
    rule: str
    warning: str
    way: tuple[tuple[str, str], ...]
    breaches: tuple[Breach, ...]

    @property
    def exit_code(self) -> int:
        """0 nothing is wrong any more, 3 safety, 4 liveness, 5 not deterministic."""
        broken = 4 if self.kind == "liveness" else 3
        return worst(5 if one.rule == NOT_DETERMINISTIC else broken for one in self.breaches)

    def lines(self) -> list[str]:
        """In words."""
        found = [self.warning] if self.warning else []
        for number, (text, state) in enumerate(self.way, start=1):
            found.append(f"{number:>3}  {text}")
            found += [f"       -> {state}"] if state else []
        found += [f"FAIL {breach.rule}: {breach.problem}" for breach in self.breaches]
        if self.breaches:
            return found
        if self.kind == WAY:
            return [*found, f"REACHED: {self.rule}; nothing is wrong on this way"]
        return [*found, "FIXED: nothing is wrong on this way any more"]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found | {"exit": self.exit_code, "fixed": not self.breaches}


def replayed(
    table: Table,
    store_factory: Callable[[], Store],
    text: str,
    *,
    known: Sequence[type[Machine[Any]]] = (),
) -> Replayed:
    """Go the way of a token again.

    Raises:
        UsageError: it is not a token, or a step is not possible any more.
    """
    token = read_token(text)
    warning = warning_of(token, table, environment_of(table.machine))
    try:
        way, breaches = _gone(token, table, store_factory, known)
    except Exception as error:
        raise UsageError(
            f"token: this way cannot be gone in {table.name}: {_said(error)}"
            + (f". {warning.capitalize()}" if warning else "")
        ) from error
    return Replayed(machine=table.name, kind=token.kind, rule=token.rule, warning=warning,
                    way=way, breaches=breaches)  # fmt: skip


def _said(error: Exception) -> str:
    if isinstance(error, TurtlesError):
        return str(error).removeprefix("token: ")
    return f"a step has another shape than today's ({type(error).__name__}: {error})"


def _gone(
    token: Token,
    table: Table,
    store_factory: Callable[[], Store],
    known: Sequence[type[Machine[Any]]],
) -> tuple[tuple[tuple[str, str], ...], tuple[Breach, ...]]:
    if token.schedule is not None:
        played = replay_schedule(table, store_factory, token.schedule, known=known)
        return tuple((f"{actor}: {done}", "") for actor, done in played.trace), played.breaches
    if not token.steps or not all(token.steps) or token.steps[0][0] != "start":
        raise UsageError("token: it has no steps that begin with a start")
    found = repeat(
        table, store_factory(), token.steps, known=known, liveness=token.kind == "liveness"
    )
    return tuple(said_with_states(token.steps, found.states)), found.breaches
