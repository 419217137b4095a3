"""Languages and shells: 42 are known, those whose programs the sandbox really has are offered.

What a sandbox has is asked of a sandbox (`Probing.offered`), once per process: a list written
down here would be a guess.  Each recipe names its programs, the Debian package that brings them,
the file the code is written to, and the command that runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec

from machines.platform.refusals import sandbox_refusals
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend

SOURCE_DIRECTORY = "/tmp"  # noqa: S108 - a path inside the sandbox
NOT_PACKAGED = "no package of Debian 12"


class Language(msgspec.Struct, frozen=True):
    """How to run one language: write the code to /tmp/`file`, run `command` and the arguments."""

    name: str
    package: str
    programs: tuple[str, ...]
    file: str
    command: tuple[str, ...]


def _script(name: str, package: str, program: str, extension: str, *options: str) -> Language:
    file = f"code.{extension}"
    command = (program, *options, f"{SOURCE_DIRECTORY}/{file}")
    return Language(name, package, (program,), file, command)


def _steps(
    name: str, package: str, programs: tuple[str, ...], extension: str, build: str, run: str
) -> Language:
    line = f'cd {SOURCE_DIRECTORY} && {build} && exec {run} "$@"'
    return Language(name, package, programs, f"code.{extension}", ("sh", "-c", line, "sh"))


def _compiled(name: str, package: str, program: str, extension: str, build: str) -> Language:
    return _steps(name, package, (program,), extension, build, "./code")


_TYPESCRIPT = "tsc --target es2020 --module commonjs code.ts"
_KOTLIN = "kotlinc code.kt -include-runtime -d code.jar"

LANGUAGES: tuple[Language, ...] = (
    _script("python", "python3", "python3", "py"),
    _script("javascript", "nodejs", "node", "js"),
    _steps("typescript", "node-typescript", ("tsc", "node"), "ts", _TYPESCRIPT, "node code.js"),
    _script("ruby", "ruby", "ruby", "rb"),
    _script("perl", "perl", "perl", "pl"),
    _script("php", "php-cli", "php", "php"),
    _script("lua", "lua5.4", "lua", "lua"),
    _script("bash", "bash", "bash", "sh"),
    _script("r", "r-base-core", "Rscript", "R"),
    _script("elixir", "elixir", "elixir", "exs"),
    _script("erlang", "erlang-base", "escript", "erl"),
    _script("tcl", "tcl", "tclsh", "tcl"),
    _script("scheme", "guile-3.0", "guile", "scm", "--no-auto-compile"),
    _script("powershell", NOT_PACKAGED, "pwsh", "ps1"),
    _script("clojure", "clojure", "clojure", "clj"),
    _script("commonlisp", "sbcl", "sbcl", "lisp", "--script"),
    _compiled("crystal", "crystal", "crystal", "cr", "crystal build -o code code.cr"),
    _script("groovy", "groovy", "groovy", "groovy"),
    _script("deno", NOT_PACKAGED, "deno", "ts", "run"),
    _script("awk", "mawk", "awk", "awk", "-f"),
    _script("raku", "rakudo", "raku", "raku"),
    _compiled("c", "gcc", "gcc", "c", "gcc -o code code.c -lm"),
    _compiled("cpp", "g++", "g++", "cpp", "g++ -o code code.cpp"),
    _script("go", "golang-go", "go", "go", "run"),
    _compiled("rust", "rustc", "rustc", "rs", "rustc -o code code.rs"),
    _script("java", "openjdk-17-jdk-headless", "java", "java"),
    _steps("kotlin", "kotlin", ("kotlinc", "java"), "kt", _KOTLIN, "java -jar code.jar"),
    _compiled("cobol", "gnucobol4", "cobc", "cob", "cobc -x -o code code.cob"),
    _compiled("fortran", "gfortran", "gfortran", "f90", "gfortran -o code code.f90"),
    _compiled("d", "gdc", "gdc", "d", "gdc -o code code.d"),
    _compiled("zig", NOT_PACKAGED, "zig", "zig", "zig build-exe code.zig"),
    _compiled("nim", "nim", "nim", "nim", "nim compile --hints:off -o:code code.nim"),
    _compiled("v", NOT_PACKAGED, "v", "v", "v -o code code.v"),
    _compiled("objc", "clang gobjc", "clang", "m", "clang -o code code.m -lobjc"),
    _script("dart", NOT_PACKAGED, "dart", "dart", "run"),
    _script("julia", NOT_PACKAGED, "julia", "jl"),
    _compiled("haskell", "ghc", "ghc", "hs", "ghc -v0 -o code code.hs"),
    _script("ocaml", "ocaml-nox", "ocaml", "ml"),
    _script("fsharp", NOT_PACKAGED, "fsharpi", "fsx"),
    _steps(
        "csharp", "mono-mcs", ("mcs", "mono"), "cs", "mcs -out:code.exe code.cs", "mono code.exe"
    ),
    _script("prolog", "swi-prolog-nox", "swipl", "pl", "-q"),
    _script("forth", "gforth", "gforth", "fs"),
)
ALIASES = {
    "python3": "python",
    "py": "python",
    "node": "javascript",
    "nodejs": "javascript",
    "js": "javascript",
    "ts": "typescript",
    "rb": "ruby",
    "pl": "perl",
    "sh": "bash",
    "shell": "bash",
    "guile": "scheme",
    "lisp": "commonlisp",
    "sbcl": "commonlisp",
    "pwsh": "powershell",
    "c++": "cpp",
    "golang": "go",
    "rs": "rust",
    "objective-c": "objc",
    "c#": "csharp",
    "cs": "csharp",
    "f#": "fsharp",
    "hs": "haskell",
    "jl": "julia",
    "perl6": "raku",
}
SHELLS = ("bash", "dash", "sh", "zsh", "fish", "ksh", "tcsh", "csh", "elvish", "xonsh", "ash")
INTERPRETERS = ("python3", "node", "ruby", "lua", "php", "perl", "julia")
_BY_NAME = {language.name: language for language in LANGUAGES}


class Probing:
    """What the sandboxes of a backend have, asked once and remembered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._offered: frozenset[str] | None = None

    def programs(self) -> frozenset[str]:
        """The known programs that a sandbox can run."""
        with self._lock:
            if self._offered is None:
                with sandbox_refusals():
                    self._offered = self._backend.available_programs(_asked())
            return self._offered

    def languages(self) -> list[str]:
        """The languages that can be run now, in the order of the list of 42."""
        here = self.programs()
        return [each.name for each in LANGUAGES if here.issuperset(each.programs)]

    def shells(self) -> frozenset[str]:
        """The session programs that can be run now."""
        return self.programs() & frozenset(SHELLS + INTERPRETERS)

    def language(self, name: str) -> Language:
        """The recipe for a language that can be run now.

        Raises:
            Problem: 400, unknown, or not installed (naming the package that would bring it).
        """
        lowered = name.lower()
        recipe = _BY_NAME.get(ALIASES.get(lowered, lowered))
        if recipe is None:
            raise Problem(
                400,
                "unknown_language",
                f"field 'language': got {name!r}, expected one of those of GET /languages.",
                fields={"field": "language"},
            )
        if not self.programs().issuperset(recipe.programs):
            raise Problem(
                400,
                "language_unavailable",
                f"language {recipe.name!r} is known but not installed here; it comes with "
                f"{recipe.package}. Install that on the platform's machine and restart it.",
                fields={"field": "language", "package": recipe.package},
            )
        return recipe


def _asked() -> Iterable[str]:
    needed = {program for language in LANGUAGES for program in language.programs}
    return sorted(needed | set(SHELLS) | set(INTERPRETERS))
