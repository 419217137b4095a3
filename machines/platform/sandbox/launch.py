"""From a place on disk to a sandbox that answers.

    start behind the gate -> record, limit -> open the gate -> the agent and its doorman answer
                          -> their processes are recorded -> ready

A failure ends what was started; the place itself (directory, cgroup) is the caller's to erase.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from machines.platform.sandbox import doors, layout, processes, remedies
from machines.platform.sandbox.backend import EGRESS_PORT, REQUEST_BYTES_MAX, Spec
from machines.platform.sandbox.cgroups import Cgroup
from machines.platform.sandbox.channel import BrokenChannel, Channel
from machines.platform.sandbox.freezing import Standstill
from machines.platform.sandbox.live import Live
from machines.platform.sandbox.low_ports import open_low_ports
from machines.platform.sandbox.processes import Identity
from machines.platform.sandbox.records import Record, write_record
from machines.platform.sandbox.selection import Ready
from machines.platform.sandbox.start import Plan, Started, start_behind_gate
from machines.platform.toolbox import load_toolbox

__all__ = ["START_SECONDS", "Place", "launch", "set_up"]

START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sandbox is to live: its directory, its groups, its user, and whose it is."""

    directory: Path
    owner: Identity
    cgroup: Cgroup | None
    user_id: int | None

    def record(self, inside: tuple[Identity, ...] = ()) -> None:
        """Write down what must be killed and removed when its owner dies."""
        groups = self.cgroup.paths() if self.cgroup else ()
        write_record(self.directory, Record(self.owner, inside, groups))


def launch(spec: Spec, ready: Ready, place: Place) -> Live:
    """Start it. SandboxUnavailable with what bubblewrap said; OSError, SubprocessError.

    ToolboxUnavailable when it is to have a toolbox and there is none to show.
    """
    plan = Plan(
        ready.interpreter,
        spec.disk_bytes,
        ready.can_disable_userns,
        place.user_id,
        load_toolbox() if spec.toolbox else None,
    )
    with ready.program.opened() as program:
        started = start_behind_gate(plan, program)
        _admit(started, place)
        standstill = Standstill()
        live = Live(
            spec,
            place.directory,
            started.process,
            Channel(started.connection, standstill.lost_seconds),
            Channel(started.door, standstill.lost_seconds),
            place.cgroup,
            place.user_id,
            standstill=standstill,
        )
        _greet_or_explain(live, ready, place, started)
    return live


def set_up(live: Live, ready: Ready, channel: Channel) -> None:
    """Tell an agent its limits; again after a resize, for programs started from then on."""
    channel.request(
        "setup",
        {
            "environment": layout.environment(live.spec, ready.interpreter),
            "pids": live.spec.pids,
            "rlimit_data_bytes": 0 if live.cgroup else live.spec.memory_bytes,
            "request_bytes_max": REQUEST_BYTES_MAX,
        },
        wait_seconds=START_SECONDS,
    )


def _admit(started: Started, place: Place) -> None:
    """Record and limit the waiting process, then let it go on."""
    try:
        waiting = processes.identify(started.process.pid)
        place.record((waiting,) if waiting else ())
        if place.cgroup is not None:
            place.cgroup.add(started.process.pid)
    except BaseException:
        started.abandon()
        raise
    started.open_gate()


def _greet_or_explain(live: Live, ready: Ready, place: Place, started: Started) -> None:
    """Greet; when the agent does not answer, end it all and say what bubblewrap said."""
    try:
        _greet(live, ready, place)
    except BaseException as error:
        live.end()
        if isinstance(error, BrokenChannel):
            raise remedies.unavailable(started.read_said() or str(error)) from error
        raise
    finally:
        os.close(started.said)


def _greet(live: Live, ready: Ready, place: Place) -> None:
    """Hear the agent, tell it its limits, and record what is inside."""
    set_up(live, ready, live.channel)
    set_up(live, ready, live.door)
    if live.spec.network == "semitrusted":
        live.listening = doors.listen(live.door, EGRESS_PORT)
    live.inside = tuple(processes.descendants(live.process.pid))
    if place.user_id is not None and live.inside:
        open_low_ports(live.inside[0].pid)
    outer = processes.identify(live.process.pid)
    place.record((*live.inside, *((outer,) if outer else ())))
