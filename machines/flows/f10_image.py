"""Flow 10: publish an image, say who may use it, and make sessions and services of it.

::

    finding ─┬─ found_source ─► publishing ─► private ◄─ show ─► unlisted ◄─ show ─► public
             │                                   │ each: grant, revoke ─► granting, revoking ─► back
             │                                   │       spawn ─► spawning ─► back
             │                                   │       transfer ─► transferring ─► transferred
             │                                   └       remove, keep ─► removing ─► removed, kept
             └─ found_image ─► private, unlisted, public (our own) or
                               usable (another key's) ── spawn ─► spawning ─► usable ─► spawned

    not_granted   the key does not reach the image, or does not any more
    not_owner     only its owner may do that
    source_gone, source_idle, no_slot, refused, not_removed, not_transferred, unreachable,
    unresolved (nobody knows whether something is left)

Promise: an image is private until it is told otherwise, and as visible as was asked for, no more;
grants, visibility and transfers are orders of its owner.  A run without a grant ends `not_granted`
before anything is made.  However often replies are lost, there is one image, and one session or
service for each order.

What was made is removed when the run fails or is cancelled, unless the context says `keep`; what
was spawned by a run that ends well is what it was asked for, and stays.

Source: platform-api.md 8; paper, Flow 10.
"""

from __future__ import annotations

from typing import Any

from engine.clock import seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from machines.flows.errands import NoAnswer, noted
from machines.flows.publication import (
    Barred,
    Declined,
    FoundImage,
    Grant,
    ImageReport,
    Keep,
    NotClearedUp,
    Publication,
    Published,
    Remove,
    Revoke,
    Show,
    Shown,
    Spawn,
    Spawned,
    Transfer,
)
from machines.flows.publication_calls import (
    clear_up,
    find,
    grant,
    heed,
    heed_guest,
    publish,
    remove,
    revoke,
    show,
    spawn,
    transfer,
    undo_image,
    undo_spawns,
)

RESTING: dict[str, Any] = {
    "every": "pause",
    "timeout": "attention",
    "on_timeout": "nobody_asks",
    "on_exhausted": "no_answer",
    "milestone": True,
}
"""What the states that wait for orders have in common."""


class Image(Machine[Publication]):
    """Publish one image or use one, obey orders about it, and leave nothing behind unwanted."""

    payloads = (NoAnswer, NotClearedUp)

    finding = State(initial=True, effect=find, on_exhausted="no_answer")
    publishing = State(effect=publish, compensation=undo_image, on_exhausted="no_answer")
    private = State(effect=heed, invariant="is_ours_and_private", **RESTING)
    unlisted = State(effect=heed, invariant="is_ours_and_unlisted", **RESTING)
    public = State(effect=heed, invariant="is_ours_and_public", **RESTING)
    usable = State(effect=heed_guest, invariant="is_anothers", **RESTING)
    showing = State(effect=show, on_exhausted="no_answer")
    granting = State(effect=grant, on_exhausted="no_answer")
    revoking = State(effect=revoke, on_exhausted="no_answer")
    spawning = State(effect=spawn, compensation=undo_spawns, on_exhausted="no_answer")
    transferring = State(effect=transfer, undoes="publishing", on_exhausted="no_answer")
    removing = State(effect=remove, undoes="publishing", on_exhausted="no_answer")
    clearing_up = State(effect=clear_up, on_exhausted="not_cleared_up", cancellable=False)
    kept = State(final=True, invariant="is_there")
    spawned = State(final=True, invariant="is_anothers")
    transferred = State(final=True, invariant="is_anothers")
    removed = State(final=True, invariant="is_nowhere")
    not_granted = State(final=True, failure=True)
    not_owner = State(final=True, failure=True)
    source_gone = State(final=True, failure=True)
    source_idle = State(final=True, failure=True)
    no_slot = State(final=True, failure=True)
    refused = State(final=True, failure=True)
    not_removed = State(final=True, failure=True)
    not_transferred = State(final=True, failure=True)
    unreachable = State(final=True, failure=True)
    unresolved = State(final=True, failure=True)

    found_source = finding.to(publishing)
    found_image = (
        finding.to(usable, unless="event_is_ours")
        | finding.to(private, cond="event_is_ours and event_is_private")
        | finding.to(unlisted, cond="event_is_ours and event_is_unlisted")
        | finding.to(public)
    )
    published = publishing.to(private)
    show = private.to(showing) | unlisted.to(showing) | public.to(showing)
    grant = private.to(granting) | unlisted.to(granting) | public.to(granting)
    revoke = private.to(revoking) | unlisted.to(revoking) | public.to(revoking)
    transfer = private.to(transferring) | unlisted.to(transferring) | public.to(transferring)
    spawn = private.to(spawning) | unlisted.to(spawning) | public.to(spawning) | usable.to(spawning)
    remove = private.to(removing) | unlisted.to(removing) | public.to(removing)
    keep = private.to(kept) | unlisted.to(kept) | public.to(kept) | usable.to(spawned)
    barred = usable.to(not_owner)
    nobody_asks = private.to(kept) | unlisted.to(kept) | public.to(kept) | usable.to(spawned)
    shown = (
        showing.to(private, cond="event_is_private")
        | showing.to(unlisted, cond="event_is_unlisted")
        | showing.to(public)
    )
    granted = (
        granting.to(private, cond="is_private")
        | granting.to(unlisted, cond="is_unlisted")
        | granting.to(public)
    )
    revoked = (
        revoking.to(private, cond="is_private")
        | revoking.to(unlisted, cond="is_unlisted")
        | revoking.to(public)
    )
    spawned_it = (
        spawning.to(usable, unless="is_ours")
        | spawning.to(private, cond="is_ours and is_private")
        | spawning.to(unlisted, cond="is_ours and is_unlisted")
        | spawning.to(public)
    )
    given = transferring.to(transferred)
    removed_it = removing.to(removed)
    declined = (
        finding.to(not_granted)
        | private.to(not_granted)
        | unlisted.to(not_granted)
        | public.to(not_granted)
        | usable.to(not_granted)
        | publishing.to(source_gone, cond="has_no_source")
        | publishing.to(source_idle, cond="has_an_idle_source")
        | publishing.to(refused)
        | showing.to(not_owner, cond="is_anothers_to_do")
        | showing.to(refused)
        | granting.to(not_owner, cond="is_anothers_to_do")
        | granting.to(refused)
        | revoking.to(not_owner, cond="is_anothers_to_do")
        | revoking.to(refused)
        | spawning.to(not_granted, cond="has_no_grant")
        | spawning.to(no_slot, cond="has_no_slot")
        | spawning.to(refused)
    )
    no_answer = (
        publishing.to(clearing_up)
        | spawning.to(clearing_up)
        | removing.to(not_removed)
        | transferring.to(not_transferred)
        | finding.to(unreachable)
        | private.to(unreachable)
        | unlisted.to(unreachable)
        | public.to(unreachable)
        | usable.to(unreachable)
        | showing.to(unreachable)
        | granting.to(unreachable)
        | revoking.to(unreachable)
    )
    cleared_up = clearing_up.to(unreachable)
    not_cleared_up = clearing_up.to(unresolved)

    def pause(self, context: Publication) -> int:
        return seconds(context.poll_seconds)

    def attention(self, context: Publication) -> int:
        return seconds(context.attended_seconds)

    # -- guards ---------------------------------------------------------------------------------

    def event_is_ours(self, event: FoundImage) -> bool:
        return event.access == "owned"

    def event_is_private(self, event: FoundImage | Shown) -> bool:
        return event.visibility == "private"

    def event_is_unlisted(self, event: FoundImage | Shown) -> bool:
        return event.visibility == "unlisted"

    def is_ours(self, context: Publication) -> bool:
        return context.access == "owned"

    def is_private(self, context: Publication) -> bool:
        return context.visibility == "private"

    def is_unlisted(self, context: Publication) -> bool:
        return context.visibility == "unlisted"

    def has_no_source(self, event: Declined) -> bool:
        return event.cause == "source_gone"

    def has_an_idle_source(self, event: Declined) -> bool:
        return event.cause == "source_idle"

    def is_anothers_to_do(self, event: Declined) -> bool:
        """Its owner's; or the image is gone, and so is nobody's to change."""
        return event.cause in ("not_owner", "not_granted")

    def has_no_grant(self, event: Declined) -> bool:
        return event.cause == "not_granted"

    def has_no_slot(self, event: Declined) -> bool:
        return event.cause == "no_slot"

    # -- actions --------------------------------------------------------------------------------

    def on_found_image(self, context: Publication, event: FoundImage) -> Publication:
        return self.but(context, access=event.access, visibility=event.visibility)

    def on_published(self, context: Publication, event: Published) -> Publication:
        return self.but(context, image_id=event.image_id, visibility=event.visibility, made=True)

    def on_show(self, context: Publication, event: Show) -> Publication:
        return self.but(noted(context, event), asked=event.visibility)

    def on_shown(self, context: Publication, event: Shown) -> Publication:
        return self.but(context, visibility=event.visibility)

    def on_grant(self, context: Publication, event: Grant) -> Publication:
        return self.but(noted(context, event), receiver=event.to_key)

    def on_granted(self, context: Publication) -> Publication:
        others = tuple(key for key in context.trusted if key != context.receiver)
        return self.but(context, trusted=(*others, context.receiver), receiver="")

    def on_revoke(self, context: Publication, event: Revoke) -> Publication:
        return self.but(noted(context, event), receiver=event.from_key)

    def on_revoked(self, context: Publication) -> Publication:
        others = tuple(key for key in context.trusted if key != context.receiver)
        return self.but(context, trusted=others, receiver="")

    def on_transfer(self, context: Publication, event: Transfer) -> Publication:
        return self.but(noted(context, event), receiver=event.to_key)

    def on_given(self, context: Publication) -> Publication:
        """What was granted, and how it is reached, is the new owner's affair."""
        return self.but(context, access="shared", made=False, trusted=())

    def on_spawn(self, context: Publication, event: Spawn) -> Publication:
        return self.but(noted(context, event), wanted=event)

    def on_spawned_it(self, context: Publication, event: Spawned) -> Publication:
        return self.but(context, spawned=(*context.spawned, event.copy))

    def on_remove(self, context: Publication, event: Remove) -> Publication:
        return noted(context, event)

    def on_keep(self, context: Publication, event: Keep) -> Publication:
        return noted(context, event)

    def on_removed_it(self, context: Publication) -> Publication:
        return self.but(context, image_id="", made=False, trusted=())

    def on_declined(self, context: Publication, event: Declined) -> Publication:
        return self.but(context, reason=event.detail)

    def on_barred(self, context: Publication, event: Barred) -> Publication:
        return self.but(context, reason=event.detail)

    # The journal has the words of the last refusal.
    def on_no_answer(self, context: Publication, event: NoAnswer) -> Publication:
        return self.but(context, reason=f"{event.effect} was given up")

    def on_not_cleared_up(self, context: Publication, event: NotClearedUp) -> Publication:
        """Keep that something may live on."""
        return self.but(context, reason=f"{context.reason}, and so was {event.effect}")

    # -- contracts ------------------------------------------------------------------------------

    @requires(published)
    def begins_private(self, event: Published) -> bool:
        """Nobody else sees it before its owner says so (platform-api.md 8)."""
        return event.visibility == "private"

    @requires(shown)
    def is_as_visible_as_asked(self, context: Publication, event: Shown) -> bool:
        """No more and no less."""
        return event.visibility == context.asked

    @requires(spawned_it)
    def is_one_more(self, context: Publication, event: Spawned) -> bool:
        """None that there was before, and of the kind that was asked for."""
        known = [one.copy_id for one in context.spawned]
        return event.copy.copy_id not in known and event.copy.kind == context.wanted.kind

    @ensures(granted)
    def is_granted_once(self, new: Publication, old: Publication) -> bool:
        return new.trusted.count(old.receiver) == 1

    @ensures(revoked)
    def is_granted_no_more(self, new: Publication, old: Publication) -> bool:
        return old.receiver not in new.trusted

    @invariant
    def grants_are_the_owners(self, context: Publication) -> bool:
        """Nobody grants what belongs to another, or is not there."""
        return not context.trusted or (context.access == "owned" and bool(context.image_id))

    def is_ours_and_private(self, context: Publication) -> bool:
        return self.is_at_hand(context) and context.visibility == "private"

    def is_ours_and_unlisted(self, context: Publication) -> bool:
        return self.is_at_hand(context) and context.visibility == "unlisted"

    def is_ours_and_public(self, context: Publication) -> bool:
        return self.is_at_hand(context) and context.visibility == "public"

    def is_at_hand(self, context: Publication) -> bool:
        """It is there, and ours."""
        return bool(context.image_id) and context.access == "owned"

    def is_anothers(self, context: Publication) -> bool:
        return bool(context.image_id) and context.access != "owned"

    def is_there(self, context: Publication) -> bool:
        return bool(context.image_id)

    def is_nowhere(self, context: Publication) -> bool:
        return not context.image_id

    def output(self, context: Publication) -> ImageReport:
        """What there is now, and for whom."""
        return ImageReport(
            image_id=context.image_id,
            visibility=context.visibility,
            trusted=context.trusted,
            spawned=context.spawned,
            reason=context.reason,
        )
