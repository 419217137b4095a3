"""What W4 and W7 seed is a store as good as any, and the measured machines do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine import App
from engine.ports import Query
from persistence import open_store
from tests.benchmarks.machines import Go, Half, Long, Loop, Order, Walk
from tests.benchmarks.peers.common import Options, check, order
from tests.benchmarks.seeding import seeder


async def settled(directory: Path, machine: Any, context: Any) -> str:
    """A run moved as far as it goes by itself; its id."""
    store = open_store(f"sqlite:///{directory}/runs.db")
    app = App([Walk, Half, Loop], store=store)
    await app.open()
    run = await app.start(machine, context)
    await app.settle()
    await app.stop()
    store.close()
    return run.run_id


async def test_clones_of_a_finished_run_pass_every_rule(tmp_path: Path) -> None:
    run_id = await settled(tmp_path, Walk, Order(**order(0)))
    with seeder(Options(directory=str(tmp_path))) as seeds:
        before = seeds.size_bytes()
        seeds.clone_run(run_id, 50)
        seeds.settle()
        assert seeds.size_bytes() > before
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    assert store.inspector.findings() == []
    stored = store.runs.select(Query(limit=100))
    store.close()
    assert len({each.run.run_id for each in stored}) == 51
    assert {each.run.status for each in stored} == {"completed"}


async def test_a_run_with_a_long_past_passes_every_rule_and_goes_on(tmp_path: Path) -> None:
    run_id = await settled(tmp_path, Loop, Long(rest_every=20))
    with seeder(Options(directory=str(tmp_path))) as seeds:
        more = seeds.lengthen_run(run_id, 1_000)
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    app = App([Loop], store=store)
    await app.open()
    assert store.inspector.findings() == []
    assert (await app.get(run_id)).seq == 1_000
    await app.send(run_id, Go(number=1), key="go")
    await app.settle()
    outcome = await app.outcome(run_id)
    await app.stop()
    store.close()
    assert more > 900
    assert (outcome.seq, outcome.context.count) == (1_021, 40)


async def test_half_waits_in_its_middle_and_ends_with_the_same_value(tmp_path: Path) -> None:
    run_id = await settled(tmp_path, Half, Order(**order(3)))
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    app = App([Half], store=store)
    await app.open()
    assert (await app.get(run_id)).status == "waiting"
    await app.send(run_id, Go(number=3), key="go")
    await app.settle()
    context = (await app.outcome(run_id)).context
    await app.stop()
    store.close()
    check({name: getattr(context, name) for name in context.__struct_fields__})
