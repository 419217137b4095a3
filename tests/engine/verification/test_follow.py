"""Following a history accepts what really happened, and names the first thing that did not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.ports import History
from engine.secrets import SecretsCodec
from engine.testing import Harness
from engine.verification.follow import follow

replace = msgspec.structs.replace


@pytest.fixture
async def shop(bench: Any, zoo: Any) -> Any:
    async with bench.harness() as harness:
        yield harness


async def history_of(shop: Harness, run_id: str) -> History:
    await shop.app.settle()
    (found,) = shop.store.inspector.histories(run_id=run_id)
    return found


def doubt(shop: Harness, history: History) -> str | None:
    return follow(shop.app.tables["Shop"], shop.app.codec, history)


@pytest.fixture
async def sold(shop: Harness, zoo: Any) -> History:
    """An order that was charged, noted, packed and shipped."""
    run = await shop.app.start(zoo.Shop, zoo.Order(amount=3))
    await shop.app.settle()
    for event in (zoo.Noted(count=2), "pack", zoo.Shipped(parcels=1)):
        await shop.app.send(run.run_id, event)
    return await history_of(shop, run.run_id)


async def test_what_really_happened_is_followed(shop: Harness, sold: History) -> None:
    assert len(sold.entries) == 5
    assert doubt(shop, sold) is None
    assert doubt(shop, replace(sold, entries=sold.entries[:3], verdicts=sold.verdicts[:3],
                               cut=True)) is None  # fmt: skip


async def test_every_control_is_followed(shop: Harness, bench: Any, zoo: Any) -> None:
    bench.ledger.script = ["again", "ok"]
    app = shop.app
    run_id = (await app.start(zoo.Shop, zoo.Order(amount=3))).run_id
    for step in (app.pause, app.resume, app.pause, app.cancel):
        await step(run_id)
        await app.settle()
    assert doubt(shop, await history_of(shop, run_id)) is None
    later = (await app.start(zoo.Shop, zoo.Order(amount=4))).run_id
    await app.settle()
    await app.send(later, "pack")
    await app.settle()
    await app.cancel(later)  # has to wait: shipping is not cancellable
    await app.settle()
    assert doubt(shop, await history_of(shop, later)) is None
    await app.send(later, zoo.Shipped(parcels=1))
    history = await history_of(shop, later)
    assert doubt(shop, history) is None
    assert "$cancel" in [entry.event for entry in history.entries]


async def test_a_quarantined_run_is_followed_and_so_is_its_return(
    shop: Harness, bench: Any, zoo: Any
) -> None:
    bench.ledger.script = ["never", "ok"]
    run_id = (await shop.app.start(zoo.Errand, zoo.Order())).run_id
    table = shop.app.tables["Errand"]
    held = await history_of(shop, run_id)
    assert held.stored is not None
    assert held.stored.run.status == "quarantined"
    assert follow(table, shop.app.codec, held) is None
    await shop.app.resume(run_id)
    after = await history_of(shop, run_id)
    assert after.stored is not None
    assert after.stored.run.status == "completed"
    assert follow(table, shop.app.codec, after) is None


def changed(sold: History, place: int, **changes: Any) -> History:
    entries = list(sold.entries)
    entries[place] = replace(entries[place], **changes)
    return replace(sold, entries=tuple(entries))


@pytest.mark.parametrize(
    "place, changes",
    [
        (1, {"target": "shipping"}),
        (2, {"source": "charging"}),
        (2, {"event": "pack", "payload": None}),
        (4, {"status": "failed"}),
        (3, {"event": "$undone"}),
        (3, {"event": "$child_ended"}),
        (3, {"event": "$nonsense"}),
        (3, {"event": "$cancel"}),
        (2, {"payload": b'{"event":"noted","count":13}'}),
    ],
)
async def test_another_entry_is_doubted(
    shop: Harness, sold: History, place: int, changes: dict[str, Any]
) -> None:
    said = doubt(shop, changed(sold, place, **changes))
    assert said == f"entry {place + 1} ({changes.get('event', sold.entries[place].event)}) " + (
        "is not what is decided"
    )


async def test_what_cannot_be_read_is_doubted(shop: Harness, sold: History) -> None:
    assert "not JSON" in (doubt(shop, changed(sold, 2, payload=b"{")) or "")
    assert "no event 'nothing'" in (doubt(shop, changed(sold, 2, event="nothing")) or "")
    broken = (*sold.verdicts[:2], b"{", *sold.verdicts[3:])
    assert doubt(shop, replace(sold, verdicts=broken)) == "entry 3 (noted) is not what is decided"
    assert doubt(shop, replace(sold, entries=(), verdicts=())) == "its journal has no beginning"


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "abandoned"},
        {"status": "given_up"},
        {"closed_seq": 3},
        {"calls": 0},
        {"seq": 4},
        {"name": "refund"},
        {"undo_of": "packing"},
        {"key": "another"},
    ],
)
async def test_another_record_of_an_effect_is_doubted(
    shop: Harness, sold: History, changes: dict[str, Any]
) -> None:
    (charge,) = sold.effects
    assert doubt(shop, replace(sold, effects=(replace(charge, **changes),))) is not None


async def test_a_record_too_many_is_doubted(shop: Harness, sold: History) -> None:
    (charge,) = sold.effects
    more = replace(sold, effects=(charge, replace(charge, key="k")))
    assert doubt(shop, more) == "effects 2, where its journal leads to 1"


@pytest.mark.parametrize(
    "field, value",
    [("state", "packing"), ("seq", 4), ("entered_seq", 1), ("undo", ()), ("closing", "failed"),
     ("child", "c"), ("deadline_ms", 9), ("status", "waiting"), ("status", "failed"),
     ("context", b"{}")],
)  # fmt: skip
async def test_a_run_that_stands_elsewhere_is_doubted(
    shop: Harness, sold: History, field: str, value: Any
) -> None:
    assert sold.stored is not None
    stored = replace(sold.stored, run=sold.stored.run.but(**{field: value}))
    assert (doubt(shop, replace(sold, stored=stored)) or "").startswith(field)


async def test_another_output_is_doubted(shop: Harness, sold: History) -> None:
    stored = replace(sold.stored, output=b'"another"')  # type: ignore[type-var]
    assert doubt(shop, replace(sold, stored=stored)) == "output"


async def test_the_wrong_key_is_no_doubt_where_there_is_no_secret(
    shop: Harness, bench: Any, sold: History
) -> None:
    bench.secrets = SecretsCodec(b"z" * 32)
    async with bench.harness() as other:
        assert doubt(other, sold) is None
