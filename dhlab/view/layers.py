"""From things to layers: scans and annotations as plain tuples in one physical frame, for any viewer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.annotations import Annotations
from dhlab.display import channel_color, default_display
from dhlab.errors import BadValueError
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from dhlab.scan import Level, Parent

__all__ = ["LayerData", "LazyArray", "Placement", "carry_index", "frame_of", "locate", "outlines", "to_layers"]

# Data, keyword arguments and layer type, as napari's readers return them.
LayerData = tuple[Any, dict[str, Any], str]

UNCLASSIFIED, UNCLASSIFIED_NAME = (90, 90, 90), "no class"
# What stands for a point, in level-0 pixels.
POINT_RADIUS = 4.0
LENGTHS = {"nm": 1e-9, "µm": 1e-6, "um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}


@dataclass(frozen=True)
class Placement:
    """Where pixels of a thing lie among the level-0 pixels of a base scan, along y and x.

    Parameters
    ----------
    scale
        Base pixels per pixel.
    offset
        Base pixel of the outer corner of the first pixel.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Shapes:
    """What a viewer draws of annotations.

    Parameters
    ----------
    geometries
        ``(N,)`` shapely geometries in level-0 pixels (x, y).
    labels
        ``(N,)`` int64, index of the class of each.
    names
        Class names.
    colors
        RGB of each class.
    title
        What the whole is called.
    """

    geometries: NDArray[np.object_]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    title: str


@dataclass(frozen=True, eq=False)
class LazyArray:
    """A level, or one channel of it, with the attributes that array viewers ask for; nothing is read before use.

    Parameters
    ----------
    level
        The level of a scan.
    axis
        Place of the channel axis, or None to keep all axes.
    channel
        Which channel.
    """

    level: Level
    axis: int | None = None
    channel: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the channel axis."""
        return tuple(int(n) for i, n in enumerate(self.level.shape) if i != self.axis)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""
        return np.dtype(self.level.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            place = key.index(Ellipsis)
            key = (*key[:place], *(slice(None),) * (self.ndim - len(key) + 1), *key[place + 1 :])
        key = (*key, *(slice(None),) * (self.ndim - len(key)))
        if self.axis is not None:
            key = (*key[: self.axis], self.channel, *key[self.axis :])
        return np.asarray(self.level[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)


def to_layers(thing: Scan | Annotations, *, base: Scan | None = None) -> list[LayerData]:
    """Describe a thing as layers of an array viewer, in physical units, without any viewer.

    Parameters
    ----------
    thing
        A scan of any kind, or annotations.
    base
        The scan that annotations lie on; without it they are placed in pixels.

    Returns
    -------
    list of tuple
        ``(data, meta, type)`` with type ``"image"``, ``"labels"`` or ``"shapes"``. Images are lists of `LazyArray`,
        finest first; a heat map gives one image per class. Shapes are ``(N, 2)`` float (y, x) `outlines`. ``meta``
        holds ``name``, ``scale``, ``translate``, ``opacity`` and what the type needs.

    Raises
    ------
    BadValueError
        If the thing is neither.
    """
    if isinstance(thing, Annotations):
        return [_shapes_layer(thing, base)]
    if isinstance(thing, Scan):
        return _scan_layers(thing)
    raise BadValueError(f"cannot show {type(thing).__name__}; expected a Scan or Annotations. Open files with dh.open.")


def _scan_layers(scan: Scan) -> list[LayerData]:
    # Array viewers put the middle of a pixel at its index, scans its outer corner.
    meta: dict[str, Any] = {
        "name": scan.name,
        "scale": scan.spacing,
        "translate": tuple(o + s / 2 for o, s in zip(scan.origin, scan.spacing, strict=True)),
        "metadata": {"unit": scan.unit, "kind": scan.kind, **scan.meta},
    }
    multiscale = len(scan.levels) > 1 and set("yx") <= set(scan.axes)
    axis = scan.axes.index("c") if "c" in scan.axes else None

    def arrays(channel: int | None) -> Any:
        levels = [LazyArray(level, None if channel is None else axis, channel or 0) for level in scan.levels]
        return levels if multiscale else levels[0]

    if scan.kind in ("mask", "labels"):
        return [(arrays(0 if axis is not None else None), meta | {"opacity": 0.5, "multiscale": multiscale}, "labels")]
    display = default_display(scan)
    meta |= {"multiscale": multiscale, "contrast_limits": (display.low, display.high)}
    if scan.kind == "image" and axis == len(scan.axes) - 1 and len(scan.channels) in (3, 4) and scan.dtype == np.uint8:
        meta.pop("contrast_limits")
        return [(arrays(None), meta | {"rgb": True, "opacity": 1.0}, "image")]
    if axis is None:
        heat = scan.kind == "heatmap"
        return [(arrays(None), meta | {"colormap": "inferno" if heat else "gray", "opacity": 1 - heat / 2}, "image")]
    layers: list[LayerData] = []
    for number, channel in enumerate(scan.channels):
        red, green, blue = (v / 255 for v in channel_color(scan, number))
        extra = {
            "name": f"{scan.name} {channel}",
            "colormap": {"name": f"{channel} {number}", "colors": [[0, 0, 0, 0], [red, green, blue, 1]]},
            "blending": "translucent" if scan.kind == "heatmap" else "additive",
            "opacity": 0.5 if scan.kind == "heatmap" else 1.0,
        }
        layers.append((arrays(number), meta | extra, "image"))
    return layers


def frame_of(annotations: Annotations, base: Scan | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return physical size of a level-0 pixel of annotations and position of its first corner, along y and x."""
    if base is None:
        return (1.0, 1.0), (0.0, 0.0)
    y, x = (base.window_axes.index(a) for a in "yx")
    place, spacing, origin = (
        locate(annotations, base),
        (base.spacing[y], base.spacing[x]),
        (base.origin[y], base.origin[x]),
    )
    scale, translate = (
        [s * k for s, k in zip(spacing, place.scale, strict=True)],
        [o + f * s for o, f, s in zip(origin, place.offset, spacing, strict=True)],
    )
    return (scale[0], scale[1]), (translate[0], translate[1])


def _shapes_layer(annotations: Annotations, base: Scan | None) -> LayerData:
    shapes = shapes_of(annotations)
    vertices, kinds, colors, rows = [], [], [], []
    for number, geometry in enumerate(shapes.geometries):
        label = int(shapes.labels[number])
        for kind, outline in outlines(geometry):
            vertices.append(outline)
            kinds.append(kind)
            colors.append(tuple(v / 255 for v in shapes.colors[label]))
            rows.append(number)
    features = {
        "class": [shapes.names[int(shapes.labels[i])] for i in rows],
        "score": [float(annotations.scores[i]) for i in rows],
        "id": [annotations.ids[i] for i in rows],
    }
    scale, translate = frame_of(annotations, base)
    meta = {
        "name": shapes.title,
        "scale": scale,
        "translate": translate,
        "shape_type": kinds,
        "edge_color": colors,
        "face_color": [(*c, 0.15) for c in colors],
        "edge_width": 2.0,
        "features": features,
        "opacity": 0.9,
    }
    return vertices, meta, "shapes"


def shapes_of(annotations: Annotations) -> Shapes:
    """Return what a viewer draws of annotations; shapes without a class form one of their own, the last."""
    names, colors = annotations.class_names, annotations.class_colors
    labels = annotations.classes.astype(np.int64)
    if (labels < 0).any():
        labels = np.where(labels < 0, len(names), labels)
        names, colors = (*names, UNCLASSIFIED_NAME), (*colors, UNCLASSIFIED)
    title = names[0] if len(names) == 1 else "annotations"
    return Shapes(annotations.geometries, labels, names, colors, title)


def outlines(geometry: BaseGeometry) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield shape type and ``(N, 2)`` (y, x) vertices of what draws a geometry in an array viewer.

    A polygon with all its holes and parts is one outline: the further rings are walked to from the first vertex and
    back, and an edge that is walked twice is none. A line is a path, a point a small ellipse; of several, each is one.
    """
    import shapely

    kind = geometry.geom_type
    if kind in ("Polygon", "MultiPolygon"):
        rings = [shapely.get_coordinates(ring)[:, ::-1] for ring in shapely.get_rings(shapely.get_parts(geometry))]
        walk = [rings[0][:-1]]
        for ring in rings[1:]:
            walk += [rings[0][:1], ring]
        yield "polygon", np.concatenate(walk)
    elif kind in ("LineString", "LinearRing"):
        yield "path", shapely.get_coordinates(geometry)[:, ::-1]
    elif kind == "Point":
        (x, y), r = shapely.get_coordinates(geometry)[0], POINT_RADIUS
        yield "ellipse", np.array([(y - r, x - r), (y - r, x + r), (y + r, x + r), (y + r, x - r)])
    else:
        for part in shapely.get_parts(geometry):
            yield from outlines(part)


def locate(thing: Scan | Annotations, base: Scan) -> Placement:
    """Find where a thing lies on a base scan: through parent, origin, spacing and unit.

    Parameters
    ----------
    thing
        A scan or annotations.
    base
        The scan below it.

    Returns
    -------
    Placement
        Along y and x, in level-0 pixels of `base`. A thing whose pixel size is unknown takes the base's.

    Raises
    ------
    BadValueError
        If the units cannot be converted into one another.
    """
    y, x = (base.window_axes.index(a) for a in "yx")
    if isinstance(thing, Annotations):
        parent = thing.parent
        if parent is None or same_parent(parent, base):
            return Placement()
        ratio = unit_ratio(parent.unit, base)
        # Shapes of the base's own parent start where that parent does; other scans are taken to start with the base.
        known = base.parent is not None and base.parent.name == parent.name
        axes = [
            (parent.spacing[i] * ratio, base.spacing[j], -base.origin[j] if known else 0.0)
            for i, j in ((-2, y), (-1, x))
        ]
    else:
        ty, tx = (thing.window_axes.index(a) for a in "yx")
        ratio = unit_ratio(thing.unit, base)
        shift = [_corner(thing, base, t, i, ratio) for t, i in ((ty, y), (tx, x))]
        axes = [(thing.spacing[t] * ratio, base.spacing[i], s) for t, i, s in zip((ty, tx), (y, x), shift, strict=True)]
    scale, offset = [a / b for a, b, _ in axes], [s / b for _, b, s in axes]
    return Placement((scale[0], scale[1]), (offset[0], offset[1]))


def carry_index(index: Mapping[str, int], base: Scan, scan: Scan) -> dict[str, int]:
    """Carry a position on the further axes of a base over to another scan, by physical distance.

    Parameters
    ----------
    index
        Position on further axes of `base` (``{"z": 12}``), in pixels.
    base
        The scan that `index` counts in.
    scan
        The scan to find the same place in.

    Returns
    -------
    dict
        Position on those further axes that `scan` has too, kept inside it.
    """
    found = {}
    for axis, length in zip(scan.window_axes, scan.shape, strict=True):
        if axis in "yx" or axis not in index:
            continue
        at = int(index[axis])
        if scan is not base and axis in base.window_axes:
            ours, theirs = scan.window_axes.index(axis), base.window_axes.index(axis)
            where = (at + 0.5) * base.spacing[theirs]
            shift = scan.origin[ours] - (0 if scan.parent is not None else base.origin[theirs])
            at = math.floor((where - shift) / scan.spacing[ours])
            at = min(max(at, 0), length - 1)
        found[axis] = at
    return found


def _corner(thing: Scan, base: Scan, axis: int, base_axis: int, ratio: float) -> float:
    """Return the physical distance from the base's first corner to the thing's, in the base's unit."""
    own = thing.origin[axis] * ratio
    if thing.parent is not None and (base.parent is None or same_parent(thing.parent, base)):
        return own  # the parent's frame starts at the parent's first corner
    if thing.parent is None and base.parent is not None and same_parent(base.parent, thing):
        return -base.origin[base_axis]
    return own - base.origin[base_axis]


def same_parent(parent: Parent, scan: Scan) -> bool:
    """Return whether `scan` is the scan that `parent` refers to."""
    return parent.name == scan.name and parent.shape == scan.shape


def unit_ratio(unit: str, base: Scan) -> float:
    """Return how many units of `base` one `unit` is; pixels count as the base's own pixels."""
    if unit == base.unit:
        return 1.0
    if unit == "px":
        return base.spacing[base.window_axes.index("x")]
    if unit in LENGTHS and base.unit in LENGTHS:
        return LENGTHS[unit] / LENGTHS[base.unit]
    raise BadValueError(
        f"cannot lay a thing in {unit} on {base.name!r} in {base.unit}. Give both their pixel size: "
        "dh.open(path, spacing=…) or scan.replace(spacing=…, unit='µm')."
    )
