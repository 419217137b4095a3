"""Saving and loading inside: what stands still, what goes on, what bash keeps."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from machines.platform.sandbox import agent_archive
from machines.platform.sandbox.backend import Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxFrozen, SandboxGone


def test_others_are_listed_parents_first_without_us() -> None:
    child = subprocess.Popen(["sh", "-c", "cat & wait"], stdin=subprocess.PIPE)
    try:
        pids = [each.pid for each in agent_archive.others()]
        assert child.pid in pids
        assert os.getpid() not in pids
        assert os.getppid() not in pids
        parents = {each.pid: each.parent for each in agent_archive.others()}
        order = {pid: place for place, pid in enumerate(pids)}
        assert all(order[parents[pid]] < order[pid] for pid in pids if parents.get(pid) in order)
    finally:
        child.kill()
        child.communicate()


def sh(backend: BubblewrapBackend, sandbox: Handle, text: str) -> str:
    result = backend.execute(sandbox, Command(("bash", "-c", text)))
    assert result.exit_code == 0, result.stderr.decode()
    return result.stdout.decode(errors="backslashreplace")


def cell(backend: BubblewrapBackend, sandbox: Handle, code: str, language: str = "python3") -> str:
    result = backend.cell(sandbox, language, code)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    return result.stdout.decode()


WRITER = """
import itertools, os
if os.fork():
    raise SystemExit
os.setsid()
for number in itertools.count():
    for name in ("one", "two"):
        with open(f"/root/{name}.new", "w") as file:
            file.write(str(number))
        os.rename(f"/root/{name}.new", f"/root/{name}")
"""


def test_nothing_moves_while_it_is_packed_unless_hot(
    bubblewrap: BubblewrapBackend, sandbox: Handle, new_spec: Callable[..., Spec], tmp_path: Path
) -> None:
    """A writer keeps two files equal or one apart; a busy forker makes that harder."""
    bubblewrap.start_program(sandbox, Command(("python3", "-c", WRITER)))
    bubblewrap.start_program(sandbox, Command(("bash", "-c", "while :; do /bin/true; done")))
    sh(bubblewrap, sandbox, "until [ -e /root/two ]; do :; done")
    for number in range(3):
        bubblewrap.save(sandbox, tmp_path / f"{number}.tar", level="files")
        with tarfile.open(tmp_path / f"{number}.tar") as tar:
            one, two = [int(tar.extractfile(f"root/{name}").read()) for name in ("one", "two")]  # type: ignore[union-attr]
        assert one in (two, two + 1)
    # Everything goes on afterwards.
    before = sh(bubblewrap, sandbox, "cat /root/two")
    sh(bubblewrap, sandbox, f'while [ "$(cat /root/two)" = {before.strip()} ]; do :; done')
    hot = bubblewrap.save(sandbox, tmp_path / "hot.tar", level="files", hot=True)
    assert hot.size_bytes > 0


def test_what_was_stopped_before_stays_stopped(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    states = (
        'for p in $(cat /root/pids); do awk \'{ print $3 }\' "/proc/$p/stat"; done | tr -d "\\n"'
    )
    sh(
        bubblewrap,
        sandbox,
        "setsid sleep 1000 >/dev/null 2>&1 </dev/null & one=$!; "
        "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $one $! > /root/pids; "
        "until [ \"$(awk '{ print $3 }' /proc/$one/stat)\" = S ]; do :; done; kill -STOP $one; "
        "until [ \"$(awk '{ print $3 }' /proc/$one/stat)\" = T ]; do :; done",
    )
    bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    assert sh(bubblewrap, sandbox, states) == "TS"
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    assert sh(bubblewrap, sandbox, states) == "TS"


def test_a_terminal_and_a_program_outlive_a_load(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path, read_until: Callable[..., bytes]
) -> None:
    terminal = bubblewrap.open_terminal(sandbox, ("bash", "--norc"))
    program = bubblewrap.start_program(sandbox, Command(("cat",), cwd="/"))
    os.write(terminal, b"A=1; echo rea''dy\n")
    read_until(terminal, b"ready")
    bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    os.write(terminal, b"cd /; echo still $A''1\n")
    assert b"Stopped" not in read_until(terminal, b"still 11")
    bubblewrap.stop_program(sandbox, program.number)
    for descriptor in (terminal, program.output, program.status):
        os.close(descriptor)


def test_bash_keeps_what_was_set(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    setting = r"""
A='two words
and "lines"'; declare -a list=(1 "b c"); declare -A map=([k]="v w"); export EXPORTED=1
declare -r fixed=2; declare -i number=3; greet() { echo "hi $1 $A"; }; export -f greet
mkdir -p "/root/a dir"; cd "/root/a dir"; alias ll='ls -l'; shopt -s nullglob; set -o noclobber
"""
    asking = r"""
declare -p A list map EXPORTED fixed number; greet you; bash -c 'greet x; echo $EXPORTED'; pwd
alias ll; shopt nullglob; set -o | grep noclobber
"""
    cell(bubblewrap, sandbox, setting, "bash")
    before = cell(bubblewrap, sandbox, asking, "bash")
    saved = bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    assert saved.lost == ()
    assert cell(bubblewrap, sandbox, asking, "bash") == before
    cell(bubblewrap, sandbox, "cd /; A=; unset map; unset -f greet; set +o noclobber", "bash")
    bubblewrap.load(sandbox, tmp_path / "a.tar")
    assert cell(bubblewrap, sandbox, asking, "bash") == before


def test_a_frozen_sandbox_and_one_that_is_gone_are_told(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    bubblewrap.freeze(sandbox)
    for use in (
        lambda: bubblewrap.save(sandbox, tmp_path / "b.tar", level="full"),
        lambda: bubblewrap.load(sandbox, tmp_path / "a.tar"),
    ):
        with pytest.raises(SandboxFrozen):
            use()
    bubblewrap.unfreeze(sandbox)
    bubblewrap.destroy(sandbox)
    with pytest.raises(SandboxGone):
        bubblewrap.save(sandbox, tmp_path / "b.tar", level="full")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


def test_an_agent_that_is_killed_in_between_leaves_no_file(
    bubblewrap: BubblewrapBackend, sandbox: Handle, tmp_path: Path
) -> None:
    """Code inside has the agent's rights and may end it while it packs."""
    agent = bubblewrap._live[sandbox.sandbox_id].inside[1].pid
    sh(bubblewrap, sandbox, "head -c 7000000 /dev/urandom > /root/data")
    cell(
        bubblewrap,
        sandbox,
        "class Fatal:\n    def __reduce__(self):\n        import os, signal\n"
        "        os.kill(2, signal.SIGKILL)\n        return (int, ())\nfatal = Fatal()",
    )
    assert agent > 0
    with pytest.raises(SandboxGone):
        bubblewrap.save(sandbox, tmp_path / "a.tar", level="full")
    assert not list(tmp_path.iterdir())
