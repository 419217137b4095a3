"""Programs inside may listen on port 80, where the platform has the rights to allow it."""

from __future__ import annotations

import os

from machines.platform.sandbox.backend import Command
from machines.platform.sandbox.low_ports import open_low_ports

LISTEN = "import socket; socket.create_server(('127.0.0.1', 80)); print('listens')"


def test_a_program_listens_on_port_80_if_the_platform_is_root(bubblewrap, sandbox) -> None:
    ran = bubblewrap.execute(sandbox, Command(("python3", "-c", LISTEN)))
    if os.geteuid() == 0:
        assert (ran.exit_code, ran.stdout) == (0, b"listens\n")
    else:
        assert b"Permission denied" in ran.stderr


def test_the_hosts_own_border_is_never_moved() -> None:
    assert open_low_ports(os.getpid()) is False


def test_a_process_that_is_gone_is_no_error() -> None:
    assert open_low_ports(2**22 - 1) is False
