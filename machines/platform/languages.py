"""Languages and shells: 42 are known, those whose programs the sandbox really has are offered.

What a sandbox has is asked of a sandbox (`Probing.programs`), once per process: a list written
down here would be a guess.  Each recipe names its programs, the Debian package that brings them,
the file the code is written to, and the command that runs it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable

import msgspec

from machines.platform.refusals import sandbox_refusals
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Command, Spec
from machines.platform.sandbox.errors import SandboxGone

SOURCE_DIRECTORY = "/tmp"  # noqa: S108 - a path inside the sandbox
NOT_PACKAGED = "no package of Debian 12"
_CHECK_SECONDS = 60.0


class Language(msgspec.Struct, frozen=True):
    """How to run one language: write the code to /tmp/`file`, run `command` and the arguments.

    `binary` is what that builds in /tmp, if anything; `wasm` how a WebAssembly module is built;
    `check` a command that tells with 0 whether all is there, where programs alone do not.
    """

    name: str
    package: str
    programs: tuple[str, ...]
    file: str
    command: tuple[str, ...]
    binary: str = ""
    wasm: Wasm | None = None
    check: tuple[str, ...] = ()


class Wasm(msgspec.Struct, frozen=True):
    """How to build /tmp/code.wasm: a line for `sh` in /tmp, and the Debian packages it needs."""

    packages: str
    line: str
    sample: str


def _script(
    name: str, package: str, program: str, extension: str, *options: str, check: str = ""
) -> Language:
    file = f"code.{extension}"
    command = (program, *options, f"{SOURCE_DIRECTORY}/{file}")
    return Language(name, package, (program,), file, command, check=_shell_line(check))


def _steps(
    name: str,
    package: str,
    programs: tuple[str, ...],
    extension: str,
    build: str,
    run: str,
    *,
    binary: str = "",
    wasm: Wasm | None = None,
    check: str = "",
) -> Language:
    line = f'cd {SOURCE_DIRECTORY} && {build} && exec {run} "$@"'
    return Language(
        name,
        package,
        programs,
        f"code.{extension}",
        ("sh", "-c", line, "sh"),
        binary,
        wasm,
        _shell_line(check),
    )


def _compiled(
    name: str,
    package: str,
    program: str,
    extension: str,
    build: str,
    *,
    wasm: Wasm | None = None,
    check: str = "",
) -> Language:
    return _steps(
        name,
        package,
        (program,),
        extension,
        build,
        "./code",
        binary="code",
        wasm=wasm,
        check=check,
    )


def _shell_line(line: str) -> tuple[str, ...]:
    return ("sh", "-c", line) if line else ()


def wasm_command(language: Language) -> tuple[str, ...]:
    """What builds /tmp/code.wasm from the source that lies there."""
    line = language.wasm.line if language.wasm else "exit 1"
    return ("sh", "-c", f"cd {SOURCE_DIRECTORY} && {line}")


WASM_FILE = "code.wasm"
_C_TO_WASM = Wasm(
    "clang lld wasi-libc libclang-rt-dev-wasm32",
    "clang --target=wasm32-wasi -o code.wasm code.c -lm",
    "int main(void) { return 0; }\n",
)
_CPP_TO_WASM = Wasm(
    "clang lld wasi-libc libclang-rt-dev-wasm32 libc++-dev-wasm32 libc++abi-dev-wasm32",
    "clang++ --target=wasm32-wasi -fno-exceptions -o code.wasm code.cpp",
    "#include <string>\nint main() { return std::string().size(); }\n",
)
_RUST_TO_WASM = Wasm(
    "rustc lld libstd-rust-dev-wasm32",
    "rustc --target wasm32-wasi -o code.wasm code.rs",
    "fn main() {}\n",
)
_ZIG_TO_WASM = Wasm(
    f"zig ({NOT_PACKAGED})",
    "zig build-exe -target wasm32-wasi --name code code.zig",
    "pub fn main() void {}\n",
)
_GO_TO_WASM = Wasm(
    "golang-go",
    "GOOS=wasip1 GOARCH=wasm go build -o code.wasm code.go "
    "|| GOOS=js GOARCH=wasm go build -o code.wasm code.go",
    "package main\n\nfunc main() {}\n",
)
# What is asked of a sandbox where having the programs is not enough.  gcc has an Objective-C front
# end only when gobjc brought it; the others keep a part of themselves outside /usr.
_HAS_R = 'test -e "$(R RHOME)/etc/ldpaths"'
_HAS_GROOVY = "groovy --version"
_HAS_COBOL = "cobc --list-reserved"
_HAS_HASKELL = "ghc -v0 -e 1"
_HAS_CSHARP = "cd /tmp && echo 'class A { static void Main() {} }' >a.cs && mcs a.cs && mono a.exe"
_HAS_OBJECTIVE_C = 'test -x "$(gcc -print-prog-name=cc1obj)"'

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
    _script("r", "r-base-core", "Rscript", "R", check=_HAS_R),
    _script("elixir", "elixir", "elixir", "exs"),
    _script("erlang", "erlang-base", "escript", "erl"),
    _script("tcl", "tcl", "tclsh", "tcl"),
    _script("scheme", "guile-3.0", "guile", "scm", "--no-auto-compile"),
    _script("powershell", NOT_PACKAGED, "pwsh", "ps1"),
    _script("clojure", "clojure", "clojure", "clj"),
    _script("commonlisp", "sbcl", "sbcl", "lisp", "--script"),
    _compiled("crystal", "crystal", "crystal", "cr", "crystal build -o code code.cr"),
    _script("groovy", "groovy", "groovy", "groovy", check=_HAS_GROOVY),
    _script("deno", NOT_PACKAGED, "deno", "ts", "run"),
    _script("awk", "mawk", "awk", "awk", "-f"),
    _script("raku", "rakudo", "raku", "raku"),
    _compiled("c", "gcc libc6-dev", "gcc", "c", "gcc -o code code.c -lm", wasm=_C_TO_WASM),
    _compiled("cpp", "g++", "g++", "cpp", "g++ -o code code.cpp", wasm=_CPP_TO_WASM),
    _compiled("go", "golang-go", "go", "go", "go build -o code code.go", wasm=_GO_TO_WASM),
    _compiled("rust", "rustc", "rustc", "rs", "rustc -o code code.rs", wasm=_RUST_TO_WASM),
    _script("java", "openjdk-17-jdk-headless", "java", "java"),
    _steps(
        "kotlin",
        "kotlin",
        ("kotlinc", "java"),
        "kt",
        _KOTLIN,
        "java -jar code.jar",
        binary="code.jar",
    ),
    _compiled("cobol", "gnucobol4", "cobc", "cob", "cobc -x -o code code.cob", check=_HAS_COBOL),
    _compiled("fortran", "gfortran", "gfortran", "f90", "gfortran -o code code.f90"),
    _compiled("d", "gdc", "gdc", "d", "gdc -o code code.d"),
    _compiled("zig", NOT_PACKAGED, "zig", "zig", "zig build-exe code.zig", wasm=_ZIG_TO_WASM),
    _compiled("nim", "nim", "nim", "nim", "nim compile --hints:off -o:code code.nim"),
    _compiled("v", NOT_PACKAGED, "v", "v", "v -o code code.v"),
    _compiled(
        "objc",
        "gobjc",
        "gcc",
        "m",
        "gcc -o code code.m -lobjc",
        check=_HAS_OBJECTIVE_C,
    ),
    _script("dart", NOT_PACKAGED, "dart", "dart", "run"),
    _script("julia", NOT_PACKAGED, "julia", "jl"),
    _compiled("haskell", "ghc", "ghc", "hs", "ghc -v0 -o code code.hs", check=_HAS_HASKELL),
    _script("ocaml", "ocaml-nox", "ocaml", "ml"),
    _script("fsharp", NOT_PACKAGED, "fsharpi", "fsx"),
    _steps(
        "csharp",
        "mono-mcs mono-runtime",
        ("mcs", "mono"),
        "cs",
        "mcs -out:code.exe code.cs",
        "mono code.exe",
        binary="code.exe",
        check=_HAS_CSHARP,
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


class Interpreter(msgspec.Struct, frozen=True):
    """A session's program: its names on Debian, best first, and how it takes one command.

    `evaluate` is an argv without the program; the command takes the place of `{}`.  An empty
    `runner` means that the program itself takes it.  `language`: the one that must run, too.
    """

    name: str
    programs: tuple[str, ...]
    package: str
    evaluate: tuple[str, ...]
    runner: str = ""
    language: str = ""


_REPLS = (
    Interpreter("python3", ("python3",), "python3", ("-c", "{}")),
    Interpreter("bpython", ("bpython",), "bpython", ("-c", "{}"), "python3"),
    Interpreter("ipython", ("ipython3", "ipython"), "ipython3", ("--no-banner", "-c", "{}")),
    Interpreter("node", ("node", "nodejs"), "nodejs", ("-e", "{}")),
    Interpreter("ruby", ("ruby",), "ruby", ("-e", "{}")),
    Interpreter("irb", ("irb",), "ruby", ("-e", "{}"), "ruby"),
    Interpreter("lua", ("lua", "lua5.4", "lua5.3"), "lua5.4", ("-e", "{}")),
    Interpreter("php", ("php",), "php-cli", ("-r", "{}")),
    Interpreter("perl", ("perl",), "perl", ("-e", "{}")),
    Interpreter("guile", ("guile", "guile-3.0", "guile3.0"), "guile-3.0", ("-c", "{}")),
    Interpreter("ghci", ("ghci",), "ghc", ("-e", "{}"), "ghc", "haskell"),
    Interpreter("erl", ("erl",), "erlang-base", ("-noshell", "-eval", "{}", "-s", "init", "stop")),
    Interpreter("iex", ("iex",), "elixir", ("-e", "{}"), "elixir"),
    Interpreter("sbcl", ("sbcl",), "sbcl", ("--noinform", "--non-interactive", "--eval", "{}")),
    Interpreter("clisp", ("clisp",), "clisp", ("-q", "-x", "{}")),
    Interpreter("r", ("R",), "r-base-core", ("-e", "{}"), "Rscript", "r"),
    Interpreter("julia", ("julia",), NOT_PACKAGED, ("-e", "{}")),
    Interpreter("clojure", ("clojure", "clj"), "clojure", ("-e", "{}")),
)
INTERPRETERS = tuple(each.name for each in _REPLS)
_BY_SHELL = {each.name: each for each in _REPLS}
_BY_NAME = {language.name: language for language in LANGUAGES}


def evaluation(shell: str, program: str, command: str) -> tuple[str, ...]:
    """The argv with which a session's shell, found as `program`, runs one command."""
    known = _BY_SHELL.get(shell)
    if known is None:
        return (program, "-c", command)
    return (
        known.runner or program,
        *(command if each == "{}" else each for each in known.evaluate),
    )


class Probing:
    """What the sandboxes of a backend have, asked once and remembered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._offered: frozenset[str] | None = None
        self._checked: dict[str, bool] = {}

    def programs(self) -> frozenset[str]:
        """The known programs that a sandbox can run."""
        with self._lock:
            if self._offered is None:
                with sandbox_refusals():
                    self._offered = self._backend.available_programs(_asked())
            return self._offered

    def languages(self) -> list[str]:
        """The languages that can be run now, in the order of the list of 42."""
        return [each.name for each in LANGUAGES if self._runs(each)]

    def shells(self) -> frozenset[str]:
        """The session programs that can be run now."""
        here = self.programs()
        return (here & frozenset(SHELLS)) | {each.name for each in _REPLS if self._has(each)}

    def _has(self, repl: Interpreter) -> bool:
        here = self.programs()
        if not here.intersection(repl.programs) or (repl.runner and repl.runner not in here):
            return False
        return not repl.language or self._runs(_BY_NAME[repl.language])

    def shell_program(self, shell: str) -> str:
        """The program behind a session's shell: `ipython` is `ipython3` here, `r` is `R`."""
        here = self.programs()
        known = _BY_SHELL.get(shell)
        names = known.programs if known else (shell,)
        return next((name for name in names if name in here), names[0])

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
        if not self._runs(recipe):
            raise Problem(
                400,
                "language_unavailable",
                f"language {recipe.name!r} is known but not installed here; it comes with "
                f"{recipe.package}. Install that on the platform's machine and restart it.",
                fields={"field": "language", "package": recipe.package},
            )
        return recipe

    def require_wasm(self, language: Language) -> None:
        """Refuse unless WebAssembly modules of this language can be built here.

        Raises:
            Problem: 400, naming the packages that would bring it.
        """
        recipe = language.wasm
        check = ("sh", "-c", f"{wasm_command(language)[2]} && test -s {WASM_FILE}")
        if recipe is not None and self._passes(f"{language.name} to wasm", language, check):
            return
        packages = recipe.packages if recipe else "nothing"
        raise Problem(
            400,
            "wasm_unavailable",
            f"field 'return_wasm_artifact': {language.name!r} cannot be compiled to WebAssembly "
            f"here; that comes with {packages}. Install that on the platform's machine and "
            "restart it.",
            fields={"field": "return_wasm_artifact", "package": packages},
        )

    def _runs(self, language: Language) -> bool:
        if not self.programs().issuperset(language.programs):
            return False
        return not language.check or self._passes(language.name, language, language.check)

    def _passes(self, question: str, language: Language, check: tuple[str, ...]) -> bool:
        """Whether a command ends well in a sandbox; each question is asked once."""
        with self._lock:
            if question not in self._checked:
                with sandbox_refusals():
                    self._checked[question] = self._try(language, check)
            return self._checked[question]

    def _try(self, language: Language, check: tuple[str, ...]) -> bool:
        sample = language.wasm.sample if language.wasm else ""
        files = {f"{SOURCE_DIRECTORY}/{language.file}": sample.encode()}
        handle = self._backend.create(Spec(sandbox_id=f"probe-{secrets.token_hex(6)}"))
        try:
            command = Command(argv=check, files=files)
            result = self._backend.execute(handle, command, timeout_seconds=_CHECK_SECONDS)
            return result.exit_code == 0
        except SandboxGone:
            return False
        finally:
            self._backend.destroy(handle)


def _asked() -> Iterable[str]:
    needed = {program for language in LANGUAGES for program in language.programs}
    for repl in _REPLS:
        needed |= {*repl.programs, repl.runner} - {""}
    return sorted(needed | set(SHELLS))
