"""The doctor: clean when clean, and every check can fail."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from machines.platform import reports
from machines.platform.ledger import mempool, wallets
from machines.platform.ledger.transaction import Output
from machines.platform.reports import Finding, platform_doctor
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.processes import identify
from machines.platform.sandbox.records import Record, write_record


@pytest.fixture
async def sick(api: Any) -> Any:
    """A platform whose data directory is complete, to be made ill."""
    key_file = api.data_dir / "master.key"
    key_file.touch(0o600)
    key_file.write_bytes(base64.b64encode(b"k" * 32))
    assert platform_doctor(api.data_dir) == []
    return api


async def opened(api: Any) -> dict[str, Any]:
    body = {"tier_level": 1, "months": 1, "payment_method": "LTC"}
    invoice: dict[str, Any] = (await api.http.post("/api/invoices", json=body)).json()
    return invoice


def pay(api: Any, invoice: dict[str, Any], amount_atomic: int, payer: str = "payer") -> str:
    with api.database.transaction() as sql:
        output = Output(invoice["address"], amount_atomic)
        payment = wallets.build(sql, "LTC", payer, [output], api.now_ms)
        mempool.accept(sql, payment, api.now_ms)
    api.context.blocks.mine("LTC", 6)
    return payment.txid


def only(api: Any, check: str) -> Finding:
    findings = platform_doctor(api.data_dir)
    assert [finding.check for finding in findings] == [check], findings
    return findings[0]


async def test_a_bought_key_is_healthy(sick: Any) -> None:
    invoice = await opened(sick)
    pay(sick, invoice, invoice["amount_atomic"])
    assert (await sick.http.get(invoice["status_url"])).json()["status"] == "completed"
    assert platform_doctor(sick.data_dir) == []


async def test_an_invoice_paid_twice_is_found(sick: Any) -> None:
    invoice = await opened(sick)
    for _ in range(2):
        pay(sick, invoice, invoice["amount_atomic"])
    finding = only(sick, "invoices")
    assert "one of them was not needed" in finding.message
    assert invoice["invoice_id"] not in finding.message


async def test_a_top_up_is_no_double_payment(sick: Any) -> None:
    invoice = await opened(sick)
    half = invoice["amount_atomic"] // 2
    pay(sick, invoice, half)
    pay(sick, invoice, invoice["amount_atomic"] - half)
    assert platform_doctor(sick.data_dir) == []


async def test_a_strangers_payment_is_not_ours(sick: Any) -> None:
    invoice = await opened(sick)
    pay(sick, invoice, invoice["amount_atomic"])
    pay(sick, invoice, invoice["amount_atomic"], "stranger")
    assert platform_doctor(sick.data_dir) == []


async def test_money_from_nowhere_is_found(sick: Any) -> None:
    invoice = await opened(sick)
    txid = pay(sick, invoice, invoice["amount_atomic"])
    with sick.database.transaction() as sql:
        sql.run("UPDATE ledger_tx SET fee_atomic = fee_atomic + 1 WHERE txid = :txid", txid=txid)
    messages = [finding.message for finding in platform_doctor(sick.data_dir)]
    assert len(messages) == 2
    assert "were made" in messages[0]
    assert txid in messages[1]


async def test_an_output_spent_twice_is_found(sick: Any) -> None:
    invoice = await opened(sick)
    first = pay(sick, invoice, invoice["amount_atomic"] // 2)
    second = pay(sick, invoice, invoice["amount_atomic"] // 2)
    with sick.database.transaction() as sql:
        spent = sql.one("SELECT * FROM ledger_input WHERE txid = :txid", txid=first)
        sql.run(
            "UPDATE ledger_input SET spent_txid = :txid, spent_vout = :vout WHERE txid = :second",
            txid=spent["spent_txid"],
            vout=spent["spent_vout"],
            second=second,
        )
    checks = [finding.message for finding in platform_doctor(sick.data_dir)]
    assert any("spent by 2 mined transactions" in message for message in checks)


async def test_a_session_without_a_sandbox_is_found(sick: Any) -> None:
    # The fake backend has no sandbox directory, as after the death of a platform.
    await sick.call(sick.key(), "POST", "/sessions")
    assert "no living sandbox" in only(sick, "sessions").message


async def test_a_sandbox_without_a_session_is_found(sick: Any) -> None:
    left = sick.data_dir / "sandboxes" / "unsb-session-left"
    left.parent.mkdir(mode=0o700)
    owner = identify(os.getpid())
    assert owner is not None
    write_record(left, Record(owner))
    assert "unsb-session-left: has a directory" in only(sick, "sandboxes").message


class TestWithRealSandboxes:
    @pytest.fixture
    def backend(self, tmp_path: Path) -> BubblewrapBackend:
        return BubblewrapBackend(tmp_path / "platform" / "sandboxes")

    async def test_live_sessions_are_healthy(self, sick: Any) -> None:
        pair = sick.key(tier=8)
        session_id = (await sick.call(pair, "POST", "/sessions")).json()["id"]
        assert platform_doctor(sick.data_dir) == []
        with sick.database.transaction() as sql:
            sql.run("UPDATE session SET state = 'terminated', ended_ms = 1, reason = 'edited'")
        findings = {finding.check: finding.message for finding in platform_doctor(sick.data_dir)}
        assert findings.keys() == {"life cycles", "sandboxes"}
        assert all(session_id in message for message in findings.values())
        told = [each.message for each in platform_doctor(sick.data_dir)]
        assert any(f"{session_id}: has process" in message for message in told)
        assert "says terminated, its life cycle running" in findings["life cycles"]
        with sick.database.transaction() as sql:
            sql.run("UPDATE session SET state = 'running', ended_ms = NULL, reason = NULL")

    async def test_live_services_and_frozen_sessions_are_healthy(self, sick: Any) -> None:
        pair = sick.key(tier=8)
        order = {"name": "alive", "network_mode": "zerotrust"}
        assert (await sick.call(pair, "POST", "/services", order)).is_success
        session_id = (await sick.call(pair, "POST", "/sessions")).json()["id"]
        frozen = await sick.call(pair, "POST", f"/sessions/{session_id}/freeze", {})
        assert frozen.is_success, frozen.text
        assert platform_doctor(sick.data_dir) == []


async def test_a_service_without_a_sandbox_is_found(sick: Any) -> None:
    order = {"name": "dead", "network_mode": "zerotrust"}
    assert (await sick.call(sick.key(), "POST", "/services", order)).is_success
    assert "marks the service as stopped" in only(sick, "sessions").message


async def test_open_permissions_are_found(sick: Any) -> None:
    (sick.data_dir / "master.key").chmod(0o644)
    checks = {finding.check: finding.message for finding in platform_doctor(sick.data_dir)}
    assert checks.keys() == {"permissions"}
    assert f"chmod 600 {sick.data_dir}/master.key" in checks["permissions"]


async def test_a_secret_that_does_not_open_is_found(sick: Any) -> None:
    public_key, _ = sick.key()
    (sick.data_dir / "master.key").write_bytes(base64.b64encode(b"x" * 32))
    assert public_key in only(sick, "keys").message
    (sick.data_dir / "master.key").unlink()
    assert "missing" in only(sick, "keys").message
    assert not (sick.data_dir / "master.key").exists()


async def test_the_ledger_lists_what_was_paid(sick: Any) -> None:
    invoice = await opened(sick)
    txid = pay(sick, invoice, invoice["amount_atomic"])
    assert txid in str(reports.ledger(sick.data_dir))


@pytest.mark.parametrize("report", [platform_doctor, reports.ledger])
def test_a_directory_without_a_platform_is_refused(tmp_path: Path, report: Any) -> None:
    with pytest.raises(UsageError, match=r"no platform\.db"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_an_extension_that_does_not_fit_its_invoice_is_found(sick: Any) -> None:
    public_key, _ = sick.key(tier=1)
    body = {"extends": public_key, "months": 1, "payment_method": "LTC"}
    invoice = (await sick.http.post("/api/invoices", json=body)).json()
    pay(sick, invoice, invoice["amount_atomic"])
    assert (await sick.http.get(invoice["status_url"])).json()["extended"] is True
    assert platform_doctor(sick.data_dir) == []
    with sick.database.transaction() as sql:
        sql.run("UPDATE invoice_extension SET applied_ms = NULL, key_expires_ms = NULL")
    finding = only(sick, "keys")
    assert public_key in finding.message
    assert invoice["invoice_id"] not in finding.message


async def test_an_open_snapshot_is_found(sick: Any) -> None:
    kept = sick.data_dir / "snapshots"
    kept.mkdir(mode=0o700, exist_ok=True)
    (kept / "one.tar").touch(0o644)
    (kept / "one.tar").chmod(0o644)
    assert "one.tar: mode 644" in only(sick, "permissions").message
