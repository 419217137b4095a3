"""Languages: 42 known, offered only when a real sandbox has their programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from machines.platform.languages import (
    ALIASES,
    INTERPRETERS,
    LANGUAGES,
    SHELLS,
    SOURCE_DIRECTORY,
    Probing,
)
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend

# The names the tools wrapper checks (wire facts, section 4).
WIRE_NAMES = [
    "python",
    "javascript",
    "typescript",
    "ruby",
    "perl",
    "php",
    "lua",
    "bash",
    "r",
    "elixir",
    "erlang",
    "tcl",
    "scheme",
    "powershell",
    "clojure",
    "commonlisp",
    "crystal",
    "groovy",
    "deno",
    "awk",
    "raku",
    "c",
    "cpp",
    "go",
    "rust",
    "java",
    "kotlin",
    "cobol",
    "fortran",
    "d",
    "zig",
    "nim",
    "v",
    "objc",
    "dart",
    "julia",
    "haskell",
    "ocaml",
    "fsharp",
    "csharp",
    "prolog",
    "forth",
]


def test_the_42_names_of_the_wire_facts_are_known() -> None:
    assert [language.name for language in LANGUAGES] == WIRE_NAMES
    assert len(WIRE_NAMES) == 42


def test_aliases_lead_to_known_names_and_hide_none() -> None:
    assert set(ALIASES.values()) <= set(WIRE_NAMES)
    assert not set(ALIASES) & set(WIRE_NAMES)


class OnlyThese(FakeBackend):
    """Has the given programs, and counts how often it is asked."""

    def __init__(self, programs: set[str]) -> None:
        super().__init__()
        self._has = programs
        self.asked = 0

    def available_programs(self, names: Any) -> frozenset[str]:
        self.asked += 1
        return frozenset(self._has & set(names))


def test_a_language_needs_all_its_programs() -> None:
    assert Probing(OnlyThese({"tsc"})).languages() == []
    assert Probing(OnlyThese({"tsc", "node"})).languages() == ["javascript", "typescript"]


def test_the_sandbox_is_asked_once() -> None:
    backend = OnlyThese({"python3", "fish"})
    probing = Probing(backend)
    assert probing.language("PY").name == "python"
    assert probing.shells() == {"python3", "fish"}
    assert backend.asked == 1


@pytest.mark.parametrize(
    ("name", "error"), [("klingon", "unknown_language"), ("haskell", "language_unavailable")]
)
def test_what_cannot_run_is_refused(name: str, error: str) -> None:
    with pytest.raises(Problem) as caught:
        Probing(OnlyThese({"python3"})).language(name)
    assert (caught.value.status, caught.value.error) == (400, error)


def test_every_shell_and_interpreter_is_asked_for() -> None:
    everything = {*SHELLS, *INTERPRETERS}
    assert Probing(OnlyThese(everything)).shells() == everything


PROGRAMS = {
    "python": "print('hello')",
    "javascript": "console.log('hello')",
    "perl": 'print "hello\\n"',
    "bash": "echo hello",
    "tcl": "puts hello",
    "awk": 'BEGIN { print "hello" }',
    "lua": "print('hello')",
    "ruby": "puts 'hello'",
    "php": "<?php echo 'hello';",
    "c": '#include <stdio.h>\nint main(void) { puts("hello"); }',
    "cpp": '#include <iostream>\nint main() { std::cout << "hello"; }',
}


def test_offered_languages_really_run(tmp_path: Path) -> None:
    backend = BubblewrapBackend(tmp_path / "sandboxes")
    probing = Probing(backend)
    offered = [name for name in probing.languages() if name in PROGRAMS]
    assert {"python", "bash"} <= set(offered)
    handle = backend.create(Spec(sandbox_id="languages"))
    try:
        for name in offered:
            assert _run(backend, handle, probing, name) == "hello"
    finally:
        backend.destroy(handle)


def _run(backend: BubblewrapBackend, handle: Handle, probing: Probing, name: str) -> str:
    recipe = probing.language(name)
    files = {f"{SOURCE_DIRECTORY}/{recipe.file}": PROGRAMS[name].encode()}
    result = backend.execute(handle, Command(argv=recipe.command, files=files))
    assert result.exit_code == 0, result.stderr
    return result.stdout.decode().strip()
