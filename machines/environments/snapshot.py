"""What a platform may answer a `Snapshot`, for its verification.

Three runs: one that asks for more than files and waits for a message, to keep it or to remove it;
one that writes back and forks, and waits until nobody asks any more; one that tries to remove what
it has locked, and may be told to unlock it.  What the first is refused on taking the snapshot, the
others are not: that would tell nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports.snapshots import CopyInfo
from machines.flows.capture import (
    Barred,
    Capture,
    Captured,
    Cause,
    ClearedUp,
    Clone,
    Cloned,
    Declined,
    Keep,
    Lock,
    LockSet,
    Remove,
    Removed,
    Restore,
    RestoreDone,
    SnapshotOrder,
    Unlock,
)
from machines.flows.errands import next_of
from machines.flows.f09_snapshot import Snapshot

SNAPSHOT, SOURCE, FORK = "snapshot", "source", "fork"
POLL_SECONDS, TIME_SECONDS = 2, 1
CAUSES: dict[str, tuple[Cause, ...]] = {
    "capturing": ("source_gone", "source_idle", "refused"),
    "restoring": ("gone", "source_gone", "source_idle", "refused"),
    "cloning": ("gone", "refused"),
}
"""What a platform may refuse where; elsewhere only the snapshot can be gone."""
ASKING = ("restore", "clone", "lock", "unlock")


class OfSnapshot(Environment):
    """A platform that keeps files and variables, or files alone."""

    machine = Snapshot
    scope = Scope(contexts=3, messages=0, attempts=2)

    def contexts(self) -> Iterator[Capture]:
        """See the module."""
        yield context(least="files+vars", then="wait")
        yield context(Restore(), Clone(), then="wait", keep=True)
        yield context(Lock(), Remove())

    # -- the platform ---------------------------------------------------------------------------

    @payloads("captured")
    def snapshots(self, context: Capture) -> Iterator[Captured]:
        """As much as was asked for; of the first run also less."""
        yield taken("files+vars")
        if context.least_level != "files":
            yield taken("files")

    @payloads("declined")
    def refusals(self, context: Capture, state: str) -> Iterator[Declined]:
        """Every cause there is, where it can be."""
        if state == "capturing" and context.least_level == "files":
            return
        for cause in CAUSES.get(state, ("gone",)):
            yield Declined(cause=cause, detail=cause)

    @payloads("restored")
    def restores(self) -> Iterator[RestoreDone]:
        """In place."""
        yield RestoreDone(target_id=SOURCE)

    @payloads("cloned")
    def clones(self, context: Capture) -> Iterator[Cloned]:
        """One more each time."""
        copy_id = f"{FORK}-{len(context.clones)}"
        yield Cloned(copy=CopyInfo(kind=context.wanted.kind, copy_id=copy_id, state="running"))

    @payloads("lock_set")
    def locks(self, state: str) -> Iterator[LockSet]:
        """As asked."""
        yield LockSet(locked=state == "locking")

    @payloads("removed_it")
    def removals(self) -> Iterator[Removed]:
        """It is gone."""
        yield Removed()

    @payloads("cleared_up")
    def clearings(self) -> Iterator[ClearedUp]:
        """Nothing is left."""
        yield ClearedUp()

    # -- the script -----------------------------------------------------------------------------

    @payloads("restore")
    def to_restore(self, context: Capture) -> Iterator[SnapshotOrder]:
        """When it is its turn; so are the others."""
        yield from turn(context, Restore)

    @payloads("clone")
    def to_clone(self, context: Capture) -> Iterator[SnapshotOrder]:
        """See above."""
        yield from turn(context, Clone)

    @payloads("lock")
    def to_lock(self, context: Capture) -> Iterator[SnapshotOrder]:
        """See above."""
        yield from turn(context, Lock)

    @payloads("unlock")
    def to_unlock(self, context: Capture) -> Iterator[SnapshotOrder]:
        """As a message, when it is locked."""
        if context.locked:
            yield Unlock()

    @payloads("remove")
    def to_remove(self, context: Capture) -> Iterator[SnapshotOrder]:
        """Not while it is locked."""
        if not context.locked:
            yield from turn(context, Remove)
            yield from said(context, Remove())

    @payloads("keep")
    def to_keep(self, context: Capture) -> Iterator[SnapshotOrder]:
        """See above."""
        yield from turn(context, Keep)
        yield from said(context, Keep())

    @payloads("barred")
    def locked_away(self, context: Capture) -> Iterator[Barred]:
        """To remove what is locked."""
        if context.locked and list(turn(context, Remove)):
            yield Barred()

    # -- what must hold, by the ledger of the outside -------------------------------------------

    @always
    def one_snapshot(self, done: Sequence[Done]) -> bool:
        """Whatever was lost on the way."""
        return len({one.key for one in done if one.effect == "capture"}) <= 1

    @always
    def nothing_is_left_behind(
        self, status: str, state: str, context: Capture, done: Sequence[Done]
    ) -> bool:
        """When a run ends otherwise than by keeping it, it has asked for its removal.

        Or says that it does not know whether there is one.
        """
        if status not in ("completed", "failed", "cancelled") or state in ("kept", "unresolved"):
            return True
        names = {one.effect for one in done}
        made = any(isinstance(one.event, Captured) for one in done)
        return not made or bool(names & {"remove", "undo", "clear_up"})

    @always
    def no_fork_is_left_behind(self, status: str, state: str, done: Sequence[Done]) -> bool:
        """A run that did not end well ends what it made of the snapshot."""
        if status not in ("failed", "cancelled") or state == "unresolved":
            return True
        made = any(isinstance(one.event, Cloned) for one in done)
        names = {one.effect for one in done}
        return not made or bool(names & {"undo", "clear_up"})

    @always
    def a_removed_one_is_left_alone(self, done: Sequence[Done]) -> bool:
        """Nothing is asked of what is gone."""
        names = [one.effect for one in done]
        removed = names.index("remove") if "remove" in names else len(names)
        return not set(names[removed:]) & set(ASKING)

    @always
    def ends_for_the_cause_given(self, state: str, context: Capture, done: Sequence[Done]) -> bool:
        """What a run says was refused, was refused."""
        if state not in ("source_gone", "source_idle", "gone", "refused"):
            return True
        given = {one.event.cause for one in done if isinstance(one.event, Declined)}
        return state in given and context.reason == state

    @always
    def a_lock_is_a_lock(self, context: Capture, state: str) -> bool:
        """What is locked is not being removed, except by somebody who did not know."""
        return not context.locked or state not in ("removing", "removed")

    @sometimes
    def is_written_back_and_forked(self, state: str, context: Capture) -> bool:
        """The snapshot is kept, its clone lives on."""
        return state == "kept" and len(context.clones) == 1 and context.restores == 1

    @sometimes
    def is_unlocked_and_removed(self, state: str, context: Capture) -> bool:
        """Refused first, for a good reason."""
        return state == "removed" and context.line == len(context.script) > 0

    @sometimes
    def is_given_up_in_doubt(self, state: str, done: Sequence[Done]) -> bool:
        """The snapshot was made, and nobody said so."""
        return state == "unreachable" and any(isinstance(one.event, Captured) for one in done)


def context(*script: SnapshotOrder, least: str = "files", **changes: object) -> Capture:
    """A first context with orders."""
    fields: dict[str, object] = {
        "public_key": "key",
        "secret_key": Secret("secret"),
        "source_type": "session",
        "source_id": SOURCE,
        "least_level": least,
        "poll_seconds": POLL_SECONDS,
        "attended_seconds": TIME_SECONDS,
        "script": script,
    }
    return Capture(**(fields | changes))  # type: ignore[arg-type]


def taken(level: str) -> Captured:
    """What the platform says of the snapshot."""
    return Captured(snapshot_id=SNAPSHOT, source_id=SOURCE, level=level, lost=(), size_bytes=1)


def turn(context: Capture, kind: type[SnapshotOrder]) -> Iterator[SnapshotOrder]:
    """The next order of the script, if it is of that kind; the last is what `then` says."""
    order = next_of(context.script, context.line)
    if order is None:
        order = {"keep": Keep(), "remove": Remove()}.get(context.then)
    if isinstance(order, kind):
        yield order


def said(context: Capture, order: SnapshotOrder) -> Iterator[SnapshotOrder]:
    """A message from outside, to a run that waits for one."""
    if context.then == "wait" and not context.script:
        yield order
