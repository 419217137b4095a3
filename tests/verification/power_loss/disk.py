"""What may be on a disk after the power has gone: a model of one directory.

A file is what was in it at its last sync, and the changes since then.  At the moment of the loss::

    every sector (512 bytes) changed since the sync   kept | lost | an older write | torn
    the size, if it changed                           any size it has had since the sync
    a name made or taken away since the last sync     any file it has named since, or none
      of the directory
    bytes that a kept size covers but nobody wrote    zeros | noise | what a deleted file had there

Independently for each of them, by chance with a seed.  A torn sector has the new bytes up to some
place and the old ones after it (or the other way round); bytes that no write named stay as they
are, which is what SQLite calls powersafe overwrite and takes for granted on Unix.

Independent sectors alone would miss the orderly losses, so some of the losses are orderly: all
kept but one sector, the first n writes kept, nothing kept, everything kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

SECTOR_BYTES = 512
Versions = dict[int, list[bytes]]
Filler = Callable[[int], bytes]


@dataclass(frozen=True)
class Create:
    """A name came to be, for a new and empty file."""

    name: str
    file: int


@dataclass(frozen=True)
class Unlink:
    """A name was taken away."""

    name: str


@dataclass(frozen=True)
class SyncDirectory:
    """Names as they are now will stay."""


@dataclass(frozen=True)
class Write:
    """Bytes were written, not synced."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A size was set, not synced."""

    file: int
    size: int


@dataclass(frozen=True)
class Sync:
    """What was changed in this file until now will stay."""

    file: int


Change = Write | Truncate
Operation = Create | Unlink | SyncDirectory | Write | Truncate | Sync


@dataclass
class File:
    """The content that is safe, the content as the program sees it, and what lies between."""

    safe: bytes = b""
    seen: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        """Apply a change that is not safe yet."""
        _apply(self.seen, change)
        self.changes.append(change)

    def sync(self) -> None:
        """Make everything safe."""
        self.safe = bytes(self.seen)
        self.changes.clear()

    def after_loss(self, chance: random.Random, stale: bytes) -> bytes:
        """One of the contents that the disk may have."""
        if not self.changes:
            return self.safe
        (kind,) = chance.choices(list(_KINDS), list(_KINDS.values()))
        if kind == "everything":
            return bytes(self.seen)
        if kind == "nothing":
            return self.safe
        if kind == "in order":
            return self._in_order(chance)
        filler = _filler(chance, stale)
        versions, sizes = self._history(filler)
        if kind == "one lost":
            lost = chance.choice(sorted(versions))
            picked = {n: v[0] if n == lost else v[-1] for n, v in versions.items()}
            return self._assembled(len(self.seen), picked, filler)
        picked = _independently(chance, versions)
        return self._assembled(chance.choice([*sizes, sizes[-1]]), picked, filler)

    def _in_order(self, chance: random.Random) -> bytes:
        """The first few changes, the last of them perhaps in part."""
        content = bytearray(self.safe)
        *whole, last = self.changes[: chance.randint(1, len(self.changes))]
        for change in whole:
            _apply(content, change)
        if isinstance(last, Write):
            last = Write(last.file, last.offset, last.data[: chance.randint(0, len(last.data))])
        _apply(content, last)
        return bytes(content)

    def _history(self, filler: Filler) -> tuple[Versions, list[int]]:
        """Every content each changed sector has had since the sync, and every size."""
        content, sizes = bytearray(self.safe), [len(self.safe)]
        versions: Versions = {}
        for change in self.changes:
            touched = _touched(change, len(content))
            for number in touched:
                if number not in versions:
                    versions[number] = [_sector(content, number, filler)]
            _apply(content, change)
            for number in touched:
                versions[number].append(_sector(content, number, filler))
            sizes.append(len(content))
        return versions, sizes

    def _assembled(self, size: int, picked: Mapping[int, bytes], filler: Filler) -> bytes:
        content = bytearray(self.safe[:size])
        while len(content) < size:
            content += filler(len(content) // SECTOR_BYTES)[len(content) % SECTOR_BYTES :]
        del content[size:]
        for number, sector in picked.items():
            start = number * SECTOR_BYTES
            content[start : start + SECTOR_BYTES] = sector[: max(0, size - start)]
        return bytes(content)


_KINDS = {"independent": 50, "in order": 20, "one lost": 15, "nothing": 10, "everything": 5}
# Chances of (kept, lost, torn, older): from "nearly all is there" to "nearly nothing is".
_MIXES = ((50, 30, 10, 10), (90, 5, 3, 2), (10, 80, 5, 5), (25, 25, 40, 10))


def _independently(chance: random.Random, versions: Versions) -> dict[int, bytes]:
    mix = chance.choice(_MIXES)
    picked = {}
    for number, history in versions.items():
        (fate,) = chance.choices(("kept", "lost", "torn", "older"), mix)
        if fate == "kept":
            picked[number] = history[-1]
        elif fate == "lost":
            picked[number] = history[0]
        elif fate == "older":
            picked[number] = chance.choice(history)
        else:
            pair = [history[-1], chance.choice(history)]
            chance.shuffle(pair)
            cut = chance.randrange(1, SECTOR_BYTES)
            picked[number] = pair[0][:cut] + pair[1][cut:]
    return picked


def _filler(chance: random.Random, stale: bytes) -> Filler:
    """What lies in sectors that were given to the file but never written."""
    kind, noise = chance.choice(("zeros", "noise", "stale")), chance.randbytes(SECTOR_BYTES)

    def fill(number: int) -> bytes:
        if kind == "zeros":
            return bytes(SECTOR_BYTES)
        start = number * SECTOR_BYTES
        old = stale[start : start + SECTOR_BYTES] if kind == "stale" else b""
        return old + noise[len(old) :]

    return fill


def _touched(change: Change, size: int) -> range:
    """The numbers of the sectors that a change to a file of this size changes."""
    if isinstance(change, Write):
        start, end = min(change.offset, size), change.offset + len(change.data)
    else:
        start, end = sorted((change.size, size))
    return range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES))


def _sector(content: bytearray, number: int, filler: Filler) -> bytes:
    start = number * SECTOR_BYTES
    there = bytes(content[start : start + SECTOR_BYTES])
    return there + filler(number)[len(there) :]


def _apply(content: bytearray, change: Change) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        content += bytes(change.size - len(content))
        return
    content += bytes(max(0, change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


class Disk:
    """One directory: apply operations, and ask at any time what a power loss would leave."""

    def __init__(self, image: Mapping[str, bytes] | None = None) -> None:
        self._files: dict[int, File] = {}
        self._names: dict[str, list[int | None]] = {}
        self._stale = b""
        for number, (name, content) in enumerate(sorted((image or {}).items()), start=1):
            self._files[number] = File(content, bytearray(content))
            self._names[name] = [number]

    @property
    def numbers(self) -> dict[str, int]:
        """The number of every file there is."""
        return {name: files[-1] for name, files in self._names.items() if files[-1] is not None}

    def apply(self, operation: Operation) -> None:
        """Let one operation happen."""
        match operation:
            case Create(name, file):
                self._files[file] = File()
                self._names.setdefault(name, [None]).append(file)
            case Unlink(name):
                gone = self._names[name][-1]
                self._stale = bytes(self._files[gone].seen) if gone is not None else b""
                self._names[name].append(None)
            case SyncDirectory():
                self._names = {name: files[-1:] for name, files in self._names.items()}
            case Sync(file):
                self._files[file].sync()
            case Write(file) | Truncate(file):
                self._files[file].change(operation)

    def apply_all(self, operations: Iterable[Operation]) -> Disk:
        """Let several operations happen; the disk."""
        for operation in operations:
            self.apply(operation)
        return self

    def as_seen(self) -> dict[str, bytes]:
        """The files as the running program sees them."""
        return {name: bytes(self._files[number].seen) for name, number in self.numbers.items()}

    def after_loss(self, chance: random.Random) -> dict[str, bytes]:
        """One of the directories that a power loss at this moment may leave."""
        image = {}
        for name, files in self._names.items():
            number = chance.choice([*files, files[-1]])
            if number is not None:
                image[name] = self._files[number].after_loss(chance, self._stale)
        return image
