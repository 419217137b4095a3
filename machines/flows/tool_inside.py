"""What flow 5 runs inside a sandbox: fetch the wheel, install it, check it.  Standard library only.

::

    /opt/turtles/wheelhouse/W.whl      shown by the platform, read-only (the toolbox)
      | fetch     copied by a temporary name, renamed, read again and hashed
    /root/.turtles/incoming/W.whl
      | install   unpacked and compiled below a temporary name, with a manifest; then renamed
    /root/.turtles/<digest>/           whole, or not there
      | check     every file against RECORD and manifest; then it is run
    /root/.turtles/bin/turtles         starts it: that directory, and the toolbox's libraries

Each step may be killed anywhere and be begun again: what has its final name but is not what it
should be is removed and made anew.  A step prints one line of JSON: what it found, or
`{"refused": KIND, "reason": ...}`.
"""

import errno
import hashlib
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

MANIFEST = ".manifest.json"
_SHOWN_MAX = 5
_RUN_SECONDS = 60
_PIECE_BYTES = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Refused(Exception):
    """A step cannot be done; the kind is one of those that flow 5 knows."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


# -- the steps ------------------------------------------------------------------------------------


def fetch(ask: dict[str, str]) -> dict[str, Any]:
    """Copy the wheel in; its digest, and that of the salt and it."""
    staged = _stage(ask)
    content = staged.read_bytes()
    return {
        "digest": hashlib.sha256(content).hexdigest(),
        "proof": hashlib.sha256(ask["salt"].encode() + content).hexdigest(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
    }


def install(ask: dict[str, str]) -> dict[str, Any]:
    """Unpack it, compile it, and put it in its place; what is there and whole is kept."""
    home = Path(ask["home"])
    target = home / ask["digest"]
    for left in home.glob(".new-*"):
        shutil.rmtree(left)
    kept = not damages(target, ask["record"])
    if not kept:
        if target.exists():
            shutil.rmtree(target)
        _unpack(ask, home, target)
    _write_program(ask, home, target)
    shutil.rmtree(home / "incoming", ignore_errors=True)
    return {"kept": kept, "files": sum(len(names) for _, _, names in os.walk(target))}


def check(ask: dict[str, str]) -> dict[str, Any]:
    """Look at every file, and let it say its version and its tools."""
    home = Path(ask["home"])
    target = home / ask["digest"]
    damaged = damages(target, ask["record"])
    if damaged:
        return {"damaged": damaged[:_SHOWN_MAX]}
    program = home / "bin" / "turtles"
    version = _run(program, "--version").strip()
    listed = _tools(_run(program, "tools", "--json"))
    usable = [tool["name"] for tool in listed if _has_schema(tool)]
    return {
        "record": hashlib.sha256(_record(target, ask["record"])).hexdigest(),
        "version": version.rpartition(" ")[2],
        "tools": len(set(usable)),
        "unusable": sum(not _has_schema(tool) for tool in listed),
        "path": str(program),
    }


def remove(ask: dict[str, str]) -> dict[str, Any]:
    """Remove what the other steps made of this wheel; nothing there is no error."""
    home = Path(ask["home"])
    program = home / "bin" / "turtles"
    if program.exists() and str(home / ask["digest"]) in program.read_text():
        program.unlink()
    for path in [home / "incoming", home / ask["digest"], *home.glob(".new-*")]:
        shutil.rmtree(path, ignore_errors=True)
    return {"removed": True}


# -- their parts ----------------------------------------------------------------------------------


def _stage(ask: dict[str, str]) -> Path:
    """The wheel in `incoming`, copied now."""
    source = Path(ask["toolbox"]) / "wheelhouse" / ask["filename"]
    if not source.is_file():
        there = sorted(path.name for path in source.parent.glob("*.whl"))
        raise Refused("unresolved", f"the wheelhouse has no {source.name}, but {there}")
    incoming = Path(ask["home"]) / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(mode=0o700, parents=True)
    part = incoming / f"{source.name}.part"
    shutil.copyfile(source, part)
    return part.rename(incoming / source.name)


def _unpack(ask: dict[str, str], home: Path, target: Path) -> None:
    staged = home / "incoming" / ask["filename"]
    if not staged.is_file() or _sha256(staged) != ask["digest"]:
        staged = _stage(ask)  # cut short, or lost: fetched again, and not trusted either
    seen = _sha256(staged)
    if seen != ask["digest"]:
        raise Refused("checksum", f"the wheel has the digest {seen}")
    new = home / f".new-{os.getpid()}"
    try:
        with zipfile.ZipFile(staged) as archive:
            archive.extractall(new)
        _compile(new, target)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _compile(new: Path, target: Path) -> None:
    """Bytecode beside every source, never compared with it, and a manifest of the bytecode."""
    for source in sorted(new.rglob("*.py")):
        py_compile.compile(
            str(source),
            cfile=importlib.util.cache_from_source(str(source)),
            dfile=str(target / source.relative_to(new)),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    manifest = {"python": sys.version, "bytecode": _bytecode(new)}
    (new / MANIFEST).write_text(json.dumps(manifest, sort_keys=True))


def _bytecode(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): _sha256(path) for path in sorted(root.rglob("*.pyc"))}


def _write_program(ask: dict[str, str], home: Path, target: Path) -> None:
    toolbox = ask["toolbox"]
    program = home / "bin" / "turtles"
    program.parent.mkdir(mode=0o700, exist_ok=True)
    part = program.with_name(".turtles.part")
    part.write_text(
        "#!/bin/sh\n"
        f"PYTHONPATH={target}:{toolbox}/lib\n"
        "export PYTHONPATH\n"
        f'exec {toolbox}/bin/python -m machines "$@"\n'
    )
    part.chmod(0o700)
    part.rename(program)


def damages(target: Path, record: str) -> list[str]:
    """What of an installation is not as it should be: names of files; empty when it is whole.

    `record`: the path of RECORD in it.
    """
    try:
        manifest = json.loads((target / MANIFEST).read_bytes())
        text = (target / record).read_bytes()
        bytecode = _bytecode(target)
        found = _record(target, record)
    except (OSError, ValueError) as error:
        return [f"{target.name}: {error}"]
    if not isinstance(manifest, dict) or manifest.get("python") != sys.version:
        return [MANIFEST]
    wrong = set(text.splitlines()) ^ set(found.splitlines())
    names = {line.decode(errors="replace").partition(",")[0] for line in wrong}
    if text != found and not names:
        names = {record}
    return sorted(names | _unequal(manifest.get("bytecode"), bytecode))


def _unequal(wanted: Any, found: dict[str, str]) -> set[str]:
    if not isinstance(wanted, dict):
        return {MANIFEST}
    return {name for name, _ in wanted.items() ^ found.items()}


def _record(target: Path, record: str) -> bytes:
    """RECORD, written anew from the files that are there."""
    files = {
        path.relative_to(target).as_posix(): path
        for path in target.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    lines = []
    for name in sorted(files.keys() - {record, MANIFEST}):
        content = files[name].read_bytes()
        digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{record},,", ""]).encode()


def _tools(said: str) -> list[Any]:
    try:
        listed = json.loads(said)["tools"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("unusable", f"tools --json: {error!r}") from error
    return listed if isinstance(listed, list) else []


def _has_schema(tool: Any) -> bool:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        return False
    schema = tool.get("parameters")
    return isinstance(schema, dict) and schema.get("type") == "object" and "properties" in schema


def _run(program: Path, *words: str) -> str:
    """What the installed program prints.  It is whole, so nothing but the place can be wrong."""
    try:
        done = subprocess.run(  # noqa: S603 - the program that was installed a moment ago
            [str(program), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_RUN_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused("unusable", f"{program.name} {' '.join(words)}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        raise Refused("unusable", f"{' '.join(words)}: exit code {done.returncode}, {said}")
    return done.stdout.decode(errors="replace")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


STEPS = {"fetch": fetch, "install": install, "check": check, "remove": remove}


def perform(ask: dict[str, str]) -> dict[str, Any]:
    """Do one step; what it found, or why it was refused."""
    try:
        return STEPS[ask["step"]](ask)
    except Refused as refused:
        return {"refused": refused.kind, "reason": refused.reason}
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return {"refused": "disk_full", "reason": f"{error.filename}: {error.strerror}"}


def source() -> str:
    """The text of this file, as it is run inside."""
    return Path(__file__).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(perform(json.loads(sys.argv[1]))) + "\n")
