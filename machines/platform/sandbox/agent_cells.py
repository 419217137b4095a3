"""The lasting Python interpreter: runs cells in one namespace. Standard library only.

    python3 -B agent_cells.py REQUEST_FD REPLY_FD       started by the agent (agent.py)

On the request pipe come a 4-byte big-endian length and that much code, again and again; on the
reply pipe goes one line with the exit code of each. What a cell prints goes to its own
streams. Nothing of ours is left in sight: `__main__` is an empty module.
"""

import builtins
import contextlib
import os
import struct
import sys
import traceback
import types
from typing import Any

HEADER = struct.Struct(">I")


def exit_code_of(leaving: SystemExit) -> int:
    """What `sys.exit(x)` means as an exit code."""
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    print(leaving.code, file=sys.stderr)  # noqa: T201 - as Python itself does
    return 1


def run_cell(code: str, namespace: dict[str, Any]) -> int:
    """One cell; its exit code as `python3 -c` would have it. Variables stay in `namespace`."""
    try:
        exec(compile(code, "<cell>", "exec"), namespace)  # noqa: S102 - the purpose
    except SystemExit as leaving:
        return exit_code_of(leaving)
    except BaseException as error:  # noqa: BLE001 - a cell may raise anything, also interrupts
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, trace)
        return 1
    return 0


def serve_cells(request_fd: int, reply_fd: int) -> None:
    """Read code, run it, report its exit code, for ever."""
    for number in (request_fd, reply_fd):
        os.set_inheritable(number, False)
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv, sys.path[0] = [""], ""
    with os.fdopen(request_fd, "rb") as requests:
        while header := requests.read(HEADER.size):
            code = requests.read(HEADER.unpack(header)[0]).decode("utf-8", "surrogateescape")
            exit_code = run_cell(code, module.__dict__)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os.write(reply_fd, b"%d\n" % exit_code)


if __name__ == "__main__":
    serve_cells(int(sys.argv[1]), int(sys.argv[2]))
