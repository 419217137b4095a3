"""The 42 languages of the platform by name, so that a slip of the pen costs no request.

Whether a known one runs on a given platform is the platform's to say.  Source: platform-api.md 4.
"""

from __future__ import annotations

from difflib import get_close_matches

LANGUAGES: tuple[str, ...] = (
    "python", "javascript", "typescript", "ruby", "perl", "php", "lua", "bash", "r", "elixir",
    "erlang", "tcl", "scheme", "powershell", "clojure", "commonlisp", "crystal", "groovy", "deno",
    "awk", "raku", "c", "cpp", "go", "rust", "java", "kotlin", "cobol", "fortran", "d", "zig",
    "nim", "v", "objc", "dart", "julia", "haskell", "ocaml", "fsharp", "csharp", "prolog", "forth",
)  # fmt: skip
"""In the order in which the tools wrapper checks them."""

ALIASES: dict[str, str] = {
    "python3": "python", "py": "python", "node": "javascript", "nodejs": "javascript",
    "js": "javascript", "ts": "typescript", "rb": "ruby", "pl": "perl", "sh": "bash",
    "shell": "bash", "guile": "scheme", "lisp": "commonlisp", "sbcl": "commonlisp",
    "pwsh": "powershell", "c++": "cpp", "golang": "go", "rs": "rust", "objective-c": "objc",
    "c#": "csharp", "cs": "csharp", "f#": "fsharp", "hs": "haskell", "jl": "julia",
    "perl6": "raku",
}  # fmt: skip
"""Other names that people write."""


def canonical(name: str) -> str | None:
    """The language's own name; None when nobody knows it."""
    lowered = name.strip().lower()
    known = ALIASES.get(lowered, lowered)
    return known if known in LANGUAGES else None


def like(name: str) -> tuple[str, ...]:
    """At most three names that look like this one."""
    found = get_close_matches(name.strip().lower(), [*LANGUAGES, *ALIASES], n=3)
    return tuple(dict.fromkeys(ALIASES.get(one, one) for one in found))
