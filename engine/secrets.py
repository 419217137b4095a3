"""Secrets at rest: AES-256-GCM, with a key that lives outside the database.

A field typed `Secret[str]` is stored as ciphertext; `SecretsCodec` is the only place that opens it.
The stored form is ``turtles:1:<key id>:<base64 nonce+ciphertext>``; the key id is the first 8 hex
digits of the key's SHA-256, kept so that keys can rotate and a lost key is named.
The master key is 32 bytes from `TURTLES_MASTER_KEY` (base64) or a 0600 file made on first use.

The nonce is derived from the key and the text (a synthetic IV), so equal secrets have equal
ciphertexts: an event sent twice is recognised as the same, at the price of showing, to somebody
who reads the database, which stored secrets are equal.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from engine.errors import SecretsError
from engine.secret import Secret, is_secret_type

__all__ = ["Secret", "SecretsCodec", "is_secret_type", "load_codec"]

_PREFIX = "turtles:1:"


class SecretsCodec:
    """Encrypts and decrypts secrets with one current key and any number of older ones."""

    def __init__(self, key: bytes, *, older: tuple[bytes, ...] = ()) -> None:
        for candidate in (key, *older):
            if len(candidate) != 32:
                raise SecretsError(
                    f"master key: expected 32 bytes, got {len(candidate)}. "
                    "Make one with: head -c32 /dev/urandom | base64"
                )
        self._current = _key_id(key)
        self._keys = {_key_id(candidate): candidate for candidate in (key, *older)}

    @property
    def key_id(self) -> str:
        """Eight hex digits that name the current key."""
        return self._current

    def seal(self, text: str) -> str:
        """The ciphertext of `text`, as an ASCII string."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = self._keys[self._current]
        nonce = hmac.digest(key, b"turtles nonce\x00" + text.encode(), "sha256")[:12]
        sealed = AESGCM(key).encrypt(nonce, text.encode(), None)
        return f"{_PREFIX}{self._current}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str) -> str:
        """The text that `seal` was given.

        Raises:
            SecretsError: the key that sealed it is not here, or the data was altered.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not sealed.startswith(_PREFIX):
            raise SecretsError("stored secret: not in the form turtles writes; was it edited?")
        key_id, _, body = sealed.removeprefix(_PREFIX).partition(":")
        if key_id not in self._keys:
            raise SecretsError(
                f"stored secret was sealed with master key {key_id}, but the key here is "
                f"{self._current}. Give the right key in TURTLES_MASTER_KEY or restore its file."
            )
        try:
            raw = base64.b64decode(body, validate=True)
            return AESGCM(self._keys[key_id]).decrypt(raw[:12], raw[12:], None).decode()
        except (binascii.Error, InvalidTag) as error:
            raise SecretsError("stored secret: damaged or altered, it does not decrypt") from error


class NoKey(SecretsCodec):
    """For a store that others share, in a process that was given no key: it refuses.

    A key of its own would seal what nobody else, and no later process, could open.
    """

    def __init__(self, store: str) -> None:
        super().__init__(bytes(32))
        self._store = store

    def seal(self, text: str) -> str:
        """Refused."""
        raise self._refusal()

    def open(self, sealed: str) -> str:
        """Refused."""
        raise self._refusal()

    def _refusal(self) -> SecretsError:
        return SecretsError(
            f"secret of a run in {self._store}: no master key here. Give every process that shares "
            "the store the same one in TURTLES_MASTER_KEY (head -c32 /dev/urandom | base64)."
        )


def _key_id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]


def load_codec(key_file: Path | None, environment: Mapping[str, str]) -> SecretsCodec:
    """The codec for a store: `TURTLES_MASTER_KEY` if set, else the key file (made when absent).

    With neither, a key that lives as long as this process (in-memory stores).
    """
    given = environment.get("TURTLES_MASTER_KEY")
    if given:
        try:
            return SecretsCodec(base64.b64decode(given, validate=True))
        except binascii.Error as error:
            raise SecretsError("TURTLES_MASTER_KEY: expected base64 of 32 bytes") from error
    if key_file is None:
        return SecretsCodec(os.urandom(32))
    return SecretsCodec(_read_or_make(key_file))


def _read_or_make(key_file: Path) -> bytes:
    try:
        descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(key_file)
    except OSError as error:
        raise SecretsError(f"master key file {key_file}: cannot be made ({error})") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(os.urandom(32)))
        file.flush()
        os.fsync(file.fileno())
    return _read(key_file)


def _read(key_file: Path) -> bytes:
    try:
        mode = key_file.stat().st_mode & 0o777
        if mode & 0o077:
            raise SecretsError(
                f"master key file {key_file}: mode {mode:o} lets others read it. "
                f"Run: chmod 600 {key_file}"
            )
        return base64.b64decode(key_file.read_bytes().strip(), validate=True)
    except (OSError, binascii.Error) as error:
        raise SecretsError(f"master key file {key_file}: unreadable ({error})") from error
