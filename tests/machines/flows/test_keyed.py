"""What a failed call of the platform means to a flow, and whose key it was."""

from __future__ import annotations

import pytest

from engine.errors import OutcomeUnknown, Permanent, Transient
from engine.secret import Secret
from machines.clients.ports import (
    ClientError,
    Credentials,
    NotFound,
    Rejected,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.refusals import Refusal
from machines.flows.keyed import PASSING, Keyed, calling, credentials_of


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unavailable("down"), Transient),
        (ReplyLost("cut"), OutcomeUnknown),
        (Unauthorized("no", reason="expired"), Permanent),
        (NotFound("gone"), Permanent),
        (Rejected("session_busy"), Permanent),
        (Refusal("session_busy", code="locked", status=409), Permanent),
        *((Refusal("wait", code=code, status=409), Transient) for code in sorted(PASSING)),
    ],
)
def test_what_a_failed_call_means(error: ClientError, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, calling():
        raise error
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.__cause__) == (str(error), error)


def test_what_the_platform_asks_to_wait_is_kept() -> None:
    with pytest.raises(Transient) as caught, calling():
        raise Unavailable("full", kind="rate_limit", retry_after_ms=7_000)
    assert caught.value.retry_after_ms == 7_000


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(OSError, match="ours"), calling():
        raise OSError("ours")


def test_the_key_is_given_as_the_ports_take_it() -> None:
    context = Keyed(public_key="pk", secret_key=Secret("sk"), offset_ms=5)
    assert credentials_of(context) == Credentials(
        public_key="pk", secret_key=Secret("sk"), offset_ms=5
    )
