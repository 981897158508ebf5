"""TIFF directories, read lazily and strictly: a slide opens in microseconds, and a truncated one is noticed."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Directory", "DirectoryReader", "Entry"]

# TIFF field types that hold numbers: code → NumPy type; rationals are pairs.
NUMBERS = {
    1: "u1", 3: "u2", 4: "u4", 5: "2u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "2i4", 11: "f4", 12: "f8", 13: "u4",
    16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
SIZES = {2: 1} | {code: int(kind[-1]) * (2 if kind[0] == "2" else 1) for code, kind in NUMBERS.items()}
UNSIGNED = (1, 3, 4, 13, 16, 18)
MOST_DIRECTORIES = 100_000
KNOWN_STARTS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"RIFF": "a WebP picture",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"<": "a text or HTML page, perhaps from a failed download",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the value of one tag lies: type code, number of values, position in the file, or the bytes themselves."""

    type: int
    count: int
    position: int
    inline: bytes | None


@dataclass
class DirectoryReader:
    """Reads the directories of one open TIFF or BigTIFF file.

    Parameters
    ----------
    path
        Name of the file, for messages.
    descriptor
        Open file descriptor; read by position only, so threads and forks may share it.
    """

    path: Path
    descriptor: int
    size: int = field(init=False)
    order: str = field(init=False)
    big: bool = field(init=False)
    first: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = os.fstat(self.descriptor).st_size
        head = os.pread(self.descriptor, 16, 0)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        magic = struct.unpack(self.order + "H", head[2:4])[0] if self.order and len(head) >= 8 else 0
        if magic not in (42, 43) or (magic == 43 and len(head) < 16):
            raise BadFileError(_not_a_tiff(self.path, head))
        self.big = magic == 43
        self.first = struct.unpack(self.order + ("Q" if self.big else "I"), head[8:16] if self.big else head[4:8])[0]

    def pages(self) -> list[Directory]:
        """Return the directories of the file's main chain.

        Raises
        ------
        BadFileError
            If the chain leaves the file (it is truncated) or runs in a circle.
        """
        found: list[Directory] = []
        seen: set[int] = set()
        offset = self.first
        while offset:
            if offset in seen or len(found) >= MOST_DIRECTORIES:
                raise BadFileError(f"{self.path}: its TIFF directories run in a circle. Copy it again from its source.")
            seen.add(offset)
            directory = self.directory(offset)
            found.append(directory)
            offset = directory.next
        if not found:
            raise BadFileError(f"{self.path}: a TIFF without an image. Copy it again from its source.")
        return found

    def directory(self, offset: int) -> Directory:
        """Return the directory at a position of the file."""
        head, width, pointer = (8, 20, 8) if self.big else (2, 12, 4)
        word = "Q" if self.big else "I"
        count = struct.unpack(self.order + ("Q" if self.big else "H"), self.read(offset, head))[0]
        data = self.read(offset + head, count * width + pointer)
        fields, values = struct.Struct(self.order + ("HHQ" if self.big else "HHI")), struct.Struct(self.order + word)
        entries: dict[int, Entry] = {}
        for i in range(count):
            code, kind, number = fields.unpack_from(data, i * width)
            at, length = i * width + fields.size, SIZES.get(kind, 1) * number
            if length <= pointer:
                entry = Entry(kind, number, offset + head + at, data[at : at + length])
            else:
                entry = Entry(kind, number, values.unpack_from(data, at)[0], None)
            entries.setdefault(code, entry)
        following = values.unpack_from(data, count * width)[0]
        return Directory(self, offset, entries, following)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`.

        Raises
        ------
        BadFileError
            If they lie beyond the end of the file.
        """
        if length < 0 or offset + length > self.size:
            raise BadFileError(
                f"{self.path} is truncated or damaged: it refers to byte {offset + max(length, 0):,} and ends at "
                f"{self.size:,}. Copy it again from its source."
            )
        data = os.pread(self.descriptor, length, offset)
        if len(data) != length:
            raise BadFileError(f"{self.path} ended while it was read. Is another program writing it?")
        return data


@dataclass(frozen=True)
class Directory:
    """One TIFF directory (page): its tags are read when asked for."""

    reader: DirectoryReader
    offset: int
    entries: dict[int, Entry]
    next: int

    def __contains__(self, code: int) -> bool:
        return code in self.entries

    def array(self, code: int) -> NDArray[Any]:
        """Return the numbers of a tag, ``(count,)`` or ``(count, 2)`` for rationals; empty if there is no such tag."""
        entry = self.entries.get(code)
        if entry is None or entry.type not in NUMBERS:
            return np.empty(0, np.int64)
        kind = NUMBERS[entry.type]
        dtype = np.dtype(self.reader.order + kind[-2:])
        values = np.frombuffer(self._bytes(entry), dtype)
        values = values.astype(dtype.newbyteorder("="), copy=False)
        return values.reshape(-1, 2) if kind[0] == "2" else values

    def last(self, code: int) -> int:
        """Return the last number of a tag, without reading the others; 0 if there is none."""
        entry = self.entries.get(code)
        if entry is None or entry.type not in NUMBERS or not entry.count:
            return 0
        size = SIZES[entry.type]
        if entry.inline is None:
            data = self.reader.read(entry.position + (entry.count - 1) * size, size)
        else:
            data = entry.inline[-size:]
        return int(np.frombuffer(data, np.dtype(self.reader.order + NUMBERS[entry.type][-2:]))[0])

    def number(self, code: int, default: int = 0) -> int:
        """Return the first number of a tag."""
        entry = self.entries.get(code)
        if entry is None:
            return default
        if entry.inline and entry.type in UNSIGNED:
            return int.from_bytes(entry.inline[: SIZES[entry.type]], "little" if self.reader.order == "<" else "big")
        values = self.array(code)
        return int(values[0]) if values.ndim == 1 and len(values) else default

    def ratio(self, code: int) -> float:
        """Return a rational tag as a number; 0 where there is none or its denominator is 0."""
        values = self.array(code)
        if values.ndim != 2 or not len(values) or values[0, 1] == 0:
            return float(values[0]) if values.ndim == 1 and len(values) else 0.0
        return float(values[0, 0]) / float(values[0, 1])

    def data(self, code: int) -> bytes:
        """Return the raw bytes of a tag; empty if there is no such tag."""
        entry = self.entries.get(code)
        return b"" if entry is None else self._bytes(entry)

    def _bytes(self, entry: Entry) -> bytes:
        if entry.inline is not None:
            return entry.inline
        return self.reader.read(entry.position, SIZES.get(entry.type, 1) * entry.count)

    def text(self, code: int) -> str:
        """Return a tag as text, up to its first zero byte."""
        return self.data(code).split(b"\0", 1)[0].decode("utf-8", "replace")


def _not_a_tiff(path: Path, head: bytes) -> str:
    kind = next((name for start, name in KNOWN_STARTS.items() if head.startswith(start)), "")
    looks = f"it looks like {kind}" if kind else f"it starts with {head[:8]!r}"
    return (
        f"{path} is not the TIFF that its name promises: {looks}. Rename it after what it is, or copy it again from "
        "its source."
    )
