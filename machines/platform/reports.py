"""What can be said of a platform's data directory, whether or not its server runs.

`ledger` lists invoices with what was paid for them.  `platform_doctor` checks, each by one query
or one look at the machine:

===================  ============================================================================
check                holds when
===================  ============================================================================
money                for every coin, what was ever made = unspent outputs + fees; every
                     transaction's inputs = outputs + fee; no output is spent twice in the chain
gift cards           what was on a card = what is left + what its redemptions cost; every
                     redemption was of a card that had been paid
invoices             no invoice was paid by a payment it did not need (top-ups are needed)
sessions             every live session or service, frozen ones too, has a living sandbox
sandboxes            every sandbox directory and process has a live session, service or execution
permissions          nobody else can enter the data directory or read its files, snapshots, images
keys                 every completed invoice has its key or has extended one, no other has, and
                     every key's one secret opens
life cycles          every row and its run say the same, and the engine finds every run sound
===================  ============================================================================

A server may be creating or ending a sandbox at the moment of looking, so those two checks look
again before they speak.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import SecretsError, UsageError
from engine.secrets import SecretsCodec, load_codec
from machines.platform.lives.checking import differences, unsound
from machines.platform.permissions import loose_paths
from machines.platform.sandbox.cgroups import group_name, group_prefix
from machines.platform.sandbox.processes import identify
from machines.platform.sandbox.records import read_record
from machines.platform.server import find_server
from persistence.database import Database, Session
from persistence.sqlite import SqliteDatabase

_SECOND_LOOKS = 40
_LOOK_SECONDS = 0.05


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong.  `check` is one of the names above; `message` says what and what to do."""

    check: str
    message: str


def ledger(data_dir: Path) -> Mapping[str, Any]:
    """Invoices, payments and balances, for `turtles platform ledger`.

    Raises:
        UsageError: no platform has run in that directory.
        StoreError: its database cannot be read.
    """
    from machines.platform.ledger.report import ledger_report

    database = _open(data_dir)
    try:
        return ledger_report(database)
    finally:
        database.close()


def platform_doctor(data_dir: Path) -> list[Finding]:
    """Everything that is wrong with a platform's data; an empty list is a clean bill.

    Raises:
        UsageError: no platform has run in that directory.
        StoreError: its database cannot be read.
    """
    database = _open(data_dir)
    try:
        with database.reading() as sql:
            problems = {
                "money": _money(sql),
                "gift cards": _gift_cards(sql),
                "invoices": _invoices(sql),
                "keys": _keys(sql, data_dir),
                "life cycles": differences(sql),
            }
        problems["life cycles"] += _unsound(database, data_dir)
        problems["sessions"] = _settled(lambda: _sessions(database, data_dir), data_dir)
        problems["sandboxes"] = _settled(lambda: _sandboxes(database, data_dir), data_dir)
    finally:
        database.close()
    problems["permissions"] = _permissions(data_dir)
    return [
        Finding(check=check, message=message)
        for check, messages in problems.items()
        for message in messages
    ]


def _open(data_dir: Path) -> Database:
    file = data_dir / "platform.db"
    if not file.is_file():
        raise UsageError(
            f"data directory {data_dir}: no platform.db in it. "
            "Give the --data-dir of a platform that has run."
        )
    return SqliteDatabase(file)


def _money(sql: Session) -> list[str]:
    problems = []
    for row in sql.all(_TOTALS):
        if row["made"] != row["unspent"] + row["fees"]:
            problems.append(
                f"{row['currency']}: {row['made']} atomic units were made, but {row['unspent']} "
                f"are unspent and {row['fees']} went to fees. The ledger is damaged."
            )
    for row in sql.all(_UNBALANCED):
        problems.append(
            f"{row['currency']} transaction {row['txid']}: inputs {row['paid_in']}, outputs "
            f"{row['paid_out']}, fee {row['fee_atomic']} do not balance. The ledger is damaged."
        )
    for row in sql.all(_SPENT_TWICE):
        problems.append(
            f"{row['currency']} output {row['spent_txid']}:{row['spent_vout']}: spent by "
            f"{row['spenders']} mined transactions. The ledger is damaged."
        )
    return problems


def _gift_cards(sql: Session) -> list[str]:
    # A directory that no newer server has opened yet has no such table.
    if sql.scalar("SELECT 1 FROM sqlite_master WHERE name = 'gift_card'") is None:
        return []
    return [
        f"gift card {_short(row['card_id'])}: {row['amount_cents']} cents were on it, "
        f"{row['balance_cents']} are left and {row['spent_cents']} were spent, and its invoice is "
        f"{row['state']}. The database was edited, or is damaged."
        for row in sql.all(_GIFTS_WRONG)
    ]


def _invoices(sql: Session) -> list[str]:
    paid: dict[str, list[int]] = {}
    due: dict[str, int] = {}
    for row in sql.all(_CONFIRMED_SPENDS):
        paid.setdefault(row["invoice_id"], []).append(row["paid_atomic"])
        due[row["invoice_id"]] = row["due_atomic"]
    return [
        f"invoice {_short(invoice_id)}: {len(amounts)} confirmed payments of {amounts} atomic "
        f"units where {due[invoice_id]} were due: one of them was not needed."
        for invoice_id, amounts in paid.items()
        if sum(amounts) - min(amounts) >= due[invoice_id]
    ]


def _short(invoice_id: str) -> str:
    # The whole id is a capability: it opens the payment status.
    return invoice_id[:12] + "..."


def _keys(sql: Session, data_dir: Path) -> list[str]:
    problems = [
        f"invoice {_short(row['invoice_id'])}: completed, but its key {row['public_key']} is gone."
        for row in sql.all(
            "SELECT invoice_id, public_key FROM invoice WHERE state = 'completed' AND "
            "public_key NOT IN (SELECT public_key FROM api_key)"
        )
    ]
    problems += _extensions(sql)
    rows = sql.all("SELECT public_key, secret_sealed FROM api_key ORDER BY public_key")
    if not rows:
        return problems
    try:
        codec = _codec(data_dir)
    except SecretsError as error:
        return [*problems, str(error)]
    for row in rows:
        try:
            codec.open(row["secret_sealed"])
        except SecretsError as error:
            problems.append(f"key {row['public_key']}: {error}")
    return problems


def _extensions(sql: Session) -> list[str]:
    # A directory that no newer server has opened yet has no such table.
    if sql.scalar("SELECT 1 FROM sqlite_master WHERE name = 'invoice_extension'") is None:
        return []
    return [
        f"invoice {_short(row['invoice_id'])}: {row['state']}, but the extension of key "
        f"{row['public_key']} {'was' if row['applied_ms'] is not None else 'was not'} made. "
        "The database was edited, or is damaged."
        for row in sql.all(
            "SELECT e.invoice_id, e.public_key, e.applied_ms, v.state FROM invoice_extension e "
            "JOIN invoice v ON v.invoice_id = e.invoice_id "
            "WHERE (v.state = 'completed') <> (e.applied_ms IS NOT NULL) ORDER BY v.number"
        )
    ]


def _unsound(database: Database, data_dir: Path) -> list[str]:
    try:
        return unsound(database, _codec(data_dir))
    except SecretsError:
        return []  # the check of the keys says so


def _codec(data_dir: Path) -> SecretsCodec:
    key_file = data_dir / "master.key"
    # `load_codec` would make an absent file, and then no secret would ever open.
    if not os.environ.get("TURTLES_MASTER_KEY") and not key_file.exists():
        raise SecretsError(
            f"master key file {key_file}: missing, so no stored secret can be opened. "
            "Restore it, or give the key in TURTLES_MASTER_KEY."
        )
    return load_codec(key_file, os.environ)


def _settled(look: Callable[[], set[str]], data_dir: Path) -> list[str]:
    """The problems that stay: what a running server is just doing is none."""
    problems = look()
    for _ in range(_SECOND_LOOKS):
        if not problems or find_server(data_dir) is None:
            break
        time.sleep(_LOOK_SECONDS)
        problems &= look()
    return sorted(problems)


def _sessions(database: Database, data_dir: Path) -> set[str]:
    remedies = {
        "session": "Start the platform once: it marks the session as terminated.",
        "service": "Start the platform once: it marks the service as stopped.",
    }
    with database.reading() as sql:
        rows = sql.all(_live(sql))
    return {
        f"{row['kind']} {row['sandbox_id']}: live, but it has no living sandbox. "
        f"{remedies[row['kind']]}"
        for row in rows
        if not _alive(data_dir / "sandboxes" / row["sandbox_id"])
    }


def _live(sql: Session) -> str:
    """The query for what has a sandbox while it lives, named like it."""
    # A directory that no newer server has opened yet has no such table.
    if sql.scalar("SELECT 1 FROM sqlite_master WHERE name = 'service'") is None:
        return _LIVE_SESSIONS
    return f"{_LIVE_SESSIONS} UNION {_LIVE_SERVICES}"


def _alive(directory: Path) -> bool:
    record = read_record(directory)
    if record is None or not record.is_of_this_boot():
        return False
    return any(identity.is_alive() for identity in record.processes)


def _sandboxes(database: Database, data_dir: Path) -> set[str]:
    root = data_dir / "sandboxes"
    directories, processes = _directories(root), _group_processes(root)
    with database.reading() as sql:
        wanted = {
            row["sandbox_id"]
            for row in sql.all(
                f"{_live(sql)} UNION SELECT 'execution', 'exec-' || job_id FROM execution "  # noqa: S608
                "WHERE state = 'running' AND session_id IS NULL"
            )
        }
    found = {f"sandbox {each}: has a directory" for each in directories - wanted}
    # A group's name does not tell the sandbox, but a sandbox tells its group's name.
    named = {group_name(root, each): each for each in wanted | directories}
    found |= {
        f"sandbox {named.get(group, 'of group ' + group)}: has process {pid}"
        for group, pid in processes.items()
        if named.get(group) not in wanted
    }
    remedy = "Start the platform once: it removes what is left."
    return {f"{each}, but it belongs to nothing that is live. {remedy}" for each in found}


def _directories(root: Path) -> set[str]:
    """Every sandbox that has a directory below a backend's root."""
    return {each.name for each in root.iterdir() if each.is_dir()} if root.is_dir() else set()


def _group_processes(root: Path) -> dict[str, int]:
    """A running process for each group of the sandboxes below a backend's root."""
    found = {}
    prefix = group_prefix(root)
    for file in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            groups = file.read_text()
        except OSError:
            continue  # it ended meanwhile
        for group in groups.split():
            _, mark, rest = group.partition(f"/{prefix}")
            if mark and _is_running(int(file.parent.name)):
                found[prefix + rest.partition("/")[0]] = int(file.parent.name)
    return found


def _is_running(pid: int) -> bool:
    identity = identify(pid)
    return identity is not None and identity.is_alive()


def _permissions(data_dir: Path) -> list[str]:
    return [found.message for found in loose_paths(data_dir)]


_LIVE_SESSIONS = """
    SELECT 'session' AS kind, session_id AS sandbox_id FROM session
    WHERE state IN ('starting', 'running', 'frozen')
"""
_LIVE_SERVICES = """
    SELECT 'service' AS kind, service_id AS sandbox_id FROM service
    WHERE state IN ('starting', 'running', 'redeploying', 'frozen')
"""
_TOTALS = """
    WITH mined AS (
        SELECT o.currency, o.txid, o.vout, o.amount_atomic, t.coinbase
        FROM ledger_output o JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
        WHERE t.state = 'mined'
    ), spent AS (
        SELECT DISTINCT i.currency, i.spent_txid, i.spent_vout
        FROM ledger_input i JOIN ledger_tx t ON t.currency = i.currency AND t.txid = i.txid
        WHERE t.state = 'mined'
    )
    SELECT m.currency,
        SUM(CASE WHEN m.coinbase = 1 THEN m.amount_atomic ELSE 0 END) AS made,
        SUM(CASE WHEN s.spent_txid IS NULL THEN m.amount_atomic ELSE 0 END) AS unspent,
        (SELECT COALESCE(SUM(fee_atomic), 0) FROM ledger_tx t
         WHERE t.currency = m.currency AND t.state = 'mined') AS fees
    FROM mined m LEFT JOIN spent s
        ON s.currency = m.currency AND s.spent_txid = m.txid AND s.spent_vout = m.vout
    GROUP BY m.currency ORDER BY m.currency
"""
_UNBALANCED = """
    SELECT * FROM (
        SELECT t.currency, t.txid, t.fee_atomic,
            (SELECT COALESCE(SUM(o.amount_atomic), 0) FROM ledger_output o
             WHERE o.currency = t.currency AND o.txid = t.txid) AS paid_out,
            (SELECT COALESCE(SUM(o.amount_atomic), 0) FROM ledger_input i
             JOIN ledger_output o ON o.currency = i.currency AND o.txid = i.spent_txid
                AND o.vout = i.spent_vout
             WHERE i.currency = t.currency AND i.txid = t.txid) AS paid_in
        FROM ledger_tx t WHERE t.coinbase = 0
    ) WHERE paid_in <> paid_out + fee_atomic ORDER BY currency, txid
"""
_SPENT_TWICE = """
    SELECT i.currency, i.spent_txid, i.spent_vout, COUNT(*) AS spenders
    FROM ledger_input i JOIN ledger_tx t ON t.currency = i.currency AND t.txid = i.txid
    WHERE t.state = 'mined'
    GROUP BY i.currency, i.spent_txid, i.spent_vout HAVING COUNT(*) > 1
    ORDER BY i.currency, i.spent_txid, i.spent_vout
"""
_GIFTS_WRONG = """
    SELECT * FROM (
        SELECT c.card_id, c.amount_cents, c.balance_cents, v.state,
            (SELECT COALESCE(SUM(r.price_cents), 0) FROM gift_redemption r
             WHERE r.card_id = c.card_id AND r.state <> 'denied') AS spent_cents
        FROM gift_card c JOIN invoice v ON v.invoice_id = c.invoice_id
    ) WHERE amount_cents <> balance_cents + spent_cents OR spent_cents > 0 AND state <> 'completed'
    ORDER BY card_id
"""
# Payments of strangers are nobody's mistake here.
_CONFIRMED_SPENDS = """
    SELECT v.invoice_id, v.amount_atomic AS due_atomic, SUM(o.amount_atomic) AS paid_atomic
    FROM invoice v
    JOIN ledger_output o ON o.currency = v.currency AND o.address = v.address
    JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid AND t.state = 'mined'
    WHERE NOT EXISTS (
        SELECT 1 FROM ledger_input i
        JOIN ledger_output p ON p.currency = i.currency AND p.txid = i.spent_txid
            AND p.vout = i.spent_vout
        JOIN wallet_address a ON a.currency = p.currency AND a.address = p.address
        WHERE i.currency = t.currency AND i.txid = t.txid AND a.wallet = 'stranger'
    )
    GROUP BY v.invoice_id, v.amount_atomic, t.id ORDER BY v.number, t.id
"""
