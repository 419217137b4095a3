"""Variables of a lasting interpreter: what is kept, what is lost and named, and who is not hurt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from machines.platform.sandbox.backend import Handle, Saved, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

PLAIN = """
x = 42
shared = [1, 2]
alias = shared
ring = []
ring.append(ring)
text, raw, big = "\\udcff caf\\xe9", b"\\0", list(range(100_000))
import math
import os.path as paths
from collections import Counter, OrderedDict
counted = Counter("abca")
space = globals()
"""
PLAIN_CHECK = """
assert x == 42 and alias is shared and ring[0] is ring and raw == b"\\0"
assert text == "\\udcff caf\\xe9" and big[-1] == 99_999
assert math.pi > 3 and paths.join("a", "b") == "a/b" and counted["a"] == 2
assert space is globals()
"""
FUNCTIONS = """
import functools
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
plus = lambda a, b=3, *, c=0: a + b + c + x
def counter():
    count = 0
    def increase():
        nonlocal count
        count += 1
        return count
    def read(): return count
    return increase, read
increase, read = counter()
increase()
def outer():
    def inner(n): return 1 if n == 0 else n * inner(n - 1)
    return inner
factorial = outer()
bound = functools.partial(fib, 10)
@functools.lru_cache(maxsize=5)
def cached(n): return n * 2
def doc(a: int) -> str:
    "words"
doc.tag = "tagged"
x = 1
"""
FUNCTIONS_CHECK = """
assert fib(10) == 55 and plus(1) == 5 and plus(1, c=1) == 6
x = 100
assert plus(1) == 104, "its globals are the namespace"
assert read() == 1 and increase() == 2 and read() == 2, "both see one cell"
assert factorial(5) == 120 and bound() == 55
assert cached(4) == 8 and cached.cache_parameters()["maxsize"] == 5
assert doc.__doc__ == "words" and doc.tag == "tagged" and doc.__annotations__["a"] is int
"""
CLASSES = """
import abc, collections, dataclasses, enum, typing
class A:
    z = 1
    def __init__(self): self.v = 5
    def m(self): return self.v
    @property
    def q(self): return self.v * 2
    @classmethod
    def k(cls): return cls.z
    @staticmethod
    def s(): return 7
class B(A):
    def __init__(self):
        super().__init__()
        self.me = self
b = B()
class Slotted:
    __slots__ = ("a",)
s = Slotted(); s.a = 1
@dataclasses.dataclass(frozen=True)
class D:
    a: int
    b: list = dataclasses.field(default_factory=list)
d = D(1)
class E(enum.Enum):
    R = 1
    G = "g"
    def up(self): return self.name
e = E.R
class Flags(enum.IntFlag):
    P = 1
    Q = 2
Point = collections.namedtuple("Point", "a b")
point = Point(1, 2)
class T(typing.NamedTuple):
    a: int
    b: int = 4
    def total(self): return self.a + self.b
t = T(1)
class Base(abc.ABC):
    @abc.abstractmethod
    def go(self): ...
class Real(Base):
    def go(self): return "go"
real = Real()
class Meta(type):
    def hi(cls): return cls.__name__
class M(metaclass=Meta): pass
"""
CLASSES_CHECK = """
assert b.m() == 5 and b.q == 10 and B.k() == 1 and b.s() == 7 and b.me is b and isinstance(b, A)
assert s.a == 1 and not hasattr(s, "__dict__")
assert d == D(1) and [f.name for f in dataclasses.fields(D)] == ["a", "b"]
assert dataclasses.replace(d, a=3).a == 3
assert e is E.R and E("g").up() == "G" and (Flags.P | Flags.Q) == 3
assert point == Point(1, 2) and t.total() == 5 and T(1, b=2).b == 2
assert real.go() == "go" and M.hi() == "M"
for broken in (Base, lambda: setattr(d, "a", 2)):
    try:
        broken()
    except (TypeError, dataclasses.FrozenInstanceError):
        continue
    raise AssertionError(broken)
"""
LOST = """
import os, socket, threading
lock = threading.Lock()
generator = (i for i in range(3))
opened = open("/etc/passwd")
holder = {"deep": [lock]}
connection = socket.socket()
running = threading.current_thread()
class Leaves:
    def __reduce__(self): os._exit(0)
leaves = Leaves()
class Raises:
    def __reduce__(self): raise SystemExit(0)
raises = Raises()
class Dies:
    def __reduce__(self): os.abort()
dies = Dies()
class Unreadable:
    def __reduce__(self): return (int, ("no number",))
unreadable = Unreadable()
deep = current = []
for _ in range(200_000):
    current.append([])
    current = current[0]
del current
kept = 1
"""
NAMES_LOST = {
    *("lock", "generator", "opened", "holder", "connection", "running"),
    *("leaves", "raises", "dies", "unreadable", "deep"),
}


@pytest.fixture
def moved(
    bubblewrap: BubblewrapBackend,
    sandbox: Handle,
    new_spec: Callable[..., Spec],
    tmp_path: Path,
) -> Callable[[str, str], Saved]:
    """Runs code, saves, and checks with other code: where it was, and in another sandbox."""

    def run(handle: Handle, code: str) -> None:
        result = bubblewrap.cell(handle, "python3", code)
        assert result.exit_code == 0, result.stderr.decode()

    def move(code: str, check: str) -> Saved:
        run(sandbox, code)
        saved = bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
        run(sandbox, check)
        other = bubblewrap.create(new_spec())
        try:
            bubblewrap.load(other, tmp_path / "a.tar")
            run(other, check)
        finally:
            bubblewrap.destroy(other)
        bubblewrap.load(sandbox, tmp_path / "a.tar")
        run(sandbox, check)
        return saved

    return move


@pytest.mark.parametrize(
    ("code", "check"),
    [(PLAIN, PLAIN_CHECK), (FUNCTIONS, FUNCTIONS_CHECK), (CLASSES, CLASSES_CHECK)],
    ids=["plain", "functions", "classes"],
)
def test_kept(moved: Callable[[str, str], Saved], code: str, check: str) -> None:
    saved = moved(code, f"{check}\nx = 1")
    assert (saved.level, saved.lost) == ("files+vars", ())


def test_what_cannot_be_kept_is_named_and_the_rest_is_kept(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    assert bubblewrap.cell(sandbox, "python3", LOST).exit_code == 0
    saved = bubblewrap.save(sandbox, tmp_path / "a.tar", level="files+vars")
    assert {name.removeprefix("python3: ") for name in saved.lost} == NAMES_LOST
    # The interpreter that was saved has not been touched.
    asking = "print(kept, lock.locked(), next(generator), sorted(globals())[-1])"
    assert bubblewrap.cell(sandbox, "python3", asking).stdout == b"1 False 0 unreadable\n"
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    asking = "print(kept, Leaves.__name__, threading.__name__, 'lock' in globals())"
    assert bubblewrap.cell(sandbox, "python3", asking).stdout == b"1 Leaves threading False\n"


def test_names_of_builtins_may_be_anything(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    code = "import re; compile = re.compile; exec = globals = open = print = list = dict = 3"
    assert bubblewrap.cell(sandbox, "python3", code).exit_code == 0
    assert bubblewrap.save(sandbox, tmp_path / "a.tar", level="full").lost == ()
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    asking = "import sys; sys.stdout.write(str(exec) + compile('x').pattern)"
    assert bubblewrap.cell(sandbox, "python3", asking).stdout == b"3x"


def test_nothing_is_finalized_by_trying(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    code = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
class Remover:
    def __del__(self): open("/root/removed", "w").close()
remover = Remover()
"""
    assert bubblewrap.cell(sandbox, "python3", code).exit_code == 0
    bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    asking = "print(os.path.isdir(folder.name), os.path.exists('/root/removed'))"
    assert bubblewrap.cell(sandbox, "python3", asking).stdout == b"True False\n"


def test_a_module_of_its_own_is_imported_from_the_saved_files(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    code = """
open("/root/mine.py", "w").write("class Thing:\\n    size = 3\\n")
import os
os.makedirs("/root/work"); os.chdir("/root/work")
import sys
sys.path.insert(0, "/root")
import mine
thing = mine.Thing()
"""
    assert bubblewrap.cell(sandbox, "python3", code).exit_code == 0
    saved = bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    assert saved.lost == ()
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    asking = "print(os.getcwd(), thing.size, type(thing).__module__)"
    result = bubblewrap.cell(sandbox, "python3", asking)
    assert result.stdout == b"/root/work 3 mine\n", result.stderr.decode()


def test_without_variables_an_old_interpreter_ends_all_the_same(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    bubblewrap.save(sandbox, tmp_path / "files.tar", level="files")
    assert bubblewrap.cell(sandbox, "python3", "x = 1").exit_code == 0
    bubblewrap.load(sandbox, tmp_path / "files.tar")
    assert bubblewrap.cell(sandbox, "python3", "print('x' in globals())").stdout == b"False\n"


def test_too_many_variables_are_lost_one_by_one(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    """What alone is larger than an archive may be is lost; small ones stay."""
    handle = bubblewrap.create(new_spec(memory_bytes=2048 * 1024 * 1024))
    code = "small = 1; large = bytearray(400 * 1024 * 1024)"
    assert bubblewrap.cell(handle, "python3", code).exit_code == 0
    saved = bubblewrap.save(handle, tmp_path / "a.tar", level="full")
    assert saved.lost == ("python3: large",)
    bubblewrap.destroy(handle)
