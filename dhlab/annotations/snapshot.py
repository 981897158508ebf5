"""The file of a document: GeoJSON as QuPath writes it, with one member of our own that says which edits it holds."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from dhlab.annotations.collection import format_uuids
from dhlab.annotations.coordinates import dumps
from dhlab.annotations.features import check_features, class_name_of, color_of, flatten, moved
from dhlab.annotations.log import read_errors
from dhlab.annotations.records import GEOMETRY, Record, Records, feature_bytes, geometry_bytes, to_record
from dhlab.annotations.scanner import feature_blocks, without_collector
from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dhlab.annotations.collection import RGB
    from dhlab.annotations.log import Heads
    from dhlab.scan import Scan

__all__ = ["Snapshot", "identify", "read_features", "read_snapshot", "write_features", "write_shortcut"]

START, OURS = b'{"type":"FeatureCollection","features":[', b'\n],"dhlab":'
NUCLEUS = "feature/nucleusGeometry"
ROWS = 500


@dataclass(frozen=True)
class Snapshot:
    """What a file says.

    Parameters
    ----------
    digest
        Of its bytes.
    saved
        Clock, and number of edits of each writer, that it holds; None if another program wrote it.
    scan
        Name and shape of the scan that it belongs to, if it says so.
    objects, classes
        Fields by id and by name.
    """

    digest: str = ""
    saved: tuple[int, Heads] | None = None
    scan: Mapping[str, Any] | None = None
    objects: dict[str, Record] = field(default_factory=dict)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)


def identify(scan: Scan) -> dict[str, Any]:
    """Return what tells a scan from others, JSON-compatible."""
    return {"name": scan.name, "shape": list(scan.shape), "spacing": list(scan.spacing), "unit": scan.unit}


def read_snapshot(path: Path, offset: Sequence[float], *, whole: bool = True) -> Snapshot:
    """Read a document's file.

    Parameters
    ----------
    path
        GeoJSON of any origin.
    offset
        Added to all positions, (y, x) in level-0 pixels.
    whole
        Also read the objects of a file that dhlab wrote; those of others are always read.

    Raises
    ------
    BadFileError
        If it is not GeoJSON, or may not be read.
    """
    with read_errors(path):
        data = path.read_bytes()
    cut = data.rfind(OURS)
    digest = _digest(data[: cut if cut >= 0 else len(data)])
    member = _member(data[cut + len(OURS) :]) if cut >= 0 else {}
    saved = (member["clock"], member["heads"]) if member.get("digest") == digest else None
    if saved is not None and not whole:
        return Snapshot(digest, saved, member.get("scan"))
    objects, classes = read_features(data, path.name, offset)
    if saved is not None:
        known = {
            name: {"color": color} | ({} if key is None else {"shortcut": key}) for name, color, key in _classes(member)
        }
        classes = known | {name: fields for name, fields in classes.items() if name not in known}
    return Snapshot(digest, saved, member.get("scan"), objects, classes)


def read_features(
    data: bytes, name: str, offset: Sequence[float] = (0.0, 0.0)
) -> tuple[dict[str, Record], dict[str, dict[str, Any]]]:
    """Return the objects and classes of GeoJSON, fields by id and by name; what has no id gets one.

    Parameters
    ----------
    data
        The text. An id that is missing follows from the object, so that every reader finds the same.
    name
        What messages call it.
    offset
        Added to all positions, (y, x) in level-0 pixels.

    Raises
    ------
    BadFileError
        If it is not GeoJSON.
    """
    objects: dict[str, Record] = {}
    labels: dict[str, Any] = {}
    count = 0
    shift = (float(offset[0]), float(offset[1]))
    with without_collector():
        for block in feature_blocks(io.BytesIO(data), name):
            features, spans = flatten(*block)
            check_features(features, name, count)
            for number, feature in enumerate(features):
                if feature.get("geometry") is None:
                    continue
                label = (feature.get("properties") or {}).get("classification")
                try:
                    record = to_record(feature, spans[number] if spans else None)
                    if (class_name := class_name_of(label)) is not None:
                        labels.setdefault(class_name, label)
                except (TypeError, AttributeError, KeyError) as error:
                    raise BadFileError(
                        f"feature {count + number} of {name} is malformed ({error}). Export it again."
                    ) from error
                if any(shift):
                    record = _shifted(record, shift)
                key = feature.get("id")
                if not isinstance(key, str) or not key or key in objects:
                    key = _new_key(key, record, objects)
                objects[key] = record
            count += len(features)
    classes = {
        label: {"color": color_of(given if isinstance(given, dict) else {}, number)}
        for number, (label, given) in enumerate(labels.items())
    }
    return objects, classes


def write_features(
    objects: Records, labels: Records, offset: Sequence[float], member: dict[str, Any]
) -> Iterator[bytes]:
    """Yield the bytes of a document's file; `member` is what else it says of itself."""
    shift = (-float(offset[0]), -float(offset[1]))
    digest = hashlib.blake2b(START, digest_size=16)
    yield START
    keys, separator = list(objects), b"\n"
    for first in range(0, len(keys), ROWS):
        lines = [
            feature_bytes(key, _shifted(objects[key], shift) if any(shift) else objects[key], labels)
            for key in keys[first : first + ROWS]
        ]
        data = separator + b",\n".join(lines)
        digest.update(data)
        separator = b",\n"
        yield data
    yield OURS + dumps({"digest": digest.hexdigest(), **member}) + b"}\n"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _member(text: bytes) -> dict[str, Any]:
    try:
        member = orjson.loads(text.rstrip().removesuffix(b"}"))
    except orjson.JSONDecodeError:
        return {}
    return member if isinstance(member, dict) else {}


def write_shortcut(key: str | None) -> dict[str, str | None]:
    """Return how a class's shortcut stands in the file: not at all if none was given, null if there shall be none."""
    return {} if key is None else {"shortcut": key or None}


def _classes(member: Mapping[str, Any]) -> Iterator[tuple[str, RGB, str | None]]:
    for one in member.get("classes", ()):
        # As an empty text earlier versions wrote that none was given.
        key = one.get("shortcut", "")
        yield one["name"], one["color"], "" if key is None else key or None


def _shifted(record: Mapping[str, Any], shift: tuple[float, float]) -> Record:
    found = {**record, GEOMETRY: geometry_bytes(moved(orjson.loads(record[GEOMETRY]), shift))}
    return found | ({NUCLEUS: moved(record[NUCLEUS], shift)} if NUCLEUS in record else {})


def _new_key(given: object, record: Record, taken: Mapping[str, Record]) -> str:
    """Return an id that every reader of the same file finds, whoever it is."""
    text = b"%b%b" % (repr((given, {k: v for k, v in record.items() if k != GEOMETRY})).encode(), record[GEOMETRY])
    number = 0
    while True:
        key: str = format_uuids(hashlib.blake2b(b"%d%b" % (number, text), digest_size=16).digest())[0]
        if key not in taken:
            return key
        number += 1
