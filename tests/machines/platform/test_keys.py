"""Key pairs: shape, one view, regeneration, expiry; the secret only ever sealed."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime

import pytest

from engine.errors import SecretsError, UsageError
from engine.secrets import SecretsCodec
from machines.platform import keys
from machines.platform.database import open_platform_database

NOW_MS = 1_700_000_000_123


@pytest.fixture
def database(tmp_path):
    made = open_platform_database(tmp_path)
    keys.bind(made, SecretsCodec(b"k" * 32))
    yield made
    made.close()


def test_a_pair_has_the_shape_clients_expect(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 4, 3, NOW_MS)
        secret = keys.reveal_once(sql, public_key, NOW_MS)
    assert re.fullmatch(r"unsb-pk(-[a-z0-9]{4}){4}", public_key)
    assert re.fullmatch(r"unsb-sk(-[a-z0-9]{5}){4}", secret)


def test_the_row_says_what_was_bought(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 4, 3, NOW_MS)
        row = keys.find(sql, public_key)
        assert keys.find(sql, "unsb-pk-none") is None
    assert (row.tier, row.status, row.generation, row.secret_viewed_ms) == (4, "active", 1, None)
    assert row.standing(row.expires_ms - 1) == "active"
    assert row.standing(row.expires_ms) == "expired"


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2026-01-31T10:00:00", 1, "2026-02-28T10:00:00"),
        ("2024-01-31T10:00:00", 1, "2024-02-29T10:00:00"),
        ("2026-11-15T00:00:00", 3, "2027-02-15T00:00:00"),
        ("2026-12-31T23:59:59", 24, "2028-12-31T23:59:59"),
    ],
)
def test_months_are_calendar_months(start, months, end):
    def at_ms(text):
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000 + 7

    assert keys.months_later(at_ms(start), months) == at_ms(end)


def test_64_threads_get_the_secret_once(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 1, 1, NOW_MS)
    start, found = threading.Barrier(64), []

    def race():
        start.wait()
        with database.transaction() as sql:
            found.append(keys.reveal_once(sql, public_key, NOW_MS))

    threads = [threading.Thread(target=race) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 64
    (shown,) = [secret for secret in found if secret is not None]
    with database.reading() as sql:
        assert keys.secret(sql, public_key) == shown
        assert keys.find(sql, public_key).secret_viewed_ms == NOW_MS


def test_a_view_that_is_rolled_back_was_none(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 1, 1, NOW_MS)

    class Crash(Exception):
        """Stands for the process ending before the commit."""

    with pytest.raises(Crash), database.transaction() as sql:
        assert keys.reveal_once(sql, public_key, NOW_MS)
        raise Crash
    with database.transaction() as sql:
        assert keys.reveal_once(sql, public_key, NOW_MS)
        assert keys.reveal_once(sql, public_key, NOW_MS) is None


def test_regenerating_replaces_the_secret(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 1, 1, NOW_MS)
        old = keys.secret(sql, public_key)
        fresh = keys.regenerate(sql, public_key, NOW_MS + 5)
        assert keys.secret(sql, public_key) == fresh != old
        row = keys.find(sql, public_key)
        assert (row.generation, row.secret_viewed_ms) == (2, NOW_MS + 5)
        assert keys.reveal_once(sql, public_key, NOW_MS) is None


def test_unknown_keys_are_errors(database):
    with database.transaction() as sql:
        assert keys.reveal_once(sql, "unsb-pk-none", NOW_MS) is None
        with pytest.raises(UsageError, match="unsb-pk-none"):
            keys.secret(sql, "unsb-pk-none")
        with pytest.raises(UsageError, match="unsb-pk-none"):
            keys.regenerate(sql, "unsb-pk-none", NOW_MS)


def test_only_ciphertext_is_stored(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 1, 1, NOW_MS)
        secret = keys.secret(sql, public_key)
        rows = sql.all("SELECT * FROM api_key")
    assert secret not in repr(rows)
    assert rows[0]["secret_sealed"].startswith("turtles:1:")


def test_another_master_key_is_a_clear_error(database):
    with database.transaction() as sql:
        public_key = keys.issue(sql, 1, 1, NOW_MS)
    keys.bind(database, SecretsCodec(b"x" * 32))
    with pytest.raises(SecretsError, match="TURTLES_MASTER_KEY"), database.reading() as sql:
        keys.secret(sql, public_key)


def test_a_database_without_a_codec_is_a_clear_error(tmp_path):
    unbound = open_platform_database(tmp_path / "other")
    with pytest.raises(SecretsError, match="bind"), unbound.transaction() as sql:
        keys.issue(sql, 1, 1, NOW_MS)
    unbound.close()
