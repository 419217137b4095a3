"""The listener that stands in an empty network namespace; it takes root to make one."""

from __future__ import annotations

import os
import socket

import pytest

from machines.platform.sandbox.backend import EGRESS_PORT
from machines.platform.sandbox.gvisor_egress import Elsewhere


def test_only_its_own_connections_reach_the_listener() -> None:
    if os.geteuid() != 0:
        with pytest.raises(OSError, match="cannot be made"):
            Elsewhere()
        return
    first, second = Elsewhere(), Elsewhere()
    with first.listen() as listening, second.listen() as other:
        listening.settimeout(20)
        assert listening.getsockname() == other.getsockname() == ("127.0.0.1", EGRESS_PORT)
        with first.connect() as connection:
            accepted, _ = listening.accept()
            accepted.close()
            connection.settimeout(20)
            assert connection.recv(1) == b""
        with socket.socket() as stranger:  # of the host itself
            assert stranger.connect_ex(listening.getsockname()) != 0
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    first.close()
    second.close()


def test_its_namespace_has_nothing_but_loopback() -> None:
    if os.geteuid() != 0:
        with pytest.raises(OSError, match="cannot be made"):
            Elsewhere()
        return
    elsewhere = Elsewhere()
    names = elsewhere._thread.submit(socket.if_nameindex).result()
    assert [name for _, name in names] == ["lo"]
    elsewhere.close()
