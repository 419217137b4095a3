"""The executions that this process runs now, and who waits for them.

    announce (before the row can be seen) -> wait, cancel by other threads -> conclude

A row `pending` or `running` whose job is not here belongs to a process that died, or to a thread
that could not write its result.
"""

from __future__ import annotations

import threading
import uuid

from machines.platform.replies import Problem

WAITERS_MAX = 256


class Running:
    """An execution of this process: where it runs, and what other threads may ask of it."""

    def __init__(self, sandbox_id: str | None, own: bool) -> None:
        self.ended = threading.Event()
        self.cancelled = threading.Event()
        self.sandbox_id = sandbox_id
        self.own = own


class Runs:
    """The executions of this process.  Thread-safe."""

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        self._waiters = threading.BoundedSemaphore(WAITERS_MAX)

    def announce(self, sandbox_id: str | None, *, own: bool) -> str:
        """A new job id, known to waiters before its row can be seen.

        Args:
            own: it gets a sandbox of its own; else it runs in `sandbox_id`, where that is known.
        """
        job_id = str(uuid.uuid4())
        self._running[job_id] = Running(own_sandbox(job_id) if own else sandbox_id, own)
        return job_id

    def conclude(self, job_id: str) -> None:
        """It has ended, and its row says how, as far as it could be written."""
        self._running.pop(job_id).ended.set()

    def find(self, job_id: str) -> Running | None:
        """The execution, unless it has ended or runs nowhere."""
        return self._running.get(job_id)

    def own_sandboxes(self) -> list[str]:
        """Of those that have one of their own."""
        running = list(self._running.values())
        return [each.sandbox_id for each in running if each.own and each.sandbox_id is not None]

    def wait(self, job_id: str, timeout_seconds: float | None) -> None:
        """Return when it has ended, or after the time; at once when it does not run here.

        Raises:
            Problem: 503, too many wait already.
        """
        running = self.find(job_id)
        if running is None:
            return
        if not self._waiters.acquire(blocking=False):
            raise Problem(
                503,
                "busy",
                f"{WAITERS_MAX} requests wait for jobs already. Poll GET /jobs/{job_id} instead.",
                headers={"Retry-After": "2"},
            )
        try:
            running.ended.wait(timeout_seconds)
        finally:
            self._waiters.release()


def own_sandbox(job_id: str) -> str:
    """The id of the sandbox that an execution has for itself."""
    return f"exec-{job_id}"
