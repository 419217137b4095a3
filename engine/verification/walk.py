"""Going a way again from the very beginning, without snapshots.

A way is a list of steps, as `bench` names them.  The calls of a move and the death of its worker
follow it as steps of their own::

    ("start", "Payment", "{...}")  ("move", 1)  ("call", "lost", "paid", "{...}")  ("crash", 2)

The explorer repeats a share of its ways like this, tokens and generated tests do nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import UsageError
from engine.verification.bench import Bench
from engine.verification.oracles import Breach
from engine.verification.outside import Choice
from engine.verification.result import Step
from engine.verification.snapshot import Fingerprint


class Walk:
    """Goes ways on a bench.

    Attributes:
        breaches: what went wrong on the last way.
        states: where the runs were after each action.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.breaches: list[Breach] = []
        self.states: list[str] = []

    def go(self, steps: Sequence[Step]) -> Fingerprint:
        """The state at the end of a way.

        Raises:
            LookupError: a step is not possible.
        """
        bench = self.bench
        captures, bench.captures = bench.captures, False
        try:
            return self._go(list(steps))
        finally:
            bench.captures = captures

    def _go(self, left: list[Step]) -> Fingerprint:
        bench = self.bench
        bench.go(bench.empty)
        self.states, self.breaches = [], []
        while left:
            step = left.pop(0)
            dead = self._move(step[1], left) if step[0] == "move" else take(bench, step)
            self.breaches += bench.breaches
            if dead or bench.hand is None:
                bench.go(bench.spot(dead=dead))
            self._remember()
        return bench.fingerprint()

    def _move(self, run: int, left: list[Step]) -> bool:
        """Whether the worker died."""
        choices: list[Choice] = []
        while left and left[0][0] == "call":
            choices.append(tuple(left.pop(0)[1:]))
        crash_at = left.pop(0)[1] if left and left[0][0] == "crash" else None
        moved = self.bench.move(run, choices, crash_at=crash_at)
        if self.bench.outside.script or (crash_at is not None and moved.end != "dead"):
            raise LookupError(f"run {run} makes fewer calls or commits than it did")
        return moved.end in ("dead", "lost")

    def _remember(self) -> None:
        rows = self.bench.rows().runs
        self.states.append(", ".join(f"{row.machine} {row.state} ({row.status})" for row in rows))


def take(bench: Bench, step: Step) -> bool:
    """Any step but a move and what belongs to one; false: no worker died in it.

    Raises:
        LookupError: it is not possible here.
        UsageError: there is no such step.
    """
    match step:
        case ("start", machine, context):
            if not bench.start(machine, context):
                raise LookupError("the first context is refused")
        case ("clock", moment):
            bench.wait(moment)
        case ("send", event, text, number):
            bench.send(event, text, number)
        case ("again", event, text, number):
            bench.send(event, text, number, again=True)
        case ("child", event, text, number):
            bench.child(event, text, number)
        case ("probe", event, text):
            bench.probe(event, text)
        case ("cancel",):
            bench.cancel()
        case ("pause",):
            bench.pause()
        case ("resume",):
            bench.resume()
        case _:
            raise UsageError(f"token: step {step!r} is not known")
    return False
