"""Image, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.secret import Secret
from engine.table import compile_table
from machines.clients.ports.snapshots import CopyInfo
from machines.flows.errands import NoAnswer
from machines.flows.f10_image import Image
from machines.flows.publication import (
    Barred,
    ClearedUp,
    Declined,
    FoundImage,
    FoundSource,
    Given,
    Grant,
    Granted,
    ImageReport,
    Keep,
    NotClearedUp,
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
from machines.flows.publication_calls import undo_image, undo_spawns, was_given

COPY = CopyInfo(kind="session", copy_id="made", state="running")
BASE = Publication(
    public_key="pk", secret_key=Secret("sk"), poll_seconds=3, attended_seconds=7, image_id="i1"
)
GUEST = {"access": "shared"}
GIVES_UP = {"on_exhausted": "no_answer"}
CALLS: dict[str, Any] = {"status": "running", "sends": GIVES_UP}
WAITS: dict[str, Any] = {
    "status": "running",
    "due": lambda c, now_ms: now_ms + 7_000,
    "sends": GIVES_UP | {"on_timeout": "nobody_asks"},
    "moved": True,
}
OURS = ("private", "unlisted", "public")
CALLING = ("finding", "publishing", "showing", "granting", "revoking", "spawning", "transferring",
           "removing")  # fmt: skip
FAILURES = ("not_granted", "not_owner", "source_gone", "source_idle", "no_slot", "refused",
            "not_removed", "not_transferred", "unreachable", "unresolved")  # fmt: skip
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(CALLING, CALLS),
    **dict.fromkeys((*OURS, "usable"), WAITS),
    "clearing_up": {
        "status": "running",
        "sends": {"on_exhausted": "not_cleared_up"},
        "waits_for_cancel": True,
    },
    **{key: {"status": "completed"} for key in ("kept", "spawned", "transferred", "removed")},
    **{key: {"status": "failed"} for key in FAILURES},
}
NO_ANSWER = NoAnswer(effect="call", reason="silence", attempts=3)


def _row(state: str, event: Any, to: str, **gives: Any) -> dict[str, Any]:
    """One edge; an image is as visible as its state says, and another's in `usable`."""
    given: dict[str, Any] = gives.pop("given", {})
    if state in OURS:
        given = {"visibility": state} | given
    if state == "usable":
        given = GUEST | given
    return {"state": state, "event": event, "to": to, "given": given, "gives": gives}


def _ordered(state: str, event: Any, to: str, **gives: Any) -> list[dict[str, Any]]:
    """As a message, as a line of the script, and as one that is done."""
    again = {name: getattr(event, name) for name in event.__struct_fields__ if name != "at"}
    line = type(event)(at=2, **again)
    later = gives | ({"wanted": line} if "wanted" in gives else {})
    return [
        _row(state, event, to, **gives),
        _row(state, line, to, given={"line": 1}, line=2, **later),
        _row(state, line, to, given={"line": 4}, **later),
    ]


def _back(state: str, event: Any, **gives: Any) -> list[dict[str, Any]]:
    """Back to where an image of that visibility rests."""
    given: dict[str, Any] = gives.pop("given", {})
    return [_row(state, event, to, given={"visibility": to, **given}, **gives) for to in OURS]


def _declined(state: str, cause: Any, to: str) -> dict[str, Any]:
    return _row(state, Declined(cause=cause, detail="said"), to, reason="said")


def _changed(before: dict[str, Any], **after: Any) -> dict[str, Any]:
    known = {"access": "owned", "visibility": "private"} | before
    return {name: value for name, value in after.items() if known[name] != value}


WANTED = Spawn(kind="service", name="web")
ROWS: list[dict[str, Any]] = [
    _row("finding", FoundSource(), "publishing"),
    *(_row("finding", FoundImage(access="owned", visibility=to), to,
           **_changed({}, visibility=to)) for to in OURS),
    *(_row("finding", FoundImage(access=access, visibility=seen), "usable",
           **_changed({}, access=access, visibility=seen))
      for access in ("shared", "public") for seen in OURS),
    _row("publishing", Published(image_id="i2", visibility="private"), "private",
         image_id="i2", made=True),
    *({"state": "publishing", "event": Published(image_id="i2", visibility=seen),
       "refused": "begins_private"} for seen in ("unlisted", "public")),
    *(row for state in OURS for row in [
        *_ordered(state, Show(visibility="unlisted"), "showing", asked="unlisted"),
        *_ordered(state, Grant(to_key="k"), "granting", receiver="k"),
        *_ordered(state, Revoke(from_key="k"), "revoking", receiver="k"),
        *_ordered(state, Transfer(to_key="k"), "transferring", receiver="k"),
        *_ordered(state, WANTED, "spawning", wanted=WANTED),
        *_ordered(state, Remove(), "removing"),
        *_ordered(state, Keep(), "kept"),
        _row(state, "nobody_asks", "kept"),
        _declined(state, "not_granted", "not_granted"),
        _row(state, NO_ANSWER, "unreachable", reason="call was given up"),
    ]),
    *_ordered("usable", WANTED, "spawning", wanted=WANTED),
    *_ordered("usable", Keep(), "spawned"),
    _row("usable", "nobody_asks", "spawned"),
    _row("usable", Barred(detail="no"), "not_owner", reason="no"),
    _declined("usable", "not_granted", "not_granted"),
    *(_row("showing", Shown(visibility=to), to, given={"asked": to},
           **_changed({}, visibility=to)) for to in OURS),
    {"state": "showing", "event": Shown(visibility="public"), "given": {"asked": "unlisted"},
     "refused": "is_as_visible_as_asked"},
    *_back("granting", Granted(), given={"receiver": "k", "trusted": ("k", "j")},
           trusted=("j", "k"), receiver=""),
    *_back("revoking", Revoked(), given={"receiver": "k", "trusted": ("k", "j")},
           trusted=("j",), receiver=""),
    *_back("spawning", Spawned(copy=COPY), spawned=(COPY,)),
    *(_row("spawning", Spawned(copy=COPY), "usable", given={**GUEST, "visibility": seen},
           spawned=(COPY,)) for seen in OURS),
    {"state": "spawning", "event": Spawned(copy=COPY), "given": {"spawned": (COPY,)},
     "refused": "is_one_more"},
    {"state": "spawning", "event": Spawned(copy=COPY), "given": {"wanted": WANTED},
     "refused": "is_one_more"},
    _row("transferring", Given(), "transferred",
         given={"receiver": "k", "made": True, "trusted": ("j",)},
         access="shared", made=False, trusted=()),
    _row("removing", Removed(), "removed", given={"made": True, "trusted": ("j",)},
         image_id="", made=False, trusted=()),
    _declined("finding", "not_granted", "not_granted"),
    *(_declined("publishing", cause, to) for cause, to in
      [("source_gone", "source_gone"), ("source_idle", "source_idle"), ("refused", "refused"),
       ("not_granted", "refused")]),
    *(_declined(state, cause, to) for state in ("showing", "granting", "revoking")
      for cause, to in [("not_owner", "not_owner"), ("not_granted", "not_owner"),
                        ("refused", "refused"), ("no_slot", "refused")]),
    *(_declined("spawning", cause, to) for cause, to in
      [("not_granted", "not_granted"), ("no_slot", "no_slot"), ("refused", "refused"),
       ("not_owner", "refused")]),
    *(_row(state, NO_ANSWER, to, reason="call was given up") for state, to in
      [("publishing", "clearing_up"), ("spawning", "clearing_up"), ("removing", "not_removed"),
       ("transferring", "not_transferred"), ("finding", "unreachable"),
       ("usable", "unreachable"), ("showing", "unreachable"), ("granting", "unreachable"),
       ("revoking", "unreachable")]),
    _row("clearing_up", ClearedUp(), "unreachable"),
    _row("clearing_up", NotClearedUp(effect="asking", reason="", attempts=3), "unresolved",
         given={"reason": "it failed"}, reason="it failed, and so was asking"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Image, BASE, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Image, BASE, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Image, BASE, PLACES)


def test_output(output_of: Any) -> None:
    fields: dict[str, Any] = {"visibility": "public", "trusted": ("k",), "spawned": (COPY,)}
    told = output_of(Image, BASE, reason="why", **fields)
    assert told == ImageReport(image_id="i1", reason="why", **fields)


@pytest.mark.parametrize("state", [*OURS, "usable"])
def test_pauses_between_looks(state: str) -> None:
    every = compile_table(Image).places[state].every
    assert every is not None and every({"context": BASE}) == 3_000


def test_contracts(verdicts: Any, ensured: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Image, BASE)
    assert holds("grants_are_the_owners", trusted=("k",))
    assert holds("grants_are_the_owners", access="shared", image_id="")
    assert not holds("grants_are_the_owners", trusted=("k",), access="shared")
    assert not holds("grants_are_the_owners", trusted=("k",), image_id="")
    for state in OURS:
        name = f"is_ours_and_{state}"
        assert holds(name, visibility=state)
        assert not holds(name, visibility=state, access="shared")
        assert not holds(name, visibility=state, image_id="")
        assert not any(holds(name, visibility=other) for other in OURS if other != state)
    assert holds("is_anothers", access="public") and not holds("is_anothers")
    assert not holds("is_anothers", access="public", image_id="")
    assert holds("is_there") and not holds("is_there", image_id="")
    assert holds("is_nowhere", image_id="") and not holds("is_nowhere")


def test_postconditions(ensured: Any) -> None:
    """Each at its limit."""
    keeps = ensured(Image, BASE)
    granting = Publication(public_key="pk", secret_key=Secret("sk"), receiver="k")
    assert keeps("is_granted_once", old=granting, trusted=("k",))
    assert not keeps("is_granted_once", old=granting, trusted=())
    assert not keeps("is_granted_once", old=granting, trusted=("k", "k"))
    assert keeps("is_granted_no_more", old=granting, trusted=("j",))
    assert not keeps("is_granted_no_more", old=granting, trusted=("k",))


def test_what_was_believed_gives_way_to_what_is_found(check_row: Any) -> None:
    believed = {"access": "shared", "visibility": "unlisted"}
    found = FoundImage(access="owned", visibility="private")
    gives = {"access": "owned", "visibility": "private"}
    row: dict[str, Any] = {"state": "finding", "event": found, "to": "private"}
    check_row(Image, BASE, PLACES, given=believed, gives=gives, **row)


def test_what_was_public_is_private_again(check_row: Any) -> None:
    given, gives = {"visibility": "public", "asked": "private"}, {"visibility": "private"}
    row: dict[str, Any] = {"state": "showing", "event": Shown(visibility="private")}
    check_row(Image, BASE, PLACES, to="private", given=given, gives=gives, **row)


def test_a_transfer_is_asked_about_before_it_is_made_again() -> None:
    made = compile_table(Image).places["transferring"].effect
    assert made is not None and not made.idempotent and made.ask is was_given


def test_what_a_look_told_and_was_lost_is_asked_for_again() -> None:
    places = compile_table(Image).places
    looks = {name for name, one in places.items() if one.every is not None}
    assert looks == {"private", "unlisted", "public", "usable"}
    for name in looks:
        look = places[name].effect
        assert look is not None and not look.idempotent and look.ask is not None


def test_what_is_undone_by_what() -> None:
    places = compile_table(Image).places
    undone = {name: one.compensation for name, one in places.items() if one.compensation}
    assert undone == {"publishing": undo_image, "spawning": undo_spawns}
    undoing = {name for name, one in places.items() if one.undoes == "publishing"}
    assert undoing == {"transferring", "removing"}
