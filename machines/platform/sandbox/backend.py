"""The port behind which untrusted code runs, and the values that cross it.

    create(spec) -> handle -> execute | cell | stats ... -> destroy(handle)

One `Backend` owns every sandbox below its root directory. All methods are synchronous and safe to
call from several threads; requests to one sandbox are served one after another, sandboxes are
independent. A sandbox dies with the process that created it, so a handle is only good in that
process; what a killed platform leaves behind is removed by `sweep()` at the next start.

Every sandbox has a network namespace with nothing but `lo`.  `semitrusted` means that something
listens there: a socket on 127.0.0.1:3128, bound inside before any foreign code ran and handed to
the host (`egress`), where the platform's proxy accepts on it.  A sandbox never gets a route.

Requests (`execute`, `cell`, `save`, `load`, `collect`) to one sandbox are served one after another.
What only passes a descriptor (`open_terminal`, `connect`, `start_program`, `stop_program`,
`egress`) goes by a second channel and does not wait for them.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from machines.platform.sandbox.errors import SandboxLimit

__all__ = [
    "CELL_LANGUAGES",
    "EGRESS_PORT",
    "FILES_BYTES_MAX",
    "OUTPUT_BYTES_DEFAULT",
    "OUTPUT_BYTES_MAX",
    "REQUEST_BYTES_MAX",
    "TIMEOUT_SECONDS_MAX",
    "Backend",
    "Command",
    "Enforcement",
    "Handle",
    "Level",
    "Network",
    "Probe",
    "Program",
    "Result",
    "Saved",
    "Spec",
    "Stats",
    "check_cell",
    "check_request",
]

MIB = 1024 * 1024
OUTPUT_BYTES_DEFAULT = MIB
OUTPUT_BYTES_MAX = 8 * MIB
FILES_BYTES_MAX = 8 * MIB
REQUEST_BYTES_MAX = 16 * MIB
TIMEOUT_SECONDS_MAX = 24 * 3600.0
CELL_LANGUAGES = ("bash", "python3")

Enforcement = Literal["cgroup", "rlimit", "none"]
"""What holds memory and process counts down: "cgroup" (whole sandbox), "rlimit" (memory per
process, processes per sandbox), "none" (nothing is running here at all)."""

Network = Literal["zerotrust", "semitrusted"]
Level = Literal["files", "files+vars", "full"]
"""What a snapshot holds: /root and /tmp; these and the variables of lasting interpreters that can
be written down; everything, processes included (no backend here by default)."""
EGRESS_PORT = 3128

_TEXT = "valid Unicode text without NUL characters"
_SANDBOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Spec:
    """What to build. `sandbox_id` is chosen by the platform, never by a client.

    Files live in memory, so `disk_bytes` (/root, /tmp and /dev/shm together) is part of
    `memory_bytes`. `environment` is seen by commands inside, not by other host processes, and its
    values are not shown by repr.  `toolbox`: show this product inside, read-only
    (machines/platform/toolbox.py).
    """

    sandbox_id: str
    memory_bytes: int = 2048 * MIB
    pids: int = 128
    disk_bytes: int = 512 * MIB
    vcpus: int = 1
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    network: Network = "zerotrust"
    toolbox: bool = False

    def __post_init__(self) -> None:
        if not _SANDBOX_ID.fullmatch(self.sandbox_id):
            raise SandboxLimit(
                f"sandbox_id {self.sandbox_id!r}: expected 1 to 64 of letters, digits, _ and -"
            )
        _check_range("memory_bytes", self.memory_bytes, 128 * MIB, 1024 * 1024 * MIB)
        _check_range("pids", self.pids, 16, 4096)
        _check_range("vcpus", self.vcpus, 1, 64)
        # More would let files alone use up the memory that programs were promised.
        _check_range("disk_bytes", self.disk_bytes, 4 * MIB, self.memory_bytes // 2)
        if self.network not in ("zerotrust", "semitrusted"):
            raise SandboxLimit(f"network {self.network!r}: expected zerotrust or semitrusted")
        _check_environment(self.environment)


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run: `argv` without any shell, in `cwd` (a path inside).

    `files` (path inside -> content) are written first; relative paths start at `cwd`.
    """

    argv: tuple[str, ...]
    cwd: str = "/root"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.argv or not all(map(_is_text, self.argv)):
            raise SandboxLimit(f"argv: expected at least one word, and {_TEXT}")
        if not self.cwd.startswith("/") or not _is_text(self.cwd):
            raise SandboxLimit(f"cwd {self.cwd!r}: expected an absolute path inside the sandbox")
        if not all(path and _is_text(path) for path in self.files):
            raise SandboxLimit(f"files: expected non-empty paths, and {_TEXT}")
        if (size := sum(map(len, self.files.values()))) > FILES_BYTES_MAX:
            raise SandboxLimit(f"files hold {size} bytes, at most {FILES_BYTES_MAX} are accepted")
        _check_environment(self.environment)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command. `exit_code` is 128 + signal number when a signal ended it.

    `truncated`: at least one stream was longer than `max_output_bytes` (its start is kept).
    `timed_out`: it was stopped at the limit. `oom`: the sandbox's memory limit killed something
    during it; only enforcement "cgroup" can tell. `duration_ms` is measured inside.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False
    oom: bool = False
    duration_ms: int = 0


@dataclass(frozen=True, slots=True)
class Handle:
    """Names one sandbox of the backend that made it."""

    sandbox_id: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether this machine can isolate. When not ok, `fix` is the one matching remedy."""

    ok: bool
    reason: str
    fix: str
    enforcement: Enforcement


@dataclass(frozen=True, slots=True)
class Stats:
    """Use of one sandbox now. `None` where `enforcement` gives no way to measure."""

    enforcement: Enforcement
    processes: int
    memory_bytes: int
    memory_peak_bytes: int | None = None
    cpu_seconds: float | None = None
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A program in the background of a sandbox.

    `number` names it to `stop_program`.  `output` and `status` are descriptors of this process,
    non-blocking and owned by the caller: what the program and all it starts print (both streams;
    ends when the last of them has closed it), and one line with its exit code when it has ended.
    """

    number: int
    output: int
    status: int


@dataclass(frozen=True, slots=True)
class Saved:
    """What `save` wrote: the level it reached, its size, its SHA-256, the variables it lost."""

    level: Level
    size_bytes: int
    sha256: str
    lost: tuple[str, ...] = ()


class Backend(Protocol):
    """The port. Raises only what errors.py draws, unless stated otherwise."""

    name: str

    def probe(self) -> Probe:
        """Really build one sandbox and look at its walls from inside. Never raises."""

    def create(self, spec: Spec) -> Handle:
        """Build a sandbox. SandboxUnavailable: no isolation here; SandboxLimit: id in use.

        ToolboxUnavailable, a kind of the first: one with a toolbox cannot be had.
        """

    def execute(
        self,
        handle: Handle,
        command: Command,
        *,
        timeout_seconds: float = 60.0,
        stdin: bytes = b"",
        max_output_bytes: int = OUTPUT_BYTES_DEFAULT,
    ) -> Result:
        """Run a command to its end. A missing program is exit code 127, not an exception."""

    def cell(
        self,
        handle: Handle,
        language: str,
        code: str,
        *,
        timeout_seconds: float = 60.0,
        max_output_bytes: int = OUTPUT_BYTES_DEFAULT,
    ) -> Result:
        """Run code in the sandbox's lasting interpreter; variables persist between calls.

        A cell that ends its interpreter loses the variables: `exit`, a time limit that Python
        code ignores (it is interrupted first), any time limit in bash.
        """

    def available_programs(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that `execute` would find."""

    def collect(
        self,
        handle: Handle,
        directories: Iterable[str],
        *,
        bytes_max: int = FILES_BYTES_MAX,
        count_max: int = 100,
    ) -> dict[str, bytes]:
        """Regular files below directories inside, by their path relative to them.

        Read by the agent; links are not followed.  Absent directories hold nothing.  Files that
        do not fit any more are left out.
        """

    def start_program(self, handle: Handle, command: Command) -> Program:
        """Start a program and leave it running; it ends with the sandbox at the latest.

        SandboxLimit when it cannot be started.
        """

    def stop_program(self, handle: Handle, number: int) -> None:
        """Kill a background program with its session.  One that has ended is no error."""

    def open_terminal(
        self,
        handle: Handle,
        argv: tuple[str, ...],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a program on a new pseudo terminal; the terminal's master side.

        The descriptor is non-blocking and the caller's; reading it fails with EIO (or gives
        nothing) when the program has ended, and closing it hangs the program up.  Resize it with
        TIOCSWINSZ.
        """

    def connect(self, handle: Handle, port: int) -> socket.socket:
        """A TCP connection to 127.0.0.1:`port` inside.  PortClosed when nothing listens."""

    def egress(self, handle: Handle) -> socket.socket | None:
        """The socket that listens on EGRESS_PORT inside; None in a zerotrust sandbox.

        A duplicate, the caller's to close.
        """

    def freeze(self, handle: Handle) -> None:
        """Stop every process of the sandbox.  Idempotent.

        Until `unfreeze`, whatever needs the agent raises SandboxFrozen at once.  A command under
        way stands still, too, and is answered after `unfreeze`; the time does not count against
        its limit.  FreezeFailed, with everything moving on, when something would not stop.
        """

    def unfreeze(self, handle: Handle) -> None:
        """Let its processes go on.  Idempotent."""

    def resize(self, handle: Handle, *, vcpus: int, memory_bytes: int) -> None:
        """Give it other limits.  With enforcement "rlimit": for programs started from now on.

        SandboxLimit, with nothing changed, when it uses more memory than that.  Also while frozen.
        """

    def save(self, handle: Handle, target: Path, *, level: Level, hot: bool = False) -> Saved:
        """Write its files, and variables, to `target` (made 0600, complete or absent).

        Packed inside the sandbox by the agent; the host only counts and hashes bytes.  Unless
        `hot`, its processes stand still meanwhile.  The level reached may be lower than asked for.
        SandboxLimit when it is too large.
        """

    def load(self, handle: Handle, source: Path) -> None:
        """Make its files and variables those that `save` wrote; unpacked inside."""

    def stats(self, handle: Handle) -> Stats:
        """Use of the sandbox now."""

    def destroy(self, handle: Handle) -> None:
        """End the sandbox and remove every trace. Calling it again does nothing."""

    def sweep(self) -> int:
        """Remove what dead owners left below the root; the number of sandboxes removed."""

    def close(self) -> None:
        """Destroy every sandbox of this process. Idempotent."""


def check_request(timeout_seconds: float, max_output_bytes: int) -> None:
    """Refuse limits outside what any backend serves."""
    if not math.isfinite(timeout_seconds) or not 0 < timeout_seconds <= TIMEOUT_SECONDS_MAX:
        raise SandboxLimit(
            f"timeout_seconds {timeout_seconds}: expected more than 0, up to {TIMEOUT_SECONDS_MAX}"
        )
    _check_range("max_output_bytes", max_output_bytes, 0, OUTPUT_BYTES_MAX)


def check_cell(language: str, code: str) -> None:
    """Refuse a language without cells, and code that is no text."""
    if language not in CELL_LANGUAGES:
        raise SandboxLimit(f"language {language!r}: cells exist for {CELL_LANGUAGES}")
    if not _is_text(code):
        raise SandboxLimit(f"code: expected {_TEXT}")


def _check_range(name: str, value: int, minimum: int, maximum: int) -> None:
    if not minimum <= value <= maximum:
        raise SandboxLimit(f"{name} {value}: expected {minimum} to {maximum}")


def _check_environment(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        if not _ENVIRONMENT_NAME.fullmatch(name) or not _is_text(value):
            raise SandboxLimit(
                f"environment variable {name!r}: expected a name of letters, digits and _, "
                f"and a value of {_TEXT}"
            )


def _is_text(value: str) -> bool:
    """Whether `value` can be an argument or a line of code: no NUL, no half surrogates."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False
