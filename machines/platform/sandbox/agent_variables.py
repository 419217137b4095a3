"""Writing down the variables of a lasting Python interpreter, and reading them back.  Inside only.

Runs in the interpreter that the cells run in (standard library only), called by the agent through
a cell.  `dump` leaves a memory file open at `DATA_FD`, where the agent takes it; `load` reads one
that the agent has filled.  The file is a report in JSON, padded to `REPORT_BYTES`, and one pickle::

    {"lost": [names], "directory": "/root", "path": [...], ...}    pickle of {name: value}

What can be kept is found out by trying, never by guessing: a forked copy of the interpreter
pickles the variables *and reads them back with the namespace emptied*.  When that fails, halves
are tried, down to the single variables to blame; those are lost and named.  The interpreter itself
never runs a pickle while it is saved, so that neither a crash nor an endless loop in somebody's
`__reduce__` reaches it.

Beyond what pickle keeps: modules, by name; functions and classes made in cells (pickle only writes
down their names), functions as the marshalled code of this Python version, which they name.
"""

import builtins
import collections
import contextlib
import dataclasses
import enum
import functools
import gc
import importlib
import importlib.util
import io
import json
import marshal
import os
import pickle
import select
import signal
import sys
import time
import types
from typing import Any, BinaryIO

DATA_FD = 197
REPORT_BYTES = 65536
LOST_NAMES_MAX = 200
NAME_CHARACTERS = 80
MAGIC = importlib.util.MAGIC_NUMBER.hex()
NAMESPACE = "namespace"
# In a copy nothing may be finalized: that could remove files which the original still uses.
ALIVE: list[Any] = []


class TooLargeError(Exception):
    """More bytes than a snapshot may hold."""


class Bounded(io.RawIOBase):
    """A file that takes so many bytes and no more."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file = file
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.room -= len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        if self.room < 0:
            raise TooLargeError
        return self.file.write(data)


class Writer(pickle.Pickler):
    """Also writes down modules, and the functions and classes that cells made."""

    def __init__(self, file: Any, namespace: dict[str, Any]) -> None:
        super().__init__(file, protocol=5)
        self.namespace = namespace

    def persistent_id(self, value: Any) -> "str | None":
        return NAMESPACE if value is self.namespace else None

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind in REDUCERS:
            return REDUCERS[kind](value)
        if isinstance(value, type):
            if value in UNNAMED:
                return getattr, (types, UNNAMED[value])
            return class_parts(value) if value.__module__ == "__main__" else NotImplemented
        if isinstance(value, SENTINELS):
            return sentinel_parts(value)
        return NotImplemented


class Reader(pickle.Unpickler):
    """The other side of `Writer`."""

    def __init__(self, file: Any, namespace: dict[str, Any]) -> None:
        super().__init__(file)
        self.namespace = namespace

    def persistent_load(self, name: Any) -> Any:
        if name != NAMESPACE:
            raise pickle.UnpicklingError(f"unknown reference {name!r}")
        return self.namespace


# -- what pickle does not know -------------------------------------------------------------------


def is_of_a_cell(value: types.FunctionType) -> bool:
    """Whether a function cannot be had by importing a module."""
    module = sys.modules.get(value.__module__ or "")
    if module is None or module.__name__ == "__main__":
        return True
    found: Any = module
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is not value


def module_parts(module: types.ModuleType) -> Any:
    return importlib.import_module, (module.__name__,)


def function_parts(function: types.FunctionType) -> Any:
    if not is_of_a_cell(function):
        return NotImplemented
    space = function.__globals__
    made = (
        marshal.dumps(function.__code__),
        MAGIC,
        str(space.get("__name__", "__main__")),
        function.__closure__,
    )
    state = {
        "__name__": function.__name__,
        "__qualname__": function.__qualname__,
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
        "__annotations__": function.__annotations__,
    }
    return make_function, made, (state, dict(function.__dict__)), None, None, set_function


def make_function(
    code: bytes, magic: str, module: str, closure: "tuple[Any, ...] | None"
) -> types.FunctionType:
    """A function whose attributes are set later, so that it may refer to itself."""
    if magic != MAGIC:
        raise pickle.UnpicklingError("written by another version of Python")
    loaded = marshal.loads(code)  # noqa: S302 - inside the sandbox, where its cells ran anyway
    space = importlib.import_module(module).__dict__
    return types.FunctionType(loaded, space, None, None, closure)


def set_function(
    function: types.FunctionType, state: "tuple[dict[str, Any], dict[str, Any]]"
) -> None:
    for name, value in state[0].items():
        setattr(function, name, value)
    function.__dict__.update(state[1])


def cell_parts(cell: types.CellType) -> Any:
    content: tuple[Any, ...] = ()
    with contextlib.suppress(ValueError):  # an empty cell
        content = (cell.cell_contents,)
    return make_cell, (), content, None, None, set_cell


def make_cell() -> types.CellType:
    return types.CellType()


def set_cell(cell: types.CellType, content: "tuple[Any, ...]") -> None:
    for value in content:
        cell.cell_contents = value


_NOT_KEPT = frozenset(("__dict__", "__weakref__", "_abc_impl", "__module__", "__qualname__"))


def class_parts(cls: type) -> Any:
    if isinstance(cls, enum.EnumMeta):
        return enum_parts(cls)
    if cls.__bases__ == (tuple,) and hasattr(cls, "_field_defaults"):
        return named_tuple_parts(cls)
    body = {
        name: value
        for name, value in vars(cls).items()
        if name not in _NOT_KEPT
        and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType))
    }
    first = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    if "__slots__" in body:
        first["__slots__"] = body.pop("__slots__")
    made = (type(cls), cls.__name__, cls.__bases__, first)
    return make_class, made, body, None, None, set_class


def make_class(kind: type, name: str, bases: "tuple[type, ...]", first: dict[str, Any]) -> type:
    return types.new_class(name, bases, {"metaclass": kind}, lambda space: space.update(first))


def set_class(cls: type, body: dict[str, Any]) -> None:
    for name, value in body.items():
        type.__setattr__(cls, name, value)


def enum_parts(cls: enum.EnumMeta) -> Any:
    known: dict[str, Any] = dict(cls.__members__)
    members = [(name, member.value) for name, member in known.items()]
    first = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    methods = {
        name: value
        for name, value in vars(cls).items()
        if isinstance(value, (types.FunctionType, property, staticmethod, classmethod))
        and not name.startswith("_")
    }
    return make_enum, (type(cls), cls.__name__, cls.__bases__, first, members, methods)


def make_enum(
    kind: Any,
    name: str,
    bases: "tuple[type, ...]",
    first: dict[str, Any],
    members: "list[tuple[str, Any]]",
    methods: dict[str, Any],
) -> type:
    space = kind.__prepare__(name, bases)
    for key, value in (*first.items(), *methods.items(), *members):
        space[key] = value
    made: type = kind(name, bases, space)
    return made


def named_tuple_parts(cls: Any) -> Any:
    defaults = [cls._field_defaults[name] for name in cls._fields if name in cls._field_defaults]
    methods = {
        name: value
        for name, value in vars(cls).items()
        if isinstance(value, (types.FunctionType, property)) and not name.startswith("_")
    }
    made = (cls.__name__, list(cls._fields), defaults, cls.__module__, cls.__qualname__)
    return make_named_tuple, made, methods, None, None, set_class


def make_named_tuple(
    name: str, fields: list[str], defaults: list[Any], module: str, qualified: str
) -> type:
    made: type = collections.namedtuple(  # type: ignore[misc]
        name, fields, defaults=[*defaults], module=module
    )
    made.__qualname__ = qualified
    return made


SENTINELS = (type(dataclasses.MISSING), getattr(dataclasses, "_FIELD_BASE", ()))


def sentinel_parts(value: Any) -> Any:
    """`dataclasses` compares these by identity."""
    name = "MISSING" if value is dataclasses.MISSING else value.name
    return getattr, (dataclasses, name)


def cached_parts(wrapper: Any) -> Any:
    parameters = wrapper.cache_parameters()
    return make_cached, (parameters["maxsize"], parameters["typed"], wrapper.__wrapped__)


def make_cached(size: "int | None", typed: bool, function: Any) -> Any:
    return functools.lru_cache(size, typed)(function)


# Types that call themselves builtins and are not found there.
UNNAMED: dict[type, str] = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type) and not hasattr(builtins, value.__name__)
}
REDUCERS: dict[type, Any] = {
    functools._lru_cache_wrapper: cached_parts,
    types.ModuleType: module_parts,
    types.FunctionType: function_parts,
    types.CellType: cell_parts,
    types.MappingProxyType: lambda value: (types.MappingProxyType, (dict(value),)),
    property: lambda value: (property, (value.fget, value.fset, value.fdel, value.__doc__)),
    staticmethod: lambda value: (staticmethod, (value.__func__,)),
    classmethod: lambda value: (classmethod, (value.__func__,)),
}


# -- saving --------------------------------------------------------------------------------------


def dump(namespace: dict[str, Any], bytes_max: int, seconds: float) -> None:
    """Leave what can be written down in a memory file at `DATA_FD`."""
    names = [name for name in namespace if isinstance(name, str) and not name.startswith("__")]
    limit = time.monotonic() + seconds
    kept: list[str] = []
    lost: list[str] = []
    queue = [names]
    while queue:
        some = queue.pop()
        if not some or tried(namespace, some, None, bytes_max, limit):
            kept += some
        elif len(some) == 1:
            lost += some
        else:
            queue += [some[len(some) // 2 :], some[: len(some) // 2]]
    with memory_file() as file:
        # What was good in parts may be too much together.
        if kept and not tried(namespace, kept, file, bytes_max, limit):
            file.truncate(REPORT_BYTES)
            lost, kept = names, []
        file.seek(0)
        file.write(report(sorted(lost)))
        file.flush()
        os.dup2(file.fileno(), DATA_FD, inheritable=False)


def memory_file() -> BinaryIO:
    file = os.fdopen(os.memfd_create("variables"), "wb", buffering=1 << 16)
    file.truncate(REPORT_BYTES)
    return file


def report(lost: list[str]) -> bytes:
    shown = [name[:NAME_CHARACTERS] for name in lost[:LOST_NAMES_MAX]]
    if len(lost) > LOST_NAMES_MAX:
        shown.append(f"... and {len(lost) - LOST_NAMES_MAX} more")
    document: dict[str, Any] = {"lost": shown, "directory": "/root"}
    document["path"] = [each[:1000] for each in sys.path[:20] if isinstance(each, str)]
    with contextlib.suppress(OSError):
        document["directory"] = os.getcwd()[:4000]  # noqa: PTH109
    return json.dumps(document).encode().ljust(REPORT_BYTES)


def tried(
    namespace: dict[str, Any],
    names: list[str],
    file: "BinaryIO | None",
    bytes_max: int,
    limit: float,
) -> bool:
    """Whether a copy of this process could write these down (to `file`) and read them back."""
    if time.monotonic() >= limit:
        return False
    # Told by a word, not by the exit code: a `__reduce__` may leave with any code.
    heard, told = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(heard)
        os.close(told)
        return False
    if not child:
        try:
            if attempt(namespace, names, file, bytes_max):
                os.write(told, b"kept")
        finally:
            os._exit(0)
    os.close(told)
    good = False
    with contextlib.suppress(OSError):
        waiting = select.poll()
        waiting.register(heard, select.POLLIN)
        ready = waiting.poll(max(limit - time.monotonic(), 0) * 1000)
        good = bool(ready) and os.read(heard, 4) == b"kept"
    os.close(heard)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    return good


def attempt(
    namespace: dict[str, Any], names: list[str], file: "BinaryIO | None", bytes_max: int
) -> bool:
    """In the copy: write, forget, read, and compare the names."""
    gc.disable()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    with memory_file() if file is None else contextlib.nullcontext(file) as target:
        target.seek(REPORT_BYTES)
        bounded: Any = Bounded(target, bytes_max)
        Writer(bounded, namespace).dump({name: namespace[name] for name in names})
        target.flush()
        ALIVE.append(dict(namespace))
        namespace.clear()
        namespace["__builtins__"] = ALIVE[0].get("__builtins__", builtins)
        namespace["__name__"] = "__main__"
        with open(f"/proc/self/fd/{target.fileno()}", "rb") as source:  # noqa: PTH123
            source.seek(REPORT_BYTES)
            ALIVE.append(Reader(source, namespace).load())
            return list(ALIVE[1]) == names


# -- loading -------------------------------------------------------------------------------------


def offer() -> None:
    """An empty memory file at `DATA_FD`, for the agent to fill."""
    file = os.memfd_create("variables")
    os.dup2(file, DATA_FD, inheritable=False)
    os.close(file)


def load(namespace: dict[str, Any]) -> None:
    """Take over what `DATA_FD` holds."""
    with os.fdopen(DATA_FD, "rb") as file:
        file.seek(0)
        head = json.loads(file.read(REPORT_BYTES))
        sys.path[:] = head.get("path", sys.path)
        with contextlib.suppress(OSError):
            os.chdir(head["directory"])
        if file.peek(1):
            namespace.update(Reader(file, namespace).load())


def forget() -> None:
    """Close `DATA_FD`."""
    with contextlib.suppress(OSError):
        os.close(DATA_FD)
