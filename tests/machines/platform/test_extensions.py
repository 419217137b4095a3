"""More time for a key: given once, with the commit that completes the invoice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine.errors import UsageError
from machines.platform import extensions, invoices, keys
from machines.platform.checkout import extension_order

DAY_MS = 86_400_000


def ordered(api: Any, public_key: str, months: int = 1) -> str:
    body = {"extends": public_key, "months": months, "payment_method": "LTC"}
    with api.database.transaction() as sql:
        order = extension_order(sql, body, api.context.config, api.now_ms)
        return invoices.create(sql, api.context.config, order, None, api.now_ms).invoice_id


def expires_ms(api: Any, public_key: str) -> int:
    with api.database.reading() as sql:
        return keys.find(sql, public_key).expires_ms


async def test_many_at_once_give_the_months_once(api: Any) -> None:
    public_key, _ = api.key()
    before_ms, invoice_id = expires_ms(api, public_key), ordered(api, public_key, 3)

    def give() -> None:
        with api.database.transaction() as sql:
            extensions.apply(sql, invoice_id, api.now_ms)

    threads = [threading.Thread(target=give) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expires_ms(api, public_key) == keys.months_later(before_ms, 3)
    with api.database.reading() as sql:
        given = extensions.find(sql, invoice_id)
    assert (given.applied_ms, given.key_expires_ms) == (api.now_ms, expires_ms(api, public_key))


async def test_a_death_before_the_commit_gives_nothing(api: Any) -> None:
    public_key, _ = api.key()
    before_ms, invoice_id = expires_ms(api, public_key), ordered(api, public_key)
    with pytest.raises(KeyboardInterrupt), api.database.transaction() as sql:
        extensions.apply(sql, invoice_id, api.now_ms)
        raise KeyboardInterrupt
    assert expires_ms(api, public_key) == before_ms
    with api.database.transaction() as sql:
        assert extensions.find(sql, invoice_id).applied_ms is None
        extensions.apply(sql, invoice_id, api.now_ms)
    assert expires_ms(api, public_key) == keys.months_later(before_ms, 1)


async def test_two_extensions_add_up_whatever_their_order(api: Any) -> None:
    public_key, _ = api.key()
    before_ms = expires_ms(api, public_key)
    first, second = ordered(api, public_key, 1), ordered(api, public_key, 3)
    with api.database.transaction() as sql:
        extensions.apply(sql, second, api.now_ms)
        extensions.apply(sql, first, api.now_ms)
    assert expires_ms(api, public_key) == keys.months_later(before_ms, 4)


async def test_another_invoice_extends_nothing(api: Any) -> None:
    body = {"tier_level": 1, "months": 1, "payment_method": "LTC"}
    invoice_id = (await api.http.post("/api/invoices", json=body)).json()["id"]
    with api.database.transaction() as sql:
        assert extensions.find(sql, invoice_id) is None
        extensions.apply(sql, invoice_id, api.now_ms)
        with pytest.raises(UsageError, match="unknown here"):
            keys.extend(sql, "unsb-pk-none", 1, api.now_ms)
