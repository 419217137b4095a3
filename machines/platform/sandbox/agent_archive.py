"""Packing a sandbox into a stream, and unpacking one, inside the sandbox.  Standard library only.

    save:  others stand still -> interpreters write down their variables -> tar -> others go on
    load:  interpreters end, others stand still -> tar replaces /root and /tmp
           -> new interpreters take the variables -> others go on

The stream is a tar archive (pax): `root/...` and `tmp/...` are the files, `state/python3` what
agent_variables.py wrote, `state/bash` a script that sets everything again, `state/end` its end.
The agent calls `save` and `load` (agent.py); a program of its own writes and reads the tar
(agent_tar.py).

Others stand still by SIGSTOP: every process but the agent and its ancestors, again and again until
two looks in a row found nothing that still runs.  Parents are stopped before their children and go
on after them, so that a shell does not see its command stop.  `load` ends the lasting interpreters
only: a terminal stays attached, and a program in the background goes on, over other files.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64decode
from typing import Any

STATES = ("python3", "bash")
BLOCK_BYTES = 1 << 20
LOST_MAX = 500
SCANS_MAX = 200
VARIABLES_SECONDS = 60.0
# The agent makes a module of this file without saying where it was.
DIRECTORY_OF_OURS = os.path.dirname(os.path.abspath(globals().get("__file__", sys.argv[0])))  # noqa: PTH100, PTH120
TAR_FILE = f"{DIRECTORY_OF_OURS}/agent_tar.py"
VARIABLES_FILE = f"{DIRECTORY_OF_OURS}/agent_variables.py"
# By their full names: a cell may have called something else `exec` or `globals`.
PYTHON_CELL = """__builtins__.exec(
    __builtins__.compile({preamble!r}, "<turtles>", "exec"), {{"space": __builtins__.globals()}}
)"""
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


# -- in the agent --------------------------------------------------------------------------------


def save(request: dict[str, Any]) -> dict[str, Any]:
    """Pack into the descriptor of the request; what was lost, or the `error`.

    The request says `level`, `hot`, `bytes_max`, `variables_bytes_max` and `seconds`.
    """
    agent: Any = sys.modules["agent"]
    limit = time.monotonic() + request["seconds"]
    still = Still()
    states: dict[str, int] = {}
    lost: list[str] = []
    try:
        stood = request["hot"] or still.stop(spared=interpreter_pids(agent))
        if request["level"] != "files":
            lost += write_states(agent, states, request["variables_bytes_max"])
        if not (stood and (request["hot"] or still.stop())):
            lost.append("(some processes did not stand still)")
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
    """agent_tar.py as a program; the report that it prints."""
    passed = (descriptor, *arguments["states"].values())
    argv = [agent.PYTHON, "-I", "-S", "-B", TAR_FILE, mode, str(descriptor)]
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
        number = os.open(data_path(agent), os.O_RDONLY | os.O_NONBLOCK)
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
    answer: dict[str, Any] = agent.OPERATIONS["cell"](
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
        target = os.open(data_path(agent), os.O_WRONLY | os.O_NONBLOCK)
    except (OSError, KeyError):
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

    def stop(self, spared: frozenset[int] = frozenset()) -> bool:
        """Stop until two looks in a row find nothing that runs; False when that does not come.

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
                return True
            for each in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGSTOP)
                    self.stopped.setdefault(each.pid, len(self.stopped))
            if running:
                time.sleep(0.001)
        return False

    def undo(self) -> None:
        """Children first."""
        for pid in sorted(self.stopped, key=self.stopped.__getitem__, reverse=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
