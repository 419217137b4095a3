"""The operation of the agent that runs code in a lasting interpreter: `cell`.

Read by the agent when first needed (agent.py)::

    agent --code--> interpreter --exit code--> agent      by two pipes; its output by its streams

Python's is agent_cells.py, bash's is BASH_LOOP. One whose cell is out of time is interrupted; when
that does not help it is killed, and the next cell gets a new one.
"""

import contextlib
import os
import selectors
import signal
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machines.platform.sandbox import agent, agent_programs
else:
    import agent

    agent_programs = agent.load("agent_programs")

INTERRUPT_SECONDS = 0.5
LENGTH = struct.Struct(">I")
# The two pipes move to numbers that programs do not use, and are closed for what a cell starts.
BASH_LOOP = """
exec 198<&"$1" 199>&"$2"; eval "exec $1<&- $2>&-"; set --
while IFS= read -r -d '' -u 198 turtles_cell; do
  eval "$turtles_cell" </dev/null 198<&- 199>&-
  printf '%d\\n' "$?" >&199
done
"""


class Interpreter:
    """A lasting interpreter: its process and the two pipes that carry code in and an end out."""

    def __init__(self, language: str) -> None:
        request_read, self.request = os.pipe()
        self.reply, reply_write = os.pipe()
        ends = (str(request_read), str(reply_write))
        argv = {
            "python3": [agent.PYTHON, "-B", agent.beside("agent_cells.py"), *ends],
            "bash": ["bash", "--noprofile", "--norc", "-c", BASH_LOOP, "bash", *ends],
        }[language]
        try:
            self.process = agent.start(argv, "/root", {}, (request_read, reply_write))
            if self.process.stdin is not None:
                self.process.stdin.close()
        except BaseException:
            os.close(self.request)
            os.close(self.reply)
            raise
        finally:
            os.close(request_read)
            os.close(reply_write)

    def close(self) -> None:
        """Kill the interpreter with everything in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.request)
        os.close(self.reply)
        agent_programs.close_streams(self.process)


def cell(request: dict[str, Any]) -> dict[str, Any]:
    """Run code in the lasting interpreter of its language."""
    began = time.monotonic()
    language = request["language"]
    try:
        interpreter = agent.INTERPRETERS.get(language) or Interpreter(language)
    except OSError as error:
        return agent_programs.failure(127, f"could not start {language}: {error}")
    agent.INTERPRETERS[language] = interpreter
    pump = agent_programs.Pump(interpreter.process, b"", request["max_output_bytes"])
    exit_code, timed_out = None, False
    try:
        allowance = agent.Allowance(request["timeout_seconds"])
        if send_code(interpreter, language, request["code"], allowance):
            exit_code = read_end(interpreter, pump, allowance)
        if exit_code is None and allowance.left() <= 0:
            timed_out = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(interpreter.process.pid, signal.SIGINT)
            exit_code = read_end(interpreter, pump, agent.Allowance(INTERRUPT_SECONDS))
        if exit_code is None:
            exit_code = end_interpreter(language, pump)
        else:
            pump.drain()
        return agent_programs.outcome(pump, exit_code, timed_out, began)
    finally:
        pump.close()


def send_code(
    interpreter: Interpreter, language: str, code: str, allowance: agent.Allowance
) -> bool:
    """Hand the code over; False when the interpreter is gone or does not read."""
    data = code.encode("utf-8", "surrogateescape")
    if language == "bash" and b"\0" in data:
        raise agent.Refused("bad_request", "bash code must not contain NUL characters")
    data = data + b"\0" if language == "bash" else LENGTH.pack(len(data)) + data
    view = memoryview(data)
    os.set_blocking(interpreter.request, False)
    with selectors.DefaultSelector() as selector:
        selector.register(interpreter.request, selectors.EVENT_WRITE)
        while view and (tick := allowance.tick()) > 0:
            if selector.select(tick):
                try:
                    view = view[os.write(interpreter.request, view) :]
                except BrokenPipeError:
                    return False
                except BlockingIOError:
                    continue
    return not view


def read_end(
    interpreter: Interpreter, pump: agent_programs.Pump, allowance: agent.Allowance
) -> "int | None":
    """The exit code the interpreter reports for a cell; None when it ended, lied or is late."""
    if not pump.until(interpreter.reply, allowance):
        return None
    line = os.read(interpreter.reply, 64)
    try:
        return int(line) & 0xFF
    except ValueError:
        return None


def end_interpreter(language: str, pump: agent_programs.Pump) -> int:
    """Bury an interpreter that ended, or will not stop; the next cell gets a new one."""
    interpreter = agent.INTERPRETERS.pop(language)
    with contextlib.suppress(subprocess.TimeoutExpired):
        interpreter.process.wait(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(interpreter.process.pid, signal.SIGKILL)
    exit_code = interpreter.process.wait()
    pump.drain()
    interpreter.close()
    return exit_code
