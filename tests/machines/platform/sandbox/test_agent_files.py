"""`collect` takes regular files and nothing else, whatever lies there."""

from __future__ import annotations

from machines.platform.sandbox.backend import Command, Handle
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

MESS = r"""
mkdir -p /root/out/deep/er && cd /root/out
echo good >good; echo deep >deep/er/file
ln -s /etc/passwd link; ln -s /etc linked-folder; ln good hard
mkfifo fifo; : >"$(printf 'bad-\377')"; : >"$(head -c 250 /dev/zero | tr '\0' n)"
: >"new
line"; mkdir locked && echo x >locked/x && chmod 0 locked
echo secret >unreadable; chmod 0 unreadable
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
ln -s /root/out /root/linked
"""


def shell(backend: BubblewrapBackend, handle: Handle, text: str) -> None:
    assert backend.execute(handle, Command(("bash", "-c", text))).exit_code == 0


def test_only_regular_files_with_plain_names_come_out(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    shell(bubblewrap, sandbox, MESS)
    found = bubblewrap.collect(sandbox, ["/root/out", "/root/linked", "/etc/passwd", "/dev"])
    assert found == {
        "good": b"good\n",
        "hard": b"good\n",
        "deep/er/file": b"deep\n",
        "new\nline": b"",
        "n" * 250: b"",
    }


def test_a_huge_tree_is_looked_at_in_part(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    shell(bubblewrap, sandbox, "mkdir /root/out; cd /root/out; seq 3000 | xargs touch")
    assert len(bubblewrap.collect(sandbox, ["/root/out"])) == 100
    # As long as files may be, but not there: reading them all would take minutes.
    shell(bubblewrap, sandbox, "cd /root/out; truncate -s 8M *")
    assert list(bubblewrap.collect(sandbox, ["/root/out"])) == ["1"]


DEEP = """
import os
for name in ("d" * 9, "e"):
    os.chdir("/root/out")
    for _ in range(1500):
        os.mkdir(name)
        os.chdir(name)
        if name == "d" * 9 and len(os.getcwd()) > 1000:
            break
    open("end", "w")
"""


def test_a_long_way_down_is_no_way(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    command = Command(("python3", "deep.py"), files={"deep.py": DEEP.encode(), "out/x": b"x"})
    assert bubblewrap.execute(sandbox, command).exit_code == 0
    assert bubblewrap.collect(sandbox, ["/root/out"]) == {"x": b"x"}
