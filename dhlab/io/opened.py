"""Which scans are exactly what a file holds, so that another process can open the same pixels by path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dhlab.errors import NotFoundError
from dhlab.io.pool import Stamp

if TYPE_CHECKING:
    from pathlib import Path

    from dhlab.scan import Level, Scan

__all__ = ["ScanFile", "file_of", "remember"]


@dataclass(frozen=True)
class ScanFile:
    """The file or folder of a scan, as it was when it was opened.

    Parameters
    ----------
    path
        Where it lies, absolute.
    stamp
        Size in bytes and time of change in nanoseconds.
    """

    path: Path
    stamp: tuple[int, int]


# A derived scan keeps `meta` and may keep the levels: only levels and geometry together say that nothing was changed.
_known: WeakKeyDictionary[Level, tuple[ScanFile, int, tuple[Any, ...]]] = WeakKeyDictionary()


def remember(scan: Scan, path: Path) -> None:
    """Note that `scan` is what its reader makes of `path` when nothing but the path is given."""
    try:
        stamp = Stamp.of(path)
    except NotFoundError:
        return
    file = ScanFile(path.absolute(), (stamp.size, stamp.changed_ns))
    for number, level in enumerate(scan.levels):
        _known[level] = (file, number, _geometry(scan))


def file_of(scan: Scan) -> ScanFile | None:
    """Return the file whose plain `open` gives this scan, whatever its name; None for anything derived or changed."""
    found = [_known.get(level) for level in scan.levels if _is_referable(level)]
    if len(found) != len(scan.levels) or found[0] is None:
        return None
    file = found[0][0]
    same = all(known == (file, number, _geometry(scan)) for number, known in enumerate(found))
    return file if same else None


def _geometry(scan: Scan) -> tuple[Any, ...]:
    kept = (scan.axes, scan.spacing, scan.unit, scan.scales, scan.origin, scan.channels, scan.kind, scan.parent)
    return (*kept, len(scan.levels), str(scan.fill))


def _is_referable(level: Level) -> bool:
    return hasattr(level, "__weakref__") and level.__hash__ is not None
