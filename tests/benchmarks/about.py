"""Where and with what it was measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import Contender

_OWN = ("turtles", "sqlalchemy", "msgspec", "python-statemachine", "psycopg")
_ASK = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


def machine() -> dict[str, Any]:
    """The machine, this interpreter and our own packages."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "file_system": _file_system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version(name) for name in _OWN},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _file_system() -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    here = [row for row in mounts if tempfile.gettempdir().startswith(row[1].rstrip("/"))]
    return max(here, key=lambda row: len(row[1]))[2] if here else "unknown"


def version(name: str) -> str:
    """Of a package in this environment."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from the checkout"


def peers(contenders: list[Contender]) -> dict[str, str]:
    """Versions of what the contenders need, as their own interpreter says."""
    found: dict[str, str] = {}
    for each in contenders:
        if each.requires and not each.missing:
            command = [each.command[0], "-c", _ASK, *each.requires, "sqlalchemy", "psycopg"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            found |= json.loads(said or "{}")
        if each.key == "restate" and not each.missing:
            package = Path(each.extra).parents[1] / "package.json"
            found["@restatedev/restate-server"] = json.loads(package.read_text())["version"]
    return found
