"""What a platform may answer an `Image`, for its verification.

Two runs: one that publishes, and one that is given an image, which is its own in any of the three
visibilities, another key's, or out of reach.  Each follows one order, whichever: what its script
says is left open until it is its turn; then it is kept, or nobody asks any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports.images import Visibility
from machines.clients.ports.snapshots import CopyInfo
from machines.flows.f10_image import Image
from machines.flows.publication import (
    Barred,
    Cause,
    ClearedUp,
    Declined,
    FoundImage,
    FoundSource,
    Given,
    Grant,
    Granted,
    ImageOrder,
    Keep,
    Publication,
    Published,
    Remove,
    Removed,
    Revoke,
    Revoked,
    Show,
    Shown,
    Spawn,
    Spawned,
    Transfer,
)

IMAGE, GUEST = "image", "guest"
POLL_SECONDS, TIME_SECONDS = 2, 1
NEXT: dict[Visibility, Visibility] = {
    "private": "unlisted",
    "unlisted": "public",
    "public": "private",
}
CAUSES: dict[str, tuple[Cause, ...]] = {
    "publishing": ("source_gone", "source_idle", "refused"),
    "showing": ("not_owner", "refused"),
    "granting": ("not_owner", "refused"),
    "revoking": ("not_owner", "refused"),
    "spawning": ("not_granted", "no_slot", "refused"),
}
"""What a platform may refuse where; elsewhere only the image can be out of reach."""
CHANGES = ("show", "grant", "revoke", "transfer")


class OfImage(Environment):
    """A platform on which images are shared."""

    machine = Image
    scope = Scope(contexts=2, messages=0, cancels=False, attempts=2)

    def contexts(self) -> Iterator[Publication]:
        """One to make, one to use."""
        yield context(source_id="source")
        yield context(image_id=IMAGE)

    # -- the platform ---------------------------------------------------------------------------

    @payloads("found_source")
    def sources(self, context: Publication) -> Iterator[FoundSource]:
        """Where no image is given."""
        if not context.image_id:
            yield FoundSource()

    @payloads("found_image")
    def images(self, context: Publication) -> Iterator[FoundImage]:
        """Ours, as visible as may be; or another key's."""
        if context.image_id:
            for visibility in NEXT:
                yield FoundImage(access="owned", visibility=visibility)
            yield FoundImage(access="public", visibility="public")

    @payloads("published")
    def publications(self) -> Iterator[Published]:
        """Private at first."""
        yield Published(image_id=IMAGE, visibility="private")

    @payloads("shown")
    def visibilities(self, context: Publication) -> Iterator[Shown]:
        """As asked."""
        yield Shown(visibility=context.asked)

    @payloads("granted")
    def grants(self) -> Iterator[Granted]:
        """It is granted."""
        yield Granted()

    @payloads("revoked")
    def revocations(self) -> Iterator[Revoked]:
        """It is not, any more."""
        yield Revoked()

    @payloads("given")
    def gifts(self) -> Iterator[Given]:
        """It is another's."""
        yield Given()

    @payloads("spawned_it")
    def spawns(self, context: Publication) -> Iterator[Spawned]:
        """One more each time."""
        copy_id = f"spawned-{len(context.spawned)}"
        yield Spawned(copy=CopyInfo(kind=context.wanted.kind, copy_id=copy_id, state="running"))

    @payloads("removed_it")
    def removals(self) -> Iterator[Removed]:
        """It is gone."""
        yield Removed()

    @payloads("cleared_up")
    def clearings(self) -> Iterator[ClearedUp]:
        """Nothing is left."""
        yield ClearedUp()

    @payloads("declined")
    def refusals(self, context: Publication, state: str) -> Iterator[Declined]:
        """Every cause there is, where it can be; what was just looked for is not lost at once."""
        if state == "finding" and not context.image_id:
            return
        for cause in CAUSES.get(state, ("not_granted",)):
            yield Declined(cause=cause, detail=cause)

    # -- orders ---------------------------------------------------------------------------------

    @payloads("show")
    def to_show(self, context: Publication) -> Iterator[ImageOrder]:
        """The next visibility."""
        if context.line == 0:
            yield Show(visibility=NEXT[context.visibility], at=1)

    @payloads("grant")
    def to_grant(self, context: Publication) -> Iterator[ImageOrder]:
        """To a guest."""
        if context.line == 0:
            yield Grant(to_key=GUEST, at=1)

    @payloads("revoke")
    def to_revoke(self, context: Publication) -> Iterator[ImageOrder]:
        """From a guest, also after it was granted."""
        if context.line == 0 or (context.line == 1 and context.trusted):
            yield Revoke(from_key=GUEST, at=context.line + 1)

    @payloads("transfer")
    def to_transfer(self, context: Publication) -> Iterator[ImageOrder]:
        """To a guest."""
        if context.line == 0:
            yield Transfer(to_key=GUEST, at=1)

    @payloads("spawn")
    def to_spawn(self, context: Publication) -> Iterator[ImageOrder]:
        """A session."""
        if context.line == 0:
            yield Spawn(at=1)

    @payloads("remove")
    def to_remove(self, context: Publication) -> Iterator[ImageOrder]:
        """At once."""
        if context.line == 0:
            yield Remove(at=1)

    @payloads("keep")
    def to_keep(self, context: Publication) -> Iterator[ImageOrder]:
        """In the end."""
        yield Keep(at=context.line + 1)

    @payloads("barred")
    def barriers(self, context: Publication) -> Iterator[Barred]:
        """What a guest may not."""
        if context.line == 0:
            yield Barred(detail="not_owner")

    # -- what must hold, by the ledger of the outside -------------------------------------------

    @always
    def one_image(self, done: Sequence[Done]) -> bool:
        """Whatever was lost on the way."""
        return len({one.key for one in done if one.effect == "publish"}) <= 1

    @always
    def nothing_is_left_behind(self, status: str, state: str, done: Sequence[Done]) -> bool:
        """A run that did not end well has asked for the end of all that it made.

        Or says that it does not know what there is.
        """
        if status not in ("failed", "cancelled") or state == "unresolved":
            return True
        names = {one.effect for one in done}
        made = any(isinstance(one.event, Published) for one in done)
        spawned = any(isinstance(one.event, Spawned) for one in done)
        if "clear_up" in names:
            return True
        return (not made or bool(names & {"undo_image", "remove", "transfer"})) and (
            not spawned or "undo_spawns" in names
        )

    @always
    def only_its_owner_changes_it(
        self, context: Publication, state: str, done: Sequence[Done]
    ) -> bool:
        """A guest never asks for more than a spawn."""
        found = [one.event.access for one in done if isinstance(one.event, FoundImage)]
        names = {one.effect for one in done}
        return "public" not in found or not names & {*CHANGES, "remove"}

    @always
    def is_as_visible_as_was_told(self, context: Publication, done: Sequence[Done]) -> bool:
        """What the run believes is what it was told last."""
        told = [
            one.event.visibility
            for one in done
            if isinstance(one.event, FoundImage | Published | Shown)
        ]
        return context.visibility in ("private", *told)

    @always
    def what_is_given_away_is_left_alone(self, done: Sequence[Done]) -> bool:
        """Neither changed nor removed."""
        names = [one.effect for one in done]
        given = names.index("transfer") + 1 if "transfer" in names else len(names)
        return not set(names[given:]) & {*CHANGES, "remove"}

    @always
    def ends_for_the_cause_given(
        self, state: str, context: Publication, done: Sequence[Done]
    ) -> bool:
        """What a run says was refused, was refused."""
        if state not in ("not_granted", "source_gone", "source_idle", "no_slot", "refused"):
            return True
        given = {one.event.cause for one in done if isinstance(one.event, Declined)}
        return state in given and context.reason == state

    @sometimes
    def is_granted_and_revoked(self, state: str, context: Publication) -> bool:
        """One key more, and one less."""
        return state == "kept" and context.line == 3

    @sometimes
    def a_guest_spawns(self, state: str, context: Publication) -> bool:
        """What publishing is for."""
        return state == "spawned" and len(context.spawned) == 1

    @sometimes
    def is_given_up_in_doubt(self, state: str, done: Sequence[Done]) -> bool:
        """The image was made, and nobody said so."""
        return state == "unreachable" and any(isinstance(one.event, Published) for one in done)


def context(**changes: Any) -> Publication:
    """A first context that waits for orders."""
    fields: dict[str, Any] = {
        "public_key": "key",
        "secret_key": Secret("secret"),
        "poll_seconds": POLL_SECONDS,
        "attended_seconds": TIME_SECONDS,
        "then": "wait",
    }
    return Publication(**(fields | changes))
