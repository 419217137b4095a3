"""The platform's certificate: checked before anything is served with it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UsageError


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files that were good when the server started."""

    certificate: Path
    key: Path


def load(certificate: Path, key: Path) -> Tls:
    """Try both files as a server would.

    Raises:
        UsageError: names the file, what is wrong with it and what is expected.
    """
    for option, file in (("--tls-certificate", certificate), ("--tls-key", key)):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{option} {file}: cannot be read ({error.strerror}). Give a PEM file."
            ) from error
        if b"-----BEGIN " not in text:
            raise UsageError(f"{option} {file}: not a PEM file; it has no '-----BEGIN' line.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password function OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise UsageError(
            f"--tls-certificate {certificate} and --tls-key {key}: not a certificate and its "
            f"key without a password ({reason})."
        ) from error
    return Tls(certificate.resolve(), key.resolve())


def load_pair(certificate: Path | None, key: Path | None) -> Tls | None:
    """Both files, or neither of them.

    Raises:
        UsageError: one without the other, or files that cannot be used.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--tls-certificate and --tls-key: expected both or neither")
    return load(certificate, key)
