"""Starting gVisor's program `runsc`, and telling it what to do with a sandbox that runs.

    platform --fork--> /bin/sh (waits for a line) --exec--> runsc -> sentry, gofer, their processes

The shell waits until its number is recorded and limited (as in start.py).  The line comes by the
pipe that becomes the standard input inside: a shell reads such a line byte by byte, so that nothing
after it is lost.  When the platform dies that pipe ends, and process 1 inside with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from machines.platform.sandbox import processes
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.gvisor_relay import HEADER, RESET

__all__ = ["Running", "Runsc", "find_runsc"]

_GATE = 'read -r go && exec "$@"'
_COMMAND_SECONDS = 60.0
_FLAGS = ("--network=none", "--ignore-cgroups", "--overlay2=none", "--host-uds=none")
_LOG_BYTES = 4096
_GONE_SECONDS = 5.0


@dataclass(slots=True)
class Running:
    """One start of a sandbox: the program outside, its name there, our ends of two pipes."""

    process: subprocess.Popen[bytes]
    name: str
    source: int
    sink: int
    said: Path
    inside: tuple[processes.Identity, ...] = field(default=())

    def open_gate(self) -> None:
        """Let it begin."""
        os.write(self.sink, b"go\n")

    def read_said(self) -> str:
        """The start of what it said."""
        try:
            with self.said.open("rb") as file:
                return file.read(_LOG_BYTES).decode(errors="replace")
        except OSError:
            return ""

    def say_reset(self) -> None:
        """Tell the relay of an image that another host has taken over, before ours serves."""
        os.write(self.sink, HEADER.pack(RESET, 0, 0))

    def send_kill(self) -> None:
        """Kill every process of it; what is frozen ends when it is thawed."""
        self.process.kill()
        for identity in {*self.inside, *processes.descendants(self.process.pid)}:
            processes.kill(identity, wait_seconds=0)

    def kill(self) -> None:
        """Kill every process of it, and wait until the last one is gone."""
        everyone = {*self.inside, *processes.descendants(self.process.pid)}
        self.send_kill()
        self.process.wait()
        processes.wait_until_gone(list(everyone), _GONE_SECONDS)


@dataclass(frozen=True, slots=True)
class Runsc:
    """The program, and what it says of its version."""

    program: str
    version: str

    def start(self, directory: Path, name: str, image: Path | None) -> Running:
        """Fork the waiting process for a new sandbox, or one that goes on from `image`."""
        bundle = ["--bundle", str(directory / "bundle")]
        words = ["run", *bundle] if image is None else ["restore", *bundle, *_image(image)]
        argv = ["/bin/sh", "-c", _GATE, "sh", *self._words(directory), *words, name]
        inside_source, sink = os.pipe()
        source, inside_sink = os.pipe()
        said = directory / f"{name}.log"
        try:
            with said.open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 - fixed words and paths of ours
                    argv,
                    stdin=inside_source,
                    stdout=inside_sink,
                    stderr=log,
                    cwd="/",
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    start_new_session=True,
                )
        except BaseException:
            os.close(sink)
            os.close(source)
            raise
        finally:
            os.close(inside_source)
            os.close(inside_sink)
        return Running(process, name, source, sink, said)

    def checkpoint(self, directory: Path, name: str, image: Path) -> None:
        """Write everything it is to the directory `image`, and end it.  OSError when it fails."""
        self._command(directory, "checkpoint", *_image(image), name)

    def pause(self, directory: Path, name: str) -> None:
        """Stop all its processes.  OSError when that fails."""
        self._command(directory, "pause", name)

    def resume(self, directory: Path, name: str) -> None:
        """Let them go on.  OSError when that fails."""
        self._command(directory, "resume", name)

    def _words(self, directory: Path) -> list[str]:
        return [self.program, "--root", str(directory / "state"), *_FLAGS]

    def _command(self, directory: Path, *words: str) -> None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words and paths of ours
                [*self._words(directory), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"runsc {words[0]} took more than {_COMMAND_SECONDS:.0f} s") from error
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())[:500]
            raise OSError(f"runsc {words[0]} said: {said or 'nothing'}")


def find_runsc() -> Runsc:
    """The program on the PATH.  SandboxUnavailable, with the remedy, where it cannot be used."""
    program = shutil.which("runsc")
    if program is None:
        raise SandboxUnavailable(
            "gVisor's program runsc is not on the PATH",
            "install it (`apt-get install runsc`), or use the backend bubblewrap",
        )
    if os.geteuid() != 0:
        raise SandboxUnavailable(
            "gVisor's sandboxes can be started by root only here",
            "start the platform as root, or use the backend bubblewrap",
        )
    done = subprocess.run(  # noqa: S603 - asks for its version
        [program, "--version"], capture_output=True, timeout=20, check=False
    )
    return Runsc(program, done.stdout.decode(errors="replace").split("\n")[0][:100])


def _image(directory: Path) -> list[str]:
    return ["--image-path", str(directory)]
