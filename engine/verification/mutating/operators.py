"""Small changes of a function's syntax tree.

::

    a < b      a <= b             x + y     x - y           not x       x
    a == b     a != b             5         6               if x:       if not x:
    a is b     a is not b         True      False           min(x, y)   max(x, y)
    a in b     a not in b         a and b   a or b          any(x)      all(x)

Text is left alone, and so are assertions: they are there for the reader and the type checker.

A postcondition or an invariant is only ever made stricter, because a weaker one lets everything
pass that passed before: nothing could notice.  So each of its parts is negated, one at a time
(the part must decide something somewhere), and its bounds are drawn closer.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
STRICTER: dict[int, dict[type[ast.cmpop], type[ast.cmpop]]] = {
    1: {ast.LtE: ast.Lt, ast.GtE: ast.Gt},
    -1: {ast.Lt: ast.LtE, ast.Gt: ast.GtE},
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
SIGNS: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}
Apply = Callable[[ast.AST], ast.AST]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a function: what, at which line of the tree, and the changed tree."""

    kind: str
    says: str
    line: int
    tree: ast.FunctionDef


def changes_of(function: ast.FunctionDef, *, stricter: bool) -> Iterator[Change]:
    """Every single change of a function.

    Args:
        stricter: it is a postcondition or an invariant.
    """
    skipped = _skipped(function)
    polarity = _polarity(function) if stricter else {}
    for at, node in enumerate(ast.walk(function)):
        if id(node) in skipped:
            continue
        sign = polarity.get(id(node), 0)
        for kind, says, apply in _stricter(node, sign) if stricter else _plain(node):
            line = getattr(node, "lineno", function.lineno)
            yield Change(kind, says, line, _changed(function, at, apply))


def _changed(function: ast.FunctionDef, at: int, apply: Apply) -> ast.FunctionDef:
    tree = copy.deepcopy(function)
    node = next(n for i, n in enumerate(ast.walk(tree)) if i == at)
    result = apply(node)
    if result is not node:
        _Replace(node, result).visit(tree)
    return ast.fix_missing_locations(tree)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _skipped(function: ast.FunctionDef) -> set[int]:
    """Text, assertions and signatures."""
    roots: list[ast.AST] = [function.args, *function.decorator_list]
    roots += [function.returns] if function.returns else []
    for node in ast.walk(function):
        if isinstance(node, ast.JoinedStr | ast.Assert):
            roots.append(node)
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
    return {id(inner) for root in roots for inner in ast.walk(root)}


def _plain(node: ast.AST) -> Iterator[tuple[str, str, Apply]]:
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            yield from _comparison(node, at, COMPARED[type(operator)])
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        other = COMPUTED[type(node.op)]
        yield "arithmetic", f"{SIGNS[type(node.op)]} to {SIGNS[other]}", _setting("op", other())
    elif isinstance(node, ast.BoolOp):
        both = isinstance(node.op, ast.And)
        new: ast.boolop = ast.Or() if both else ast.And()
        yield "logic", "and to or" if both else "or to and", _setting("op", new)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", f"{node.value} to {not node.value}", _setting("value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        more = node.value + 1
        yield "constant", f"{node.value} to {more}", _setting("value", more)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "logic", f"{_shown(node)} to {_shown(node.operand)}", lambda n: getattr(n, "operand")  # noqa: B009
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED:
        other_name = CALLED[node.func.id]
        yield "arithmetic", f"{node.func.id} to {other_name}", _calling(other_name)
    if isinstance(node, ast.If | ast.IfExp) and _is_atom(node.test):
        yield "logic", f"if {_shown(node.test)} to if not", _negating_test


def _stricter(node: ast.AST, sign: int) -> Iterator[tuple[str, str, Apply]]:
    if sign and isinstance(node, ast.expr) and _is_part(node):
        yield "contract-part-negated", f"{_shown(node)} is negated", _negated
    if sign and isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            other = STRICTER[sign].get(type(operator))
            if other is not None:
                yield from _comparison(node, at, other)


def _comparison(
    node: ast.Compare, at: int, other: type[ast.cmpop]
) -> Iterator[tuple[str, str, Apply]]:
    def apply(one: ast.AST) -> ast.AST:
        assert isinstance(one, ast.Compare)
        one.ops[at] = other()
        return one

    left = node.left if at == 0 else node.comparators[at - 1]
    old, new = SIGNS[type(node.ops[at])], SIGNS[other]
    says = f"{_shown(left)} {old} {_shown(node.comparators[at])} with {new}"
    yield "comparison", says, apply


def _polarity(function: ast.FunctionDef) -> dict[int, int]:
    """For each part of what a contract returns: 1, or -1 under a negation."""
    found: dict[int, int] = {}

    def descend(node: ast.AST | None, sign: int) -> None:
        if node is None:
            return
        found[id(node)] = sign
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                descend(value, sign)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            descend(node.operand, -sign)
        elif isinstance(node, ast.IfExp):
            descend(node.body, sign)
            descend(node.orelse, sign)
        elif isinstance(node, ast.Call) and _calls(node, ("all", "any", "bool")):
            descend(node.args[0], sign)
        elif isinstance(node, ast.GeneratorExp):
            descend(node.elt, sign)

    for node in ast.walk(function):
        named = isinstance(node, ast.Assign) and isinstance(node.value, ast.BoolOp)
        if named or isinstance(node, ast.Return):
            descend(getattr(node, "value", None), 1)
    return found


def _is_atom(node: ast.AST) -> bool:
    """Neither a comparison nor made of parts that are changed themselves."""
    return not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp)


def _is_part(node: ast.AST) -> bool:
    """Something that is true or false by itself."""
    whole = isinstance(node, ast.BoolOp | ast.UnaryOp | ast.IfExp | ast.GeneratorExp | ast.Constant)
    return not whole and not (isinstance(node, ast.Call) and _calls(node, ("all", "any", "bool")))


def _calls(node: ast.Call, names: tuple[str, ...]) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in names and len(node.args) == 1


def _setting(name: str, value: object) -> Apply:
    def apply(node: ast.AST) -> ast.AST:
        setattr(node, name, value)
        return node

    return apply


def _calling(name: str) -> Apply:
    def apply(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        node.func.id = name
        return node

    return apply


def _negated(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.expr)
    return ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=node), node)


def _negating_test(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.If | ast.IfExp)
    node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
    return node


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
