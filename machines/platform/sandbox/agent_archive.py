"""Packing a sandbox into a stream, and unpacking one, inside the sandbox.  Standard library only.

    save:  others stand still -> interpreters write down their variables -> tar -> others go on
    load:  interpreters end, others stand still -> tar replaces /root and /tmp
           -> new interpreters take the variables -> others go on

The stream is a tar archive (pax): `root/...` and `tmp/...` are the files, `state/python3` what
agent_variables.py wrote, `state/bash` a script that sets everything again, `state/end` its end.
The agent calls `save` and `load` (agent.py); the tar itself is written and read by a program of its
own (this file, `--pack` and `--unpack`), confined as every program inside, so that a hostile
archive cannot reach the agent.

Nothing in an archive is believed, because whoever runs inside may have written it: names must lie
below the two directories, no part of a path is followed when it is a link, only files, directories
and links are made.  Links may point anywhere, as they may in any sandbox; none is ever followed.

Others stand still by SIGSTOP: every process but the agent and its ancestors, again and again until
two looks in a row found nothing that still runs.  Parents are stopped before their children and go
on after them, so that a shell does not see its command stop.  `load` ends the lasting interpreters
only: a terminal stays attached, and a program in the background goes on, over other files.
"""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import time
from base64 import b64decode
from typing import Any, BinaryIO

TOPS = ("root", "tmp")
STATES = ("python3", "bash")
END = "state/end"  # the last member: an archive without it was cut
BLOCK_BYTES = 1 << 20
LOST_MAX = 500
NAME_CHARACTERS = 200
SCANS_MAX = 200
VARIABLES_SECONDS = 60.0
# The agent makes a module of this file without saying where it was.
DIRECTORY_OF_OURS = os.path.dirname(os.path.abspath(globals().get("__file__", sys.argv[0])))  # noqa: PTH100, PTH120
OWN_FILE = f"{DIRECTORY_OF_OURS}/agent_archive.py"
VARIABLES_FILE = f"{DIRECTORY_OF_OURS}/agent_variables.py"
PYTHON_CELL = """exec(compile({preamble!r}, "<turtles>", "exec"), {{"space": globals()}})"""
PREAMBLE = """
import importlib.util, sys
module = sys.modules.get("turtles_agent_variables")
if module is None:
    found = importlib.util.spec_from_file_location("turtles_agent_variables", {path!r})
    module = importlib.util.module_from_spec(found)
    sys.modules["turtles_agent_variables"] = module
    found.loader.exec_module(module)
module.{call}
"""
# Variables that bash itself keeps; setting them would be an error, or mean something else.
BASH_CELL = r"""(
while IFS= builtin read -r turtles_name; do
  case "$turtles_name" in
    BASH|BASHOPTS|BASHPID|BASH_*|COMP_*|DIRSTACK|EPOCH*|EUID|FUNCNAME|GROUPS|HISTCMD|LINENO|\
    OLDPWD|OPTARG|OPTERR|OPTIND|PIPESTATUS|PPID|PWD|RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID|_|\
    turtles_*) ;;
    *) builtin declare -p "$turtles_name" 2>/dev/null ;;
  esac
done < <(builtin compgen -v)
builtin declare -f
builtin declare -F | while builtin read -r _ turtles_flags turtles_name; do
  case "$turtles_flags" in *x*) builtin printf 'export -f %q\n' "$turtles_name" ;; esac
done
builtin alias -p
builtin trap -p
builtin printf 'cd -- %q\n' "$PWD"
builtin shopt -p
builtin set +o
) 2>/dev/null"""


class Refused(Exception):
    """It cannot be packed or unpacked; the message says what and why."""


def shown(path: str) -> str:
    """A path for a message: without surrogates, and not endless."""
    return os.fsencode(path).decode(errors="replace")[:NAME_CHARACTERS]


# -- in the agent --------------------------------------------------------------------------------


def save(request: dict[str, Any]) -> dict[str, Any]:
    """Pack into the descriptor of the request; what was lost, or the `error`.

    The request says `level`, `hot`, `bytes_max` and `seconds`.
    """
    agent: Any = sys.modules["agent"]
    limit = time.monotonic() + request["seconds"]
    still = Still()
    states: dict[str, int] = {}
    lost: list[str] = []
    try:
        if not request["hot"]:
            still.stop(spared=interpreter_pids(agent))
        if request["level"] != "files":
            lost += write_states(agent, states, request["bytes_max"])
        if not request["hot"]:
            still.stop()
        arguments = {"states": states, "bytes_max": request["bytes_max"]}
        report = run_program(agent, "--pack", request["descriptors"][0], arguments, limit)
    finally:
        still.undo()
        for number in states.values():
            os.close(number)
    return {**report, "lost": [*lost, *report.get("lost", [])][:LOST_MAX]}


def load(request: dict[str, Any]) -> dict[str, Any]:
    """Unpack from the descriptor of the request; what was left out, or the `error`.

    The request says `seconds`.
    """
    agent: Any = sys.modules["agent"]
    limit = time.monotonic() + request["seconds"]
    states = {language: os.memfd_create(language) for language in STATES}
    still = Still()
    try:
        for language in list(agent.INTERPRETERS):
            agent.INTERPRETERS.pop(language).close()
        still.stop()
        arguments = {"states": states}
        report = run_program(agent, "--unpack", request["descriptors"][0], arguments, limit)
        if "error" not in report:
            report.setdefault("lost", []).extend(read_states(agent, states))
    finally:
        still.undo()
        for number in states.values():
            os.close(number)
    return report


def run_program(
    agent: Any, mode: str, descriptor: int, arguments: dict[str, Any], limit: float
) -> dict[str, Any]:
    """This file as a program; the report that it prints."""
    passed = (descriptor, *arguments["states"].values())
    argv = [agent.PYTHON, "-I", "-S", "-B", OWN_FILE, mode, str(descriptor)]
    try:
        process = agent.start([*argv, json.dumps(arguments)], "/", {}, passed)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"no process could be started for it ({error})"}
    try:
        out, err = process.communicate(timeout=max(limit - time.monotonic(), 0.1))
        report: dict[str, Any] = json.loads(out)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"error": "it took too long"}
    except ValueError:
        said = err[-300:].decode(errors="replace")
        return {"error": f"its program ended with {process.returncode}: {said}"}
    return report


def interpreter_pids(agent: Any) -> frozenset[int]:
    return frozenset(each.process.pid for each in agent.INTERPRETERS.values())


def write_states(agent: Any, states: dict[str, int], bytes_max: int) -> list[str]:
    """Have every lasting interpreter write down its variables; the names that were lost."""
    lost: list[str] = []
    for language in STATES:
        if language not in agent.INTERPRETERS:
            continue
        write = python_state if language == "python3" else bash_state
        number, names = write(agent, bytes_max)
        lost += [f"{language}: {name}" for name in names]
        if number is not None:
            states[language] = number
    return lost


def python_state(agent: Any, bytes_max: int) -> "tuple[int | None, list[str]]":
    """A descriptor of what agent_variables.py wrote; the names it lost."""
    call = f"dump(space, {bytes_max}, {VARIABLES_SECONDS})"
    if not python_cell(agent, call):
        return None, ["(every variable)"]
    try:
        number = os.open(data_path(agent), os.O_RDONLY)
        report = json.loads(os.pread(number, 65536, 0))
        python_cell(agent, "forget()")
        return number, [str(name) for name in report["lost"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None, ["(every variable)"]


def python_cell(agent: Any, call: str) -> bool:
    """Call a function of agent_variables.py in the lasting interpreter."""
    preamble = PREAMBLE.format(path=VARIABLES_FILE, call=call)
    code = PYTHON_CELL.format(preamble=preamble)
    return bool(asked(agent, "python3", code)["exit_code"] == 0)


def asked(agent: Any, language: str, code: str) -> dict[str, Any]:
    answer: dict[str, Any] = agent.cell(
        {
            "language": language,
            "code": code,
            "timeout_seconds": VARIABLES_SECONDS + 5,
            "max_output_bytes": 8 * BLOCK_BYTES,
        }
    )
    return answer


def data_path(agent: Any) -> str:
    return f"/proc/{agent.INTERPRETERS['python3'].process.pid}/fd/197"


def bash_state(agent: Any, bytes_max: int) -> "tuple[int | None, list[str]]":
    """A descriptor of a script that sets what the user set."""
    answer = asked(agent, "bash", BASH_CELL)
    script = b64decode(answer["stdout"])
    if answer["timed_out"] or answer["truncated"] or not script or len(script) > bytes_max:
        return None, ["(every variable)"]
    number = os.memfd_create("bash")
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(script)
    return number, []


def read_states(agent: Any, states: dict[str, int]) -> list[str]:
    """Start new interpreters that hold what was saved; which could not."""
    lost = []
    if os.fstat(states["python3"]).st_size and not fill_python(agent, states["python3"]):
        lost.append("python3: (every variable)")
    if os.fstat(states["bash"]).st_size:
        with open(states["bash"], "rb", closefd=False) as file:
            file.seek(0)
            script = file.read().decode("utf-8", "surrogateescape")
        if "\0" in script or asked(agent, "bash", script + "\n:")["exit_code"]:
            lost.append("bash: (some variables)")
    return lost


def fill_python(agent: Any, number: int) -> bool:
    if not python_cell(agent, "offer()"):
        return False
    try:
        target = os.open(data_path(agent), os.O_WRONLY)
    except OSError:
        return False
    offset, size = 0, os.fstat(number).st_size
    try:
        while offset < size:
            offset += os.sendfile(target, number, offset, min(size - offset, BLOCK_BYTES))
    except OSError:
        return False
    finally:
        os.close(target)
    return python_cell(agent, "load(space)")


# -- other processes -----------------------------------------------------------------------------


class Process:
    """One line of /proc."""

    def __init__(self, pid: int, state: str, parent: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent

    def command(self) -> bytes:
        try:
            with open(f"/proc/{self.pid}/cmdline", "rb") as file:  # noqa: PTH123
                return file.read()
        except OSError:
            return b""


def others() -> list[Process]:
    """Every process inside that is not the agent's own; parents first.

    Its own are process 1, its ancestors and itself, the doorman, which is a fork of it, and the
    doorman's waiters, which are forks again.
    """
    found: dict[int, Process] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{entry}/stat", errors="replace") as file:  # noqa: PTH123
                fields = file.read().rpartition(")")[2].split()
            found[int(entry)] = Process(int(entry), fields[0], int(fields[1]))
    ours, pid = {1}, os.getpid()
    command = found[pid].command()
    while pid in found and pid not in ours:
        ours.add(pid)
        pid = found[pid].parent
    forks = {os.getpid()}
    for _ in ("the doorman", "its waiters"):
        forks = {
            each.pid
            for each in found.values()
            if each.parent in forks and each.command() == command
        }
        ours |= forks

    def depth(each: Process) -> int:
        steps = 0
        while each.parent in found and steps < len(found):
            each, steps = found[each.parent], steps + 1
        return steps

    rest = [each for each in found.values() if each.pid not in ours]
    return sorted(rest, key=lambda each: (depth(each), each.pid))


class Still:
    """Makes others stand still, and lets go on those that it stopped."""

    def __init__(self) -> None:
        self.stopped: dict[int, int] = {}

    def stop(self, spared: frozenset[int] = frozenset()) -> None:
        """Stop until two looks in a row find nothing that runs.

        What waits uninterruptibly (a vfork's parent) counts once it was told.
        """
        clean = 0
        for _ in range(SCANS_MAX):
            running = [
                each
                for each in others()
                if each.pid not in spared
                and each.state not in "TtZX"
                and not (each.state == "D" and each.pid in self.stopped)
            ]
            clean = 0 if running else clean + 1
            if clean == 2:
                return
            for each in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGSTOP)
                    self.stopped.setdefault(each.pid, len(self.stopped))
            if running:
                time.sleep(0.001)

    def undo(self) -> None:
        """Children first."""
        for pid in sorted(self.stopped, key=self.stopped.__getitem__, reverse=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# -- packing (a program of its own) --------------------------------------------------------------


class Exactly:
    """A file as long as its header said, whatever happens to it meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.changed = False

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            self.changed = True
        return data.ljust(size, b"\0")


class Packer:
    """Writes the archive; `lost` names what is not in it as it was."""

    def __init__(self, tar: tarfile.TarFile, bytes_max: int) -> None:
        self.tar = tar
        self.left = bytes_max
        self.bytes_max = bytes_max
        self.lost: list[str] = []
        self.linked: dict[tuple[int, int], str] = {}

    def add(self, item: tarfile.TarInfo, content: Any = None) -> None:
        self.left -= item.size + 1024
        if self.left < 0:
            raise Refused(f"its files and variables are more than {self.bytes_max} bytes")
        self.tar.addfile(item, content)
        self.tar.members.clear()  # type: ignore[attr-defined]

    def add_state(self, language: str, number: int) -> None:
        item = tarfile.TarInfo(f"state/{language}")
        with open(number, "rb", closefd=False) as file:
            item.size = os.fstat(number).st_size
            file.seek(0)
            self.add(item, file)

    def add_tree(self, top: str) -> None:
        """One of the two directories, parents first, in the order of names."""
        stack = [top]
        with contextlib.ExitStack() as shut_again:
            while stack:
                name = stack.pop()
                path = "/" + name
                try:
                    info = os.lstat(path)
                    if stat.S_ISDIR(info.st_mode):
                        if info.st_mode & 0o700 != 0o700:
                            shut_again.enter_context(readable(path, info))
                        inside = sorted(os.listdir(path), reverse=True)  # noqa: PTH208
                        self.add(item_of(name, info, tarfile.DIRTYPE))
                        stack += [f"{name}/{each}" for each in inside]
                    else:
                        self.add_entry(name, path, info)
                except OSError as error:
                    self.lost.append(f"{shown(path)} ({error.strerror or error})")

    def add_entry(self, name: str, path: str, info: os.stat_result) -> None:
        identity = (info.st_dev, info.st_ino)
        if stat.S_ISLNK(info.st_mode):
            self.add(item_of(name, info, tarfile.SYMTYPE, os.readlink(path)))  # noqa: PTH115
        elif not stat.S_ISREG(info.st_mode):
            self.lost.append(f"{shown(path)} ({KINDS.get(stat.S_IFMT(info.st_mode), 'special')})")
        elif identity in self.linked:
            self.add(item_of(name, info, tarfile.LNKTYPE, self.linked[identity]))
        else:
            self.add_file(name, path, info)
            if info.st_nlink > 1:
                self.linked[identity] = name

    def add_file(self, name: str, path: str, info: os.stat_result) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with readable(path, info), open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            item = item_of(name, info, tarfile.REGTYPE)
            item.size = os.fstat(file.fileno()).st_size
            exactly = Exactly(file)
            self.add(item, exactly)
        if exactly.changed:
            self.lost.append(f"{shown(path)} (it changed while it was read)")


KINDS = {
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def item_of(name: str, info: os.stat_result, kind: bytes, link: str = "") -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.mode = stat.S_IMODE(info.st_mode)
    # Exact: tarfile itself would write a float.
    seconds, rest = divmod(info.st_mtime_ns, 10**9)
    item.pax_headers = {"mtime": f"{seconds}.{rest:09d}"} if seconds >= 0 else {}
    item.mtime = max(seconds, 0)
    item.type = kind
    item.linkname = link
    return item


@contextlib.contextmanager
def readable(path: str, info: os.stat_result) -> Any:
    """We own it but have no capability: a mode that shuts us out is changed for a moment."""
    needed = 0o700 if stat.S_ISDIR(info.st_mode) else 0o400
    if info.st_mode & needed == needed:
        yield
        return
    os.chmod(path, stat.S_IMODE(info.st_mode) | needed)  # noqa: PTH101
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IMODE(info.st_mode))  # noqa: PTH101


def pack(number: int, states: dict[str, int], bytes_max: int) -> dict[str, Any]:
    """Write the archive to a descriptor; the report."""
    with (
        os.fdopen(number, "wb") as raw,
        tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK_BYTES) as tar,
    ):
        packer = Packer(tar, bytes_max)
        for language, state in states.items():
            packer.add_state(language, state)
        for top in TOPS:
            packer.add_tree(top)
        packer.add(tarfile.TarInfo(END))
        return {"lost": packer.lost[:LOST_MAX]}


# -- unpacking (a program of its own) ------------------------------------------------------------


class Unpacker:
    """Makes what an archive names, below directories that are opened link by link."""

    def __init__(self, tops: dict[str, str], states: dict[str, int]) -> None:
        self.tops = {name: os.open(path, DIRECTORY) for name, path in tops.items()}
        self.states = states
        self.directories: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
        self.lost: list[str] = []

    def take(self, tar: tarfile.TarFile, item: tarfile.TarInfo) -> None:
        """One member of the archive."""
        parts = tuple(item.name.split("/"))
        if parts[0] == "state" and len(parts) == 2 and item.isreg():
            self.take_state(parts[1], tar, item)
            return
        check(parts, item.name)
        if item.isdir() and len(parts) == 1:
            self.directories.append((parts, item))
            return
        if len(parts) == 1:
            raise Refused(f"member {shown(item.name)!r}: a directory was expected")
        parent = self.parent_of(parts)
        try:
            self.make(tar, item, parts, parent)
        finally:
            os.close(parent)

    def take_state(self, language: str, tar: tarfile.TarFile, item: tarfile.TarInfo) -> None:
        if language in self.states:
            with open(self.states[language], "wb", closefd=False) as target:
                copy(tar, item, target)

    def make(
        self, tar: tarfile.TarFile, item: tarfile.TarInfo, parts: "tuple[str, ...]", parent: int
    ) -> None:
        name = parts[-1]
        if item.isdir():
            remove_other_than_directory(name, parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            self.directories.append((parts, item))
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        if item.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:  # noqa: PTH123
                copy(tar, item, file)
                file.flush()
                finish(file.fileno(), item)
        elif item.issym():
            os.symlink(item.linkname, name, dir_fd=parent)
            set_times(name, item, dir_fd=parent, follow_symlinks=False)
        elif item.islnk():
            self.link(item, name, parent)
        else:
            self.lost.append(f"/{shown(item.name)} (neither file, directory nor link)")

    def link(self, item: tarfile.TarInfo, name: str, parent: int) -> None:
        source = tuple(item.linkname.split("/"))
        check(source, item.linkname)
        if len(source) == 1:
            raise Refused(f"member {shown(item.name)!r}: a link to a directory")
        beside = self.parent_of(source)
        try:
            os.link(source[-1], name, src_dir_fd=beside, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(beside)

    def parent_of(self, parts: "tuple[str, ...]") -> int:
        """The directory of a member, opened step by step without following a link."""
        current = os.dup(self.tops[parts[0]])
        for part in parts[1:-1]:
            try:
                below = open_below(part, current)
            finally:
                os.close(current)
            current = below
        return current

    def close(self) -> None:
        """Modes and times of directories, last, because files in them change the times."""
        for parts, item in reversed(self.directories):
            try:
                parent = self.parent_of((*parts, "."))
            except OSError:  # a later member took its place
                continue
            finish(parent, item)
            os.close(parent)


DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def open_below(part: str, current: int) -> int:
    try:
        return os.open(part, DIRECTORY, dir_fd=current)
    except FileNotFoundError:
        os.mkdir(part, 0o700, dir_fd=current)
        return os.open(part, DIRECTORY, dir_fd=current)


def check(parts: "tuple[str, ...]", name: str) -> None:
    if parts[0] not in TOPS or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Refused(f"member {shown(name)!r}: outside of /root and /tmp")


def copy(tar: tarfile.TarFile, item: tarfile.TarInfo, target: BinaryIO) -> None:
    content = tar.extractfile(item)
    while content is not None and (piece := content.read(BLOCK_BYTES)):
        target.write(piece)


def finish(number: int, item: tarfile.TarInfo) -> None:
    os.fchmod(number, item.mode & 0o7777)
    set_times(number, item)


def set_times(target: Any, item: tarfile.TarInfo, **options: Any) -> None:
    told = TIME.fullmatch(item.pax_headers.get("mtime", ""))
    with contextlib.suppress(OverflowError, ValueError):
        at_ns = int(item.mtime) * 10**9
        if told is not None:
            at_ns = int(told[1]) * 10**9 + int((told[2] or "0").ljust(9, "0"))
        os.utime(target, ns=(at_ns, at_ns), **options)


TIME = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")


def remove_other_than_directory(name: str, parent: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)


def clear(path: str) -> None:
    """Remove everything below a directory, however deep and however shut.

    Directories are moved up before they are removed, so no path gets long and no call nests.
    """
    prefix, number = f".turtles-{os.urandom(8).hex()}", 0
    top = os.open(path, DIRECTORY)
    try:
        os.fchmod(top, 0o700)
        while names := os.listdir(top):  # noqa: PTH208
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                below = os.open(name, DIRECTORY, dir_fd=top)
                try:
                    for each in os.listdir(below):  # noqa: PTH208
                        if stat.S_ISDIR(os.stat(each, dir_fd=below, follow_symlinks=False).st_mode):
                            number += 1
                            os.chmod(each, 0o700, dir_fd=below)
                            moved = f"{prefix}-{number}"
                            os.rename(each, moved, src_dir_fd=below, dst_dir_fd=top)
                        else:
                            os.unlink(each, dir_fd=below)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def unpack(number: int, states: dict[str, int], tops: dict[str, str]) -> dict[str, Any]:
    """Replace the directories by what the archive holds; the report."""
    for path in tops.values():
        clear(path)
    unpacker = Unpacker(tops, states)
    with (
        os.fdopen(number, "rb") as raw,
        tarfile.open(fileobj=raw, mode="r|", bufsize=BLOCK_BYTES) as tar,
    ):
        name = ""
        while (item := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            name = item.name
            unpacker.take(tar, item)
    if name != END:
        raise Refused("it is no whole archive: its end is missing")
    unpacker.close()
    return {"lost": unpacker.lost[:LOST_MAX]}


def main(mode: str, number: int, arguments: dict[str, Any]) -> None:
    """One archive; the report goes to stdout."""
    try:
        if mode == "--pack":
            report = pack(number, arguments["states"], arguments["bytes_max"])
        else:
            report = unpack(number, arguments["states"], {name: f"/{name}" for name in TOPS})
    except Refused as refused:
        report = {"error": str(refused)}
    except (OSError, tarfile.TarError, ValueError, EOFError, MemoryError) as error:
        report = {"error": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
