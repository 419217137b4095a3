"""Trust, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.decide import Decision, decide
from engine.secret import Secret
from engine.table import compile_table
from machines.flows.f12_trust import Trust
from machines.flows.trial import (
    PROBES,
    PROMISES,
    Gone,
    NotOpened,
    NotWithdrawn,
    Opened,
    Probed,
    Promised,
    SessionLost,
    Sight,
    Trial,
    TrustReport,
    Unprobed,
    Unread,
    Withdrawn,
)

NOW_MS = 10_000
TRIAL = Trial(
    public_key="pk", secret_key=Secret("sk"), opening_ms=100, reading_ms=200, probing_ms=300
)
FAILS = {"status": "failed"}
PLACES: dict[str, dict[str, Any]] = {
    "requested": {"status": "running", "due": lambda c, now_ms: now_ms + 100,
                  "sends": {"on_timeout": "no_slot_in_time", "on_exhausted": "not_opened"}},
    "withdrawing": {"status": "running", "sends": {"on_exhausted": "not_withdrawn"},
                    "waits_for_cancel": True},
    "created": {"status": "running", "due": lambda c, now_ms: now_ms + 200,
                "sends": {"on_timeout": "unread_in_time", "on_exhausted": "unread"}},
    "probing": {"status": "running", "due": lambda c, now_ms: now_ms + 300,
                "sends": {"on_timeout": "probes_stuck", "on_exhausted": "unprobed"}},
    "destroying": {"status": "running", "waits_for_cancel": True},
    "proven": {"status": "completed"},
    **dict.fromkeys(("breached", "inconclusive", "lost", "refused"), FAILS),
}  # fmt: skip
HELD = {"session_id": "s"}
DOWN = {"effect": "x", "reason": "down", "attempts": 3}
LOST = {"verdict": "lost", "reason": "the session ended before it was proven"}


def _sights(level: Any = "zerotrust", **changed: Any) -> tuple[Sight, ...]:
    seen = {**PROMISES[level], **changed}
    return tuple(Sight(probe=probe, seen=how, detail="d") for probe, how in seen.items() if how)


def _doubt(reason: str) -> dict[str, Any]:
    return {"verdict": "inconclusive", "reason": reason}


def _probed(to: str, verdict: str, reason: str, *, given: Any = None, **fields: Any) -> dict:
    event = Probed(**({"sights": _sights(), "hits": 0} | fields))
    gives = {"sights": event.sights, "verdict": verdict}
    gives |= {"hits": event.hits} if event.hits else {}
    gives |= {"reason": reason} if reason else {}
    gives = {name: value for name, value in gives.items() if value != ()}
    return {"state": "probing", "event": event, "to": to, "gives": gives,
            "given": HELD | (given or {})}  # fmt: skip


SEMI = {"needs_platform": True}
ASKED_SEMI = {"trust": "semitrusted"}
MANY = "; ".join(f"{probe}: not tried, promised closed" for probe in PROBES)
ROWS = [
    {"state": "requested", "event": Opened(session_id="s"), "to": "created",
     "gives": {"session_id": "s", "last_session_id": "s"}},
    {"state": "requested", "event": Opened(session_id="t"), "given": HELD,
     "refused": "one_session_at_a_time"},
    {"state": "requested", "event": NotOpened(**DOWN), "to": "withdrawing",
     "gives": {"reason": "no session: down"}},
    {"state": "requested", "event": NotOpened(**DOWN | {"reason": "x" * 400}), "to": "withdrawing",
     "gives": {"reason": "no session: " + "x" * 288}},
    {"state": "requested", "event": "no_slot_in_time", "to": "withdrawing",
     "gives": {"reason": "no session within 100 ms"}},
    {"state": "withdrawing", "event": Withdrawn(), "given": {"reason": "why"}, "to": "refused"},
    {"state": "withdrawing", "event": NotWithdrawn(**DOWN), "given": {"reason": "why"},
     "to": "refused", "gives": {"reason": "why; one may live on to its ttl: down"}},
    {"state": "created", "event": Promised(network_mode="zerotrust"), "given": HELD,
     "to": "probing"},
    {"state": "created", "event": Promised(network_mode="semitrusted"), "given": HELD | SEMI,
     "to": "probing"},
    {"state": "created", "event": Promised(network_mode="semitrusted"), "given": HELD | ASKED_SEMI,
     "to": "probing"},
    {"state": "created", "event": Promised(network_mode="semitrusted"), "given": HELD,
     "to": "destroying", "gives": {
         "verdict": "breached",
         "reason": "asked for zerotrust, the platform promises semitrusted"}},
    {"state": "created", "event": Promised(network_mode="open"), "given": HELD | SEMI,
     "to": "destroying", "gives": {
         "verdict": "breached", "reason": "asked for semitrusted, the platform promises open"}},
    {"state": "created", "event": Promised(network_mode="zerotrust"), "given": HELD | SEMI,
     "to": "destroying",
     "gives": _doubt("asked for semitrusted, the platform promises zerotrust")},
    {"state": "created", "event": Unread(**DOWN), "given": HELD, "to": "destroying",
     "gives": _doubt("no promise: down")},
    {"state": "created", "event": "unread_in_time", "given": HELD, "to": "destroying",
     "gives": _doubt("the platform did not say within 200 ms what it promises")},
    {"state": "created", "event": SessionLost(), "given": HELD, "to": "destroying", "gives": LOST},
    {"state": "probing", "event": SessionLost(), "given": HELD, "to": "destroying", "gives": LOST},
    {"state": "probing", "event": Unprobed(**DOWN), "given": HELD, "to": "destroying",
     "gives": _doubt("no probe ran: down")},
    {"state": "probing", "event": "probes_stuck", "given": HELD, "to": "destroying",
     "gives": _doubt("the probes did not end within 300 ms")},
    _probed("proven", "proven", ""),
    _probed("proven", "proven", "", sights=_sights("semitrusted"), given=SEMI),
    _probed("destroying", "proven", "", given={"keep": False}),
    _probed("destroying", "breached", "vsock: d", sights=_sights(vsock="open")),
    _probed("destroying", "breached", "proxy: d", sights=_sights(proxy="open")),
    _probed("destroying", "breached", "vsock: d", sights=_sights("semitrusted", vsock="open"),
            given=SEMI),
    _probed("destroying", "breached", "dns: d; vsock: d; 2 visits to this host's canaries",
            sights=_sights(vsock="open", dns="open", proxy=""), hits=2),
    _probed("destroying", "breached", "1 visits to this host's canaries", hits=1),
    _probed("destroying", "breached", "1 visits to this host's canaries", hits=1, problem="odd"),
    _probed("destroying", "inconclusive", "odd", problem="odd"),
    _probed("destroying", "inconclusive", "dns: inconclusive, promised closed",
            sights=_sights(dns="inconclusive")),
    _probed("destroying", "inconclusive", "dns: not tried, promised closed",
            sights=_sights(dns="")),
    _probed("destroying", "inconclusive", "proxy: closed, promised open", given=SEMI),
    _probed("destroying", "inconclusive", MANY[:300], sights=()),
    {"state": "probing", "given": HELD, "refused": "every_probe_speaks_once",
     "event": Probed(sights=(Sight(probe="dns", seen="open"),) * 2, hits=0)},
    {"state": "probing", "given": HELD, "refused": "every_probe_speaks_once",
     "event": Probed(sights=(Sight(probe="walls", seen="open"),), hits=0)},
    *({"state": "destroying", "event": Gone(), "to": to, "gives": {"session_id": ""},
       "given": HELD | {"verdict": verdict, "reason": "why", "keep": False, "sights": _sights()}}
      for verdict, to in [("breached", "breached"), ("lost", "lost"), ("proven", "proven"),
                          ("inconclusive", "inconclusive")]),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Trust, TRIAL, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Trust, TRIAL, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Trust, TRIAL, PLACES)


def test_a_session_is_remembered_until_it_is_ended(run_in: Any) -> None:
    table = compile_table(Trust)
    opened = decide(table, run_in(Trust, TRIAL, "requested"), "opened", Opened(session_id="s"),
                    NOW_MS, from_effect=True)  # fmt: skip
    assert isinstance(opened, Decision) and opened.after.undo == ("requested",)
    held = run_in(Trust, TRIAL, "destroying", **HELD, verdict="lost", reason="why")
    gone = decide(table, held.but(undo=("requested",), child=None), "gone", Gone(), NOW_MS,
                  from_effect=True)  # fmt: skip
    assert isinstance(gone, Decision)
    assert (gone.after.undo, gone.after.status) == ((), "failed")


def test_output(output_of: Any) -> None:
    fields = {"session_id": "s", "verdict": "proven", "sights": _sights(), "hits": 3,
              "reason": "why", "needs_platform": True}  # fmt: skip
    assert output_of(Trust, TRIAL, **fields) == TrustReport(
        trust="semitrusted", verdict="proven", session_id="s", sights=_sights(), hits=3,
        reason="why",
    )  # fmt: skip


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Trust, TRIAL)
    seen = {"sights": _sights(), **HELD}
    assert holds("stands_as_promised", **seen)
    assert not holds("stands_as_promised", **seen, hits=1)
    assert not holds("stands_as_promised", **seen | {"session_id": ""})
    assert not holds("stands_as_promised", **seen, keep=False)
    assert not holds("stands_as_promised", **seen | {"sights": _sights(dns="")})
    assert not holds("stands_as_promised", **seen | {"sights": _sights(dns="open")})
    assert holds("stands_as_promised", sights=_sights(), keep=False)
    assert holds("says_why", reason="why") and not holds("says_why")
    assert not holds("says_why", reason="why", **HELD)
    assert holds("wanted_is_possible", trust="zerotrust")
    assert holds("wanted_is_possible", needs_platform=True)
    assert not holds("wanted_is_possible", trust="zerotrust", needs_platform=True)
    reasoned = "a_verdict_other_than_proven_has_a_reason"
    assert holds(reasoned) and holds(reasoned, verdict="proven")
    assert holds(reasoned, verdict="lost", reason="why") and not holds(reasoned, verdict="lost")


def test_postconditions(ensured: Any) -> None:
    """Each at its limit."""
    holds = ensured(Trust, TRIAL)
    way = "nothing_open_is_proven"
    proven = {"verdict": "proven"}
    assert holds(way, sights=_sights(), **proven)
    assert not holds(way, sights=_sights(), hits=1, **proven)
    assert not holds(way, sights=_sights(proxy="open"), **proven)
    assert holds(way, sights=_sights(proxy="open"), verdict="breached")
    assert holds(way, sights=_sights("semitrusted"), **SEMI, **proven)
    assert not holds(way, sights=_sights(), **SEMI, **proven)
    leak = "a_leak_is_a_breach"
    assert holds(leak, sights=_sights(), **proven)
    assert not holds(leak, sights=_sights(), hits=1, **proven)
    assert not holds(leak, sights=_sights(dns="open"), verdict="inconclusive")
    assert not holds(leak, sights=_sights(), verdict="breached")
    assert holds(leak, sights=_sights(dns="open"), verdict="breached")
