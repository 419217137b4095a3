"""Isolated sandboxes for untrusted code: the port (`Backend`) and its implementations.

`bubblewrap.BubblewrapBackend` isolates; `fake.FakeBackend` is for fast tests of other parts and
runs nothing at all. Import them from their modules.
"""

from machines.platform.sandbox.backend import (
    Backend,
    Command,
    Handle,
    Probe,
    Result,
    Spec,
    Stats,
)
from machines.platform.sandbox.errors import (
    SandboxError,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)

__all__ = [
    "Backend",
    "Command",
    "Handle",
    "Probe",
    "Result",
    "SandboxError",
    "SandboxGone",
    "SandboxLimit",
    "SandboxUnavailable",
    "Spec",
    "Stats",
]
