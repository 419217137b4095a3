"""`turtles tree RUN`: a run and all the runs below it, as a family, also those inside sandboxes.

::

    Inception  execute_in_child  layer 1 of 4, paid 7.00 USD, sandbox unsb-session-...
    ├─ Discovery  capable
    ├─ Payment  completed
    │  └─ Spend  broadcast
    ╞═ inside unsb-session-...
    │  Inception  redeem_card  layer 2 of 4
    │  └─ Redemption  redeeming

Runs of this store are read here; what engines inside sandboxes do is known as far as they have told
the layer above, with each answer to its attending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.ports import Query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.app import App
    from engine.run import Run
    from machines.flows.layer import Layer, Twig

CHILDREN_MAX = 1_000
LOOK_MS = 500
NAMELESS = "a sandbox"


class Relative(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a family.

    `inside` names the sandbox whose engine it belongs to; empty: a run of this store.
    """

    run_id: str
    machine: str
    state: str
    status: str
    facts: str = ""
    layer: int = 0
    inside: str = ""
    paid_cents: int = 0
    session_id: str = ""
    children: tuple[Relative, ...] = ()


async def family_of(app: App, run_id: str) -> Relative:
    """A run of the store with everything below it."""
    run = await app.get(run_id)
    stored = await app.runs(Query(parent_id=run_id, limit=CHILDREN_MAX))
    children = [await family_of(app, one.run.run_id) for one in reversed(stored)]
    if run.machine != "Inception":
        return _relative(run, tuple(children))
    layer: Layer = run.context
    inside = _inside(layer.twigs, layer.last_session_id or NAMELESS, layer.depth + 1)
    return msgspec.structs.replace(
        _relative(run, (*children, *inside)),
        facts=_facts(layer.depth, layer.max_depth, layer.paid_cents, layer.session_id),
        layer=layer.depth,
        paid_cents=layer.paid_cents,
        session_id=layer.session_id,
    )


def _relative(run: Run, children: tuple[Relative, ...]) -> Relative:
    return Relative(
        run_id=run.run_id,
        machine=run.machine,
        state=run.state,
        status=run.status,
        children=children,
    )


def _inside(twigs: Iterable[Twig], sandbox: str, depth: int) -> tuple[Relative, ...]:
    """What the engine in a sandbox has told of its runs, and of those one sandbox further in."""
    own = [one for one in twigs if one.depth == depth]
    below = [one for one in twigs if one.depth > depth]
    known = {one.run for one in own}
    return tuple(_grown(one, own, below, sandbox) for one in own if one.parent not in known)


def _grown(twig: Twig, own: list[Twig], below: list[Twig], sandbox: str) -> Relative:
    children = tuple(_grown(one, own, below, sandbox) for one in own if one.parent == twig.run)
    if twig.machine == "Inception":
        children += _inside(below, twig.session_id or NAMELESS, twig.depth + 1)
    is_layer = twig.machine == "Inception"
    return Relative(
        run_id=twig.run,
        machine=twig.machine,
        state=twig.state,
        status=twig.status,
        facts=_facts(twig.depth, 0, twig.paid_cents, twig.session_id) if is_layer else "",
        layer=twig.depth if is_layer else 0,
        inside=sandbox,
        paid_cents=twig.paid_cents,
        session_id=twig.session_id,
        children=children,
    )


def _facts(depth: int, max_depth: int, paid_cents: int, session_id: str) -> str:
    told = [f"layer {depth} of {max_depth}" if max_depth else f"layer {depth}"]
    if paid_cents:
        told.append(f"paid {paid_cents // 100}.{paid_cents % 100:02} USD")
    if session_id:
        told.append(f"sandbox {session_id}")
    return ", ".join(told)


def lines_of(one: Relative) -> list[str]:
    """The family, drawn."""
    return list(_drawn(one, "", ""))


def _drawn(one: Relative, first: str, rest: str) -> Iterator[str]:
    ended = f" [{one.status}]" if one.status in ("failed", "cancelled", "quarantined") else ""
    told = f"  {one.facts}" if one.facts else ""
    yield f"{first}{one.machine}  {one.state}{ended}{told}"
    for number, child in enumerate(one.children, start=1):
        last = number == len(one.children)
        enters = child.inside != one.inside
        branch = ("╘═" if last else "╞═") if enters else ("└─" if last else "├─")
        yield from _drawn(child, f"{rest}{branch} ", rest + ("   " if last else "│  "))


async def follow_family(
    app: App, name: str, show: Callable[[Relative], None], *, follow: bool
) -> None:
    """Show the family of a run; with `follow` again after each change, until it is over.

    Args:
        name: an id, its unique beginning, or MACHINE:KEY.
    """
    from engine.cli.naming import find_run

    run_id = (await find_run(app, name)).run.run_id
    shown: Relative | None = None
    while True:
        one = await family_of(app, run_id)
        if one != shown:
            show(one)
            shown = one
        if not follow or is_over(one):
            return
        await app.clock.sleep(LOOK_MS)


def is_over(one: Relative) -> bool:
    """Nothing of it will move any more by itself."""
    return one.status in ("completed", "failed", "cancelled", "quarantined", "paused")
