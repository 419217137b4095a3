"""Which process a worker is, and whether that very process still lives."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

from engine.process import host_id, known_dead, process_start, this_worker


def test_this_process_is_alive_and_each_worker_is_another():
    one, two = this_worker(), this_worker()
    assert one.worker_id != two.worker_id
    assert (one.pid, one.host) == (os.getpid(), host_id())
    assert not known_dead(one)


def test_a_process_that_has_ended_is_known_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(child.pid)
    worker = msgspec.structs.replace(this_worker(), pid=child.pid, process_start=start)
    assert not known_dead(worker)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert known_dead(worker), "a zombie has ended"
    child.wait()
    child.stdin.close()
    assert known_dead(worker)
    assert process_start(child.pid) is None


def test_a_pid_used_again_is_another_process():
    again = msgspec.structs.replace(this_worker(), process_start="1")
    assert known_dead(again)


def test_without_certainty_nobody_is_dead():
    here = this_worker()
    assert not known_dead(msgspec.structs.replace(here, host="elsewhere", pid=2**22 + 1))
    assert not known_dead(msgspec.structs.replace(here, process_start="", pid=2**22 + 1))
