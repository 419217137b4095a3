"""Every way in which a sandbox can be refused or lost.

    SandboxError
    |- SandboxUnavailable   this machine cannot isolate; nothing was run       (API: 503)
    |- SandboxGone          the sandbox no longer exists, or just died          (API: 404 / 410)
    |- SandboxLimit         the request is larger than the sandbox may serve    (API: 400 / 413)
    |- SandboxFrozen        it stands still; nothing was done                   (API: 409)
    |- FreezeFailed         it could not be made to stand still; it goes on     (API: 503)
    `- PortClosed           nothing listens there inside                        (API: 502)

`SandboxUnavailable` always carries what bubblewrap said and exactly one remedy; there is no
weaker way of running that a caller could fall back to.
"""

from __future__ import annotations

__all__ = [
    "FreezeFailed",
    "PortClosed",
    "SandboxError",
    "SandboxFrozen",
    "SandboxGone",
    "SandboxLimit",
    "SandboxUnavailable",
]


class SandboxError(Exception):
    """Base of everything this package raises on purpose."""


class SandboxUnavailable(SandboxError):
    """Isolation cannot be had here. `reason`: what was seen; `fix`: the one matching step."""

    def __init__(self, reason: str, fix: str) -> None:
        self.reason = reason
        self.fix = fix
        super().__init__(
            f"{reason.rstrip('.')}. "
            f"Untrusted code will not be run without isolation. Fix: {fix.rstrip('.')}."
        )


class SandboxGone(SandboxError):
    """The sandbox named by `sandbox_id` is not (or no longer) alive in this process."""

    def __init__(self, sandbox_id: str, reason: str) -> None:
        self.sandbox_id = sandbox_id
        self.reason = reason
        super().__init__(f"sandbox {sandbox_id} is gone: {reason}. Create a new one.")


class SandboxLimit(SandboxError):
    """A request exceeds a limit; the message names the limit, the value seen, the maximum."""


class SandboxFrozen(SandboxError):
    """The sandbox is frozen; nothing was done.  Unfreeze it first."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__(f"sandbox {sandbox_id} is frozen; nothing was done. Unfreeze it first")
        self.sandbox_id = sandbox_id


class PortClosed(SandboxError):
    """Nothing listens on that port of the sandbox."""

    def __init__(self, sandbox_id: str, port: int) -> None:
        super().__init__(f"sandbox {sandbox_id}: nothing listens on port {port} inside")
        self.sandbox_id = sandbox_id
        self.port = port


class FreezeFailed(SandboxError):
    """Some process of the sandbox would not stop; all of them go on as before."""

    def __init__(self, sandbox_id: str, reason: str) -> None:
        super().__init__(
            f"sandbox {sandbox_id} could not be frozen: {reason}. It goes on as before; try again"
        )
        self.sandbox_id = sandbox_id
