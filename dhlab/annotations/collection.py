"""`Annotations`: many shapes with class, score, author and time, as columns that never change."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import shapely

from dhlab.annotations.coordinates import object_array
from dhlab.display import class_color
from dhlab.errors import BadShapeError, BadValueError, DHLabWarning, UnknownNameError, suggest
from dhlab.scan import Parent, Scan

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray
    from shapely.geometry.base import BaseGeometry

__all__ = ["Annotation", "Annotations"]

RGB = tuple[int, int, int]
KINDS = ("annotation", "detection", "cell", "tile", "tmaCore", "root")
TEXT_COLUMNS = ("names", "kinds", "authors", "times")
# Reviews of shapes that do not count as drawn by a person.
NOT_DRAWN = ("proposed", "rejected")


@dataclass(frozen=True)
class Annotation:
    """One shape of `Annotations`.

    Parameters
    ----------
    geometry
        Shape in level-0 pixels of the scan, x to the right and y down.
    class_name
        Name of its class, or None.
    color
        RGB colour of its class, or None.
    score
        Certainty from 0 to 1, or None.
    name
        What a person called it, or None.
    id
        UUID as text.
    kind
        ``"annotation"``, ``"detection"``, ``"cell"`` or ``"tile"``, as in QuPath.
    measurements
        Numbers by name.
    author, time
        Who drew it and when (ISO 8601), or None.
    extras
        What else its file said of it: mappings under ``"properties"``, ``"geometry"`` and ``"feature"``.
    """

    geometry: BaseGeometry
    class_name: str | None = None
    color: RGB | None = None
    score: float | None = None
    name: str | None = None
    id: str = ""
    kind: str = "annotation"
    measurements: Mapping[str, float] = field(default_factory=dict)
    author: str | None = None
    time: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Annotations:
    """Shapes in level-0 pixels of a scan (x right, y down), column by column.

    Make them with `from_geometries`, `from_geojson`, `from_parquet` or `from_heatmap`; every change returns a new
    value. Only files and single shapes speak (x, y); windows are (y, x) as everywhere.

    Parameters
    ----------
    geometries
        ``(N,)`` shapely geometries, none empty.
    classes
        ``(N,)`` int32 index into `class_names`, -1 for none; a missing column is all -1.
    class_names
        Names of the classes.
    class_colors
        RGB colour of each class; missing ones are chosen.
    scores
        ``(N,)`` float64 certainty from 0 to 1, NaN where there is none.
    names
        ``(N,)`` text or None.
    ids
        ``(N,)`` UUIDs as text; missing ones follow from the shapes, so the same work gives the same ids.
    kinds
        ``(N,)`` ``"annotation"``, ``"detection"``, ``"cell"`` or ``"tile"``, as in QuPath.
    measurements
        ``(N,)`` float64 columns by name, NaN where there is none.
    authors, times
        ``(N,)`` text or None: who drew it, and when (ISO 8601).
    extras
        ``(N,)`` mapping or None: what else a file said, kept for writing it again.
    parent
        The scan that the shapes lie on.
    """

    geometries: NDArray[np.object_]
    classes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    class_names: tuple[str, ...] = ()
    class_colors: tuple[RGB, ...] = ()
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    names: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    ids: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    kinds: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    measurements: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    authors: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    times: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    extras: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    parent: Parent | None = None

    def __post_init__(self) -> None:
        geometries = _column(self.geometries, np.dtype(object), len(self.geometries), None, "geometries")
        count = len(geometries)
        bad = ~shapely.is_geometry(geometries) | shapely.is_empty(geometries)
        if bad.any():
            raise BadValueError(f"geometry {int(np.argmax(bad))} is missing or empty; expected a shape. Leave it out.")
        names = tuple(map(str, self.class_names))
        if len(set(names)) != len(names):
            raise BadValueError(f"class names {names}; expected each name once.")
        colors = tuple((int(r), int(g), int(b)) for r, g, b in self.class_colors)
        colors += tuple(class_color(i) for i in range(len(colors), len(names)))
        defaults: dict[str, tuple[np.dtype[Any], Any]] = {
            "classes": (np.dtype(np.int32), -1),
            "scores": (np.dtype(np.float64), np.nan),
            "names": (np.dtype(object), None),
            "kinds": (np.dtype(object), "annotation"),
            "authors": (np.dtype(object), None),
            "times": (np.dtype(object), None),
            "extras": (np.dtype(object), None),
        }
        set_field = object.__setattr__
        set_field(self, "geometries", geometries)
        for name, (dtype, default) in defaults.items():
            set_field(self, name, _column(getattr(self, name), dtype, count, default, name))
        columns = {
            str(key): _column(values, np.dtype(np.float64), count, np.nan, f"measurement {key!r}")
            for key, values in self.measurements.items()
        }
        if count and not -1 <= int(self.classes.min()) <= int(self.classes.max()) < len(names):
            raise BadValueError(
                f"classes from {self.classes.min()} to {self.classes.max()}; expected -1 to {len(names) - 1}."
            )
        set_field(self, "measurements", columns)
        set_field(self, "class_names", names)
        set_field(self, "class_colors", colors[: len(names)])
        ids = self.ids if len(self.ids) == count else _content_ids(geometries, self.classes, names)
        set_field(self, "ids", _column(ids, np.dtype(object), count, None, "ids"))

    @classmethod
    def from_geometries(
        cls,
        geometries: BaseGeometry | Iterable[BaseGeometry],
        classes: str | Sequence[str | None] | None = None,
        *,
        colors: Mapping[str, RGB] | None = None,
        scores: ArrayLike | None = None,
        names: Sequence[str | None] | None = None,
        kind: str = "annotation",
        author: str | None = None,
        time: str | None = None,
        parent: Scan | Parent | None = None,
        strict: bool = False,
    ) -> Annotations:
        """Make annotations of shapes.

        Parameters
        ----------
        geometries
            One or more shapely geometries in level-0 pixels, x right and y down.
        classes
            Class name of all, or of each (None for no class).
        colors
            RGB colour by class name; others are chosen.
        scores
            ``(N,)`` certainties from 0 to 1, or one for all.
        names
            Name of each.
        kind
            ``"annotation"``, ``"detection"``, ``"cell"`` or ``"tile"``.
        author, time
            Who drew them, and when (ISO 8601).
        parent
            The scan that they lie on.
        strict
            Raise on invalid shapes instead of mending them.

        Returns
        -------
        Annotations
            The shapes; invalid polygons are mended, which is reported.

        Raises
        ------
        BadValueError
            If a shape is empty or has coordinates that are not finite, or is invalid and `strict` is on.
        BadShapeError
            If the columns differ in length.
        """
        shapes = object_array([geometries] if hasattr(geometries, "geom_type") else list(geometries))
        coordinates, owner = shapely.get_coordinates(shapes, return_index=True)
        finite = np.isfinite(coordinates).all(-1)
        if not finite.all():
            raise BadValueError(f"geometry {owner[np.argmin(finite)]} has coordinates that are not finite numbers.")
        faults: Counter[str] = Counter()
        shapes, kept = mend(shapes, strict=strict, faults=faults)
        tell(faults)
        count = len(kept)
        per_shape = [classes] * count if classes is None or isinstance(classes, str) else list(classes)
        table = list(dict.fromkeys(name for name in per_shape if name is not None))
        index = {name: i for i, name in enumerate(table)} | {None: -1}
        if kind not in KINDS:
            raise UnknownNameError(f"no kind {kind!r} of annotation.{suggest(kind, KINDS)}")
        whole = cls(
            geometries=shapes,
            classes=_pick([index[name] for name in per_shape], kept, np.int32, "classes"),
            class_names=tuple(table),
            class_colors=tuple((colors or {}).get(name, class_color(i)) for i, name in enumerate(table)),
            scores=np.full(count, np.nan)[kept]
            if scores is None
            else _pick(np.broadcast_to(np.asarray(scores, float), (count,)), kept, np.float64, "scores"),
            names=_pick([None] * count if names is None else names, kept, object, "names"),
            kinds=_filled(kind, int(kept.sum())),
            authors=_filled(author, int(kept.sum())),
            times=_filled(time, int(kept.sum())),
        )
        return whole.on(parent)

    @classmethod
    def from_geojson(
        cls,
        source: str | bytes | os.PathLike[str],
        *,
        offset: Sequence[float] = (0.0, 0.0),
        parent: Scan | Parent | None = None,
        strict: bool = False,
    ) -> Annotations:
        """Read GeoJSON as QuPath writes it (any version), gzipped or not.

        The measurement ``score`` becomes the score, the metadata ``author`` and ``time`` become author and time;
        what dhlab does not know is kept and written again. Nested child objects are listed after their parents.

        Parameters
        ----------
        source
            File, or the text itself.
        offset
            Added to all positions, (y, x) in level-0 pixels; `geojson_offset` finds it for MRXS and SCN slides, whose
            coordinates QuPath counts from the corner of the scanned bounds.
        parent
            The scan that the shapes lie on.
        strict
            Raise on self-intersecting polygons instead of mending them.

        Returns
        -------
        Annotations
            The shapes, in the order of the file.

        Raises
        ------
        NotFoundError
            If there is no such file.
        BadFileError
            If it is not GeoJSON, is truncated, or a shape cannot be read; the message names the feature.

        Warns
        -----
        DHLabWarning
            If polygons were mended or features had no shape.
        """
        from dhlab.annotations.geojson import read_chunks
        from dhlab.timeline import stage

        faults: Counter[str] = Counter()
        with stage("annotated", format="GeoJSON") as facts:
            parts = list(read_chunks(source, offset=offset, strict=strict, faults=faults))
            whole = cls.concat(parts).on(parent)
            facts |= {"objects": len(whole), "classes": list(whole.class_names)}
        tell(faults)
        return whole

    def to_geojson(
        self, path: str | os.PathLike[str], *, offset: Sequence[float] = (0.0, 0.0), decimals: int = 2
    ) -> Path:
        """Write GeoJSON as QuPath writes and reads it; a name ending in ``.gz`` is compressed.

        Parameters
        ----------
        path
            Where to; the file appears whole or not at all, and replaces what is there.
        offset
            Subtracted from all positions, (y, x) in level-0 pixels; see `from_geojson`.
        decimals
            Decimals of a coordinate.

        Returns
        -------
        Path
            Where it was written.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        from dhlab.annotations.geojson import write_geojson

        return write_geojson(path, self, offset=offset, decimals=decimals)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> Annotations:
        """Read GeoParquet: what `to_parquet` wrote, or any other with a geometry column in pixels.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Annotations
            The shapes; columns that dhlab does not know are left out.

        Raises
        ------
        NotFoundError
            If there is no such file.
        BadFileError
            If it is not GeoParquet.
        """
        from dhlab.annotations.geoparquet import read_parquet
        from dhlab.timeline import stage

        with stage("annotated", format="GeoParquet") as facts:
            whole = cls.concat(list(read_parquet(path)))
            facts |= {"objects": len(whole), "classes": list(whole.class_names)}
        return whole

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write GeoParquet 1.1 (WKB, bounding boxes), lossless: for sets too large for JSON.

        Parameters
        ----------
        path
            Where to; the file appears whole or not at all, and replaces what is there.

        Returns
        -------
        Path
            Where it was written.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        from dhlab.annotations.geoparquet import write_parquet

        return write_parquet(path, self)

    @classmethod
    def from_heatmap(
        cls,
        heat: Scan,
        class_name: str,
        *,
        threshold: float = 0.5,
        min_area: float = 0.0,
        simplify: float | None = None,
        band: int = 4096,
    ) -> Annotations:
        """Outline where a heat map is at least a threshold, or where a mask or label map holds a class.

        Parameters
        ----------
        heat
            Heat map (``cyx``: float from 0 to 1, or uint8 with 255 for 1), mask, or label map with its class names in
            ``meta["classes"]``.
        class_name
            Channel of the heat map or class of the label map; for a mask, what to call the regions.
        threshold
            Least score that belongs to a region.
        min_area
            Regions smaller than this are left out; in the square of the heat map's unit (µm² for slides), or in square
            pixels where the unit is ``"px"``.
        simplify
            Distance by which an outline may be moved to save vertices, in the heat map's unit; 0 keeps the steps of
            the pixels, None takes three quarters of a pixel.
        band
            Side of the parts, in heat map pixels, that are outlined at once; bounds memory, not the result.

        Returns
        -------
        Annotations
            Valid polygons, holes kept, in level-0 pixels of ``heat.parent`` (of `heat` itself without one), in reading
            order. Pixels that touch only at a corner belong to different polygons. The score is the mean heat inside.

        Raises
        ------
        UnknownNameError
            If there is no such class.
        BadShapeError
            If `heat` is not a plane.
        BadValueError
            If a number is out of range.
        """
        from dhlab.annotations.contours import outline

        geometries, scores = outline(
            heat, class_name, threshold=threshold, min_area=min_area, simplify=simplify, band=band
        )
        names = _class_list(heat)
        color = class_color(names.index(class_name) if class_name in names else 0)
        return cls(
            geometries=geometries,
            classes=np.zeros(len(geometries), np.int32),
            class_names=(class_name,),
            class_colors=(color,),
            scores=scores,
            parent=heat.parent or heat.as_parent(),
        )

    def rasterize(
        self,
        *,
        spacing: float | Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        region: tuple[Sequence[float], Sequence[float]] | None = None,
        order: Literal["size", "given"] = "size",
        parent: Scan | Parent | None = None,
    ) -> Scan:
        """Draw the polygons into a label map: a pixel belongs to a polygon if its centre lies inside.

        Holes stay open. Points and lines have no area and are not drawn.

        Parameters
        ----------
        spacing
            Physical pixel size of the label map in the parent's unit, one number or (y, x); None is the parent's.
        classes
            Classes to draw, in the order of their labels; None draws all.
        region
            Start and size (y, x) in level-0 pixels of what to draw; None is the whole parent, or without one
            everything from (0, 0) to the furthest shape.
        order
            ``"size"`` draws smaller polygons over larger ones; ``"given"`` later ones over earlier ones. Where equal,
            the later one wins.
        parent
            The scan to draw for, if the annotations do not name one.

        Returns
        -------
        Scan
            Kind ``"labels"``, ``yx``, uint8 (uint16 beyond 255 classes): 0 unlabelled, i + 1 for ``classes[i]``, the
            names in ``meta["classes"]``. Its origin is the region's start.

        Raises
        ------
        UnknownNameError
            If a class is not among the annotations.
        BadValueError
            If the spacing or region is out of range, or the picture would be too large.
        """
        from dhlab.annotations.raster import draw

        return draw(self.on(parent), spacing=spacing, classes=classes, region=region, order=order)

    def mask(
        self,
        *,
        spacing: float | Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        region: tuple[Sequence[float], Sequence[float]] | None = None,
        parent: Scan | Parent | None = None,
    ) -> Scan:
        """Draw the polygons into a binary mask; see `rasterize`.

        Parameters
        ----------
        spacing
            Physical pixel size of the mask in the parent's unit; None is the parent's.
        classes
            Classes to draw; None draws all polygons, also those without a class.
        region
            Start and size (y, x) in level-0 pixels.
        parent
            The scan to draw for, if the annotations do not name one.

        Returns
        -------
        Scan
            Kind ``"mask"``, ``yx``, uint8: 1 inside, 0 outside.
        """
        from dhlab.annotations.raster import draw

        return draw(self.on(parent), spacing=spacing, classes=classes, region=region, order="given", binary=True)

    @classmethod
    def concat(cls, parts: Iterable[Annotations]) -> Annotations:
        """Join annotations of one scan; classes of one name become one, with the first colour.

        Parameters
        ----------
        parts
            What to join, in order.

        Returns
        -------
        Annotations
            All shapes. Ids that occur twice are drawn anew for the later ones.

        Raises
        ------
        BadValueError
            If the parts lie on different scans.
        """
        items = list(parts)
        if len(items) == 1:
            return items[0]
        parents = list(dict.fromkeys(item.parent for item in items if item.parent is not None))
        if len(parents) > 1:
            raise BadValueError(
                f"annotations lie on different scans ({', '.join(p.name for p in parents)}); join those of one."
            )
        colors: dict[str, RGB] = {}
        for item in items:
            for name, color in zip(item.class_names, item.class_colors, strict=True):
                colors.setdefault(name, color)
        index = {name: i for i, name in enumerate(colors)}
        classes = [np.array([*(index[n] for n in item.class_names), -1], np.int32)[item.classes] for item in items]
        keys = list(dict.fromkeys(key for item in items for key in item.measurements))

        def joined(name: str) -> Any:
            columns = [getattr(item, name) for item in items]
            return np.concatenate(columns) if columns else np.empty(0, object)

        ids = joined("ids")
        if len(set(ids.tolist())) != len(ids):
            ids = _distinct(ids)
        return cls(
            geometries=joined("geometries"),
            classes=np.concatenate(classes) if classes else np.empty(0, np.int32),
            class_names=tuple(colors),
            class_colors=tuple(colors.values()),
            scores=joined("scores"),
            ids=ids,
            measurements={
                key: np.concatenate([item.measurements.get(key, np.full(len(item), np.nan)) for item in items])
                for key in keys
            },
            **{name: joined(name) for name in (*TEXT_COLUMNS, "extras")},
            parent=parents[0] if parents else None,
        )

    def add(
        self,
        geometry: BaseGeometry,
        class_name: str | None = None,
        *,
        score: float | None = None,
        name: str | None = None,
        author: str | None = None,
        time: str | None = None,
    ) -> Annotations:
        """Return the annotations with one shape more.

        Parameters
        ----------
        geometry
            Shape in level-0 pixels, x right and y down.
        class_name
            Its class; a new one joins the class names.
        score
            Certainty from 0 to 1.
        name
            What to call it.
        author, time
            Who drew it, and when (ISO 8601).

        Returns
        -------
        Annotations
            One longer.
        """
        color = {n: self.class_colors[i] for i, n in enumerate(self.class_names)}
        if class_name is not None:
            color.setdefault(class_name, class_color(len(color)))
        one = Annotations.from_geometries(
            geometry,
            class_name,
            colors=color,
            scores=None if score is None else [score],
            names=[name],
            author=author,
            time=time,
        )
        return Annotations.concat([self, one])

    def replace(self, **changes: Any) -> Annotations:
        """Return a copy with some fields changed, for example ``zones.replace(class_names=("tumour",))``."""
        return replace(self, **changes)

    def on(self, parent: Scan | Parent | None) -> Annotations:
        """Return the same shapes as lying on a scan.

        Parameters
        ----------
        parent
            The scan, or a reference to it; None changes nothing.
        """
        if parent is None:
            return self
        return replace(self, parent=parent.as_parent() if isinstance(parent, Scan) else parent)

    def where(
        self,
        *,
        class_name: str | Sequence[str] | None = None,
        min_score: float | None = None,
        kind: str | None = None,
        author: str | None = None,
        review: str | None = None,
        min_area: float | None = None,
    ) -> Annotations:
        """Return the shapes that meet all conditions given.

        Parameters
        ----------
        class_name
            Class, or one of several classes.
        min_score
            Least score; shapes without a score are left out.
        kind
            ``"annotation"``, ``"detection"``, ``"cell"`` or ``"tile"``.
        author
            Who drew it.
        review
            ``"proposed"``, ``"accepted"`` or ``"rejected"``, see `reviews`.
        min_area
            Least area, in the unit of `areas`.

        Returns
        -------
        Annotations
            Fewer shapes, the same classes.

        Raises
        ------
        UnknownNameError
            If there is no such class.
        """
        keep = np.ones(len(self), bool)
        if class_name is not None:
            wanted = [class_name] if isinstance(class_name, str) else list(class_name)
            keep &= np.isin(self.classes, [self.class_index(name) for name in wanted])
        if min_score is not None:
            keep &= self.scores >= min_score
        if kind is not None:
            keep &= self.kinds == kind
        if author is not None:
            keep &= self.authors == author
        if review is not None:
            keep &= self.reviews == review
        if min_area is not None:
            keep &= self.areas >= min_area
        return self[keep]

    def of_class(self, class_name: str) -> Annotations:
        """Return the shapes of one class.

        Parameters
        ----------
        class_name
            One of `class_names`.
        """
        return self.where(class_name=class_name)

    def class_index(self, class_name: str) -> int:
        """Return the index of a class.

        Parameters
        ----------
        class_name
            One of `class_names`.

        Raises
        ------
        UnknownNameError
            If there is no such class; the message suggests one.
        """
        if class_name not in self.class_names:
            raise UnknownNameError(
                f"no class {class_name!r} among the annotations.{suggest(class_name, self.class_names)}"
            )
        return self.class_names.index(class_name)

    @property
    def unit(self) -> str:
        """Unit of lengths: the parent's, or ``"px"``."""
        return self.parent.unit if self.parent else "px"

    @property
    def areas(self) -> NDArray[np.float64]:
        """``(N,)`` areas in the square of `unit`: µm² where the parent's spacing is known, else square pixels."""
        pixel = np.prod(self.parent.spacing[-2:]) if self.parent else 1.0
        areas: NDArray[np.float64] = shapely.area(self.geometries) * pixel
        return areas

    @property
    def lengths(self) -> NDArray[np.float64]:
        """``(N,)`` lengths of lines, and of the outlines of polygons with their holes, in `unit`."""
        pixel = np.array(self.parent.spacing[-2:][::-1] if self.parent else (1.0, 1.0))
        lengths: NDArray[np.float64] = shapely.length(shapely.transform(self.geometries, lambda xy: xy * pixel))
        return lengths

    @cached_property
    def reviews(self) -> NDArray[np.object_]:
        """``(N,)`` ``"proposed"``, ``"accepted"`` or ``"rejected"`` as their metadata says, None where it does not."""
        found = np.empty(len(self), object)
        for row in np.flatnonzero(self.extras != None).tolist():  # noqa: E711 (elementwise)
            found[row] = self.metadata(row).get("review")
        return found

    def metadata(self, row: int) -> Mapping[str, Any]:
        """Return what the metadata of one shape say besides author and time: review, comments and what else there is.

        Parameters
        ----------
        row
            Which shape.
        """
        metadata = (self.extras[row] or {}).get("properties", {}).get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def bounds(self) -> NDArray[np.float64]:
        """``(N, 4)`` least y, least x, largest y and largest x in level-0 pixels."""
        bounds: NDArray[np.float64] = shapely.bounds(self.geometries).reshape(-1, 4)[:, [1, 0, 3, 2]]
        return bounds

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometries)

    def in_window(self, start: Sequence[float], size: Sequence[float]) -> Annotations:
        """Return the shapes that touch a window, in their order, found by a spatial index.

        Parameters
        ----------
        start
            First corner (y, x) in level-0 pixels.
        size
            Size (y, x) in level-0 pixels.

        Returns
        -------
        Annotations
            Whole shapes, not cut at the window.
        """
        return self[self.indices_in_window(start, size)]

    def indices_in_window(self, start: Sequence[float], size: Sequence[float]) -> NDArray[np.int64]:
        """Return the sorted indices, int64, of what `in_window` returns.

        Parameters
        ----------
        start
            First corner (y, x) in level-0 pixels.
        size
            Size (y, x) in level-0 pixels.
        """
        (y, x), (height, width) = start, size
        found = self._tree.query(shapely.box(x, y, x + width, y + height), predicate="intersects")
        return np.sort(found).astype(np.int64)

    def table(self) -> list[dict[str, Any]]:
        """Return a row per class: number of objects, total and median area, mean score."""
        areas, rows = self.areas, []
        square = f"{self.unit}²"
        for index, name in [*enumerate(self.class_names), (-1, "no class")]:
            here = self.classes == index
            if not here.any() and index < 0:
                continue
            scores = self.scores[here & np.isfinite(self.scores)]
            rows.append(
                {
                    "class": name,
                    "objects": int(here.sum()),
                    f"total area ({square})": float(areas[here].sum()),
                    f"median area ({square})": float(np.median(areas[here])) if here.any() else 0.0,
                    "mean score": float(scores.mean()) if scores.size else None,
                }
            )
        return rows

    def __len__(self) -> int:
        return len(self.geometries)

    @overload
    def __getitem__(self, key: int) -> Annotation: ...
    @overload
    def __getitem__(self, key: slice | NDArray[Any] | list[int]) -> Annotations: ...
    def __getitem__(self, key: int | slice | NDArray[Any] | list[int]) -> Annotation | Annotations:
        """Return one shape by position, or several by slice, mask or positions."""
        if isinstance(key, (int, np.integer)):
            return self._view(range(len(self))[int(key)])
        rows = key if isinstance(key, slice) else np.asarray(key)
        if isinstance(rows, np.ndarray) and rows.size == 0:
            rows = rows.astype(bool if rows.dtype == bool else np.int64)
        columns = ("geometries", "classes", "scores", "ids", "extras", *TEXT_COLUMNS)
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in columns},
            measurements={name: values[rows] for name, values in self.measurements.items()},
        )

    def __iter__(self) -> Iterator[Annotation]:
        return map(self._view, range(len(self)))

    def _view(self, row: int) -> Annotation:
        index, score = int(self.classes[row]), float(self.scores[row])
        return Annotation(
            geometry=self.geometries[row],
            class_name=None if index < 0 else self.class_names[index],
            color=None if index < 0 else self.class_colors[index],
            score=None if np.isnan(score) else score,
            name=self.names[row],
            id=self.ids[row],
            kind=self.kinds[row],
            measurements={k: float(v[row]) for k, v in self.measurements.items() if not np.isnan(v[row])},
            author=self.authors[row],
            time=self.times[row],
            extras=self.extras[row] or {},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __repr__(self) -> str:
        counts = [f"{name} {int((self.classes == i).sum()):,}" for i, name in enumerate(self.class_names)]
        if none := int((self.classes < 0).sum()):
            counts.append(f"no class {none:,}")
        on = f" on {self.parent.name!r}" if self.parent else ""
        noun = "object" if len(self) == 1 else "objects"
        return f"Annotations: {len(self):,} {noun}{on}" + (f" ({', '.join(counts)})" if counts else "")

    def _repr_html_(self) -> str:
        from html import escape

        rows = self.table()
        head = "".join(f"<th style='text-align:left'>{escape(key)}</th>" for key in rows[0]) if rows else ""
        colors = dict(zip(self.class_names, self.class_colors, strict=True))
        lines = []
        for row in rows:
            red, green, blue = colors.get(row["class"], (0, 0, 0))
            swatch = f"<span style='color:rgb({red},{green},{blue})'>■</span> "
            cells = [
                "" if value is None else f"{value:,.4g}" if isinstance(value, float) else escape(str(value))
                for value in row.values()
            ]
            lines.append("<tr><td>" + swatch + "</td><td>".join(cells) + "</td></tr>")
        return (
            f"<div style='display:flex;gap:1em;align-items:flex-start'>{self._picture()}"
            f"<div><b>{escape(repr(self).partition(' (')[0])}</b>"
            f"<table><tr>{head}</tr>{''.join(lines)}</table></div></div>"
        )

    def _picture(self, side: int = 240, most: int = 1500) -> str:
        """Draw the largest shapes as an inline SVG."""
        if not len(self):
            return ""
        bounds = self.bounds
        if self.parent:
            (top, left), (bottom, right) = (0.0, 0.0), self.parent.shape[-2:]
        else:
            (top, left), (bottom, right) = bounds[:, :2].min(0), bounds[:, 2:].max(0)
        extent = max(bottom - top, right - left, 1e-9)
        largest = np.argsort(-(bounds[:, 2:] - bounds[:, :2]).prod(-1), kind="stable")[:most]
        shapes = shapely.simplify(self.geometries[largest], extent / side)
        paths = []
        for row, shape in zip(largest.tolist(), shapes, strict=True):
            red, green, blue = self.class_colors[self.classes[row]] if self.classes[row] >= 0 else (90, 90, 90)
            data = " ".join(
                "M" + "L".join(f"{x:.6g} {y:.6g}" for x, y in ((line - (left, top)) * side / extent).tolist())
                for line in _lines(shape)
            )
            paths.append(
                f"<path d='{data}' fill='rgb({red},{green},{blue})' fill-opacity='.35' fill-rule='evenodd' "
                f"stroke='rgb({red},{green},{blue})'/>"
            )
        width, height = (right - left) * side / extent, (bottom - top) * side / extent
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' role='img' "
            f"aria-label='annotations' style='border:1px solid #8884'>{''.join(paths)}</svg>"
        )


def mend(
    geometries: NDArray[np.object_], *, strict: bool = False, faults: Counter[str]
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Make invalid polygons valid.

    Parameters
    ----------
    geometries
        ``(N,)`` shapely geometries.
    strict
        Raise instead.
    faults
        Counts what was mended and left out; see `tell`.

    Returns
    -------
    geometries, kept
        ``(M,)`` valid geometries, and ``(N,)`` bool which of the given ones they are: a polygon without any area is
        left out.

    Raises
    ------
    BadValueError
        If a geometry is invalid and `strict` is on.
    """
    kept = np.ones(len(geometries), bool)
    bad = np.flatnonzero(~shapely.is_valid(geometries))
    if not bad.size:
        return geometries, kept
    if strict:
        reason = shapely.is_valid_reason(geometries[bad[0]])
        raise BadValueError(f"geometry {bad[0]} is invalid: {reason}. Mend it, or pass strict=False to have it mended.")
    mended = geometries.copy()
    mended[bad] = shapely.make_valid(geometries[bad], method="structure", keep_collapsed=False)
    # It may return parts that share an edge; merging them is what buffering by nothing does.
    still = bad[~shapely.is_valid(mended[bad])]
    mended[still] = shapely.buffer(mended[still], 0)
    kept[bad] = ~shapely.is_empty(mended[bad])
    faults["invalid polygons (self-intersections) were mended; strict=True refuses them"] += int(kept[bad].sum())
    faults["polygons without any area were left out"] += int((~kept[bad]).sum())
    return mended[kept], kept


def tell(faults: Counter[str], stacklevel: int = 3) -> None:
    """Warn of every kind of fault that was met, with its count."""
    for text, number in faults.items():
        if number:
            warnings.warn(f"{number:,} {text}.", DHLabWarning, stacklevel=stacklevel)


def _class_list(scan: Scan) -> list[str]:
    return list(scan.channels) if "c" in scan.axes else [str(name) for name in scan.meta.get("classes", ())]


def _filled(value: Any, count: int) -> NDArray[np.object_]:
    array = np.empty(count, object)
    array[:] = [value] * count
    return array


def _pick(values: Any, kept: NDArray[np.bool_], dtype: Any, name: str) -> NDArray[Any]:
    if len(values) != len(kept):
        raise BadShapeError(f"{name} has {len(values)} entries; expected {len(kept)}, one per geometry.")
    column = object_array(list(values)) if dtype is object else np.asarray(values, dtype)
    return column[kept]


def _column(values: Any, dtype: np.dtype[Any], count: int, default: Any, name: str) -> NDArray[Any]:
    """Return a read-only column of the right type and length; an empty one is filled with the default."""
    if len(values) == 0 and count:
        column = np.full(count, default, dtype) if dtype.kind != "O" else _filled(default, count)
    elif dtype.kind == "O" and not (isinstance(values, np.ndarray) and values.dtype.kind == "O"):
        column = object_array(list(values))
    else:
        column = np.asarray(values, dtype)
    if column.shape != (count,):
        raise BadShapeError(f"{name} has shape {column.shape}; expected ({count},), one entry per geometry.")
    if column.flags.writeable:
        column = column.view()
        column.setflags(write=False)
    return column


def _content_ids(
    geometries: NDArray[np.object_], classes: NDArray[np.int32], names: Sequence[str], salt: int = 0
) -> NDArray[np.object_]:
    """Draw UUIDs from a generator seeded with the shapes and classes: the same work gives the same ids."""
    digest = hashlib.blake2b(repr((tuple(names), salt)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(classes).tobytes())
    for first in range(0, len(geometries), 65_536):
        digest.update(b"".join(shapely.to_wkb(geometries[first : first + 65_536]).tolist()))
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
    return format_uuids(generator.bytes(16 * len(geometries)))


def format_uuids(raw: bytes) -> NDArray[np.object_]:
    """Return ``(N,)`` UUIDs (version 4) as text, made of 16 random bytes each."""
    array = np.frombuffer(raw, np.uint8).reshape(-1, 16).copy()
    array[:, 6] = (array[:, 6] & 0x0F) | 0x40
    array[:, 8] = (array[:, 8] & 0x3F) | 0x80
    text = array.tobytes().hex()
    edges = (0, 8, 12, 16, 20, 32)
    return object_array(["-".join(text[i + a : i + b] for a, b in pairwise(edges)) for i in range(0, len(text), 32)])


def _distinct(ids: NDArray[np.object_]) -> NDArray[np.object_]:
    """Replace every later occurrence of an id by one that follows from it and its position."""
    seen: set[str] = set()
    found = ids.copy()
    for row, name in enumerate(ids.tolist()):
        if name in seen:
            raw = hashlib.blake2b(f"{name} {row}".encode(), digest_size=16).digest()
            found[row] = name = format_uuids(raw)[0]
        seen.add(name)
    return found


def _lines(shape: BaseGeometry) -> Iterator[NDArray[np.float64]]:
    """Yield the ``(N, 2)`` (x, y) lines that a shape is drawn with."""
    for part in shapely.get_parts(shape):
        if part.geom_type == "Polygon":
            for ring in (part.exterior, *part.interiors):
                yield shapely.get_coordinates(ring)
        elif part.geom_type == "Point":
            yield np.array([(part.x - 0.5, part.y), (part.x + 0.5, part.y)])
        elif part.geom_type.startswith(("Multi", "Geometry")):
            yield from _lines(part)
        else:
            yield shapely.get_coordinates(part)
