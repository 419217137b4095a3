"""A backend that runs nothing: for fast tests of what stands around sandboxes.

`FakeBackend` keeps the lifecycle of the port (ids, handles, limits, destroy, sweep) and answers
`execute` and `cell` from an interpreter that knows four statements and no more:

    python3    name = <literal>        print(<literal or name>, ...)
    shell      name=word               echo words $name

One statement per line. Anything else is exit code 2 with a message that says so: it never
pretends to have run a program. There is no isolation because there is no execution; do not use it
to serve anybody.
"""

from __future__ import annotations

import ast
import shlex
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from machines.platform.sandbox.backend import (
    CELL_LANGUAGES,
    OUTPUT_BYTES_DEFAULT,
    Command,
    Handle,
    Probe,
    Result,
    Spec,
    Stats,
    check_cell,
    check_request,
)
from machines.platform.sandbox.errors import SandboxGone, SandboxLimit, SandboxUnavailable

__all__ = ["FakeBackend"]

_PROGRAMS = frozenset({"bash", "sh", "python3", "echo", "true", "false"})


class _UnknownError(Exception):
    """A statement outside the four."""


@dataclass(slots=True)
class _Sandbox:
    spec: Spec
    files: dict[str, bytes] = field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {language: {} for language in CELL_LANGUAGES}
    )


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
        with self._lock:
            if spec.sandbox_id in self._sandboxes:
                raise SandboxLimit(f"sandbox_id {spec.sandbox_id!r} is in use; choose another")
            self._sandboxes[spec.sandbox_id] = _Sandbox(spec)
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
        sandbox = self._find(handle)
        for path, content in command.files.items():
            sandbox.files[str(PurePosixPath(command.cwd, path))] = content
        program, *words = command.argv
        if program not in _PROGRAMS:
            return Result(127, b"", f"not found: {program}\n".encode()[:max_output_bytes])
        if program in ("true", "false"):
            return Result(int(program == "false"), b"", b"")
        if program == "echo":
            return _cut(Result(0, (" ".join(words) + "\n").encode(), b""), max_output_bytes)
        code = _code(sandbox, command.cwd, words)
        names = {**sandbox.spec.environment, **command.environment}
        if program == "python3":
            return _cut(_interpret(_python, code, {}), max_output_bytes)
        return _cut(_interpret(_shell, code, dict(names)), max_output_bytes)

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
        sandbox = self._find(handle)
        variables = sandbox.variables[language]
        step = _python if language == "python3" else _shell
        return _cut(_interpret(step, code, variables), max_output_bytes)

    def available_programs(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that `execute` knows."""
        return _PROGRAMS & frozenset(names)

    def stats(self, handle: Handle) -> Stats:
        """Nothing runs, so nothing is used."""
        self._find(handle)
        return Stats("none", 0, 0)

    def destroy(self, handle: Handle) -> None:
        """Forget the sandbox. Idempotent."""
        with self._lock:
            self._sandboxes.pop(handle.sandbox_id, None)

    def sweep(self) -> int:
        """An earlier process left nothing: always 0."""
        return 0

    def close(self) -> None:
        """Forget every sandbox."""
        with self._lock:
            self._sandboxes.clear()

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


def _interpret(
    step: Callable[[str, dict[str, Any]], str], code: str, variables: dict[str, Any]
) -> Result:
    printed = ""
    for line in filter(None, map(str.strip, code.splitlines())):
        try:
            printed += step(line, variables)
        except _UnknownError:
            message = f"the fake backend does not execute {line!r}\n"
            return Result(2, printed.encode(), message.encode())
    return Result(0, printed.encode(), b"")


def _python(line: str, variables: dict[str, Any]) -> str:
    try:
        statement = ast.parse(line).body[0]
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                variables[name] = _value(value, variables)
                return ""
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=values, keywords=[])):
                return " ".join(str(_value(each, variables)) for each in values) + "\n"
            case _:
                raise _UnknownError
    except (SyntaxError, ValueError, KeyError, IndexError) as error:
        raise _UnknownError from error


def _value(node: ast.expr, variables: dict[str, Any]) -> Any:
    return variables[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def _shell(line: str, variables: dict[str, Any]) -> str:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise _UnknownError from error
    name, equals, value = words[0].partition("=") if words else ("", "", "")
    if len(words) == 1 and equals and name.isidentifier():
        variables[name] = value
        return ""
    if words[:1] != ["echo"] or any(word in (">", "|", "&&", ";") for word in words):
        raise _UnknownError
    shown = [
        str(variables.get(word[1:], "")) if word.startswith("$") else word for word in words[1:]
    ]
    return " ".join(shown) + "\n"


def _cut(result: Result, limit: int) -> Result:
    longest = max(len(result.stdout), len(result.stderr))
    return Result(
        result.exit_code,
        result.stdout[:limit],
        result.stderr[:limit],
        truncated=longest > limit,
    )
