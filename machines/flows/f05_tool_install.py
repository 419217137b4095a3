"""Flow 5: get this very product into a sandbox, verified, and running there.

::

    resolving ──► downloading ──► verifying ──► installing ──► checking ──► installed
     which wheel    one request     compared      one request    one request
     our code is        │  ▲        with ours         │  ▲           │
                        └──┘            │             └──┘◄── broke_off, damaged
                      broke_off         ▼           broke_off
                                  refused (checksum)

    turned down, from anywhere: unresolved, refused, no_toolbox, no_python, session_gone,
                                disk_full, denied, unusable
    too often broken off: unusable (nothing was fetched), damaged;   nobody answers: unreachable

Promise: what ends as `installed` is, file by file, the code that this process itself runs, and its
command lists the 59 tool wrappers, each with a schema.  A half-installed state (a command that was
killed, a file that was cut short) is never trusted: what is not whole is removed and made anew, a
few times at most.  An installation that fails or is cancelled is removed again.  It costs three
requests of the key, a repair one or two more.

How far it can be believed: the digest of the wheel, and that of all installed files, are computed
inside, so they are as honest as the sandbox.  It cannot read them off the platform's SHA256SUMS:
the proof is over a salt that it did not know before it fetched the wheel, and is compared with our
own bytes.  So a truncated, mixed-up or different wheel is always found; a sandbox whose code lies
on purpose may still run anything, and nothing outside depends on what is installed in it.

Source: paper, Flow 5 and Phase 4 ("59 tool wrappers"); platform-api.md 5.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from machines.flows.tool_calls import (
    BrokeOff,
    Checked,
    Compared,
    Downloaded,
    Installation,
    Installed,
    Kind,
    Resolved,
    TurnedDown,
    Unanswered,
    check,
    compare,
    download,
    install,
    resolve,
    uninstall,
)

TOOLS_COUNT = 59
"""Tool wrappers of the package (paper, Flow 1 and Phase 4)."""
REPAIRS_MAX = 2
"""So many steps are done again at most: with the first try they fit into a minute of tier 1."""
REPAIR_PAUSE_MS = 100


class ToolInstall(Machine[Installation]):
    """Install the running code into one session."""

    payloads = (Unanswered,)

    resolving = State(
        initial=True,
        effect=resolve,
        compensation=uninstall,
        on_exhausted="unanswered",
        timeout="patience",
        on_timeout="nobody_answers",
    )
    downloading = State(
        effect=download,
        every=REPAIR_PAUSE_MS,
        on_exhausted="unanswered",
        timeout="patience",
        on_timeout="nobody_answers",
    )
    verifying = State(
        effect=compare, on_exhausted="unanswered", timeout="patience", on_timeout="nobody_answers"
    )
    installing = State(
        effect=install,
        every=REPAIR_PAUSE_MS,
        on_exhausted="unanswered",
        timeout="patience",
        on_timeout="nobody_answers",
        invariant="is_verified",
    )
    checking = State(
        effect=check,
        on_exhausted="unanswered",
        timeout="patience",
        on_timeout="nobody_answers",
        invariant="is_verified",
    )
    installed = State(final=True, invariant="is_whole")
    refused = State(final=True, failure=True)
    unresolved = State(final=True, failure=True)
    no_toolbox = State(final=True, failure=True)
    no_python = State(final=True, failure=True)
    session_gone = State(final=True, failure=True)
    disk_full = State(final=True, failure=True)
    denied = State(final=True, failure=True)
    unusable = State(final=True, failure=True)
    damaged = State(final=True, failure=True)
    incomplete = State(final=True, failure=True)
    unreachable = State(final=True, failure=True)

    resolved = resolving.to(downloading)
    downloaded = downloading.to(verifying)
    compared = verifying.to(installing, cond="is_ours") | verifying.to(refused, on="note_mismatch")
    unpacked = installing.to(checking)
    checked = (
        checking.to(damaged, cond="is_other_code", on="note_other_code")
        | checking.to(incomplete, cond="lacks_tools and not is_other_code", on="note_lacking")
        | checking.to(installed)
    )
    broke_off = (
        downloading.to(downloading, cond="may_repair")
        | downloading.to(unusable)
        | installing.to(installing, cond="may_repair")
        | installing.to(damaged)
        | checking.to(installing, cond="may_repair")
        | checking.to(damaged)
    )
    turned_down = (
        resolving.to(unresolved)
        | verifying.to(unresolved)
        | unresolved.from_(downloading, installing, cond="is_unresolved")
        | installing.to(refused, cond="is_checksum")
        | no_toolbox.from_(downloading, installing, checking, cond="is_no_toolbox")
        | no_python.from_(downloading, installing, checking, cond="is_no_python")
        | session_gone.from_(downloading, installing, checking, cond="is_session_gone")
        | disk_full.from_(downloading, installing, cond="is_disk_full")
        | denied.from_(downloading, installing, checking, cond="is_denied")
        | unusable.from_(downloading, installing, checking)
    )
    unanswered = unreachable.from_(resolving, downloading, verifying, installing, checking)
    nobody_answers = unreachable.from_(resolving, downloading, verifying, installing, checking)

    def patience(self, context: Installation) -> int:
        return context.timeout_ms

    # -- guards ---------------------------------------------------------------------------------

    def is_ours(self, context: Installation, event: Compared) -> bool:
        """What was fetched has our digest, and whoever said so has read it."""
        return context.seen == context.digest and context.proof == event.proof

    def is_other_code(self, context: Installation, event: Checked) -> bool:
        """The installed files are not those of our wheel."""
        ours = (context.record_sha256, context.version)
        return (event.record_sha256, event.version) != ours

    def lacks_tools(self, event: Checked) -> bool:
        """A wrapper is missing, or has no schema."""
        return event.tools != TOOLS_COUNT or event.unusable > 0

    def may_repair(self, context: Installation) -> bool:
        return context.repairs < REPAIRS_MAX

    def is_unresolved(self, event: TurnedDown) -> bool:
        return _is(event, "unresolved")

    def is_checksum(self, event: TurnedDown) -> bool:
        return _is(event, "checksum")

    def is_no_toolbox(self, event: TurnedDown) -> bool:
        return _is(event, "no_toolbox")

    def is_no_python(self, event: TurnedDown) -> bool:
        return _is(event, "no_python")

    def is_session_gone(self, event: TurnedDown) -> bool:
        return _is(event, "session_gone")

    def is_disk_full(self, event: TurnedDown) -> bool:
        return _is(event, "disk_full")

    def is_denied(self, event: TurnedDown) -> bool:
        return _is(event, "denied")

    # -- actions --------------------------------------------------------------------------------

    def on_resolved(self, context: Installation, event: Resolved) -> Installation:
        return self.but(
            context,
            filename=event.filename,
            version=event.version,
            digest=event.digest,
            record=event.record,
            record_sha256=event.record_sha256,
        )

    def on_downloaded(self, context: Installation, event: Downloaded) -> Installation:
        return self.but(
            context, seen=event.digest, proof=event.proof, salt=event.salt, python=event.python
        )

    def note_mismatch(self, context: Installation) -> Installation:
        if context.seen == context.digest:
            return self.but(context, reason="the sandbox told our digest without having our wheel")
        return self.but(
            context, reason=f"the wheel in the sandbox has the digest {context.seen}, not ours"
        )

    def on_checked(self, context: Installation, event: Checked) -> Installation:
        return self.but(
            context, found_sha256=event.record_sha256, tools=event.tools, path=event.path
        )

    def note_other_code(self, context: Installation, event: Checked) -> Installation:
        return self.but(
            context,
            reason=f"what is installed is {event.version} with other files than {context.version}",
        )

    def note_lacking(self, context: Installation, event: Checked) -> Installation:
        return self.but(
            context,
            reason=f"{event.tools} tools have a schema and {event.unusable} have none, "
            f"{TOOLS_COUNT} are expected",
        )

    def on_broke_off(self, context: Installation, event: BrokeOff) -> Installation:
        repairs = min(context.repairs + 1, REPAIRS_MAX)
        return self.but(context, repairs=repairs, reason=event.reason)

    def on_turned_down(self, context: Installation, event: TurnedDown) -> Installation:
        return self.but(context, reason=event.reason)

    def on_unanswered(self, context: Installation, event: Unanswered) -> Installation:
        return self.but(context, reason=event.reason)

    # -- contracts ------------------------------------------------------------------------------

    @requires(resolved)
    def is_what_was_asked_for(self, context: Installation, event: Resolved) -> bool:
        """Whoever names a digest gets that wheel or none."""
        return context.digest in ("", event.digest)

    @requires(downloaded)
    def was_read_after_we_asked(self, event: Downloaded) -> bool:
        """Without a salt the proof is one that anybody may have written down before."""
        return event.salt != ""

    @ensures(checked)
    def keeps_what_was_found(self, new: Installation, event: Checked) -> bool:
        """What the final invariant looks at is what the sandbox said, and not what we hoped for."""
        return (new.found_sha256, new.tools) == (event.record_sha256, event.tools)

    @invariant
    def repairs_are_bounded(self, context: Installation) -> bool:
        """No sandbox can use up a key's requests."""
        return 0 <= context.repairs <= REPAIRS_MAX

    def is_verified(self, context: Installation) -> bool:
        """Nothing is unpacked that is not our wheel."""
        return context.seen == context.digest != ""

    def is_whole(self, context: Installation) -> bool:
        """Our files, all of them, with all tools."""
        return context.found_sha256 == context.record_sha256 != "" and context.tools == TOOLS_COUNT

    def output(self, context: Installation) -> Installed | None:
        """What a parent run learns; None when nothing was checked."""
        if not context.path:
            return None
        return Installed(
            digest=context.digest,
            version=context.version,
            tools=context.tools,
            path=context.path,
        )


def _is(event: TurnedDown, kind: Kind) -> bool:
    return event.kind == kind
