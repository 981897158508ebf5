"""Scans and annotations that the server keeps open for its pages, up to a number, with the tiles made of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from dhlab.cache import ByteCache
from dhlab.errors import BadFileError, DHLabError, NotFoundError
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
    on
        The scan that it lies on, if it is not shown alone.
    """

    path: Path
    stamp: Stamp
    on: File | None = None

    def check(self) -> None:
        """Refuse (410) a file that has changed or gone, or whose scan has."""
        try:
            self.stamp.check(self.path)
        except (NotFoundError, BadFileError) as error:
            raise Refused(410, str(error)) from error
        if self.on is not None:
            self.on.check()


@dataclass
class View:
    """Something that is open.

    Parameters
    ----------
    layer
        The scan with its tiles, or the annotations with their shapes.
    scene
        What the browser must know before it asks for them.
    checked
        When its file was looked at last (`time.monotonic`).
    """

    layer: Layer
    scene: dict[str, Any]
    checked: float = 0.0

    @property
    def tiles(self) -> TileSource:
        """The pixels of a scan; 404 if this is none."""
        if self.layer.tiles is None:
            raise Refused(404, f"{self.layer.name} holds shapes and no pixels; expected a scan.")
        return self.layer.tiles

    @property
    def shapes(self) -> ShapeSource:
        """The shapes of annotations; 404 if this is a scan."""
        if self.layer.shapes is None:
            raise Refused(404, f"{self.layer.name} holds pixels and no shapes; expected annotations.")
        return self.layer.shapes


class Views:
    """What is open, by the numbers of the files, the one used last kept longest. Safe between threads.

    Parameters
    ----------
    most_open
        Files kept open.
    budget
        Bytes of tiles kept in memory, of all scans together.
    """

    def __init__(self, *, most_open: int, budget: int) -> None:
        self._tiles = ByteCache(budget)
        self._open = ByteCache(most_open)
        self._files: OrderedDict[str, File] = OrderedDict()
        self._lock = Lock()

    def open(self, number: str, file: File) -> View:
        """Return a file's view, to be known by a number from now on; reads from disk.

        Raises
        ------
        Refused
            415 if it cannot be read as scan or annotations, 410 if it has changed.
        """
        view = self._open.get_or_make(number, partial(_open, file, self._tiles), lambda _: 1)
        file.check()
        view.checked = time.monotonic()
        with self._lock:
            self._files[number] = file
            self._files.move_to_end(number)
            while len(self._files) > MOST_KNOWN:
                self._files.popitem(last=False)
        return view

    def reopen(self, number: str) -> View:
        """Return the view of a known number after a look at its file; reads from disk.

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
        """Return a view whose file was looked at a moment ago, or None; takes no time."""
        view: View | None = self._open.get(number)
        return view if view is not None and time.monotonic() < view.checked + FRESH_S else None

    def __contains__(self, number: object) -> bool:
        return self._open.get(number) is not None

    def close(self) -> None:
        """Close every file."""
        self._open.drop()
        self._tiles.drop()
        with self._lock:
            self._files.clear()


def _open(file: File, tiles: ByteCache) -> View:
    import dhlab
    from dhlab.annotations.geojson import geojson_offset
    from dhlab.view.scene import describe_layer
    from dhlab.view.tiles import TileSource
    from dhlab.view.viewer import Layer

    try:
        base = None if file.on is None else dhlab.open(file.on.path)
        if file.path.name.lower().endswith(GEOJSON):
            offset = (0.0, 0.0) if base is None else geojson_offset(base)
            shapes = dhlab.Annotations.from_geojson(file.path, offset=offset, parent=base)
            layer = Layer.of(shapes, id=0, name=file.path.name)
        else:
            scan = dhlab.open(file.path)
            layer = Layer(0, scan.name, scan, TileSource(scan, cache=tiles))
        alone = base is None and layer.tiles is not None
        return View(layer, describe_layer(layer, base) | {"base": alone})
    except NotFoundError as error:
        raise Refused(410, str(error)) from error
    except (DHLabError, OSError) as error:
        raise Refused(415, str(error)) from error
