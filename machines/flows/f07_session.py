"""Flow 7: keep one stateful session, from its creation to its end.

::

    creating ── created ──► executing (a script is given) or running
       │ refused ──► no_slot, unauthorized, unavailable, out_of_range, rejected
       └ unanswered ──► unreachable

    running ── execute ──► executing ── cell_ended ──► executing (more cells), ending or running
       │ ▲                     │
       │ └──── seen ── freezing, extending, boosting, checking
       ├ freeze ──► freezing ── seen ──► frozen ── unfreeze ──► unfreezing ── seen ──► running
       ├ extend ──► extending      (a frozen one may be extended and ended, too)
       ├ boost ───► boosting
       ├ end ─────► ending ── over ──► terminated
       └ time_to_look ──► checking ── over ──► expired, idled or lost
                             ▲
                             └── declined, unanswered ── every operation
    from everywhere ── cancel ──► ending ── over ──► cancelled; declined ──► locked

Promise: variables live from one cell to the next and through a freeze, and each cell runs at most
once: it carries its own idempotency key, and one whose result the platform has lost is told as
`unknown` and not run again.  One thing happens at a time; a message that comes meanwhile is
rejected, and the sender learns in which state.  A frozen session executes nothing and holds no
slot.  The time to live (1 h, at most 24 h) and the idle time (15 min, from every activity anew) are
mirrored from the platform, and before a session is called gone, the platform is looked at:
`expired`, `idled`, or `lost` (deleted by somebody else, or dead with its platform).  A run that is
cancelled ends its session (`cancelled`), unless somebody has locked it (`locked`: it is theirs
then); every other end but `unreachable` is one of the session, too, and a session that cannot be
reached ends by itself when it has been idle.

With `cells` a script is run first, with `end_after` the session is ended after it, so that the
machine is useful without messages.  A message is an `Ask` with one order: `Execute`, `Freeze`,
`Unfreeze`, `Extend`, `Boost` or `End` of `session_run`; what came of a cell is in `results`.

Source: platform-api.md 5; paper, Flow 7 and the session lifecycle.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from machines.flows import session_calls as calls
from machines.flows.session_run import (
    IDLE_MS,
    RESULTS_MAX,
    Ask,
    Boost,
    CellEnded,
    CellResult,
    Created,
    Declined,
    Execute,
    Extend,
    Freeze,
    Over,
    Refused,
    Seen,
    SessionReport,
    SessionRun,
    Unanswered,
    Unfreeze,
    is_possible,
)


class Session(Machine[SessionRun]):
    """Keep one session: run cells in it, freeze it, prolong it, end it."""

    payloads = (Unanswered,)

    creating = State(
        initial=True, effect=calls.create, on_exhausted="unanswered", invariant="is_not_there_yet"
    )
    running = State(
        waits=True,
        timeout="until_it_may_be_over",
        on_timeout="time_to_look",
        milestone=True,
        invariant="rests",
    )
    frozen = State(
        waits=True, timeout="until_expiry", on_timeout="time_to_look", invariant="stands_still"
    )
    executing = State(effect=calls.run_cell, on_exhausted="unanswered", invariant="can_execute")
    freezing = State(effect=calls.freeze, on_exhausted="unanswered", invariant="is_awake")
    unfreezing = State(effect=calls.unfreeze, on_exhausted="unanswered", invariant="is_asleep")
    extending = State(effect=calls.extend, on_exhausted="unanswered", invariant="has_a_session")
    boosting = State(effect=calls.boost, on_exhausted="unanswered", invariant="is_awake")
    checking = State(effect=calls.look, on_exhausted="unanswered", invariant="has_a_session")
    ending = State(
        effect=calls.finish, on_exhausted="unanswered", cancellable=False, invariant="has_a_session"
    )
    terminated = State(final=True, invariant="holds_nothing")
    cancelled = State(final=True, failure=True, invariant="holds_nothing")
    locked = State(final=True, failure=True, invariant="was_to_be_cancelled")
    expired = State(final=True, failure=True, invariant="holds_nothing")
    idled = State(final=True, failure=True, invariant="holds_nothing")
    lost = State(final=True, failure=True, invariant="holds_nothing")
    no_slot = State(final=True, failure=True, invariant="never_was")
    unauthorized = State(final=True, failure=True, invariant="never_was")
    unavailable = State(final=True, failure=True, invariant="never_was")
    out_of_range = State(final=True, failure=True, invariant="never_was")
    rejected = State(final=True, failure=True, invariant="never_was")
    unreachable = State(final=True, failure=True)

    created = creating.to(executing, cond="has_cells") | creating.to(running)
    refused = (
        creating.to(no_slot, cond="finds_no_slot")
        | creating.to(unauthorized, cond="is_not_allowed")
        | creating.to(unavailable, cond="meets_no_isolation")
        | creating.to(out_of_range, cond="asks_for_too_much")
        | creating.to(rejected)
    )
    # A message that comes during an operation is refused, and its receipt says in which state.
    ask = (
        # turtles: ignore[V004] the receipt tells
        running.to(executing, cond="is_a_cell", on="take_order")
        | running.to(freezing, cond="is_to_freeze", on="take_order")
        | running.to(extending, cond="is_to_last_longer", on="take_order")
        | running.to(boosting, cond="is_to_be_faster", on="take_order")
        | running.to(ending)
        | frozen.to(unfreezing, cond="is_to_unfreeze", on="take_order")
        | frozen.to(extending, cond="is_to_last_longer", on="take_order")
        | frozen.to(ending)
    )
    time_to_look = running.to(checking) | frozen.to(checking)
    cell_ended = (
        executing.to(executing, cond="has_more_cells")
        | executing.to(ending, cond="ends_after and not has_more_cells")
        | executing.to(running)
    )
    seen = (
        freezing.to(frozen)
        | unfreezing.to(running)
        | extending.to(frozen, cond="was_frozen")
        | extending.to(running)
        | boosting.to(running)
        | checking.to(frozen, cond="was_frozen")
        | checking.to(executing, cond="has_cells and not was_frozen")
        | checking.to(ending, cond="ends_after and not has_cells and not was_frozen")
        | checking.to(running)
    )
    declined = (
        executing.to(checking, on="drop_refused_cell")
        | freezing.to(checking)
        | unfreezing.to(checking)
        | extending.to(checking)
        | boosting.to(checking)
        | ending.to(locked, cond="is_cancelling")
        | ending.to(checking, on="stay_after_all")
    )
    over = (
        checking.to(expired, cond="is_expired and not was_idle")
        | checking.to(idled, cond="was_idle")
        | checking.to(lost)
        | ending.to(cancelled, cond="is_cancelling")
        | ending.to(terminated)
    )
    unanswered = (
        creating.to(unreachable, on="note_silence")
        | executing.to(checking, on="drop_unknown_cell")
        | freezing.to(checking)
        | unfreezing.to(checking)
        | extending.to(checking)
        | boosting.to(checking)
        | checking.to(unreachable, on="note_silence")
        | ending.to(unreachable, on="note_silence")
    )
    cancel = (
        running.to(ending, on="note_cancel")
        | frozen.to(ending, on="note_cancel")
        | executing.to(ending, on="note_cancel")
        | freezing.to(ending, on="note_cancel")
        | unfreezing.to(ending, on="note_cancel")
        | extending.to(ending, on="note_cancel")
        | boosting.to(ending, on="note_cancel")
        | checking.to(ending, on="note_cancel")
        | ending.to.itself(on="note_cancel")
    )

    # -- times --------------------------------------------------------------------------------

    def until_it_may_be_over(self, context: SessionRun, now_ms: int) -> int:
        return max(min(context.expires_ms, context.idles_ms) - now_ms, context.look_ms)

    def until_expiry(self, context: SessionRun, now_ms: int) -> int:
        """A frozen session cannot be idle."""
        return max(context.expires_ms - now_ms, context.look_ms)

    # -- guards -------------------------------------------------------------------------------

    def has_cells(self, context: SessionRun) -> bool:
        return len(context.cells) > 0

    def has_more_cells(self, context: SessionRun) -> bool:
        return len(context.cells) > 1

    def ends_after(self, context: SessionRun) -> bool:
        return context.end_after

    def is_a_cell(self, event: Ask) -> bool:
        return isinstance(event.order, Execute)

    def is_to_freeze(self, event: Ask) -> bool:
        return isinstance(event.order, Freeze)

    def is_to_unfreeze(self, event: Ask) -> bool:
        return isinstance(event.order, Unfreeze)

    def is_to_last_longer(self, event: Ask) -> bool:
        return isinstance(event.order, Extend)

    def is_to_be_faster(self, event: Ask) -> bool:
        return isinstance(event.order, Boost)

    def was_frozen(self, event: Seen) -> bool:
        return event.frozen

    def is_expired(self, event: Over) -> bool:
        return event.reason == "expired"

    def was_idle(self, event: Over) -> bool:
        return event.idle

    def is_cancelling(self, context: SessionRun) -> bool:
        return context.cancelling

    def finds_no_slot(self, event: Refused) -> bool:
        return event.kind == "no_slot"

    def is_not_allowed(self, event: Refused) -> bool:
        return event.kind == "unauthorized"

    def meets_no_isolation(self, event: Refused) -> bool:
        return event.kind == "unavailable"

    def asks_for_too_much(self, event: Refused) -> bool:
        return event.kind == "out_of_range"

    # -- actions ------------------------------------------------------------------------------

    def on_created(self, context: SessionRun, event: Created) -> SessionRun:
        return self.but(
            context,
            session_id=event.session_id,
            slots=event.vcpu,
            expires_ms=event.expires_ms,
            idles_ms=event.idles_ms,
        )

    def on_refused(self, context: SessionRun, event: Refused) -> SessionRun:
        return self.but(context, reason=event.detail)

    def take_order(self, context: SessionRun, event: Ask) -> SessionRun:
        match event.order:
            case Execute(command=command, timeout_seconds=limit):
                return self.but(context, cells=(command,), cell_seconds=limit)
            case Extend(seconds=amount) | Boost(vcpu=amount):
                return self.but(context, amount=amount, problem="")
            case _:
                return self.but(context, problem="")

    def on_cell_ended(self, context: SessionRun, event: CellEnded) -> SessionRun:
        """An activity: the idle time begins anew."""
        idles_ms = max(context.idles_ms, event.at_ms + IDLE_MS)
        return self.but(self._with(context, event.result), idles_ms=idles_ms)

    def drop_unknown_cell(self, context: SessionRun) -> SessionRun:
        return self._with(context, CellResult("unknown"))

    def drop_refused_cell(self, context: SessionRun) -> SessionRun:
        return self._with(context, CellResult("refused"))

    def _with(self, context: SessionRun, result: CellResult) -> SessionRun:
        return self.but(
            context,
            cells=context.cells[1:],
            done=context.done + 1,
            results=(*context.results, result)[-RESULTS_MAX:],
        )

    def on_seen(self, context: SessionRun, event: Seen) -> SessionRun:
        return self.but(
            context,
            frozen=event.frozen,
            slots=0 if event.frozen else event.vcpu,
            expires_ms=max(context.expires_ms, event.expires_ms),
            idles_ms=max(context.idles_ms, event.idles_ms),
            amount=0,
        )

    def on_declined(self, context: SessionRun, event: Declined) -> SessionRun:
        return self.but(context, problem=event.detail, amount=0)

    def stay_after_all(self, context: SessionRun) -> SessionRun:
        """Whoever locked it wants it to live; the next `end` will ask again."""
        return self.but(context, end_after=False)

    def on_unanswered(self, context: SessionRun) -> SessionRun:
        return self.but(context, problem="the platform did not answer", amount=0)

    def note_silence(self, context: SessionRun, event: Unanswered) -> SessionRun:
        return self.but(context, reason=event.reason)

    def note_cancel(self, context: SessionRun) -> SessionRun:
        return self.but(context, cancelling=True)

    def on_enter_executing(self, context: SessionRun) -> SessionRun:
        return self.but(context, problem="")

    def on_enter_frozen(self, context: SessionRun) -> SessionRun:
        """What is left of a script that somebody else has interrupted is not run."""
        left = len(context.cells)
        return self.but(context, cells=(), end_after=False, dropped=context.dropped + left)

    def on_enter_ending(self, context: SessionRun) -> SessionRun:
        return self.but(context, problem="", amount=0)

    def on_time_to_look(self, context: SessionRun) -> SessionRun:
        return self.but(context, problem="")

    def on_over(self, context: SessionRun, event: Over) -> SessionRun:
        return self.but(context, reason=event.reason, slots=0)

    # -- contracts ----------------------------------------------------------------------------

    @requires(created)
    def session_has_a_name(self, event: Created) -> bool:
        """Without one it could be neither used nor ended."""
        return event.session_id != "" and event.vcpu >= 1

    @requires(ask)
    def is_possible(self, context: SessionRun, event: Ask) -> bool:
        """Within the limits; a frozen session executes nothing, and another need not wake."""
        return is_possible(event.order, frozen=context.frozen)

    @ensures(cell_ended)
    def one_cell_has_ended(self, old: SessionRun, new: SessionRun, event: CellEnded) -> bool:
        """The first one, once, with what the platform told of it."""
        gone = (new.cells, new.done) == (old.cells[1:], old.done + 1)
        return gone and new.results[-1] == event.result

    @ensures(created, cell_ended, seen)
    def deadlines_never_come_nearer(self, old: SessionRun, new: SessionRun) -> bool:
        return new.expires_ms >= old.expires_ms and new.idles_ms >= old.idles_ms

    @ensures(ask, time_to_look, seen, cell_ended, declined)
    def keeps_its_session(self, old: SessionRun, new: SessionRun) -> bool:
        return new.session_id == old.session_id

    @invariant
    def slots_are_those_of_what_runs(self, context: SessionRun) -> bool:
        """What is frozen holds none, and what was never made neither."""
        return context.slots >= 0 and (context.slots == 0 or self._holds(context))

    def _holds(self, context: SessionRun) -> bool:
        return context.session_id != "" and not context.frozen

    def is_not_there_yet(self, context: SessionRun) -> bool:
        return context.session_id == "" and context.slots == 0 and context.done == 0

    def rests(self, context: SessionRun) -> bool:
        return self.is_awake(context) and self.has_no_plans(context)

    def stands_still(self, context: SessionRun) -> bool:
        return self.is_asleep(context) and self.has_no_plans(context) and context.slots == 0

    def has_no_plans(self, context: SessionRun) -> bool:
        return context.cells == () and not context.end_after and context.amount == 0

    def can_execute(self, context: SessionRun) -> bool:
        """A frozen session never executes."""
        return self.is_awake(context) and context.cells != ()

    def is_awake(self, context: SessionRun) -> bool:
        return self.has_a_session(context) and not context.frozen and context.slots > 0

    def is_asleep(self, context: SessionRun) -> bool:
        return self.has_a_session(context) and context.frozen

    def has_a_session(self, context: SessionRun) -> bool:
        return context.session_id != ""

    def never_was(self, context: SessionRun) -> bool:
        """A refusal: no session, nothing run, and the reason is told."""
        return context.session_id == "" and context.done == 0 and context.reason != ""

    def was_to_be_cancelled(self, context: SessionRun) -> bool:
        """Somebody has locked it, so it is handed over to them; its time to live goes on."""
        return context.cancelling and context.problem != ""

    def holds_nothing(self, context: SessionRun) -> bool:
        return context.slots == 0 and context.reason != ""

    def output(self, context: SessionRun) -> SessionReport:
        ran = [one.outcome == "completed" and one.exit_code == 0 for one in context.results]
        return SessionReport(
            shell=context.shell,
            success=all(ran) and not context.cells and not context.dropped,
            done=context.done,
            left=len(context.cells) + context.dropped,
            results=context.results,
            reason=context.reason,
        )
