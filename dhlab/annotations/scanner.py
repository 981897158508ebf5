"""From bytes of GeoJSON to decoded features, block by block, proved complete."""

from __future__ import annotations

import gc
import gzip
import io
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from dhlab.annotations.coordinates import DEPTH, SPACE
from dhlab.errors import BadFileError, NotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["feature_blocks", "opened", "without_collector"]

# Small enough for the caches: larger ones cost a sixth more, most of it in fresh memory.
BLOCK = 1 << 20
SPAN_START = re.compile(rb"\s*:\s*(?=\[)")
BOUNDARY = re.compile(rb"\}\s*,\s*(?=\{)")
DECODER = json.JSONDecoder()


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from walking over the many small objects of one block again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def opened(source: str | bytes | os.PathLike[str]) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file or a text for reading bytes, unpacked if it is gzipped."""
    text = source.encode() if isinstance(source, str) and source.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") else source
    if isinstance(text, bytes):
        raw: IO[bytes] = io.BytesIO(text)
        name = "the GeoJSON text"
    else:
        path = Path(text).expanduser()
        name = path.name
        try:
            raw = path.open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"nothing at {path}; expected GeoJSON. Check the path.") from error
        except OSError as error:
            raise BadFileError(f"cannot read {path}: {error.strerror}; expected a GeoJSON file.") from error
    with raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if packed:
                with gzip.open(raw) as file:
                    yield file, name  # type: ignore[misc] # a GzipFile reads bytes like any file
            else:
                yield raw, name
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            if isinstance(error, BadFileError | NotFoundError):
                raise
            raise BadFileError(f"{name} is damaged or truncated ({error}). Copy or export it again.") from error


class _IncompleteError(Exception):
    """The text ends before what was begun."""


def feature_blocks(file: IO[bytes], name: str) -> Iterator[tuple[list[Any], list[bytes] | None]]:
    """Yield features in blocks, decoded; coordinates stand apart as text where that was possible."""
    buffer = file.read(BLOCK).removeprefix(b"\xef\xbb\xbf")
    if not buffer.strip():
        raise BadFileError(f"{name} is empty; expected GeoJSON.")
    start, done = None, False
    while start is None:
        try:
            start = _array_start(buffer)
            break
        except _IncompleteError:
            more = file.read(max(BLOCK, len(buffer)))
            if not more:
                yield _whole(buffer, name), None
                return
            buffer += more
    bare = buffer[start - 1 : start] == b"[" and buffer[: start - 1].strip() == b""
    buffer, count, last = buffer[start:], 0, False
    while not done:
        more = file.read(BLOCK) if len(buffer) < BLOCK else b""
        last = not more and len(buffer) < BLOCK
        buffer += more
        block = _cut(buffer, last=last)
        if block is None:
            block = _scan(buffer, name, count)
            if not block.features and not block.done:
                more = file.read(max(BLOCK, len(buffer)))
                if not more:
                    raise BadFileError(
                        f"{name} ends or is broken within feature {count}; expected complete GeoJSON. Export it again."
                    )
                buffer += more
                continue
        count, done = count + len(block.features), block.done
        buffer = buffer[block.end :]
        if block.features:
            yield block.take()
    _check_tail(buffer + file.read(), name, bare=bare, count=count)


class _Block:
    """Features decoded from the head of a buffer, where they end, and whether the list ends there."""

    def __init__(self, features: list[Any], spans: list[bytes] | None, end: int, *, done: bool) -> None:
        self.features, self.spans, self.end, self.done = features, spans, end, done

    def take(self) -> tuple[list[Any], list[bytes] | None]:
        """Return features and texts, and keep none of them."""
        features, spans, self.features, self.spans = self.features, self.spans, [], None
        return features, spans


def _array_start(buffer: bytes) -> int:
    """Return where the first feature begins; `_IncompleteError` if the text must be read whole to know."""
    text = buffer.decode("latin-1")
    at = _skip(text, 0)
    if text[at] == "[":
        return at + 1
    if text[at] != "{":
        raise _IncompleteError
    at = _skip(text, at + 1)
    try:
        while text[at] != "}":
            key, at = DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if text[at] != ":":
                raise _IncompleteError
            at = _skip(text, at + 1)
            if key == "features" and text[at] == "[":
                return at + 1
            _, at = DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
    except (ValueError, IndexError, RecursionError):
        raise _IncompleteError from None
    raise _IncompleteError


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n") and at < len(text):
        at += 1
    if at >= len(text):
        raise _IncompleteError
    return at


def _whole(buffer: bytes, name: str) -> list[Any]:
    """Decode a text that is no list of features: one feature, or one geometry."""
    data = _loads(buffer, name)
    if isinstance(data, dict) and data.get("type") == "Feature":
        return [data]
    if isinstance(data, dict) and data.get("type") in (*DEPTH, "GeometryCollection"):
        return [{"type": "Feature", "geometry": data, "properties": {}}]
    what = f"an object of type {data.get('type')!r}" if isinstance(data, dict) else f"a {type(data).__name__}"
    raise BadFileError(f"{name} holds {what}; expected a GeoJSON FeatureCollection. Export it as GeoJSON from QuPath.")


def _loads(buffer: bytes, name: str) -> Any:
    try:
        return orjson.loads(buffer)
    except orjson.JSONDecodeError:
        pass
    try:  # QuPath may write NaN, which only the standard library reads
        return json.loads(buffer)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{name} is not JSON or is truncated: {error}. Export it as GeoJSON again.") from error


def _cut(buffer: bytes, *, last: bool) -> _Block | None:
    """Decode as many whole features as a guess at a boundary gives; None if no guess holds.

    A guess is proved by decoding: what stands before it is a JSON list only if it is one of whole features.
    """
    if last:
        ends = [buffer.rfind(b"]")]
        ends += [buffer.rfind(b"]", 0, ends[0])] if ends[0] > 0 else []
        for end in ends:
            if end >= 0 and (found := _decode(buffer[:end])) is not None:
                return _Block(*found, end + 1, done=True)
        return None
    tries: list[int] = []
    for window in (len(buffer) - (1 << 16), 0):
        if not tries:
            places = (match.end() for match in BOUNDARY.finditer(buffer, max(0, window)))
            tries = [end for end in places if b'"Feature"' in buffer[end : end + 99]]
    for end in tries[:-3:-1]:
        comma = buffer.rfind(b",", 0, end)
        if (found := _decode(buffer[:comma])) is not None:
            return _Block(*found, comma + 1, done=False)
    return None


def _decode(segment: bytes) -> tuple[list[Any], list[bytes] | None] | None:
    """Decode a list of features without its brackets; coordinates are set apart as text where that is possible."""
    light, spans = _set_apart(segment)
    try:
        features = orjson.loads(light)
        own = [feature["geometry"]["coordinates"] for feature in features]
        if own == list(range(len(spans))):
            return features, spans
        nuclei = [feature["nucleusGeometry"] for feature in features if "nucleusGeometry" in feature]
        if sorted(own + [nucleus["coordinates"] for nucleus in nuclei]) == list(range(len(spans))):
            for nucleus in nuclei:
                nucleus["coordinates"] = orjson.loads(spans[nucleus["coordinates"]])
            return features, [spans[number] for number in own]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    try:
        return orjson.loads(b"[" + segment + b"]"), None
    except orjson.JSONDecodeError:
        return None


def _set_apart(segment: bytes) -> tuple[bytes, list[bytes]]:
    """Replace the lists of coordinates by their numbers; return the list that is left, and their texts.

    A list runs to the last bracket before the next brace or quote; if that cuts it, the rest is no JSON.
    """
    pieces = segment.split(b'"coordinates"')
    kept = [b"[", pieces[0]]
    spans: list[bytes] = []
    for piece in pieces[1:]:
        first = 1 if piece.startswith(b":[") else (match.end() if (match := SPAN_START.match(piece)) else -1)
        brace, quote = piece.find(b"}"), piece.find(b'"')
        last = piece.rfind(b"]", 0, brace if quote < 0 or brace < quote else quote) + 1
        if first < 0 or last <= first:
            kept.append(b'"coordinates"' + piece)
            continue
        kept.append(b'"coordinates":%d%b' % (len(spans), piece[last:]))
        spans.append(piece[first:last])
    kept.append(b"]")
    return b"".join(kept), spans


def _scan(buffer: bytes, name: str, first: int) -> _Block:
    """Decode whole features one by one with the standard library, which reads NaN; slow, and sure of its place."""
    text = buffer.decode("latin-1")  # one character per byte, so that places are places
    features: list[Any] = []
    end = 0
    try:
        while True:
            at = _skip(text, end)
            if text[at] == "," and (features or first):
                at = _skip(text, at + 1)
            if text[at] == "]":
                return _Block(features, None, at + 1, done=True)
            _, stop = DECODER.raw_decode(text, at)
            _skip(text, stop)  # a number or word at the very end may go on
            features.append(_loads(buffer[at:stop], f"feature {first + len(features)} of {name}"))
            end = stop
    except (_IncompleteError, ValueError, RecursionError) as error:
        if isinstance(error, BadFileError):
            raise
        end += len(text[end:]) - len(text[end:].lstrip(" \t\r\n,")) if features else 0
        return _Block(features, None, end, done=False)


def _check_tail(tail: bytes, name: str, *, bare: bool, count: int) -> None:
    """Raise unless the text ends as it began."""
    rest = tail.strip(SPACE + b"\0")
    if bare and not rest:
        return
    try:
        if bare or not isinstance(json.loads(b'{"features":[]' + rest), dict):
            raise ValueError("text after the list")
    except (ValueError, RecursionError) as error:
        raise BadFileError(
            f"{name} does not end as GeoJSON after feature {count - 1} ({error}); it may be truncated. Export it again."
        ) from error
