"""JSON-RPC plumbing that both families of nodes share: parse a call, bind it, wrap the answer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from decimal import Decimal
from types import UnionType
from typing import Any, get_args, get_origin

import msgspec

from engine.errors import TurtlesError

Method = Callable[..., Any]


class RpcError(TurtlesError):
    """An error reply: JSON-RPC `code` and message, and the HTTP status it travels with."""

    def __init__(self, code: int, message: str, *, status: int = 500) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Call(msgspec.Struct, frozen=True):
    """One request: `params` is a list or an object, `id` anything JSON."""

    method: str
    params: list[Any] | dict[str, Any]
    id: Any


def parse_json(body: bytes) -> Any:
    """JSON with exact numbers: decimals stay decimals, NaN and Infinity are refused.

    Raises:
        RpcError: -32700.
    """
    try:
        value = json.loads(body, parse_float=Decimal, parse_constant=_refuse_constant)
        _refuse_surrogates(value)
        return value
    except (ValueError, RecursionError) as error:
        raise RpcError(-32700, "Parse error") from error


def parse_call(body: bytes) -> Call:
    """The call in a request body.

    Raises:
        RpcError: -32700 not JSON, -32600 not a call.
    """
    value = parse_json(body)
    if not isinstance(value, dict):
        raise RpcError(-32600, "Invalid Request object")
    method, params = value.get("method"), value.get("params")
    params = [] if params is None else params
    if not isinstance(method, str):
        raise RpcError(-32600, "Method must be a string")
    if not isinstance(params, list | dict):
        raise RpcError(-32600, "Params must be an array or object")
    return Call(method, params, value.get("id"))


def says_version_two(body: bytes) -> bool:
    """Whether a request names JSON-RPC 2.0; what cannot be read names nothing."""
    try:
        value = parse_json(body)
    except RpcError:
        return False
    return isinstance(value, dict) and value.get("jsonrpc") == "2.0"


def bind(method: Method, params: list[Any] | dict[str, Any]) -> Callable[[], Any]:
    """The method with its arguments; names of parameters are those of the protocol.

    Raises:
        TypeError: too many, too few or unknown arguments, or one of another type.
    """
    signature = inspect.signature(method, eval_str=True)
    bound = signature.bind(**params) if isinstance(params, dict) else signature.bind(*params)
    for name, value in bound.arguments.items():
        _check_kind(name, value, signature.parameters[name])
    return lambda: _run(method, bound)


def _run(method: Method, bound: inspect.BoundArguments) -> Any:
    try:
        return method(*bound.args, **bound.kwargs)
    except OverflowError as error:
        # Numbers that JSON can write and the database cannot hold.
        raise RpcError(-8, "Invalid parameter, out of range") from error


def _check_kind(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Plain annotations (`int`, `str`, `bool`, `list[...] | None`) are checked; others are not."""
    if value is None and parameter.default is None:
        return
    annotation = _without_none(parameter.annotation)
    for kind in (bool, int, str, list):
        if annotation is kind or (kind is list and get_origin(annotation) is list):
            if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
                return
            raise TypeError(f"{name}: expected {kind.__name__}")


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    union = isinstance(annotation, UnionType)
    return kinds[0] if union and len(kinds) == 1 else annotation


def _refuse_surrogates(value: Any) -> None:
    """Half a character is legal in JSON and storable nowhere; encoding it raises a ValueError."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            name.encode()
            _refuse_surrogates(item)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
