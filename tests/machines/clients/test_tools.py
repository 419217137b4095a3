"""What this process knows of its own code."""

from __future__ import annotations

import hashlib

import pytest

from machines.clients import tools
from machines.clients.ports import Rejected
from machines.clients.tools import OwnTools
from machines.wheel import RECORD, own_wheel


async def test_it_is_the_wheel_of_the_running_code() -> None:
    package, wheel = await OwnTools().package(), own_wheel()
    assert (package.filename, package.version) == (wheel.filename, wheel.version)
    assert (package.sha256, package.record_sha256) == (wheel.sha256, wheel.record_sha256)
    assert package.record == RECORD


async def test_the_proof_is_over_salt_and_wheel() -> None:
    expected = hashlib.sha256(b"salt" + own_wheel().content).hexdigest()
    assert await OwnTools().proof("salt") == expected


async def test_code_without_sources_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise FileNotFoundError("package engine: no source files")

    monkeypatch.setattr(tools, "own_wheel", none)
    with pytest.raises(Rejected, match="own code cannot be packed into a wheel: package engine"):
        await OwnTools().package()
