"""A record of every call of an effect, by its idempotency key.

::

    ledger = Ledger()
    async with Harness([Payment], store=store, calls=ledger) as harness:
        ...
    ledger.assert_exactly_once("charge")
    assert ledger.done("charge") == [Charged(receipt="r1")]

It stands between the engine and the effects (`Calls`), which are really called.  It outlives a
crash as the outside does: give the same ledger to the next harness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from engine.effects import Again, Call, Effect, NotDone
from engine.events import Event
from engine.performing import Calls, OutsideCalls, SqlCalls


@dataclass(frozen=True)
class Entry:
    """One call.

    `answer` is what came back (None from most compensations), or the error that was raised.
    """

    what: Literal["perform", "reconcile"]
    effect: str
    key: str
    attempt: int
    idempotent: bool
    answer: Any

    @property
    def succeeded(self) -> bool:
        """Whether a call was done, as far as its caller was told."""
        told = not isinstance(self.answer, BaseException | Again | NotDone)
        return self.what == "perform" and told


class Ledger:
    """`Calls` that are written down.

    Args:
        inner: how effects are called; by default for real.

    Attributes:
        entries: every call, in order.
    """

    def __init__(self, inner: Calls | None = None) -> None:
        self._inner = inner or OutsideCalls()
        self.entries: list[Entry] = []
        if isinstance(self._inner, SqlCalls):
            self.within = partial(self._within, self._inner)

    def _within(
        self, inner: SqlCalls, effect: Effect, context: Any, call: Call, connection: Any
    ) -> Event | Again | None:
        try:
            answer = inner.within(effect, context, call, connection)
        except BaseException as error:
            self._note("perform", effect, call, error)
            raise
        self._note("perform", effect, call, answer)
        return answer

    async def perform(self, effect: Effect, context: Any, call: Call) -> Event | Again | None:
        """Make the call, and write down what came of it."""
        try:
            answer = await self._inner.perform(effect, context, call)
        except BaseException as error:
            self._note("perform", effect, call, error)
            raise
        self._note("perform", effect, call, answer)
        return answer

    async def reconcile(
        self, effect: Effect, context: Any, call: Call
    ) -> Event | Again | NotDone | None:
        """Ask, and write down the answer."""
        try:
            answer = await self._inner.reconcile(effect, context, call)
        except BaseException as error:
            self._note("reconcile", effect, call, error)
            raise
        self._note("reconcile", effect, call, answer)
        return answer

    def _note(
        self, what: Literal["perform", "reconcile"], effect: Effect, call: Call, answer: Any
    ) -> None:
        entry = Entry(what, effect.name, call.key, call.attempt, effect.idempotent, answer)
        self.entries.append(entry)

    def performed(self, effect: str) -> list[Entry]:
        """Every call of an effect, in order."""
        return [one for one in self.entries if one.effect == effect and one.what == "perform"]

    def done(self, effect: str) -> list[Any]:
        """The answers of the calls that were done, one for each key."""
        return list({one.key: one.answer for one in self.performed(effect) if one.succeeded}
                    .values())  # fmt: skip

    def assert_at_most_once(self) -> None:
        """No effect that is not idempotent was done twice under one key.

        Raises:
            AssertionError: names the effect, the key and the attempts.
        """
        problems = [
            f"effect {name} was done {len(attempts)} times under key {key} "
            f"(attempts {', '.join(map(str, attempts))}), expected once"
            for (name, key), attempts, idempotent in self._successes()
            if len(attempts) > 1 and not idempotent
        ]
        assert not problems, "; ".join(problems)

    def assert_exactly_once(self, *effects: str) -> None:
        """Each of these effects was done, and once under every key under which it was called.

        An idempotent effect may be called again under its key; that counts as once.

        Raises:
            AssertionError: names the effect, the key and how often.
        """
        self.assert_at_most_once()
        successes = {one for one, _, _ in self._successes()}
        for name in effects:
            calls = self.performed(name)
            known = ", ".join(sorted({one.effect for one in self.entries})) or "none"
            assert calls, f"effect {name} was never called; called were: {known}"
            for key in dict.fromkeys(one.key for one in calls):
                assert (name, key) in successes, (
                    f"effect {name} was called under key {key}, and never done"
                )

    def _successes(self) -> Iterator[tuple[tuple[str, str], list[int], bool]]:
        found: dict[tuple[str, str], list[Entry]] = {}
        for one in self.entries:
            if one.succeeded:
                found.setdefault((one.effect, one.key), []).append(one)
        for place, entries in found.items():
            yield place, [one.attempt for one in entries], entries[0].idempotent
