"""Whether the rows of the platform and the runs of their life cycles say the same.

Row and run move in one transaction, so they can only differ where the database was edited or the
code is wrong.  Besides, the runs must satisfy whatever the engine asks of its own: the storage
rules, and histories that its oracles find sound.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.secrets import SecretsCodec
from persistence.database import Database, Session
from persistence.store import SqlStore

_DIFFERENT = """
    SELECT '{table}' AS row, t.{key} AS id, t.{state} AS row_state, r.state AS run_state
    FROM {table} t LEFT JOIN turtles_run r ON r.machine = '{machine}' AND r.key = t.{key}
    WHERE (r.state IS NOT NULL AND r.state <> t.{state})
       OR (r.state IS NULL AND t.{state} IN ({live}))
"""
_ROWS = (
    ("session", "session_id", "SessionLife", "'starting', 'running', 'frozen'"),
    ("service", "service_id", "ServiceLife", "'starting', 'running', 'frozen', 'redeploying'"),
    ("execution", "job_id", "JobLife", "''"),
    # An invoice of an earlier version gets its run when it is judged for the first time.
    ("invoice", "invoice_id", "InvoiceLife", "''"),
)
_BALANCES = """
    SELECT c.card_id AS id, c.balance_cents, json_extract(r.context, '$.balance_cents') AS run_cents
    FROM gift_card c JOIN turtles_run r ON r.machine = 'GiftCardLife' AND r.key = c.card_id
    WHERE c.balance_cents <> json_extract(r.context, '$.balance_cents')
"""


def differences(sql: Session) -> list[str]:
    """Rows whose run says something else."""
    if sql.scalar("SELECT 1 FROM sqlite_master WHERE name = 'turtles_run'") is None:
        return []  # no newer server has opened this directory yet
    return [*_states(sql), *_balances(sql)]


def _states(sql: Session) -> Iterator[str]:
    for table, key, machine, live in _ROWS:
        query = _DIFFERENT.format(table=table, key=key, state="state", machine=machine, live=live)
        for row in sql.all(query):
            yield (
                f"{table} {_short(row['id'])}: the row says {row['row_state']}, its life cycle "
                f"{row['run_state'] or '(none)'}. The database was edited, or is damaged."
            )


def _balances(sql: Session) -> Iterator[str]:
    for row in sql.all(_BALANCES):
        yield (
            f"gift card {_short(row['id'])}: the row says {row['balance_cents']} cents are left, "
            f"its life cycle {row['run_cents']}. The database was edited, or is damaged."
        )


def unsound(database: Database, codec: SecretsCodec) -> list[str]:
    """What the engine finds wrong with the runs themselves."""
    from engine.app import App
    from engine.verification.history import check_history
    from machines.platform.lives import LIVES

    with database.reading() as sql:
        if sql.scalar("SELECT 1 FROM sqlite_master WHERE name = 'turtles_run'") is None:
            return []
    store = SqlStore(database)
    found = [f"{one.rule}: run {one.run_id}: {one.problem}" for one in store.inspector.findings()]
    report = check_history(App(LIVES, store, work=False, secrets=codec))
    return [*found, *(f"{one.rule}: run {one.run_id}: {one.problem}" for one in report.findings)]


def _short(identity: str) -> str:
    # The whole id of an invoice, or of a card, is a capability.
    return identity if identity.startswith("unsb-") else identity[:12] + "..."
