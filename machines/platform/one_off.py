"""One program in a sandbox of its own: build, link the inputs, run, carry out, destroy.

Every program that the platform runs for a job has `TURTLES_JOB_ID` in its environment, and so has
whatever it starts.  That is how a job can be ended inside its sandbox while the sandbox lives on:
what it printed and wrote until then can still be fetched.  A program that hides its environment
is not found this way; a sandbox of its own is then ended as a whole.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress

import msgspec

from machines.platform import transfers
from machines.platform.languages import SOURCE_DIRECTORY, WASM_FILE, wasm_command
from machines.platform.orders import CodeOrder
from machines.platform.sandbox.backend import Backend, Command, Handle, Program, Result
from machines.platform.sandbox.errors import SandboxError
from machines.platform.sessions import spec_for

JOB_MARK = "TURTLES_JOB_ID"
BUILD_SECONDS_MAX = 60.0
_ANSWER_SECONDS = 5.0
# Until a look finds nothing: what is killed may have been starting something.
_KILL = (
    "found=1; for turn in 1 2 3 4 5; do"
    f' files=$(grep -slF -- "{JOB_MARK}=$1" /proc/[0-9]*/environ);'
    ' [ -n "$files" ] || exit $found;'
    " found=0; for file in $files; do"
    " pid=${file#/proc/}; kill -KILL ${pid%/environ} 2>/dev/null; done; done; exit 0"
)


class Outcome(msgspec.Struct, frozen=True):
    """How a program ended, and what came out of its sandbox."""

    result: Result
    yielded: transfers.Yield = transfers.Yield()


def run_alone(
    backend: Backend,
    sandbox_id: str,
    job_id: str,
    order: CodeOrder,
    require_wanted: Callable[[], None],
) -> Outcome:
    """Run code in a sandbox that is made for it and ends with it.

    Args:
        require_wanted: called when the sandbox is there; what it raises ends everything.

    Raises:
        SandboxError: it could not be built or run.
    """
    recipe = order.language
    spec = spec_for(sandbox_id, order.vcpu, order.environment, order.network_mode)
    try:
        handle = backend.create(spec)
        # Whoever ends sandboxes may have looked for this one before it was there.
        require_wanted()
        transfers.link_inputs(backend, handle, order.files, (recipe.file, recipe.binary))
        result = backend.execute(
            handle,
            source_command(order, job_id),
            timeout_seconds=float(order.ttl_seconds),
            stdin=order.stdin.encode(),
        )
        return Outcome(result, _fetch(backend, handle, order))
    finally:
        backend.destroy(Handle(sandbox_id))


def source_command(order: CodeOrder, job_id: str) -> Command:
    """What writes the source and the inputs, and runs them."""
    recipe = order.language
    source = f"{SOURCE_DIRECTORY}/{recipe.file}"
    return Command(
        argv=(*recipe.command, *order.arguments),
        environment={JOB_MARK: job_id},
        files={source: order.code.encode(), **order.files},
    )


def _fetch(backend: Backend, handle: Handle, order: CodeOrder) -> transfers.Yield:
    found = transfers.collect_artifacts(backend, handle)
    if order.returns_artifact and order.language.binary:
        path = f"{SOURCE_DIRECTORY}/{order.language.binary}"
        found = msgspec.structs.replace(
            found, artifact=transfers.collect_file(backend, handle, path)
        )
    if order.returns_wasm:
        found = msgspec.structs.replace(found, wasm_artifact=_wasm(backend, handle, order))
    return found


def _wasm(backend: Backend, handle: Handle, order: CodeOrder) -> transfers.Artifact | None:
    command = Command(argv=wasm_command(order.language))
    try:
        backend.execute(handle, command, timeout_seconds=BUILD_SECONDS_MAX)
    except SandboxError:
        return None
    return transfers.collect_file(backend, handle, f"{SOURCE_DIRECTORY}/{WASM_FILE}")


def interrupt(backend: Backend, handle: Handle, job_id: str) -> bool:
    """Kill a job's processes and leave its sandbox; whether any were found."""
    argv = ("sh", "-c", _KILL, "sh", job_id)
    try:
        program = backend.start_program(handle, Command(argv=argv))
    except (SandboxError, OSError):
        return False
    try:
        return _found_any(program)
    finally:
        for descriptor in (program.output, program.status):
            os.close(descriptor)
        with suppress(SandboxError):
            backend.stop_program(handle, program.number)


def _found_any(program: Program) -> bool:
    waiting = select.poll()
    waiting.register(program.status, select.POLLIN)
    return (
        bool(waiting.poll(_ANSWER_SECONDS * 1000)) and os.read(program.status, 100).strip() == b"0"
    )
