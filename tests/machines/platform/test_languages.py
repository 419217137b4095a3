"""Languages: 42 known, offered only when a real sandbox has their programs."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.languages import (
    ALIASES,
    INTERPRETERS,
    LANGUAGES,
    SHELLS,
    Probing,
    evaluation,
    wasm_command,
)
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Command, Handle, Result
from machines.platform.sandbox.errors import SandboxGone
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
    everything = {
        *SHELLS,
        *("python3", "bpython", "ipython3", "node", "ruby", "irb", "lua", "php", "perl", "guile"),
        *("ghci", "ghc", "erl", "iex", "elixir", "sbcl", "clisp", "R", "Rscript", "julia"),
        "clojure",
    }
    assert Probing(Answering(everything, 0)).shells() == {*SHELLS, *INTERPRETERS}


def test_an_interpreter_goes_by_its_name_on_debian() -> None:
    probing = Probing(Answering({"ipython3", "lua5.4", "R", "Rscript", "bpython"}, 0))
    # bpython takes commands through python3, which is not there.
    assert probing.shells() == {"ipython", "lua", "r"}
    assert probing.shell_program("ipython") == "ipython3"
    assert probing.shell_program("lua") == "lua5.4"
    assert probing.shell_program("fish") == "fish"


@pytest.mark.parametrize(
    ("shell", "argv"),
    [
        ("fish", ("fish", "-c", "x")),
        ("node", ("node", "-e", "x")),
        ("r", ("Rscript", "-e", "x")),
        ("erl", ("erl", "-noshell", "-eval", "x", "-s", "init", "stop")),
    ],
)
def test_how_a_shell_takes_a_command(shell: str, argv: tuple[str, ...]) -> None:
    assert evaluation(shell, Probing(OnlyThese(set())).shell_program(shell), "x") == argv


class Answering(OnlyThese):
    """Has the programs; whatever is tried with them ends with an exit code."""

    def __init__(self, programs: set[str], exit_code: int) -> None:
        super().__init__(programs)
        self.exit_code = exit_code
        self.tried: list[Command] = []

    def execute(self, handle: Handle, command: Command, **_options: Any) -> Result:
        self.tried.append(command)
        return Result(self.exit_code, b"", b"")


@pytest.mark.parametrize(("exit_code", "offered"), [(0, ["c", "objc"]), (1, ["c"])])
def test_what_programs_do_not_tell_is_tried_in_a_sandbox_once(
    exit_code: int, offered: list[str]
) -> None:
    backend = Answering({"gcc"}, exit_code)
    probing = Probing(backend)
    assert probing.languages() == probing.languages() == offered
    assert len(backend.tried) == 1
    with pytest.raises(SandboxGone):
        backend.stats(Handle("probe"))


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_wasm_target_is_tried_in_a_sandbox(exit_code: int) -> None:
    backend = Answering({"gcc"}, exit_code)
    probing = Probing(backend)
    refused = False
    for _ in range(2):
        try:
            probing.require_wasm(probing.language("c"))
        except Problem as problem:
            refused = True
            assert (problem.status, problem.error) == (400, "wasm_unavailable")
            assert "wasi-libc" in problem.fields["package"]
    assert refused == (exit_code != 0)
    assert len(backend.tried) == 1
    assert backend.tried[0].files == {"/tmp/code.c": b"int main(void) { return 0; }\n"}  # noqa: S108


def test_only_five_languages_have_a_wasm_target() -> None:
    assert [each.name for each in LANGUAGES if each.wasm] == ["c", "cpp", "go", "rust", "zig"]
    assert wasm_command(LANGUAGES[0])[2].endswith("exit 1")
