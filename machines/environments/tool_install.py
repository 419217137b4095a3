"""What a sandbox may answer a `ToolInstall`, for its verification.

The running code is always the same wheel.  What is fetched is that one, another, or (from a sandbox
that repeats a digest it has read somewhere) one with our digest and a wrong proof.  Commands break
off, and are turned down for every reason they can have; what is installed is ours, other files,
another version, a tool short, or has a tool without a schema.  The patience ends before
the first retry.  After a repair, and on a retry, there is one answer of each kind: the others have
been tried before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.secret import Secret
from engine.verification.environment import (
    Done,
    Environment,
    always,
    payloads,
    sometimes,
)
from engine.verification.result import Scope
from machines.flows.f05_tool_install import REPAIRS_MAX, TOOLS_COUNT, ToolInstall
from machines.flows.tool_calls import (
    BrokeOff,
    Checked,
    Compared,
    Downloaded,
    Installation,
    Kind,
    Resolved,
    TurnedDown,
    Unpacked,
)

TIMEOUT_MS = 200
DIGEST, PROOF, RECORD_DIGEST, VERSION = "digest", "proof", "record digest", "1"
REQUESTS_MAX = 3 + 2
"""With one repair."""
_ANYWHERE: tuple[Kind, ...] = ("session_gone", "no_toolbox", "no_python", "denied", "unusable")
REASONS: dict[str, tuple[Kind, ...]] = {
    "resolving": ("unresolved",),
    "downloading": ("unresolved", "disk_full", *_ANYWHERE),
    "verifying": ("unresolved",),
    "installing": ("unresolved", "checksum", "disk_full", *_ANYWHERE),
    "checking": _ANYWHERE,
}
"""For which reasons a step is turned down."""


def _some(context: Installation, now_ms: int, count: int) -> int:
    """How many of so many answers are tried."""
    return count if context.repairs < REPAIRS_MAX and now_ms == 0 else 1


class OfToolInstall(Environment):
    """A sandbox, and the code that is running here."""

    machine = ToolInstall
    scope = Scope(contexts=1, messages=0, attempts=2)

    def contexts(self) -> Iterator[Installation]:
        """One with a single repair left: a second would double all that follows."""
        yield Installation(
            public_key="key",
            secret_key=Secret("secret"),
            session_id="session",
            timeout_ms=TIMEOUT_MS,
            repairs=REPAIRS_MAX - 1,
        )

    @payloads("resolved")
    def own_code(self) -> Iterator[Resolved]:
        """One wheel."""
        yield Resolved(
            filename="turtles.whl",
            version=VERSION,
            digest=DIGEST,
            record="RECORD",
            record_sha256=RECORD_DIGEST,
        )

    @payloads("downloaded")
    def wheels(self, context: Installation, now_ms: int) -> Iterator[Downloaded]:
        """Ours; another; our digest without our wheel."""
        answers = ((DIGEST, PROOF), ("another", "another"), (DIGEST, "made up"))
        for digest, proof in answers[: _some(context, now_ms, len(answers))]:
            yield Downloaded(digest=digest, proof=proof, salt="salt", python="3.11.7")

    @payloads("compared")
    def own_bytes(self) -> Iterator[Compared]:
        """The proof that our bytes give."""
        yield Compared(proof=PROOF)

    @payloads("unpacked")
    def places(self) -> Iterator[Unpacked]:
        """Whether it was there already decides nothing."""
        yield Unpacked(kept=False)

    @payloads("checked")
    def findings(self, context: Installation, now_ms: int) -> Iterator[Checked]:
        """Ours, whole; then one thing wrong at a time."""
        answers = (
            (RECORD_DIGEST, VERSION, TOOLS_COUNT, 0),
            ("another", VERSION, TOOLS_COUNT, 0),
            (RECORD_DIGEST, "2", TOOLS_COUNT, 0),
            (RECORD_DIGEST, VERSION, TOOLS_COUNT - 1, 0),
            (RECORD_DIGEST, VERSION, TOOLS_COUNT, 1),
        )
        for record, version, tools, unusable in answers[: _some(context, now_ms, len(answers))]:
            yield Checked(
                record_sha256=record,
                version=version,
                tools=tools,
                unusable=unusable,
                path="/root/.turtles/bin/turtles",
            )

    @payloads("broke_off")
    def ends(self) -> Iterator[BrokeOff]:
        """Killed in the middle."""
        yield BrokeOff(reason="killed")

    @payloads("turned_down")
    def refusals(self, state: str, context: Installation, now_ms: int) -> Iterator[TurnedDown]:
        """Every reason that a step can have."""
        reasons = REASONS.get(state, ())
        for kind in reasons[: _some(context, now_ms, len(reasons))]:
            yield TurnedDown(kind=kind, reason=kind)

    @always
    def is_installed_after_proof_and_check(self, state: str, done: Sequence[Done]) -> bool:
        """No way there but our wheel, proven, and our files, whole."""
        if state != "installed":
            return True
        wheels = [one.event for one in done if isinstance(one.event, Downloaded)]
        checks = [one.event for one in done if isinstance(one.event, Checked)]
        proven = any((one.digest, one.proof) == (DIGEST, PROOF) for one in wheels)
        whole = [(one.record_sha256, one.version, one.tools, one.unusable) for one in checks]
        return proven and whole == [(RECORD_DIGEST, VERSION, TOOLS_COUNT, 0)]

    @always
    def nothing_is_unpacked_unproven(self, done: Sequence[Done]) -> bool:
        """Whatever came of unpacking, a proof had come before it."""
        names = [one.effect for one in done]
        return "install" not in names or "compare" in names[: names.index("install")]

    @always
    def costs_few_requests(self, done: Sequence[Done]) -> bool:
        """Three, and two for each repair: a key of tier 1 has seven a minute."""
        asked = {one.key for one in done if one.effect in ("download", "install", "check")}
        return len(asked) <= REQUESTS_MAX

    @always
    def is_removed_when_it_failed(self, state: str, status: str, done: Sequence[Done]) -> bool:
        """What was fetched is not left behind."""
        fetched = any(one.effect == "download" for one in done)
        if status not in ("failed", "cancelled") or not fetched:
            return True
        return any(one.effect == "uninstall" for one in done)

    @always
    def says_why(self, state: str, status: str, context: Installation) -> bool:
        """A failure that somebody told of is told on."""
        silent = ("unreachable",)
        return status != "failed" or state in silent or context.reason != ""

    @sometimes
    def is_installed_after_a_repair(self, state: str, context: Installation) -> bool:
        """What broke off, or was damaged, was made whole."""
        return state == "installed" and context.repairs == REPAIRS_MAX

    @sometimes
    def is_refused_in_spite_of_the_digest(self, state: str, context: Installation) -> bool:
        """A digest that was only repeated is found out."""
        return state == "refused" and context.seen == context.digest
