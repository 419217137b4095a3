"""What a reorganised chain takes back, and gives again."""

from __future__ import annotations

from machines.platform import gift_cards, keys


def standing(world, public_key: str) -> str:
    with world.database.reading() as sql:
        return keys.find(sql, public_key).standing(world.now_ms)


def bought(world) -> tuple[dict, str]:
    invoice = world.invoice("LTC")
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 6)
    return invoice, world.status(invoice)["public_key"]


def test_a_key_whose_payment_was_spent_elsewhere_is_suspended(world):
    _, public_key = bought(world)
    assert standing(world, public_key) == "active"
    world.fault("reorg", currency="LTC", depth=6, double_spend=True)
    assert standing(world, public_key) == "suspended"
    world.mine("LTC", 20)
    assert standing(world, public_key) == "suspended"


def test_a_payment_that_is_mined_again_gives_the_key_back(world):
    invoice, public_key = bought(world)
    world.fault("reorg", currency="LTC", depth=6)
    assert standing(world, public_key) == "suspended"
    world.mine("LTC", 1)
    assert standing(world, public_key) == "active"
    assert world.status(invoice)["status"] == "completed"


def test_a_payment_that_only_lost_depth_changes_nothing(world):
    _, public_key = bought(world)
    world.fault("reorg", currency="LTC", depth=3)
    assert standing(world, public_key) == "active"


def test_paying_again_makes_a_suspended_key_work(world):
    invoice, public_key = bought(world)
    world.fault("reorg", currency="LTC", depth=6, double_spend=True)
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 1)
    assert standing(world, public_key) == "active"


def test_more_time_that_was_not_paid_for_suspends_the_key(world):
    _, public_key = bought(world)
    more = world.request(
        "POST", "/api/invoices",
        json={"extends": public_key, "months": 1, "payment_method": "LTC"},
    )  # fmt: skip
    invoice = more.json()
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 6)
    world.fault("reorg", currency="LTC", depth=6, double_spend=True)
    assert standing(world, public_key) == "suspended"


def test_a_card_whose_payment_is_gone_redeems_nothing_and_its_keys_rest(world):
    made = world.request(
        "POST", "/api/gift-cards/create", json={"amount_cents": 2_100, "payment_method": "LTC"}
    ).json()
    world.send("LTC", made["address"], made["amount_atomic"])
    world.mine("LTC", 6)
    wanted = {"code": made["code"], "tier_level": 1, "months": 1}
    first = world.request("POST", "/api/gift-cards/redeem", json=wanted).json()
    assert standing(world, first["public_key"]) == "active"
    world.fault("reorg", currency="LTC", depth=6, double_spend=True)
    assert standing(world, first["public_key"]) == "suspended"
    refused = world.request("POST", "/api/gift-cards/redeem", json=wanted)
    assert (refused.status_code, refused.json()["error"]) == (409, "gift_card_reversed")
    with world.database.reading() as sql:
        card = gift_cards.find(sql, made["gift_card_id"])
    assert card.balance_cents == 1_400
