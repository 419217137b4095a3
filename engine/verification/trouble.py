"""What broke a phase off, told to the author of the machine or the environment."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import TracebackType

import msgspec

import engine
from engine.errors import TurtlesError
from engine.verification.scheduler import BrokenStage


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a phase could not be finished.

    Args:
        where: `file:line` of the author's code, if it was in there.
        ours: whether it is a defect of turtles.
    """

    phase: str
    problem: str
    where: str = ""
    ours: bool = False


def trouble_of(phase: str, error: BaseException) -> Trouble:
    """What the author of a machine or environment should know of an error from a phase."""
    if isinstance(error, BrokenStage) and error.__cause__ is not None:
        error = error.__cause__
    where = _author_line(error.__traceback__)
    if not where and any(file == _ENVIRONMENT for file, _ in _frames(error.__traceback__)):
        problem = f"the environment gave what cannot be used: {type(error).__name__}: {error}"
        return Trouble(phase=phase, problem=problem)
    if isinstance(error, TurtlesError):
        return Trouble(phase=phase, problem=_advised(error), where=where)
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if where:
        return Trouble(phase=phase, problem=f"code of the machine or its environment raised {said}",
                       where=where)  # fmt: skip
    last = _frames(error.__traceback__)[-1:]
    place = f"{last[0][0]}:{last[0][1]}" if last else ""
    return Trouble(phase=phase, ours=True, where=place,
                   problem=f"turtles itself raised {said}. Please report this")  # fmt: skip


def _advised(error: TurtlesError) -> str:
    told = str(error).rstrip()
    if "first context" in told or "no small context" in told:
        return f"{told} (an Environment with contexts() gives first contexts to verify)"
    return told


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    found = []
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


_ENGINE = Path(engine.__file__).parent
_ENVIRONMENT = str(_ENGINE / "verification" / "environment.py")
_NOT_AUTHORS = tuple(
    str(Path(one).resolve())
    for one in (
        _ENGINE,
        _ENGINE.parent / "persistence",
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sys.prefix,
    )
)


def _author_line(trace: TracebackType | None) -> str:
    """The innermost line that is neither ours nor a library's."""
    for file, line in reversed(_frames(trace)):
        if not file.startswith("<") and not str(Path(file).resolve()).startswith(_NOT_AUTHORS):
            return f"{file}:{line}"
    return ""
