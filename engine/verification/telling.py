"""What the bench puts between the engine and its store: it is told of everything that is written.

Also the codec for secrets that remembers: the few texts of an exploration come again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from engine.ports import Store
from engine.secrets import SecretsCodec

T = TypeVar("T")


class Witness(Protocol):
    """Who is told."""

    def watching(self, method: Callable[..., T]) -> Callable[..., T]:
        """The method, after which what is stored may be something else."""

    def claimed(self) -> None:
        """A worker has claimed a run."""

    def committed(self) -> None:
        """A worker has committed a step."""


class ToldStore:
    """A store that tells a witness of everything that is written."""

    def __init__(self, inner: Store, witness: Witness) -> None:
        self._inner = inner
        self.runs = _ToldRuns(inner.runs, witness)
        self.inbox = _ToldNoun(inner.inbox, witness, ("deliver",))
        self.workers = _ToldNoun(inner.workers, witness, ("beat", "reap", "retire"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _ToldNoun:
    def __init__(self, inner: Any, witness: Witness, writing: Sequence[str]) -> None:
        self._inner = inner
        for name in writing:
            setattr(self, name, witness.watching(getattr(inner, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _ToldRuns(_ToldNoun):
    def __init__(self, inner: Any, witness: Witness) -> None:
        super().__init__(inner, witness, ("start",))
        self._witness = witness

    def claim(self, *given: Any, **named: Any) -> Any:
        found = self._inner.claim(*given, **named)
        self._witness.claimed()
        return found

    def commit(self, writes: Any) -> Any:
        written = self._inner.commit(writes)
        self._witness.committed()
        return written


class RememberingSecrets(SecretsCodec):
    """Seals and opens each text once; the few texts of an exploration come again and again."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self._sealed: dict[str, str] = {}
        self._opened: dict[str, str] = {}

    def seal(self, text: str) -> str:
        if text not in self._sealed:
            self._sealed[text] = super().seal(text)
        return self._sealed[text]

    def open(self, sealed: str) -> str:
        if sealed not in self._opened:
            self._opened[sealed] = super().open(sealed)
        return self._opened[sealed]
