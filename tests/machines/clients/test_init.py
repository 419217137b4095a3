"""The front door is lazy: the flows' import of `ports` must not load httpx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import machines.clients

ROOT = Path(__file__).parents[3]


def test_ports_load_no_httpx() -> None:
    program = "import sys, machines.clients.ports; print('httpx' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there() -> None:
    assert machines.clients.__all__ == sorted(machines.clients.__all__)
    for name in machines.clients.__all__:
        assert getattr(machines.clients, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = machines.clients.no_such_name
