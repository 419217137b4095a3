"""The four statements that the fake backend knows (fake.py)."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable
from typing import Any

from machines.platform.sandbox.backend import Result

__all__ = ["interpret", "python", "shell"]


class UnknownError(Exception):
    """A statement outside the four."""


def interpret(
    step: Callable[[str, dict[str, Any]], str], code: str, variables: dict[str, Any]
) -> Result:
    """Line by line; exit code 2 at the first that is unknown."""
    printed = ""
    for line in filter(None, map(str.strip, code.splitlines())):
        try:
            printed += step(line, variables)
        except UnknownError:
            message = f"the fake backend does not execute {line!r}\n"
            return Result(2, printed.encode(), message.encode())
    return Result(0, printed.encode(), b"")


def python(line: str, variables: dict[str, Any]) -> str:
    """`name = <literal>` or `print(...)`; what it prints. UnknownError."""
    try:
        statement = ast.parse(line).body[0]
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                variables[name] = _value(value, variables)
                return ""
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=values, keywords=[])):
                return " ".join(str(_value(each, variables)) for each in values) + "\n"
            case _:
                raise UnknownError
    except (SyntaxError, ValueError, KeyError, IndexError) as error:
        raise UnknownError from error


def _value(node: ast.expr, variables: dict[str, Any]) -> Any:
    return variables[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def shell(line: str, variables: dict[str, Any]) -> str:
    """`name=word` or `echo ...`; what it prints. UnknownError."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UnknownError from error
    name, equals, value = words[0].partition("=") if words else ("", "", "")
    if len(words) == 1 and equals and name.isidentifier():
        variables[name] = value
        return ""
    if words[:1] != ["echo"] or any(word in (">", "|", "&&", ";") for word in words):
        raise UnknownError
    shown = [
        str(variables.get(word[1:], "")) if word.startswith("$") else word for word in words[1:]
    ]
    return " ".join(shown) + "\n"
