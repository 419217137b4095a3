"""A process is its number and its start time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from machines.platform.sandbox.processes import (
    Identity,
    _children,
    _children_by_scan,
    boot_id,
    descendants,
    identify,
    kill,
    resident_bytes,
    wait_until_gone,
)

ABSENT = Identity(2**22 - 1, 1)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_we_are_alive_and_of_this_boot() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me.is_alive()
    assert len(boot_id()) == 36


def test_nobody_is_nobody() -> None:
    assert identify(ABSENT.pid) is None
    assert not ABSENT.is_alive()
    assert not kill(ABSENT)
    assert resident_bytes(ABSENT.pid) == 0


def test_the_very_process_is_killed(child: subprocess.Popen[bytes]) -> None:
    identity = identify(child.pid)
    assert identity is not None
    assert kill(identity)
    assert not identity.is_alive()
    assert child.wait() == -9
    assert not kill(identity)


def test_another_process_of_the_same_number_is_not(child: subprocess.Popen[bytes]) -> None:
    identity = identify(child.pid)
    assert identity is not None
    assert not kill(Identity(identity.pid, identity.start_ticks + 1))
    assert child.poll() is None


def test_children_are_found_without_the_kernels_list_too(
    child: subprocess.Popen[bytes],
) -> None:
    assert child.pid in _children(os.getpid())
    assert set(_children_by_scan(os.getpid())) == set(_children(os.getpid()))
    assert _children(ABSENT.pid) == _children_by_scan(ABSENT.pid) == []


def test_descendants_are_found_parents_first(child: subprocess.Popen[bytes]) -> None:
    script = "sleep 600 & echo started; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        below = [each.pid for each in descendants(os.getpid())]
        grandchildren = descendants(shell.pid)
        assert {child.pid, shell.pid, grandchildren[0].pid} <= set(below)
        assert below.index(shell.pid) < below.index(grandchildren[0].pid)
        kill(grandchildren[0])


def test_a_process_that_stays_is_waited_for_in_vain(child: subprocess.Popen[bytes]) -> None:
    identity = identify(child.pid)
    assert identity is not None
    assert resident_bytes(child.pid) > 0
    assert not wait_until_gone([identity], 0.01)
