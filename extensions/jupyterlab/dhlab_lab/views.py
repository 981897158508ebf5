"""Scans that the server keeps open for its pages, up to a number, with the tiles made of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadFileError, DHLabError, NotFoundError
from dhlab.view.cache import ByteCache
from dhlab_lab.access import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dhlab.io.pool import Stamp
    from dhlab.view.tiles import TileSource

__all__ = ["File", "View", "Views"]

# Files that may be opened again without asking: a path and two numbers each.
MOST_KNOWN = 10_000


@dataclass(frozen=True)
class File:
    """A file as it was when a page asked for it.

    Parameters
    ----------
    path
        Its real place.
    stamp
        Size and time of change.
    """

    path: Path
    stamp: Stamp

    def check(self) -> None:
        """Refuse (410) a file that has changed or gone."""
        try:
            self.stamp.check(self.path)
        except (NotFoundError, BadFileError) as error:
            raise Refused(410, str(error)) from error


@dataclass(frozen=True)
class View:
    """An open scan: its tiles, and what the browser must know of it."""

    source: TileSource
    scene: dict[str, Any]


class Views:
    """Open scans by their files, the one used last kept longest. Safe between threads.

    Parameters
    ----------
    most_open
        Scans kept open.
    budget
        Bytes of tiles kept in memory, shared equally by the open scans.
    """

    def __init__(self, *, most_open: int, budget: int) -> None:
        self._budget = budget // most_open
        self._open = ByteCache(most_open)
        self._known: OrderedDict[str, File] = OrderedDict()
        self._lock = Lock()

    def remember(self, number: str, file: File) -> None:
        """Note which file a number stands for."""
        with self._lock:
            self._known[number] = file
            self._known.move_to_end(number)
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)

    def file(self, number: str) -> File:
        """Return the file that a number stands for; 410 if the server was started anew since."""
        with self._lock:
            if number in self._known:
                return self._known[number]
        raise Refused(410, "the server does not know this view any more. Open the scan again.")

    def open(self, file: File) -> View:
        """Return the open scan of a file; reads from disk, so not for the event loop.

        Raises
        ------
        Refused
            415 if it is no image or cannot be read as one.
        """
        make: Callable[[], View] = lambda: _open(file, self._budget)  # noqa: E731
        return self._open.get_or_make(file, make, lambda _: 1)

    def close(self) -> None:
        """Close every scan."""
        self._open.clear()
        with self._lock:
            self._known.clear()


def _open(file: File, budget: int) -> View:
    import dhlab
    from dhlab.view.tiles import TileSource

    try:
        scan = dhlab.open(file.path)
        source = TileSource(scan, native=True, budget=budget)
        return View(source, describe(source))
    except (DHLabError, OSError) as error:
        raise Refused(415, str(error)) from error


def describe(source: TileSource) -> dict[str, Any]:
    """Return what the browser must know of a scan alone in its view."""
    import numpy as np

    from dhlab.display import class_color
    from dhlab.view.layers import LENGTHS
    from dhlab.view.tiles import COLOR_MAPS, class_names, color_map

    scan = source.scan
    names = class_names(scan) if scan.kind != "image" else list(scan.channels)
    stops = np.linspace(0, 255, 9).astype(int)
    return {
        "id": 0,
        "name": scan.name,
        "base": True,
        "scale": [1.0, 1.0],
        "offset": [0.0, 0.0],
        "kind": scan.kind,
        "classes": [{"name": n, "color": list(class_color(i))} for i, n in enumerate(names)],
        "maps": {m: color_map(m)[stops].tolist() for m in COLOR_MAPS if m != "class"},
        "metre": LENGTHS.get(scan.unit),
        "info": source.info(),
    }
