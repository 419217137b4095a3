"""Gift cards: bought by invoice, spent in parts, never beyond the balance, code never kept."""

from __future__ import annotations

import asyncio
import re
import threading

import httpx
import pytest
from structlog.testing import capture_logs

from engine.errors import StoreError
from machines.platform import gift_cards, keys, reports
from machines.platform.replies import Problem


def bought(world, **fields):
    body = {"amount_cents": 5000, "payment_method": "LTC", **fields}
    reply = world.request("POST", "/api/gift-cards/create", json=body)
    assert reply.status_code == 201, reply.text
    return reply.json()


def paid(world, **fields):
    card = bought(world, **fields)
    world.send(card["currency"], card["address"], card["amount_atomic"])
    world.mine(card["currency"], card["confirmations_required"])
    assert world.status(card)["status"] == "completed"
    return card


def redeem(world, card, tier=1, months=3, **headers):
    body = {"code": card["code"], "tier_level": tier, "months": months}
    return world.request("POST", "/api/gift-cards/redeem", json=body, headers=headers)


def look(world, gift_id):
    reply = world.request("GET", f"/api/gift-cards/{gift_id}/status")
    assert reply.status_code == 200, reply.text
    return reply.json()


def links(world):
    (letter,) = world.request("GET", "/_test/letters").json()["letters"]
    return letter["recipient"], re.findall(r"/gift-cards/\S+", letter["text"])


def wrongs(world):
    with world.database.reading() as sql:
        return reports._gift_cards(sql)


def test_the_price_grid_is_in_cents(world):
    body = world.request("GET", "/api/gift-cards/pricing").json()
    prices = {(each["tier_level"], each["months"]): each["price_cents"] for each in body["prices"]}
    assert len(prices) == body["count"] == 160
    assert (prices[1, 1], prices[1, 3], prices[32, 3]) == (700, 1953, 62_496)


def test_the_worked_example_of_the_paper(world):
    card = bought(world)
    assert re.fullmatch(r"[a-z]+(-[a-z]+){3}", card["code"])
    assert card["price_cents"] == card["amount_cents"] == 5000
    assert card["amount_atomic"] == 5000 * 12_500
    assert look(world, card["gift_card_id"])["status"] == "unpaid"
    world.send("LTC", card["address"], card["amount_atomic"])
    world.mine("LTC", 6)
    assert look(world, card["gift_card_id"])["status"] == "active"

    got = redeem(world, card)
    assert got.status_code == 200
    first = got.json()
    assert (first["status"], first["price_cents"], first["balance_cents"]) == (
        "redeemed", 1953, 3047,
    )  # fmt: skip
    assert '"balance_usd":30.47' in got.text
    pair = first["api_key"]
    with world.database.reading() as sql:
        assert keys.secret(sql, pair["public_key"]) == pair["secret_key"]
        row = keys.find(sql, pair["public_key"])
    assert row.tier == 1
    assert row.expires_ms == keys.months_later(world.now_ms, 3)
    shown = look(world, card["gift_card_id"])
    assert (shown["balance_cents"], shown["redemptions"][0]["price_cents"]) == (3047, 1953)
    assert pair["public_key"] not in str(shown)
    assert wrongs(world) == []


def test_a_card_is_spent_in_parts_until_nothing_is_left(world):
    card = paid(world, amount_cents=1400)
    assert redeem(world, card, months=1).json()["balance_cents"] == 700
    assert redeem(world, card, months=1).json()["balance_cents"] == 0
    assert look(world, card["gift_card_id"])["status"] == "exhausted"
    refused = redeem(world, card, months=1)
    assert (refused.status_code, refused.json()["error"]) == (402, "insufficient_balance")
    assert wrongs(world) == []


def test_more_than_the_balance_is_refused_and_changes_nothing(world):
    card = paid(world, amount_cents=1952)
    refused = redeem(world, card)
    assert refused.status_code == 402
    assert (refused.json()["balance_cents"], refused.json()["price_cents"]) == (1952, 1953)
    assert look(world, card["gift_card_id"])["balance_cents"] == 1952
    assert redeem(world, card, months=1).status_code == 200
    with world.database.reading() as sql:
        assert sql.scalar("SELECT count(*) FROM api_key") == 1


@pytest.mark.parametrize("paid_atomic", [0, 1_000_000, 62_500_000])
def test_an_unpaid_card_buys_nothing(world, paid_atomic):
    card = bought(world)
    if paid_atomic:
        world.send("LTC", card["address"], paid_atomic)
        world.mine("LTC", 5)
    refused = redeem(world, card)
    assert (refused.status_code, refused.json()["error"]) == (409, "gift_card_unpaid")
    assert look(world, card["gift_card_id"])["balance_cents"] == 0


def test_a_card_paid_too_late_stays_expired_and_the_money_goes_back(world):
    card = bought(world, refund_address=world.own_address("LTC"))
    world.now_ms = card["expires_ms"]
    assert redeem(world, card).json()["error"] == "gift_card_expired"
    world.send("LTC", card["address"], card["amount_atomic"])
    world.mine("LTC", 6)
    world.mine("LTC", 6)
    assert world.status(card)["status"] == "refunded"
    refused = redeem(world, card)
    assert (refused.status_code, refused.json()["error"]) == (409, "gift_card_expired")
    assert look(world, card["gift_card_id"])["status"] == "expired"
    assert look(world, card["gift_card_id"])["balance_cents"] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount_cents", 699),
        ("amount_cents", 10_000_001),
        ("amount_cents", 700.0),
        ("amount_cents", "700"),
        ("amount_cents", True),
        ("amount_cents", None),
        ("payment_method", "ETH"),
        ("payment_method", None),
        ("refund_address", "nonsense"),
        ("require_approval", "yes"),
        ("email", "nobody"),
        ("email", "a@b\nBcc: c@d"),
    ],
)
def test_a_bad_field_of_create_is_named(world, field, value):
    body = {"amount_cents": 700, "payment_method": "BTC"} | {field: value}
    reply = world.request("POST", "/api/gift-cards/create", json=body)
    assert reply.status_code == 400
    assert reply.json()["field"] == field
    assert world.report()["invoices"] == []


def test_approval_needs_an_address(world):
    body = {"amount_cents": 700, "payment_method": "BTC", "require_approval": True}
    reply = world.request("POST", "/api/gift-cards/create", json=body)
    assert (reply.status_code, reply.json()["field"]) == (400, "email")


def test_the_other_names_of_amount_and_coin_are_read(world):
    body = {"amount": 900, "currency": "XMR"}
    card = world.request("POST", "/api/gift-cards/create", json=body).json()
    assert (card["amount_cents"], card["payment_method"]) == (900, "XMR")


@pytest.mark.parametrize(
    ("field", "value"),
    [("code", None), ("code", 7), ("code", ""), ("tier_level", 33), ("months", 2), ("months", "3")],
)
def test_a_bad_field_of_redeem_is_named(world, field, value):
    card = paid(world)
    body = {"code": card["code"], "tier_level": 1, "months": 3} | {field: value}
    reply = world.request("POST", "/api/gift-cards/redeem", json=body)
    assert (reply.status_code, reply.json()["field"]) == (400, field)
    assert card["code"] not in reply.text


def test_what_is_unknown_is_404(world):
    reply = redeem(world, {"code": "acid-acorn-actor-adapt"})
    assert (reply.status_code, reply.json()["error"]) == (404, "not_found")
    assert "acid" not in reply.text
    for method, path in (
        ("GET", "/api/gift-cards/gift_none/status"),
        ("POST", "/api/gift-cards/gift_none/regenerate"),
        ("GET", "/gift-cards/approve/none"),
        ("POST", "/gift-cards/approve/none"),
        ("POST", "/gift-cards/deny/none"),
        ("POST", "/gift-cards/perhaps/none"),
    ):
        assert world.request(method, path).status_code == 404


def test_guessing_is_slowed_and_ends_with_the_minute(world):
    card = paid(world)
    for _ in range(gift_cards.WRONG_CODES_PER_MINUTE):
        assert redeem(world, {"code": "acid-acorn-actor-adapt"}).status_code == 404
    for each in ({"code": "acid-acorn-actor-adapt"}, card):
        refused = redeem(world, each)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    world.now_ms += 60_000
    assert redeem(world, card).status_code == 200


def test_capitals_and_blanks_around_a_code_do_not_matter(world):
    card = paid(world)
    assert redeem(world, {"code": f"  {card['code'].upper()}\n"}).status_code == 200


def test_the_code_is_told_once_also_when_the_order_is_repeated(world):
    body = {"amount_cents": 700, "payment_method": "LTC"}
    first, second = (
        world.request("POST", "/api/gift-cards/create", json=body, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    )
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["code"]
    assert second.json()["code"] is None
    assert second.json()["gift_card_id"] == first.json()["gift_card_id"]
    other = {"tier_level": 1, "months": 1, "payment_method": "LTC"}
    reply = world.request("POST", "/api/invoices", json=other, headers={"Idempotency-Key": "k"})
    assert reply.status_code == 409


def test_a_repeated_redemption_pays_once(world):
    card = paid(world)
    world.fault("drop_reply_after_commit", route="POST /api/gift-cards/redeem")
    with pytest.raises(Exception, match="dropped"):
        redeem(world, card, **{"Idempotency-Key": "one"})
    again = redeem(world, card, **{"Idempotency-Key": "one"}).json()
    assert again["balance_cents"] == 3047
    assert again["secret_key"] is None
    path = f"/api/gift-cards/{again['id']}/regenerate"
    fresh = world.request("POST", path).json()
    assert fresh["public_key"] == again["public_key"]
    with world.database.reading() as sql:
        assert keys.secret(sql, fresh["public_key"]) == fresh["secret_key"]
    conflict = redeem(world, card, tier=2, **{"Idempotency-Key": "one"})
    assert (conflict.status_code, conflict.json()["error"]) == (409, "idempotency_conflict")
    assert redeem(world, card, **{"Idempotency-Key": "two"}).json()["balance_cents"] == 1094


def test_the_buyer_approves(world):
    card = paid(world, require_approval=True, email="buyer@example.org")
    asked = redeem(world, card)
    assert asked.status_code == 202
    wish = asked.json()
    assert (wish["status"], wish["balance_cents"]) == ("pending_approval", 3047)
    assert "api_key" not in look(world, wish["id"])
    refused = world.request("POST", f"/api/gift-cards/{wish['id']}/regenerate")
    assert refused.status_code == 409
    recipient, (approve, deny) = links(world)
    assert recipient == "buyer@example.org"

    page = world.request("GET", approve)
    assert (page.status_code, "<form" in page.text) == (200, True)
    assert look(world, wish["id"])["status"] == "pending_approval"
    world.now_ms += 86_400_000
    assert world.request("POST", approve).status_code == 200
    assert world.request("POST", approve).status_code == 200
    assert world.request("POST", deny).status_code == 409
    assert "<form" not in world.request("GET", deny).text
    first, second = look(world, wish["id"]), look(world, wish["id"])
    assert (first["status"], first["balance_cents"]) == ("redeemed", 3047)
    assert first["api_key"]["secret_key"].startswith("unsb-sk-")
    assert second["api_key"] == {"public_key": first["public_key"], "secret_key": None}
    with world.database.reading() as sql:
        row = keys.find(sql, first["public_key"])
    assert row.expires_ms == keys.months_later(world.now_ms, 3)
    assert wrongs(world) == []


def test_the_buyer_denies_and_the_price_goes_back(world):
    card = paid(world, amount_cents=1953, require_approval=True, email="buyer@example.org")
    wish = redeem(world, card).json()
    assert redeem(world, card).status_code == 402
    _, (approve, deny) = links(world)
    assert world.request("POST", deny).status_code == 200
    assert look(world, wish["id"])["status"] == "denied"
    assert look(world, wish["id"])["balance_cents"] == 1953
    assert world.request("POST", deny).status_code == 200
    assert world.request("POST", approve).status_code == 409
    refused = world.request("POST", f"/api/gift-cards/{wish['id']}/regenerate")
    assert (refused.status_code, refused.json()["error"]) == (403, "denied")
    assert look(world, card["gift_card_id"])["balance_cents"] == 1953
    assert wrongs(world) == []


def test_letters_are_read_on_a_test_platform_only(worlds):
    assert worlds(allow_faults=False).request("GET", "/_test/letters").status_code == 404


def together(count, act):
    """Every act begun at the same moment, each in a thread of its own."""
    start, found = threading.Barrier(count), []

    def one() -> None:
        start.wait()
        found.append(act())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


def test_64_racing_redemptions_never_spend_more_than_the_balance(file_world):
    world = file_world
    for turn in range(20):
        affordable = 1 + turn % 5
        card = paid(world, amount_cents=700 * affordable + turn)

        def spend(code: str = card["code"]) -> str:
            context = world.context
            try:
                with context.database.transaction() as sql:
                    found = gift_cards.find_by_code(sql, context.codec, code)
                    redemption = gift_cards.redeem(
                        sql, context.codec, context.config, found, (1, 1), world.now_ms
                    )
            except Problem as problem:
                return problem.error
            return redemption.state

        found = together(64, spend)
        assert found.count("redeemed") == affordable
        assert found.count("insufficient_balance") == 64 - affordable
        assert look(world, card["gift_card_id"])["balance_cents"] == turn
    assert wrongs(world) == []


def test_64_racing_requests_for_one_balance(file_world):
    world = file_world
    card = paid(world, amount_cents=1953)
    body = {"code": card["code"], "tier_level": 1, "months": 3}

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=world.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://portal") as http:
            return await http.post("/api/gift-cards/redeem", json=body)

    found = together(64, lambda: asyncio.run(call()))
    assert sorted(reply.status_code for reply in found) == [200] + [402] * 63
    assert look(world, card["gift_card_id"])["balance_cents"] == 0


def test_64_racing_decisions_agree(file_world):
    world = file_world
    card = paid(world, require_approval=True, email="buyer@example.org")
    wish = redeem(world, card).json()
    _, both = links(world)
    decisions = iter([link.startswith("/gift-cards/approve/") for link in both] * 32)
    token = both[0].rsplit("/", 1)[1]

    def say() -> str:
        try:
            with world.database.transaction() as sql:
                return gift_cards.decide(sql, token, next(decisions), world.now_ms).state
        except Problem as problem:
            return problem.error

    found = together(64, say)
    state = look(world, wish["id"])["status"]
    assert set(found) == {state, "already_decided"}
    assert look(world, wish["id"])["balance_cents"] == (3047 if state == "redeemed" else 5000)
    assert wrongs(world) == []


def test_cards_survive_a_restart(file_world):
    world = file_world
    card = paid(world, require_approval=True, email="buyer@example.org")
    wish = redeem(world, card).json()
    before = look(world, card["gift_card_id"])
    world.restart()
    assert look(world, card["gift_card_id"]) == before
    _, (approve, _) = links(world)
    assert world.request("POST", approve).status_code == 200
    world.restart()
    assert look(world, wish["id"])["secret_key"].startswith("unsb-sk-")
    world.restart()
    assert look(world, wish["id"])["secret_key"] is None
    assert redeem(world, card).json()["balance_cents"] == 1094
    assert wrongs(world) == []


def test_no_code_link_or_secret_lies_in_the_file_or_the_log(file_world):
    world = file_world
    with capture_logs() as lines:
        card = paid(world, require_approval=True, email="buyer@example.org")
        wish = redeem(world, card).json()
        redeem(world, {"code": "acid-acorn-actor-adapt"})
        _, (approve, _) = links(world)
        world.request("POST", approve)
        secret = look(world, wish["id"])["secret_key"]
    logged = str(lines)
    assert "wrong_gift_code" in logged
    for text in (card["code"], approve.rsplit("/", 1)[1], secret, "acid-acorn"):
        assert text not in logged
        for file in world.data_dir.iterdir():
            assert text.encode() not in file.read_bytes()


async def test_the_access_log_names_routes_and_never_ids_or_links(api):
    with capture_logs() as lines:
        for path in (
            "/gift-cards/approve/tell-nobody",
            "/gift-cards/deny/tell-nobody",
            "/api/gift-cards/tell-nobody/status",
        ):
            assert (await api.http.get(path)).status_code == 404
    assert {line["route"] for line in lines} == {
        "/gift-cards/approve/{token}",
        "/gift-cards/deny/{token}",
        "/api/gift-cards/{gift_id}/status",
    }
    assert "tell-nobody" not in str(lines)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE gift_card SET balance_cents = -1",
        "UPDATE gift_card SET balance_cents = amount_cents + 1",
        "UPDATE gift_card SET balance_cents = 1.5",
        "UPDATE gift_redemption SET public_key = NULL",
        "UPDATE gift_redemption SET state = 'denied'",
        "UPDATE invoice SET months = 1",
    ],
)
def test_the_schema_refuses_nonsense(world, statement):
    card = paid(world)
    redeem(world, card)
    with pytest.raises(StoreError), world.database.transaction() as sql:
        sql.run(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE gift_card SET balance_cents = balance_cents + 1",
        "UPDATE gift_redemption SET price_cents = 1",
        "UPDATE invoice SET state = 'expired' WHERE tier IS NULL",
    ],
)
def test_the_doctor_sees_cents_that_do_not_add_up(world, statement):
    card = paid(world)
    redeem(world, card)
    assert wrongs(world) == []
    with world.database.transaction() as sql:
        sql.run(statement)
    (found,) = wrongs(world)
    assert "5000 cents" in found
    assert card["gift_card_id"] not in found
