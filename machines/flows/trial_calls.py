"""What flow 12 asks of the platform and of its session; each call is harmless to repeat."""

from __future__ import annotations

import msgspec

from engine.clock import minutes
from engine.effects import Call, effect
from engine.errors import Transient
from machines.clients.ports import ClientError, NotFound, Rejected, Unavailable
from machines.clients.ports.introspection import Facilities
from machines.flows import wall_probes
from machines.flows.canaries import Canaries
from machines.flows.keyed import PATIENT, calling, credentials_of, later
from machines.flows.money import platform_of
from machines.flows.trial import (
    PROBES,
    Gone,
    Opened,
    Probed,
    Promised,
    Seen,
    SessionLost,
    Sight,
    Trial,
    Withdrawn,
    chosen,
)


def _key(call: Call) -> str:
    """One session for one run, so that one nobody told us of can be found again."""
    return f"trust-{call.run_id}"


async def _open(context: Trial, call: Call) -> str:
    session = await platform_of(call).create_session(  # noqa: S604 - the name of a shell
        credentials_of(context),
        shell="bash",
        network_mode=chosen(context),
        ttl_seconds=context.ttl_seconds,
        key=_key(call),
    )
    return session.session_id


@effect(idempotent=True, retry=PATIENT)
async def open_session(context: Trial, call: Call) -> Opened:
    """Create the session; the same key gives the same one."""
    with calling():
        return Opened(session_id=await _open(context, call))


@effect(idempotent=True, retry=PATIENT)
async def withdraw(context: Trial, call: Call) -> Withdrawn:
    """Ask once more under the same key, which gives the session that there may be, and end it."""
    try:
        session_id = await _open(context, call)
        await platform_of(call).delete_session(credentials_of(context), session_id)
    except Rejected:
        return Withdrawn()  # an order that is refused has made nothing
    except ClientError as error:
        # Without a free slot none is made; the one that there may be would have been given again.
        if isinstance(error, Unavailable) and error.kind == "concurrency":
            return Withdrawn()
        raise later(error) from error
    return Withdrawn()


@effect(idempotent=True, retry=PATIENT)
async def end_session(context: Trial, call: Call) -> Gone:
    """End the session; no error when it is gone."""
    if not context.session_id:
        return Gone()
    with calling():
        await platform_of(call).delete_session(credentials_of(context), context.session_id)
    return Gone()


@effect(idempotent=True, retry=PATIENT)
async def read_promise(context: Trial, call: Call) -> Promised | SessionLost:
    """What the platform says of the session it made."""
    facilities = call.resource(Facilities)  # type: ignore[type-abstract]
    with calling():
        try:
            mode = await facilities.network_mode(credentials_of(context), context.session_id)
        except NotFound:
            return SessionLost()
    return SessionLost() if mode == "terminated" else Promised(network_mode=mode)


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(2))
async def probe_walls(context: Trial, call: Call) -> Probed | SessionLost:
    """Try the walls from inside, while this host's canaries listen.

    Every attempt asks anew: the answer to an earlier one would tell of canaries that are gone.
    """
    canaries = call.resource(Canaries)  # type: ignore[type-abstract]
    with calling():
        try:
            async with canaries.placed() as canary:
                done = await platform_of(call).execute(
                    credentials_of(context),
                    context.session_id,
                    wall_probes.command(canary.ask()),
                    key=f"{call.key}-{call.attempt}",
                )
        except NotFound:
            return SessionLost()
        except OSError as error:
            raise Transient(f"no canary can be placed: {error}") from error
    sights, problem = read_sights(done.stdout, canary.nonce)
    if done.exit_code != 0:
        problem = f"the probes exited {done.exit_code}"
    return Probed(sights=sights, hits=canary.hits, problem=problem)


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """The shape of `wall_probes.tried`."""

    nonce: str
    sights: dict[str, tuple[Seen, str]]


def read_sights(stdout: str, nonce: str) -> tuple[tuple[Sight, ...], str]:
    """What a session says that it saw, and what is wrong with that; it may say anything.

    Args:
        nonce: what it was asked with; an answer to another question is none.
    """
    if len(stdout) > wall_probes.ANSWER_BYTES_MAX:
        return (), f"the probes said {len(stdout)} characters"
    try:
        told = msgspec.json.decode(stdout, type=_Told)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return (), "the probes said nothing that makes sense"
    if told.nonce != nonce:
        return (), "the probes answered another question"
    strange = sorted(told.sights.keys() - set(PROBES))
    if strange:
        return (), f"the probes tell of {len(strange)} things that nobody asked"
    return tuple(
        Sight(probe=probe, seen=told.sights[probe][0], detail=_shown(told.sights[probe][1]))
        for probe in PROBES
        if probe in told.sights
    ), ""


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)[:120]
