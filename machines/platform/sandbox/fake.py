"""A backend that runs nothing: for fast tests of what stands around sandboxes.

`FakeBackend` keeps the lifecycle of the port (ids, handles, limits, freezing, destroy, sweep) and
answers `execute` and `cell` from an interpreter that knows four statements and no more:

    python3    name = <literal>        print(<literal or name>, ...)
    shell      name=word               echo words $name

One statement per line. Anything else is exit code 2 with a message that says so: it never
pretends to have run a program. There is no isolation because there is no execution; do not use it
to serve anybody.

What passes descriptors passes real ones, behind which stands as little:

    start_program   the same four statements, printed into the pipe at once, and the exit code;
                    with `sleep infinity` as its last line it goes on until it is stopped
                    `python3 -m http.server PORT` goes on likewise and listens on PORT
    connect         to such a program: an HTTP/1.1 server that answers every request with 200 and,
                    as text, its request line, its headers and its body (one Unix socket pair each)
    open_terminal   a real pseudo terminal; each line is a shell statement of the four, or
                    `stty size`, or `exit`
    egress          a real socket listening on a free port of 127.0.0.1

Of a toolbox its files are there for `collect`, and nothing to bind.
`save` writes files and variables as JSON; `freeze`, `unfreeze` and `resize` only note it down.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import socket
import termios
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from machines.platform.sandbox.backend import (
    CELL_LANGUAGES,
    FILES_BYTES_MAX,
    OUTPUT_BYTES_DEFAULT,
    Command,
    Handle,
    Level,
    Probe,
    Program,
    Result,
    Saved,
    Spec,
    Stats,
    check_cell,
    check_request,
)
from machines.platform.sandbox.doors import check_port, check_size
from machines.platform.sandbox.errors import (
    PortClosed,
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)
from machines.platform.sandbox.fake_doors import (
    Running,
    listening_port,
    serve_http,
    serve_terminal,
    shut,
)
from machines.platform.sandbox.fake_statements import interpret, python, shell
from machines.platform.toolbox import load_toolbox

__all__ = ["FakeBackend"]

_PROGRAMS = frozenset({"bash", "sh", "python3", "echo", "true", "false"})
_STAY = "sleep infinity"
_PIPE_BYTES = 60_000  # fits an empty pipe


@dataclass(slots=True)
class _Sandbox:
    spec: Spec
    shown: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {language: {} for language in CELL_LANGUAGES}
    )
    programs: dict[int, Running] = field(default_factory=dict)
    started: int = 0
    ends: list[Callable[[], None]] = field(default_factory=list)
    listening: int | None = None
    frozen: bool = False

    def end(self) -> None:
        """What a destroyed sandbox does to those who hold its descriptors."""
        for running in self.programs.values():
            running.end(b"")
        for end in self.ends:
            end()
        if self.listening is not None:
            os.close(self.listening)


class FakeBackend:
    """`Backend` in memory. `refusal` makes it a machine without isolation."""

    name = "fake"

    def __init__(self, refusal: SandboxUnavailable | None = None) -> None:
        self._refusal = refusal
        self._lock = threading.Lock()
        self._sandboxes: dict[str, _Sandbox] = {}

    def probe(self) -> Probe:
        """Ok unless a refusal was given."""
        if self._refusal is not None:
            return Probe(False, self._refusal.reason, self._refusal.fix, "none")
        return Probe(True, "nothing is executed", "", "none")

    def create(self, spec: Spec) -> Handle:
        """Note down a sandbox. SandboxUnavailable by `refusal`; SandboxLimit: id in use."""
        if self._refusal is not None:
            raise SandboxUnavailable(self._refusal.reason, self._refusal.fix)
        shown = dict(load_toolbox().files) if spec.toolbox else {}
        with self._lock:
            if spec.sandbox_id in self._sandboxes:
                raise SandboxLimit(f"sandbox_id {spec.sandbox_id!r} is in use; choose another")
            sandbox = self._sandboxes[spec.sandbox_id] = _Sandbox(spec, shown)
            if spec.network == "semitrusted":
                sandbox.listening = socket.create_server(("127.0.0.1", 0)).detach()
        return Handle(spec.sandbox_id)

    def execute(
        self,
        handle: Handle,
        command: Command,
        *,
        timeout_seconds: float = 60.0,
        stdin: bytes = b"",
        max_output_bytes: int = OUTPUT_BYTES_DEFAULT,
    ) -> Result:
        """Answer for `python3 -c CODE`, `python3 FILE`, `sh|bash -c CODE|FILE`, echo, true, false.

        `stdin` is accepted and never read: none of the four statements could.
        """
        check_request(timeout_seconds, max_output_bytes)
        return _cut(self._execute(self._awake(handle), command), max_output_bytes)

    def _execute(self, sandbox: _Sandbox, command: Command) -> Result:
        for path, content in command.files.items():
            sandbox.files[str(PurePosixPath(command.cwd, path))] = content
        program, *words = command.argv
        if program not in _PROGRAMS:
            return Result(127, b"", f"not found: {program}\n".encode())
        if program in ("true", "false"):
            return Result(int(program == "false"), b"", b"")
        if program == "echo":
            return Result(0, (" ".join(words) + "\n").encode(), b"")
        code = _code(sandbox, command.cwd, words)
        names = {**sandbox.spec.environment, **command.environment}
        if program == "python3":
            return interpret(python, code, {})
        return interpret(shell, code, dict(names))

    def cell(
        self,
        handle: Handle,
        language: str,
        code: str,
        *,
        timeout_seconds: float = 60.0,
        max_output_bytes: int = OUTPUT_BYTES_DEFAULT,
    ) -> Result:
        """The same four statements, with variables that persist."""
        check_request(timeout_seconds, max_output_bytes)
        check_cell(language, code)
        sandbox = self._awake(handle)
        variables = sandbox.variables[language]
        step = python if language == "python3" else shell
        return _cut(interpret(step, code, variables), max_output_bytes)

    def available_programs(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that `execute` knows."""
        return _PROGRAMS & frozenset(names)

    def collect(
        self,
        handle: Handle,
        directories: Iterable[str],
        *,
        bytes_max: int = FILES_BYTES_MAX,
        count_max: int = 100,
    ) -> dict[str, bytes]:
        """Files that a command brought along, by their path below the directories."""
        sandbox = self._awake(handle)
        found: dict[str, bytes] = {}
        for directory in directories:
            for path, content in sorted({**sandbox.shown, **sandbox.files}.items()):
                if path == directory or not PurePosixPath(path).is_relative_to(directory):
                    continue
                room = bytes_max - sum(map(len, found.values()))
                if len(found) < count_max and len(content) <= room:
                    found.setdefault(str(PurePosixPath(path).relative_to(directory)), content)
        return found

    # -- descriptors ---------------------------------------------------------------------------

    def start_program(self, handle: Handle, command: Command) -> Program:
        """Print at once, then end, or go on (see the head of this module)."""
        sandbox = self._awake(handle)
        if command.argv[0] not in _PROGRAMS:
            raise SandboxLimit(f"not found: {command.argv[0]}")
        port, result = listening_port(command.argv), Result(0, b"", b"")
        stays = port is not None
        if port is None:
            for path, content in command.files.items():
                sandbox.files[str(PurePosixPath(command.cwd, path))] = content
            stays, command = _without_stay(sandbox, command)
            result = self._execute(sandbox, command)
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        os.set_blocking(output, False)
        os.set_blocking(status, False)
        os.write(output_end, (result.stdout + result.stderr)[:_PIPE_BYTES])
        running = Running(output_end, status_end, port)
        with self._lock:
            sandbox.started += 1
            if stays and result.exit_code == 0:
                sandbox.programs[sandbox.started] = running
            else:
                running.end(b"%d\n" % result.exit_code)
            return Program(sandbox.started, output, status)

    def stop_program(self, handle: Handle, number: int) -> None:
        """End it with exit code 137."""
        sandbox = self._awake(handle)
        with self._lock:
            running = sandbox.programs.pop(number, None)
        if running is not None:
            running.end(b"137\n")

    def open_terminal(
        self,
        handle: Handle,
        argv: tuple[str, ...],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """A pseudo terminal with a shell of the four statements on it."""
        check_size(columns, rows)
        sandbox = self._awake(handle)
        if not argv or argv[0] not in _PROGRAMS:
            raise SandboxLimit(f"not found: {argv[0] if argv else '(nothing)'}")
        master, slave = os.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        os.set_blocking(master, False)
        ended, end = os.pipe()
        names = {**sandbox.spec.environment, **(environment or {})}
        sandbox.ends.append(lambda: os.close(end))
        threading.Thread(target=serve_terminal, args=(slave, ended, names), daemon=True).start()
        return master

    def connect(self, handle: Handle, port: int) -> socket.socket:
        """One end of a socket pair with the echoing HTTP server at the other."""
        check_port(port)
        sandbox = self._awake(handle)
        with self._lock:
            ports = {running.port for running in sandbox.programs.values()}
        if port not in ports:
            raise PortClosed(handle.sandbox_id, port)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        sandbox.ends.append(lambda: shut(theirs))
        threading.Thread(target=serve_http, args=(theirs,), daemon=True).start()
        return ours

    def egress(self, handle: Handle) -> socket.socket | None:
        """A duplicate of the listening socket; `getsockname()` tells its port."""
        listening = self._find(handle).listening
        if listening is None:
            return None
        duplicate = socket.socket(fileno=os.dup(listening))
        duplicate.setblocking(False)
        return duplicate

    # -- freezing and snapshots ----------------------------------------------------------------

    def freeze(self, handle: Handle) -> None:
        """Note it down."""
        self._find(handle).frozen = True

    def unfreeze(self, handle: Handle) -> None:
        """Note it down."""
        self._find(handle).frozen = False

    def resize(self, handle: Handle, *, vcpus: int, memory_bytes: int) -> None:
        """Note it down. SandboxLimit as for a new sandbox of that size."""
        sandbox = self._find(handle)
        sandbox.spec = replace(sandbox.spec, vcpus=vcpus, memory_bytes=memory_bytes)

    def save(self, handle: Handle, target: Path, *, level: Level, hot: bool = False) -> Saved:
        """Files, and unless `level` is "files" variables, as JSON."""
        sandbox = self._find(handle)
        files = {path: b64encode(content).decode() for path, content in sandbox.files.items()}
        reached: Level = "files" if level == "files" else "files+vars"
        variables = {} if level == "files" else sandbox.variables
        document = {"files": files, "variables": {k: repr(v) for k, v in variables.items()}}
        body = json.dumps(document, sort_keys=True).encode()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
        return Saved(reached, len(body), hashlib.sha256(body).hexdigest())

    def load(self, handle: Handle, source: Path) -> None:
        """Take both over from `save`. SandboxLimit when `source` is nothing that it wrote."""
        sandbox = self._awake(handle)
        try:
            document = json.loads(source.read_bytes())
            files = {path: b64decode(text) for path, text in document["files"].items()}
            variables = {k: ast.literal_eval(v) for k, v in document["variables"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise SandboxLimit(f"{source.name} is no saved sandbox ({error})") from error
        sandbox.files = files
        sandbox.variables = {language: {} for language in CELL_LANGUAGES} | variables

    def stats(self, handle: Handle) -> Stats:
        """Nothing runs, so nothing is used."""
        self._find(handle)
        return Stats("none", 0, 0)

    def destroy(self, handle: Handle) -> None:
        """Forget the sandbox. Idempotent."""
        with self._lock:
            sandbox = self._sandboxes.pop(handle.sandbox_id, None)
        if sandbox is not None:
            sandbox.end()

    def sweep(self) -> int:
        """An earlier process left nothing: always 0."""
        return 0

    def close(self) -> None:
        """Forget every sandbox."""
        with self._lock:
            handles = [Handle(sandbox_id) for sandbox_id in self._sandboxes]
        for handle in handles:
            self.destroy(handle)

    def _awake(self, handle: Handle) -> _Sandbox:
        sandbox = self._find(handle)
        if sandbox.frozen:
            raise SandboxFrozen(handle.sandbox_id)
        return sandbox

    def _find(self, handle: Handle) -> _Sandbox:
        with self._lock:
            sandbox = self._sandboxes.get(handle.sandbox_id)
        if sandbox is None:
            raise SandboxGone(handle.sandbox_id, "it does not exist in this process")
        return sandbox


def _code(sandbox: _Sandbox, cwd: str, words: list[str]) -> str:
    """The program text of `-c CODE` or of a file that was put before; else an unknown line."""
    if len(words) == 2 and words[0] == "-c":
        return words[1]
    path = str(PurePosixPath(cwd, words[0])) if len(words) == 1 else ""
    return sandbox.files.get(path, b"<no such file>").decode(errors="replace")


def _cut(result: Result, limit: int) -> Result:
    longest = max(len(result.stdout), len(result.stderr))
    return Result(
        result.exit_code,
        result.stdout[:limit],
        result.stderr[:limit],
        truncated=longest > limit,
    )


def _without_stay(sandbox: _Sandbox, command: Command) -> tuple[bool, Command]:
    """Whether its last line is `sleep infinity`, and the command without that line."""
    if command.argv[0] not in ("bash", "sh"):
        return False, command
    lines = _code(sandbox, command.cwd, list(command.argv[1:])).strip().splitlines()
    if not lines or lines[-1].strip() != _STAY:
        return False, command
    return True, replace(command, argv=("sh", "-c", "\n".join(lines[:-1])))
