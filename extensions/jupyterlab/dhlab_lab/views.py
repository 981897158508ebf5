"""Scans and annotations that the server keeps open for its pages, up to a number, with the tiles made of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadFileError, DHLabError, NotFoundError
from dhlab.view.cache import ByteCache
from dhlab_lab.access import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from dhlab.io.pool import Stamp
    from dhlab.view.shapes import ShapeSource
    from dhlab.view.tiles import TileSource
    from dhlab.view.viewer import Layer

__all__ = ["File", "View", "Views"]

# Files that may be opened again without asking: a path and two numbers each.
MOST_KNOWN = 10_000
# A file is looked at again after this time, to notice that another has taken its place.
FRESH_S = 1.0
GEOJSON = (".geojson", ".geojson.gz")


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


@dataclass
class View:
    """An open scan, or annotations.

    Parameters
    ----------
    layer
        It, with its tiles or shapes.
    scene
        What the browser must know of it before it asks for them.
    checked
        When its file was looked at last (`time.monotonic`).
    """

    layer: Layer
    scene: dict[str, Any]
    checked: float = 0.0

    @property
    def tiles(self) -> TileSource:
        """The tiles of a scan; annotations are refused (404)."""
        if self.layer.tiles is None:
            raise Refused(404, f"{self.layer.name} are annotations, which have no tiles; ask for their shapes.")
        return self.layer.tiles

    @property
    def shapes(self) -> ShapeSource:
        """The shapes of annotations; scans are refused (404)."""
        if self.layer.shapes is None:
            raise Refused(404, f"{self.layer.name} is a scan, which has no shapes; ask for its tiles.")
        return self.layer.shapes


class Views:
    """Open scans by the numbers of their files, the one used last kept longest. Safe between threads.

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
        self._files: OrderedDict[str, File] = OrderedDict()
        self._lock = Lock()

    def open(self, number: str, file: File) -> View:
        """Return the open scan of a file, to be known by a number from now on; reads from disk.

        Raises
        ------
        Refused
            415 if it is no image or cannot be read as one, 410 if it has changed.
        """
        view = self._open.get_or_make(number, partial(_open, file, self._budget), lambda _: 1)
        file.check()
        view.checked = time.monotonic()
        with self._lock:
            self._files[number] = file
            self._files.move_to_end(number)
            while len(self._files) > MOST_KNOWN:
                self._files.popitem(last=False)
        return view

    def reopen(self, number: str) -> View:
        """Return the open scan of a known number after a look at its file; reads from disk.

        Raises
        ------
        Refused
            410 if the file has changed, or the server was started anew since.
        """
        with self._lock:
            file = self._files.get(number)
        if file is None:
            raise Refused(410, "the server does not know this view any more. Open the scan again.")
        file.check()
        return self.open(number, file)

    def fresh(self, number: str) -> View | None:
        """Return an open scan whose file was looked at a moment ago, or None; takes no time."""
        view: View | None = self._open.get(number)
        return view if view is not None and time.monotonic() < view.checked + FRESH_S else None

    def close(self) -> None:
        """Close every scan."""
        self._open.clear()
        with self._lock:
            self._files.clear()


def _open(file: File, budget: int) -> View:
    import dhlab
    from dhlab.view.scene import describe_layer
    from dhlab.view.tiles import TileSource
    from dhlab.view.viewer import Layer

    name = file.path.name
    try:
        if name.lower().endswith(GEOJSON):
            layer = Layer.of(dhlab.Annotations.from_geojson(file.path), id=0, name=name)
        else:
            scan = dhlab.open(file.path)
            layer = Layer(0, scan.name, scan, TileSource(scan, budget=budget))
        return View(layer, describe_layer(layer, None) | {"base": layer.tiles is not None})
    except NotFoundError as error:
        raise Refused(410, str(error)) from error
    except (DHLabError, OSError) as error:
        raise Refused(415, str(error)) from error
