"""What is simpler than a JSON value: one node made simpler, or equal leaves together.

::

    int         0, 1, half of it, one less, without its sign       bool    False
    str         "", "a"                                            list    without one element
    anything    null (the caller says whether its type allows it)  dict    without one entry
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Path = tuple[Any, ...]
"""Keys and indices from the root of a value to one of its nodes."""


def weight(value: Any) -> int:
    """How far a value is from the simplest one; each step of `simpler` lessens it."""
    match value:
        case None:
            return 0
        case bool():
            return 1 + value
        case int():
            return 1 + 2 * abs(value) + (value < 0)
        case float():
            return 2 + 2 * abs(int(value))
        case str():
            return 1 + ("", "a").index(value) if value in ("", "a") else 3 + len(value)
        case list():
            return 1 + sum(1 + weight(one) for one in value)
        case dict():
            return 1 + sum(1 + weight(one) for one in value.values())
    return 1


def simpler(value: Any) -> Iterator[Any]:
    """Simpler values in the place of one node, without what is inside it; the simplest first."""
    found: list[Any] = [None]
    match value:
        case None:
            return
        case bool():
            found += [False]
        case int():
            half = -(-value // 2) if value < 0 else value // 2
            found += [0, 1, half, value - 1 if value > 0 else value + 1, abs(value)]
        case str():
            found += ["", "a"]
        case list():
            found += [value[:place] + value[place + 1 :] for place in range(len(value))]
        case dict():
            found += [{k: v for k, v in value.items() if k != key} for key in value]
    seen: list[Any] = []
    for one in found:
        if weight(one) < weight(value) and one not in seen:
            seen.append(one)
            yield one


def nodes(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every node with its path, outer ones first."""
    yield path, value
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, one in inner:
        yield from nodes(one, (*path, key))


def put(value: Any, path: Path, new: Any) -> Any:
    """The value with another node at a path."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {k: put(v, rest, new) if k == key else v for k, v in value.items()}
    return [put(v, rest, new) if i == key else v for i, v in enumerate(value)]


def everywhere(value: Any, old: Any, new: Any) -> Any:
    """The value with another leaf wherever `old` is one."""
    if isinstance(value, dict):
        return {k: everywhere(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [everywhere(v, old, new) for v in value]
    return new if type(value) is type(old) and value == old else value


def lowered(value: Any, by: int) -> Any:
    """The value with every whole number above 1 made less, but not less than 1."""
    if isinstance(value, dict):
        return {k: lowered(v, by) for k, v in value.items()}
    if isinstance(value, list):
        return [lowered(v, by) for v in value]
    return max(value - by, 1) if type(value) is int and value > 1 else value
