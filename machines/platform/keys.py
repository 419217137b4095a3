"""Key pairs: issued when an invoice completes, the secret shown once.

The secret must be readable for ever by us (an HMAC is checked with the plain secret) and by its
owner exactly once.  So the row holds it as AES-256-GCM ciphertext, and `reveal_once` reads and
stamps `secret_viewed_ms` in one statement: of any number of racing readers one gets the secret.
A lost secret is replaced by `regenerate`; the old one is dead from that commit on.

All functions work inside the caller's transaction.  The codec that opens the secrets belongs to
the database file and is bound to it once, when the platform starts.
"""

from __future__ import annotations

import calendar
import secrets
import string
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from engine.errors import SecretsError, UsageError
from engine.secrets import SecretsCodec
from persistence.database import Database, Session

_ALPHABET = string.ascii_lowercase + string.digits
_CODECS: WeakKeyDictionary[Any, SecretsCodec] = WeakKeyDictionary()


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key.  `status` is the stored one; see `standing` for expiry."""

    public_key: str
    tier: int
    status: str
    created_ms: int
    expires_ms: int
    secret_viewed_ms: int | None
    generation: int

    def standing(self, now_ms: int) -> str:
        """`active`, `suspended` or `expired` at that moment."""
        if self.status == "active" and now_ms >= self.expires_ms:
            return "expired"
        return self.status


def bind(database: Database, codec: SecretsCodec) -> None:
    """Say which codec opens the secrets of this database."""
    _CODECS[database.sa] = codec


def issue(sql: Session, tier: int, months: int, now_ms: int) -> str:
    """Make a key pair and return the public key.  The secret waits for `reveal_once`."""
    public_key = "unsb-pk-" + _groups(4)
    sql.run(
        """
        INSERT INTO api_key (public_key, secret_sealed, tier, status, created_ms, expires_ms)
        VALUES (:public_key, :sealed, :tier, 'active', :now_ms, :expires_ms)
        """,
        public_key=public_key,
        sealed=_codec(sql).seal(_new_secret()),
        tier=tier,
        now_ms=now_ms,
        expires_ms=months_later(now_ms, months),
    )
    return public_key


def reveal_once(sql: Session, public_key: str, now_ms: int) -> str | None:
    """The secret, to the first caller only; None to every later one."""
    row = sql.one(
        """
        UPDATE api_key SET secret_viewed_ms = :now_ms
        WHERE public_key = :public_key AND secret_viewed_ms IS NULL
        RETURNING secret_sealed
        """,
        public_key=public_key,
        now_ms=now_ms,
    )
    return _codec(sql).open(row["secret_sealed"]) if row else None


def extend(sql: Session, public_key: str, months: int, now_ms: int) -> int:
    """Add calendar months to a key, before or after its expiry; when it expires now (ms).

    An expired key lasts that long from now on: the time without it is not paid for.

    Raises:
        UsageError: no such key.
    """
    row = find(sql, public_key)
    if row is None:
        raise UsageError(f"key {public_key}: unknown here; nothing was extended")
    expires_ms = months_later(max(now_ms, row.expires_ms), months)
    sql.run(
        "UPDATE api_key SET expires_ms = :expires_ms WHERE public_key = :public_key",
        expires_ms=expires_ms,
        public_key=public_key,
    )
    return expires_ms


def regenerate(sql: Session, public_key: str, now_ms: int) -> str:
    """A new secret, counted as viewed; the old one no longer signs.

    Raises:
        UsageError: no such key.
    """
    fresh = _new_secret()
    changed = sql.run(
        """
        UPDATE api_key SET secret_sealed = :sealed, secret_viewed_ms = :now_ms,
            generation = generation + 1
        WHERE public_key = :public_key
        """,
        public_key=public_key,
        sealed=_codec(sql).seal(fresh),
        now_ms=now_ms,
    )
    if not changed:
        raise UsageError(f"key {public_key}: unknown here; nothing was regenerated")
    return fresh


def find(sql: Session, public_key: str) -> KeyRow | None:
    """The key's row, or None when there is no such key."""
    row = sql.one(
        """
        SELECT public_key, tier, status, created_ms, expires_ms, secret_viewed_ms, generation
        FROM api_key WHERE public_key = :public_key
        """,
        public_key=public_key,
    )
    return KeyRow(**row) if row else None


def secret(sql: Session, public_key: str) -> str:
    """The current secret, for checking a signature.  Show it to nobody.

    Raises:
        UsageError: no such key.
        SecretsError: the master key is not the one it was sealed with.
    """
    sealed = sql.scalar(
        "SELECT secret_sealed FROM api_key WHERE public_key = :public_key", public_key=public_key
    )
    if sealed is None:
        raise UsageError(f"key {public_key}: unknown here")
    return _codec(sql).open(sealed)


def months_later(now_ms: int, months: int) -> int:
    """The same time of day that many calendar months on; the 31st becomes a month's last day."""
    start = datetime.fromtimestamp(now_ms // 1000, UTC)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    later = start.replace(year=year, month=month + 1, day=day)
    return int(later.timestamp()) * 1000 + now_ms % 1000


def _new_secret() -> str:
    return "unsb-sk-" + _groups(5)


def _groups(size: int) -> str:
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(size)) for _ in range(4))


def _codec(sql: Session) -> SecretsCodec:
    codec = _CODECS.get(sql.database.sa)
    if codec is None:
        raise SecretsError(
            "platform keys: no codec is bound to this database. Call keys.bind(database, codec) "
            "(open_money does) before using keys."
        )
    return codec
