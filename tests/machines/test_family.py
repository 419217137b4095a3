"""`turtles tree`: a family of runs, those inside sandboxes too."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import UnknownRun
from engine.testing import Harness
from machines.app import MACHINES
from machines.family import Relative, family_of, follow_family, is_over, lines_of
from machines.flows.f13_inception import Inception
from machines.flows.layer import Layer, Twig
from persistence import open_store


def twig(depth: int, machine: str, state: str, parent: str = "", **more: Any) -> Twig:
    return Twig(depth=depth, run=f"{machine}-{depth}", parent=parent, machine=machine,
                state=state, status=more.pop("status", "waiting"), **more)  # fmt: skip


TWIGS = (
    twig(2, "Inception", "execute_in_child", paid_cents=700, session_id="s2"),
    twig(2, "Discovery", "capable", "Inception-2", status="completed"),
    twig(3, "Inception", "too_deep", status="failed"),
    twig(3, "Discovery", "capable", "Inception-3", status="completed"),
)


async def test_a_family_with_an_engine_inside_an_engine() -> None:
    async with Harness(MACHINES, store=open_store("sqlite://")) as harness:
        layer = Layer(depth=1, max_depth=2, currency="LTC", budget_cents=1, twigs=TWIGS,
                      last_session_id="s1")  # fmt: skip
        run = await harness.app.start(Inception, layer)
        found = await family_of(harness.app, run.run_id)
    assert lines_of(found) == [
        "Inception  inside_sandbox  layer 1 of 2",
        "├─ Discovery  inspecting",
        "╘═ Inception  execute_in_child  layer 2, paid 7.00 USD, sandbox s2",
        "   ├─ Discovery  capable",
        "   ╘═ Inception  too_deep [failed]  layer 3",
        "      └─ Discovery  capable",
    ]
    inside = found.children[1]
    assert (inside.inside, inside.layer, inside.children[1].inside) == ("s1", 2, "s2")


async def test_a_follower_sees_each_change_until_it_is_over() -> None:
    shown: list[Relative] = []
    async with Harness(MACHINES, store=open_store("sqlite://")) as harness:
        asked = Layer(depth=1, max_depth=1, currency="LTC", budget_cents=1)
        run = await harness.app.start(Inception, asked, key="k")
        await follow_family(harness.app, run.run_id[:10], shown.append, follow=False)
        assert not is_over(shown[-1])
        await harness.app.cancel(run.run_id)
        await harness.until_idle()
        await follow_family(harness.app, "Inception:k", shown.append, follow=True)
        with pytest.raises(UnknownRun):
            await follow_family(harness.app, "nobody", shown.append, follow=True)
    assert [one.status for one in shown] == ["waiting", "cancelled"]
