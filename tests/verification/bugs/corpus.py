"""The corpus: what is planted, where, and by which property it may be found.

A defect of the engine is planted while `planted()` lasts; without it the same machine passes.  A
defect of a machine is in a broken twin; the sound one passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.definition import Machine
from tests.verification.bugs import marked, seams, subjects
from tests.verification.bugs.seams import Patches


@dataclass(frozen=True)
class Bug:
    """A defect, the machine that shows it, and its sound twin."""

    name: str
    broken: type[Machine[Any]]
    sound: type[Machine[Any]]
    rules: tuple[str, ...]
    known: tuple[type[Machine[Any]], ...] = ()
    patches: Patches = field(default=list)
    what: str = ""
    messages: int = 3
    """So many events from outside, in the exploration of the sound machine."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The defect is there meanwhile."""
        with ExitStack() as stack:
            for one in self.patches():
                stack.enter_context(one)
            yield

    @property
    def said(self) -> str:
        """What is wrong, in a sentence."""
        return self.what or (self.patches.__doc__ or "").strip()


SHOP, TRIP, WAITER, PARENT = subjects.Shop, subjects.Trip, subjects.Waiter, subjects.Parent
KID = (WAITER,)
STORAGE = ("storage: stranded", "storage: journal", "storage: ended", "storage: effect",
           "storage: inbox", "storage: owner")  # fmt: skip
STUCK = ("stuck", *STORAGE)
UNRECORDED = ("call without record",)
LOST = ("run lost", "endless move", "the engine raised", *UNRECORDED, *STUCK)


def _engine(
    name: str,
    machine: type[Machine[Any]],
    rules: tuple[str, ...],
    patches: Patches,
    known: tuple[type[Machine[Any]], ...] = (),
    what: str = "",
) -> Bug:
    return Bug(name, machine, machine, rules, known, patches, what, 1 if machine is SHOP else 3)


_ENGINE = (
    _engine("no dedupe", SHOP, ("duplicate accepted",), seams.no_dedupe),
    _engine("unknown counts as done", TRIP, ("effect never done",), seams.guess_done),
    _engine("effect inside the transaction", TRIP, UNRECORDED, seams.not_counted),
    _engine("performed again, no reconcile", TRIP, ("effect performed twice",),
            seams.no_reconcile),
    _engine("no idempotency key", TRIP, UNRECORDED, seams.no_key),
    _engine("fresh key for each attempt", TRIP, UNRECORDED, seams.fresh_key),
    _engine("done before effect", TRIP, ("effect never done", *UNRECORDED),
            seams.done_before_effect),
    _engine("fence ignored", TRIP, ("fence",), seams.no_fence),
    _engine("row count ignored", TRIP, ("fence", *LOST), seams.row_count_ignored),
    _engine("completion lost", TRIP, LOST,
            seams.writes_forgotten(lambda write: write.outcome == "done"),
            what="The write that ends an effect is lost."),
    _engine("release lost", TRIP, LOST,
            seams.writes_forgotten(lambda write: write.release and write.entry is None),
            what="The write that gives a run up without a transition is lost."),
    _engine("retry lost", TRIP, LOST,
            seams.writes_forgotten(
                lambda write: write.entry is None and write.after.effect is not None
                and write.after.effect.last_error is not None),
            what="The write that puts an attempt off to later is lost."),
    _engine("retry count lost", marked.Patient, ("gap",), seams.retry_count_lost),
    _engine("stale timer accepted", SHOP, ("timer too early",), seams.stale_timer),
    _engine("timer never armed", WAITER, STUCK, seams.no_timer),
    _engine("parent told twice", PARENT, ("child told twice", "orphan child"),
            seams.child_told_twice, KID),
    _engine("parent never told", PARENT, STUCK, seams.child_never_tells, KID),
    _engine("child not in the transaction", PARENT, STUCK, seams.child_not_accepted, KID),
    _engine("outbox in its own transaction", PARENT, STUCK, seams.outbox_apart, KID),
    _engine("compensation skipped", TRIP, ("compensation skipped",), seams.no_compensation),
    _engine("compensations oldest first", TRIP, ("compensation order",), seams.oldest_first),
    _engine("cancel ignores doubt", TRIP, ("cancel lost an effect",), seams.cancel_in_doubt),
    _engine("rejection drops the effect", SHOP, ("rejection changed the run",),
            seams.rejection_forgets),
    _engine("accepted event wakes nobody", SHOP, STUCK, seams.nobody_wakes),
    _engine("late events stay in ended runs", TRIP, ("storage: ended",), seams.late_events_stay),
    _engine("late event moves an ended run", TRIP, ("ended run moved", "run lost"),
            seams.end_not_looked_at),
    _engine("dead workers keep their runs", TRIP, STUCK, seams.nobody_reaps),
    _engine("journal has another context", WAITER, ("storage: journal",), seams.stale_context),
    _engine("event applied, not consumed", SHOP, ("endless move", *STORAGE), seams.event_stays),
    _engine("effect never closed", TRIP, LOST, seams.effect_never_closed),
    _engine("sequence ahead of the journal", WAITER, ("storage: journal",), seams.seq_twice),
)  # fmt: skip


def _twin(
    name: str,
    broken: type[Machine[Any]],
    sound: type[Machine[Any]],
    rule: str,
    what: str,
) -> Bug:
    return Bug(name, broken, sound, (rule,), what=what)


_MACHINES = (
    _twin("guard off by one", subjects.GenerousTill, subjects.Till, "quarantined",
          "A guard lets one more be taken than is held."),
    _twin("sign error", subjects.SignlessTill, subjects.Till, "quarantined",
          "A guard forgets that an amount may be negative."),
    _twin("rounding up", subjects.RoundingTill, subjects.Till, "quarantined",
          "What is taken is rounded up instead of down."),
    _twin("postcondition false in one order", subjects.OrderedPair, subjects.Pair, "quarantined",
          "Two events may come in either order; one was not thought of."),
    _twin("way out never opens", subjects.EndlessPendulum, subjects.Pendulum, "stuck",
          "The guard of the only way out asks for more than is ever counted."),
    _twin("outcome not handled", subjects.WildScale, subjects.Scale, "quarantined",
          "An effect has an outcome for which its state has no way."),
    _twin("action divides by zero", subjects.DividingScale, subjects.Scale, "quarantined",
          "An action divides by what an effect has answered."),
    _twin("giving up is refused", subjects.StubbornScale, subjects.Scale, "quarantined",
          "The way out for an effect that was given up has a guard that is false."),
    _twin("off-by-one depth", subjects.DeepLadder, subjects.Ladder, "quarantined",
          "A machine that starts itself goes one layer too deep."),
    _twin("final state no guard lets in", subjects.DeadLamp, subjects.Lamp, "gap",
          "A guard asks for a number that the machine never reaches."),
    _twin("secret read twice", marked.CarelessVault, marked.Vault, "always read_once",
          "After a refusal a machine reads anew what can be read only once."),
    _twin("granted without approval", marked.HastyDesk, marked.Desk,
          "always granted_means_approved", "A shortcut past the approval, for small amounts."),
)  # fmt: skip

BUGS: tuple[Bug, ...] = (*_ENGINE, *_MACHINES)
