"""What crosses the wall of a nested layer's sandbox: commands in, answers out.

::

    layer k                                    inside its sandbox
    command(...) with an `Ask` on stdin  ───►  turtles layer attend: starts the engine of layer
                                               k + 1 if it neither runs nor has ended, and waits
            ◄── one line: `Attended` ────────  a while; the engine's progress, or its report

The same command again, under another key, goes on waiting: nothing in it starts anything twice.
The code of the gift card travels on standard input only.  An answer is a stranger's text: it is
cut, decoded strictly, and `oddity_of` says what about it no engine of ours would say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from engine.secrets import Secret
from machines.clients.ports import Record
from machines.flows.layer import Layer, LayerReport, Step, Twig, line_of

INSIDE_URL = "http://platform.turtles"
"""The platform, by the name that its own proxy knows."""
PROGRAM = "/root/.turtles/bin/turtles"
"""Where the product is installed inside."""
ATTEND_SECONDS = 45
"""How long the first command waits; the proxy cuts an exchange in which nothing moves for a minute.

Until then a tier-1 key has used six of its seven requests in a minute, and needs one to clean up.
"""
ATTEND_AGAIN_SECONDS = 12
"""How long the later ones wait: that is five in a minute, so that whoever looks sees it move."""
STOP_SECONDS = 40
ANSWER_CHARACTERS_MAX = 160_000
"""The context, which keeps all of it, may be twice as large."""
STEPS_MAX = 100
TWIGS_MAX = 100
TEXT_CHARACTERS_MAX = 400
TOO_DEEP = "too_deep"
"""How the engine in the deepest sandbox ends: there the turtles stop."""


class Ask(Record):
    """What the engine inside is asked for.  `code` pays for the keys of its subtree."""

    url: str
    chain: str
    depth: int
    max_depth: int
    currency: str
    budget_cents: int
    tier: int
    months: int
    poll_ms: int
    session_ttl_seconds: int
    latency_ms_max: int
    latency_above_ms: int
    incarnation: int
    digest: str
    code: Secret[str] | None = None

    def to_json(self) -> str:
        """One line, the code in plain: for standard input, and nothing else."""
        return msgspec.json.encode(self, enc_hook=_revealed).decode()


class Told(Record):
    """How the engine inside has ended: its layers, and the journal of all its runs."""

    said: str
    state: str
    status: str
    complete: bool
    refusal: str
    layers: tuple[LayerReport, ...]
    journal: tuple[Step, ...]


class Attended(Record):
    """What attending the engine gave: `told` when it has ended, else only its progress.

    `latency_ms`: from the beginning of the command to an engine that works.
    """

    latency_ms: int
    twigs: tuple[Twig, ...]
    told: Told | None = None


def ask_of(context: Layer, run_id: str) -> Ask:
    """What the next layer is asked for.

    Args:
        run_id: the run of the layer that asks; it names the chain if it is the first.
    """
    pays = context.layers_below > 0
    return Ask(
        url=INSIDE_URL,
        chain=context.chain or run_id,
        depth=context.depth + 1,
        max_depth=context.max_depth,
        currency=context.currency,
        budget_cents=context.budget_cents - context.paid_cents,
        tier=context.tier,
        months=context.months,
        poll_ms=context.poll_ms,
        session_ttl_seconds=context.session_ttl_seconds,
        latency_ms_max=context.latency_ms_max,
        latency_above_ms=context.latency_above_ms,
        incarnation=context.incarnation + context.lost,
        digest=context.tool_digest,
        code=context.card_code if pays else None,
    )


def ask_from(line: str) -> Ask:
    """What a layer was asked for, from its standard input.

    Raises:
        msgspec.DecodeError: it is no such thing.
    """
    return msgspec.json.decode(line, type=Ask, dec_hook=_hidden)


def _revealed(secret: Any) -> Any:
    return secret.reveal()


def _hidden(_kind: Any, value: Any) -> Any:
    return Secret(value)


def layer_of(ask: Ask, latency_ms: int) -> Layer:
    """The first context of the engine inside.

    Args:
        latency_ms: what it took to get there from the layer above.
    """
    return Layer(
        depth=ask.depth,
        max_depth=ask.max_depth,
        currency=ask.currency,
        budget_cents=ask.budget_cents,
        tier=ask.tier,
        months=ask.months,
        poll_ms=ask.poll_ms,
        session_ttl_seconds=ask.session_ttl_seconds,
        network_mode="semitrusted",
        latency_ms_max=ask.latency_ms_max,
        latency_above_ms=ask.latency_above_ms + latency_ms,
        chain=ask.chain,
        card_code=ask.code,
        incarnation=ask.incarnation,
        tool_digest=ask.digest,
    )


def attend_command(ask: Ask, *, again: bool = False) -> str:
    """Starts the engine if need be, and waits a while for its end."""
    seconds = ATTEND_AGAIN_SECONDS if again else ATTEND_SECONDS
    options = f"--began-ms $(date +%s%3N) --seconds {seconds}"
    return f"{PROGRAM} layer attend {options} <<'TURTLES'\n{ask.to_json()}\nTURTLES"


def stop_command() -> str:
    """Lets the engine cancel its run, which ends what it has made, and waits for that."""
    return f"{PROGRAM} layer stop --seconds {STOP_SECONDS}"


def attended_of(stdout: str) -> Attended | str:
    """What attending gave, or what is odd about the answer."""
    if len(stdout) > ANSWER_CHARACTERS_MAX:
        return f"its answer has {len(stdout)} characters, at most {ANSWER_CHARACTERS_MAX} are read"
    try:
        found = msgspec.json.decode(stdout.encode(errors="replace"), type=Attended)
    except msgspec.DecodeError as error:
        return f"its answer is not an engine's ({shown(str(error))})"
    return next(_unfit(found), None) or found


def oddity_of(context: Layer, told: Told) -> str:
    """What about a report cannot be; empty when all of it may be true."""
    return next(_oddities(context, told), "")


def bottom_reached(context: Layer, told: Told) -> bool:
    """The engine inside is the one at which the turtles stop."""
    return context.layers_below == 0 and told.state == TOO_DEEP


def shown(text: str) -> str:
    """A stranger's text, cut, and with nothing in it that does something to a terminal."""
    kept = text[:TEXT_CHARACTERS_MAX]
    return "".join(one if one.isprintable() else "?" for one in kept)


def _unfit(found: Attended) -> Iterator[str]:
    if found.latency_ms < 0:
        yield f"its latency is {found.latency_ms} ms"
    if len(found.twigs) > TWIGS_MAX:
        yield f"it tells of {len(found.twigs)} runs, at most {TWIGS_MAX} are read"
    journals = () if found.told is None else _journals(found.told)
    if any(len(journal) > STEPS_MAX for journal in journals):
        yield f"a journal has over {STEPS_MAX} steps"
    if any(text != shown(text) for text in _texts(found)):
        yield f"a text in it is unprintable, or has over {TEXT_CHARACTERS_MAX} characters"


def _oddities(context: Layer, told: Told) -> Iterator[str]:
    if told.said != line_of(context):
        yield f"it says {told.said!r} instead of {line_of(context)!r}"
    depths = [one.depth for one in told.layers]
    expected = list(range(context.depth + 1, context.max_depth + 1))
    if depths != expected[: len(depths)] or (told.complete and depths != expected):
        yield f"it reports of layers {depths} instead of {expected}"
    keys = [context.public_key, *(one.public_key for one in told.layers)]
    if len(set(keys)) < len(keys):
        yield "two layers have the same key"
    if any(one.paid_cents < 0 for one in told.layers):
        yield "a layer was paid for its key"
    spent_cents = sum(one.paid_cents for one in told.layers)
    if spent_cents > context.budget_cents - context.paid_cents:
        yield f"it has spent {spent_cents} cents, which it did not have"
    if not told.journal:
        yield "it has no journal"


def _journals(told: Told) -> Iterator[tuple[Step, ...]]:
    yield told.journal
    yield from (one.journal for one in told.layers)


def _texts(found: Attended) -> Iterator[str]:
    yield from _strings(msgspec.to_builtins(found))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
