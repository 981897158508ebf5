"""Zarr arrays on disk, version 2 and 3, sharded or not, read by chunk; each chunk is decoded once per call.

Chunks are read here rather than by a library because workers that fork (PyTorch's data loaders) must be able to read
after their parent has: tensorstore ends such a process.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs
import numpy as np

from dhlab.env import thread_count
from dhlab.errors import BadFileError
from dhlab.io.pool import run_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Encoding", "ZarrArray", "crc32c", "read_json"]

EMPTY = np.uint64(2**64 - 1)
DECODE_ERRORS = (RuntimeError, ValueError, TypeError, OSError, EOFError, zlib.error)

Index = tuple[int, ...]
Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Encoding:
    """How the bytes of one chunk are made: its shape, order of axes, data type and compressors.

    Parameters
    ----------
    chunk
        Shape of a chunk along the array's axes.
    order
        Axes of the array in the order in which the bytes run, slowest first.
    dtype
        Data type as stored, with its byte order.
    codecs
        What happened to the bytes, first to last, as numcodecs configurations; ``crc32c`` and ``zstd`` among them.
    """

    chunk: Index
    order: Index
    dtype: np.dtype[Any]
    codecs: tuple[Mapping[str, Any], ...]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of a decoded chunk."""
        return prod(self.chunk) * self.dtype.itemsize

    @cached_property
    def _codecs(self) -> tuple[Any, ...]:
        return tuple(None if c["id"] == "crc32c" else numcodecs.get_codec(dict(c)) for c in self.codecs)

    def encode(self, array: NDArray[Any]) -> bytes:
        """Return the bytes of one whole chunk, given in the array's own axis order."""
        data: Any = np.ascontiguousarray(array.transpose(self.order), self.dtype)
        for codec in self._codecs:
            data = codec.encode(data) if codec is not None else bytes(data) + crc32c(bytes(data))
        return data.tobytes() if isinstance(data, np.ndarray) else bytes(data)

    def decode(self, data: bytes, into: NDArray[np.uint8]) -> NDArray[Any]:
        """Decode one chunk into `into` (`nbytes` bytes) and return it as an array in the array's own axis order."""
        rest: Any = data
        if not self._codecs and len(data) == self.nbytes and into.base is None:
            into = np.frombuffer(data, np.uint8)
            rest = into
        for position in reversed(range(len(self._codecs))):
            codec = self._codecs[position]
            if codec is None:
                if crc32c(rest[:-4]) != bytes(rest[-4:]):
                    raise ValueError("the checksum differs")
                rest = rest[:-4]
            else:
                rest = codec.decode(rest, into) if position == 0 else codec.decode(rest)
        if rest is not into:
            flat = np.frombuffer(rest, np.uint8)
            if flat.size != into.size:
                raise ValueError(f"{flat.size} bytes where {into.size} were expected")
            if flat.ctypes.data != into.ctypes.data:
                into[:] = flat
        stored = into.view(self.dtype).reshape([self.chunk[i] for i in self.order])
        return stored.transpose(np.argsort(self.order).tolist())


class ZarrArray:
    """One zarr array in a folder, opened by its metadata alone; it pickles by path.

    Parameters
    ----------
    folder
        Folder with ``zarr.json`` or ``.zarray``.
    complete
        Every shard was written: a missing one is lost. Else missing chunks hold the fill value, as zarr defines it.
    """

    def __init__(self, folder: Path, *, complete: bool = False) -> None:
        self.folder, self.complete = folder, complete
        if (folder / "zarr.json").is_file():
            meta = read_json(folder / "zarr.json")
            parse = self._parse_v3
        elif (folder / ".zarray").is_file():
            meta = read_json(folder / ".zarray")
            parse = self._parse_v2
        else:
            raise BadFileError(f"{folder} holds no zarr array (neither zarr.json nor .zarray). Copy it again, whole.")
        self.shard: Index | None
        self.shard, self.index_at_start, self.index_checked = None, False, False
        try:
            self.shape: Index = tuple(int(n) for n in meta["shape"])
            parse(meta)
            if len(self.shape) != len(self.encoding.chunk):
                raise ValueError(f"shape {self.shape} in chunks of {self.encoding.chunk}")
            self.dtype = self.encoding.dtype.newbyteorder("=")
            self.fill = _fill_value(meta.get("fill_value"), self.dtype)
            _ = self.encoding._codecs
        except BadFileError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise BadFileError(
                f"{folder}: cannot understand the array's metadata ({type(error).__name__}: {error}); expected zarr 2 "
                "or 3 with the usual codecs. Write it again with standard settings."
            ) from error
        self._indices: dict[str, tuple[tuple[int, int, int], NDArray[np.uint64]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_array, (self.folder, self.complete)

    def __repr__(self) -> str:
        shard = f" in shards of {self.shard}" if self.shard else ""
        return f"ZarrArray {self.shape} {self.dtype}, chunks of {self.encoding.chunk}{shard}: {self.folder}"

    def key(self, cell: Index) -> str:
        """Return the name, below the folder, of the file of a shard (or of a chunk that lies in no shard)."""
        return f"{self._prefix}{self._separator.join(map(str, cell))}"

    def read_boxes(
        self, starts: NDArray[np.int64], size: Index, out: NDArray[Any], *, parallel: bool = True
    ) -> NDArray[Any]:
        """Read boxes of one size, decoding each chunk that they share once.

        Parameters
        ----------
        starts
            ``(N, ndim)`` first corners in pixels, int64; wholly or partly outside allowed.
        size
            Size of a box in pixels, per axis of the array.
        out
            ``(N, *size)`` array of the array's dtype, any strides.
        parallel
            Decode in the shared threads.

        Returns
        -------
        ndarray
            `out`; the fill value outside the array.

        Raises
        ------
        BadFileError
            If a chunk is damaged or a shard lost.
        """
        wanted = self._plan(starts, size, out)
        threads = thread_count() if parallel else 1
        tasks = list(self._tasks(wanted, threads))

        def work(some: Sequence[tuple[Index, list[tuple[Index, list[int]]]]]) -> None:
            for file, cells in some:
                self._read_chunks(file, cells, starts=starts, out=out)

        if threads > 1 and tasks:
            run_all(work, tasks, least=1)
        else:
            work(tasks)
        return out

    def _plan(self, starts: NDArray[np.int64], size: Index, out: NDArray[Any]) -> dict[Index, list[int]]:
        shape, chunk = np.asarray(self.shape), np.asarray(self.encoding.chunk)
        low, high = np.maximum(starts, 0), np.minimum(starts + np.asarray(size), shape)
        empty = (high <= low).any(axis=1)
        whole = (high - low == np.asarray(size)).all(axis=1)
        first, last = (low // chunk).tolist(), (-(-high // chunk)).tolist()
        wanted: dict[Index, list[int]] = {}
        for number in range(len(starts)):
            if not whole[number]:
                out[number] = self.fill
            if not empty[number]:
                for cell in product(*map(range, first[number], last[number])):
                    wanted.setdefault(cell, []).append(number)
        return wanted

    def _tasks(
        self, wanted: dict[Index, list[int]], threads: int
    ) -> Iterable[tuple[Index, list[tuple[Index, list[int]]]]]:
        """Group chunks by their file, in pieces small enough to keep all threads busy."""
        per_file = [s // c for s, c in zip(self.shard or self.encoding.chunk, self.encoding.chunk, strict=True)]
        files: dict[Index, list[tuple[Index, list[int]]]] = {}
        for cell, numbers in wanted.items():
            files.setdefault(tuple(i // n for i, n in zip(cell, per_file, strict=True)), []).append((cell, numbers))
        piece = max(1, -(-len(wanted) // (4 * threads))) if threads > 1 else len(wanted)
        for file, cells in sorted(files.items()):
            for begin in range(0, len(cells), piece):
                yield file, cells[begin : begin + piece]

    def _read_chunks(
        self, file: Index, cells: list[tuple[Index, list[int]]], *, starts: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        key = self.key(file)
        try:
            handle = os.open(self.folder / key, os.O_RDONLY)
        except FileNotFoundError:
            if self.complete:
                raise BadFileError(
                    f"shard {key} of {self.folder} is lost: {prod(self.grid)} were written. Copy the folder again "
                    "from its source, or make it again."
                ) from None
            for cell, numbers in cells:
                self._deliver(None, cell, numbers, starts, out)
            return
        try:
            index = self._index(handle, key)
            scratch = np.empty(self.encoding.nbytes, np.uint8)
            for cell, numbers in cells:
                self._read_chunk(handle, index, key, cell, numbers, starts, out, scratch)
        finally:
            os.close(handle)

    def _read_chunk(
        self,
        handle: int,
        index: NDArray[np.uint64] | None,
        key: str,
        cell: Index,
        numbers: list[int],
        starts: NDArray[np.int64],
        out: NDArray[Any],
        scratch: NDArray[np.uint8],
    ) -> None:
        offset, count = 0, os.fstat(handle).st_size if index is None else 0
        if index is not None:
            entry = index[tuple(i % n for i, n in zip(cell, index.shape[:-1], strict=True))]
            if entry[0] == EMPTY and entry[1] == EMPTY:
                self._deliver(None, cell, numbers, starts, out)
                return
            offset, count = int(entry[0]), int(entry[1])
        target = self._target(cell, numbers, starts, out)
        try:
            data = os.pread(handle, count, offset)
            if len(data) != count:
                raise ValueError(f"{len(data)} bytes where {count} were expected")
            chunk = self.encoding.decode(data, scratch if target is None else target)
        except DECODE_ERRORS as error:
            raise BadFileError(
                f"{self.folder / key}, chunk {cell}: cannot decode it ({error}). The file is damaged; copy it again "
                "from its source."
            ) from error
        if target is None:
            self._deliver(chunk, cell, numbers, starts, out)

    def _target(
        self, cell: Index, numbers: list[int], starts: NDArray[np.int64], out: NDArray[Any]
    ) -> NDArray[np.uint8] | None:
        """Return the memory of the only box that wants this chunk, where it can be decoded without a copy."""
        if len(numbers) > 1 or out.dtype != self.encoding.dtype:
            return None
        chunk = self.encoding.chunk
        begin = [i * c - s for i, c, s in zip(cell, chunk, starts[numbers[0]].tolist(), strict=True)]
        if any(b < 0 or b + c > n for b, c, n in zip(begin, chunk, out.shape[1:], strict=True)):
            return None
        if any((i + 1) * c > n for i, c, n in zip(cell, chunk, self.shape, strict=True)):
            return None
        part = out[numbers[0]][tuple(slice(b, b + c) for b, c in zip(begin, chunk, strict=True))]
        stored = part.transpose(self.encoding.order)
        return stored.reshape(-1).view(np.uint8) if stored.flags.c_contiguous else None

    def _deliver(
        self,
        chunk: NDArray[Any] | None,
        cell: Index,
        numbers: list[int],
        starts: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        """Copy a chunk, or the fill value where there is none, to the boxes that want it."""
        size = out.shape[1:]
        origin = [i * c for i, c in zip(cell, self.encoding.chunk, strict=True)]
        end = [min(o + c, n) for o, c, n in zip(origin, self.encoding.chunk, self.shape, strict=True)]
        for number in numbers:
            source, target = [], []
            for first, last, start, length in zip(origin, end, starts[number].tolist(), size, strict=True):
                low, high = max(first, start), min(last, start + length)
                source.append(slice(low - first, high - first))
                target.append(slice(low - start, high - start))
            if chunk is None:
                out[number][tuple(target)] = self.fill
            else:
                _copy(chunk[tuple(source)], out[number][tuple(target)])

    @property
    def grid(self) -> Index:
        """Number of shards (or chunks that lie in no shard) along every axis."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.shard or self.encoding.chunk, strict=True))

    def _index(self, handle: int, key: str) -> NDArray[np.uint64] | None:
        """Return where a shard's chunks lie, ``(*chunks, 2)`` offsets and lengths; read once while the file stays."""
        if self.shard is None:
            return None
        info = os.fstat(handle)
        stamp = (info.st_ino, info.st_mtime_ns, info.st_size)
        known = self._indices.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        cells = [s // c for s, c in zip(self.shard, self.encoding.chunk, strict=True)]
        count = 16 * prod(cells) + 4 * self.index_checked
        data = os.pread(handle, count, 0 if self.index_at_start else max(0, info.st_size - count))
        if len(data) != count or (self.index_checked and crc32c(data[:-4]) != data[-4:]):
            raise BadFileError(
                f"{self.folder / key}: the shard's index is damaged or cut off ({info.st_size} bytes). Copy it again "
                "from its source."
            )
        index = np.frombuffer(data, "<u8", 2 * prod(cells)).reshape(*cells, 2)
        self._indices[key] = (stamp, index)
        return index

    def _parse_v2(self, meta: Mapping[str, Any]) -> None:
        order = range(len(self.shape)) if meta.get("order", "C") == "C" else range(len(self.shape) - 1, -1, -1)
        compressor = meta.get("compressor")
        codecs = (*(meta.get("filters") or ()), *((compressor,) if compressor else ()))
        self.encoding = Encoding(tuple(meta["chunks"]), tuple(order), np.dtype(meta["dtype"]), codecs)
        self._prefix, self._separator = "", meta.get("dimension_separator", ".")

    def _parse_v3(self, meta: Mapping[str, Any]) -> None:
        if meta.get("node_type") != "array":
            raise BadFileError(f"{self.folder} is a zarr group; expected an array there. Copy it again, whole.")
        keys = meta.get("chunk_key_encoding", {"name": "default"})
        plain = keys["name"] == "v2"
        self._separator = keys.get("configuration", {}).get("separator", "." if plain else "/")
        self._prefix = "" if plain else f"c{self._separator}"
        chunk = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = meta["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            if len(codecs) > 1:
                raise ValueError(f"codecs {[c['name'] for c in codecs]} around a shard")
            setting = codecs[0]["configuration"]
            self.shard, chunk, codecs = chunk, tuple(setting["chunk_shape"]), setting["codecs"]
            self.index_at_start = setting.get("index_location", "end") == "start"
            names = [c["name"] for c in setting["index_codecs"]]
            if names not in (["bytes"], ["bytes", "crc32c"]):
                raise ValueError(f"index codecs {names}")
            self.index_checked = len(names) == 2
            if any(s % c for s, c in zip(self.shard, chunk, strict=True)):
                raise ValueError(f"shards of {self.shard} are not whole multiples of chunks of {chunk}")
        self.encoding = _parse_codecs(codecs, chunk, np.dtype(meta["data_type"]))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, or raise `BadFileError` naming it."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise BadFileError(f"{path}: cannot be read as JSON ({error}). Copy it again from its source.") from error
    if not isinstance(found, dict):
        raise BadFileError(f"{path} holds {type(found).__name__}; expected a JSON object. Copy it again.")
    return found


def _open_array(folder: Path, complete: bool) -> ZarrArray:
    return ZarrArray(folder, complete=complete)


def _parse_codecs(codecs: Sequence[Mapping[str, Any]], chunk: Index, dtype: np.dtype[Any]) -> Encoding:
    order = tuple(range(len(chunk)))
    coded: list[dict[str, Any]] = []
    serialised = False
    for codec in codecs:
        name, setting = codec["name"], codec.get("configuration") or {}
        if name == "transpose" and not serialised:
            order = tuple(order[i] for i in setting["order"])
        elif name == "bytes" and not serialised:
            serialised = True
            dtype = dtype.newbyteorder(">" if setting.get("endian") == "big" else "<")
        elif name == "crc32c":
            coded.append({"id": "crc32c"})
        elif name == "zstd":
            coded.append({"id": "zstd", "level": setting.get("level", 0), "checksum": setting.get("checksum", False)})
        elif name in ("gzip", "numcodecs.zlib", "numcodecs.lz4", "numcodecs.bz2"):
            coded.append({"id": name.removeprefix("numcodecs."), **setting})
        elif name == "blosc":
            shuffle = ["noshuffle", "shuffle", "bitshuffle"].index(setting.get("shuffle", "noshuffle"))
            coded.append({"id": "blosc", "cname": setting["cname"], "clevel": setting["clevel"], "shuffle": shuffle})
        else:
            raise ValueError(f"codec {name!r}")
    return Encoding(chunk, order, dtype, tuple(coded))


def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """Copy between two orders of axes; a short axis that runs fastest in only one of them is walked outermost."""
    fastest = int(np.argmin([abs(s) if n > 1 else np.inf for n, s in zip(target.shape, target.strides, strict=True)]))
    if target.shape[fastest] > 16 or source.strides[fastest] == source.itemsize:
        target[...] = source
        return
    for walked, written in zip(np.moveaxis(source, fastest, 0), np.moveaxis(target, fastest, 0), strict=True):
        written[...] = walked


def _fill_value(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, str) and value.startswith("0x"):
        return np.frombuffer(int(value, 16).to_bytes(dtype.itemsize, "little"), dtype.newbyteorder("<"))[0]
    return dtype.type({"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}.get(value, value) if value else 0)


def crc32c(data: bytes) -> bytes:
    """Return the CRC-32C checksum of `data`, 4 bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")
