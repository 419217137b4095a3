"""What a layer of flow 13 asks of portal and platform; each call is harmless to repeat."""

from __future__ import annotations

import hashlib
import shlex

import msgspec

from engine.clock import minutes
from engine.effects import Call, effect
from engine.errors import Permanent
from machines.clients.ports import (
    ClientError,
    Credentials,
    Execution,
    NotFound,
    Platform,
    Record,
    Rejected,
)
from machines.clients.ports.gift_cards import GiftCards
from machines.flows import evidence, layer_wire, recursion
from machines.flows.keyed import PATIENT, later
from machines.flows.layer import STDOUT_CHARACTERS_MAX, Layer, line_of
from machines.flows.layer_events import (
    ChildLost,
    ClearedUp,
    Created,
    Equipped,
    Executed,
    ExecutionFailed,
    InnerMoved,
    InnerOdd,
    InnerTold,
    Priced,
    Released,
    Settled,
)
from machines.flows.money import asking, platform_of, portal_of

SAID_CHARACTERS_MAX = 300


def _credentials(context: Layer) -> Credentials:
    if context.secret_key is None:
        raise Permanent("this layer has no secret key")
    return Credentials(
        public_key=context.public_key, secret_key=context.secret_key, offset_ms=context.offset_ms
    )


# -- money ------------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT)
async def fetch_prices(context: Layer, call: Call) -> Priced:
    """What the portal asks for one key of this layer's kind."""
    try:
        with asking("prices"):
            quotes = await portal_of(call).quotes()
    except ClientError as error:
        raise Permanent(str(error)) from error
    wanted = (context.tier, context.months)
    for quote in quotes:
        if (quote.tier, quote.months) == wanted:
            return Priced(price_cents=quote.price_cents, concurrency=quote.concurrency)
    raise Permanent(f"the portal sells no key of tier {wanted[0]} for {wanted[1]} months")


@effect(idempotent=True, retry=PATIENT)
async def read_balance(context: Layer, call: Call) -> Settled:
    """What is left on the card of the layers below."""
    cards = call.resource(GiftCards)  # type: ignore[type-abstract]
    try:
        with asking("what is left on the card"):
            status = await cards.card(context.card_id)
    except ClientError as error:
        raise Permanent(str(error)) from error
    return Settled(left_cents=status.balance_cents)


# -- the sandbox ------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT)
async def equip(context: Layer, call: Call) -> Equipped:
    """Take along what goes into the child: this product, or scripts that need only python3."""
    if context.nested:
        if not context.tool_digest:
            raise Permanent("nobody said which wheel of this product goes into the child")
        return Equipped(digest=context.tool_digest, offset_ms=await _clock_offset(call))
    try:
        languages = await platform_of(call).languages(_credentials(context))
    except ClientError as error:
        raise later(error) from error
    if "python" not in languages:
        raise Permanent(f"the platform has no python; it has {', '.join(languages)}")
    tools = evidence.source() + recursion.source()
    digest = hashlib.sha256(tools.encode()).hexdigest()
    return Equipped(digest=digest, offset_ms=context.offset_ms)


async def _clock_offset(call: Call) -> int:
    """What our clock lacks, by a reply that needs no key and counts for none."""
    try:
        with asking("the platform's clock"):
            return await platform_of(call).clock_offset_ms()
    except ClientError as error:
        raise Permanent(str(error)) from error


@effect(idempotent=True, retry=PATIENT)
async def create_session(context: Layer, call: Call) -> Created:
    """Create the child sandbox; the same key gives the same one."""
    toolbox = {"toolbox": True} if context.nested else {}
    try:
        session = await platform_of(call).create_session(  # noqa: S604 - the name of a shell
            _credentials(context),
            shell="bash",
            network_mode=context.network_mode,
            ttl_seconds=context.session_ttl_seconds,
            key=call.key,
            **toolbox,
        )
    except ClientError as error:
        raise later(error) from error
    return Created(session_id=session.session_id)


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(3))
async def delete_session(context: Layer, call: Call) -> Released:
    """End the child sandbox, after what was made from inside it; no error when it is gone."""
    platform, credentials = platform_of(call), _credentials(context)
    try:
        if context.nested and not context.told:
            await _stop_engine(platform, credentials, context, call.key)
        await platform.delete_session(credentials, context.session_id)
    except ClientError as error:
        raise later(error) from error
    return Released()


async def _stop_engine(
    platform: Platform, credentials: Credentials, context: Layer, key: str
) -> None:
    """The engine inside ends what is below it: nobody else has the keys to do so."""
    command = layer_wire.stop_command()
    try:
        await platform.execute(credentials, context.session_id, command, key=f"{key}-stop")
    except (NotFound, Rejected):
        return  # there is no engine, and whatever it had made ends with its time


@effect(idempotent=True, retry=PATIENT)
async def clear_sessions(context: Layer, call: Call) -> ClearedUp:
    """End every sandbox of this layer's key but those of the layers above that share it."""
    platform, credentials = platform_of(call), _credentials(context)
    try:
        for session in await platform.sessions(credentials):
            if session.session_id not in context.above:
                await platform.delete_session(credentials, session.session_id)
    except ClientError as error:
        raise later(error) from error
    return ClearedUp()


# -- inside it --------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT, timeout_ms=minutes(3))
async def run_in_child(
    context: Layer, call: Call
) -> Executed | InnerMoved | InnerTold | InnerOdd | ChildLost | ExecutionFailed:
    """Look around inside, or attend the engine there; the same key runs the command once."""
    if context.nested:
        ask = layer_wire.ask_of(context, call.run_id)
        command = layer_wire.attend_command(ask, again=bool(context.twigs))
    else:
        command = greeting(context)
    try:
        done = await platform_of(call).execute(
            _credentials(context), context.session_id, command, key=call.key
        )
    except NotFound:
        return ChildLost()
    except ClientError as error:
        raise later(error) from error
    if done.exit_code != 0:
        return ExecutionFailed(exit_code=done.exit_code)
    return _attended(context, done) if context.nested else _inspected(done)


def _inspected(done: Execution) -> Executed:
    return Executed(stdout=done.stdout[:STDOUT_CHARACTERS_MAX], latency_ms=done.duration_ms)


def _attended(context: Layer, done: Execution) -> InnerMoved | InnerTold | InnerOdd:
    found = layer_wire.attended_of(done.stdout)
    if isinstance(found, str):
        return InnerOdd(reason=found)
    if found.told is None:
        return InnerMoved(latency_ms=found.latency_ms, twigs=found.twigs)
    oddity = layer_wire.oddity_of(context, found.told)
    if oddity:
        return InnerOdd(reason=oddity)
    return InnerTold(latency_ms=found.latency_ms, twigs=found.twigs, told=found.told)


def greeting(context: Layer) -> str:
    """The command of a flat layer: a line for people, the evidence, and a try to recurse."""
    line = shlex.quote(line_of(context))
    ask = {"url": layer_wire.INSIDE_URL}
    return f"echo {line}; {evidence.command()} && {recursion.command(ask)}"


def split_answer(stdout: str) -> tuple[str, str]:
    """(the line for people, the evidence) of a greeting's output."""
    line, _, rest = stdout.partition("\n")
    return line.strip(), rest.partition("\n")[0].strip()


class Sibling(Record):
    """What came of a try to make a sandbox from inside one: its id, or why there is none."""

    sibling: str = ""
    reason: str = ""


def sibling_of(stdout: str) -> Sibling:
    """What a greeting's output says of the try; a sandbox may say anything."""
    lines = stdout.split("\n", 3)
    try:
        told = msgspec.json.decode(lines[2] if len(lines) > 2 else "", type=Sibling)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return Sibling(reason="the sandbox did not say")
    return Sibling(sibling=_shown(told.sibling), reason=_shown(told.reason))


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)[:SAID_CHARACTERS_MAX]


def is_answer(context: Layer, stdout: str) -> bool:
    """Whether this is what a greeting gives: its line, with evidence behind it."""
    line, inspection = split_answer(stdout)
    return line == line_of(context) and inspection.startswith("{")
