"""`show`: scans, heat maps and annotations in a notebook cell, tile by tile over the kernel's own connection."""

from __future__ import annotations

import contextvars
import hashlib
import io
import json
import math
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from dhlab import env
from dhlab.annotations import Annotations
from dhlab.display import class_color, thumbnail
from dhlab.errors import BadValueError, DHLabError, MissingDependencyError, UnknownNameError, suggest
from dhlab.scan import Scan
from dhlab.view.composite import compose
from dhlab.view.layers import LENGTHS, locate, shapes_of
from dhlab.view.tiles import COLOR_MAPS, Style, TileSource, class_names, color_map, index_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Viewer", "show"]

STATIC = Path(__file__).parent / "static"
BUILD = "npm ci --prefix extensions/viewer && npm run --prefix extensions/viewer build"
# Beyond this many, only the largest shapes are sent to the browser.
MAX_SHAPES = 20_000
STILL_PX = 560
GRADIENT_STOPS = 9
STYLE_KEYS = ("channel", "colors", "threshold", "low", "high")


def show(*things: Scan | Annotations, height: int = 500, link: Viewer | None = None) -> Viewer:
    """Show scans and annotations on top of one another in the notebook.

    The first scan is the base. Heat maps, masks, label maps and further scans are placed by spacing, origin and
    parent, annotations by their level-0 pixels. Pixels travel as tiles over the kernel's own connection; no port is
    opened, and nothing but small settings is stored in the notebook.

    Parameters
    ----------
    things
        Scans and annotations, from bottom to top.
    height
        Height of the viewer in screen pixels.
    link
        Another viewer whose place, zoom and rotation this one follows, and the other way round.

    Returns
    -------
    Viewer
        The last expression of a cell shows it.

    Raises
    ------
    BadValueError
        If there is no scan, or a thing is neither scan nor annotations.
    MissingDependencyError
        If the browser part of the viewer is not built.
    """
    viewer = Viewer(*things, height=height)
    if link is not None:
        viewer.link(link)
    return viewer


class Viewer(anywidget.AnyWidget):
    """Scans and annotations on one another in a notebook cell; made by `show`.

    Parameters
    ----------
    things
        Scans and annotations, from bottom to top; the first scan is the base.
    height
        Height in screen pixels.

    Attributes
    ----------
    center
        Middle of the view in level-0 pixels of the base (y, x); None until it is fitted.
    zoom
        Screen pixels per level-0 pixel of the base; None fits the whole.
    rotation
        Clockwise, in degrees.
    index
        Position on further axes (``{"z": 12}``).
    settings
        Settings of every layer by its number as text: ``visible``, ``opacity``, ``channel``, ``colors``,
        ``threshold``, ``hidden`` (classes not drawn).
    """

    center: tuple[float, float] | None = traitlets.Tuple(  # type: ignore[assignment]
        traitlets.Float(), traitlets.Float(), default_value=None, allow_none=True
    ).tag(sync=True)
    zoom: float | None = traitlets.Float(None, allow_none=True).tag(sync=True)  # type: ignore[assignment]
    rotation = traitlets.Float(0.0).tag(sync=True)
    index = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    height = traitlets.Int(500, min=120, max=10_000).tag(sync=True)
    _scene = traitlets.Dict().tag(sync=True)
    _version = traitlets.Unicode().tag(sync=True)

    def __init__(self, *things: Scan | Annotations, height: int = 500) -> None:
        # Also a viewer that was refused below is closed by the garbage collector.
        self._sources: dict[int, TileSource] = {}
        self._futures: dict[tuple[str, int], Future[None]] = {}
        self._lock = Lock()
        loader, version = _bundle()[2:]
        for thing in things:
            if not isinstance(thing, (Scan, Annotations)):
                raise BadValueError(
                    f"cannot show {type(thing).__name__}; expected Scans and Annotations. Open files with dh.open."
                )
        scans = [t for t in things if isinstance(t, Scan)]
        if not scans:
            raise BadValueError("nothing to show annotations on; expected a Scan first: dh.show(scan, annotations).")
        # A signal has no plane to pan in: its traces are shown as a picture.
        self._things = tuple(_as_picture(t) if isinstance(t, Scan) else t for t in things)
        self._base: Scan = next(t for t in self._things if isinstance(t, Scan))
        self._sources = {i: TileSource(t) for i, t in enumerate(self._things) if isinstance(t, Scan)}
        further = index_of(self._base, None)
        axes = [a for a in self._base.window_axes if a not in "yx"]
        super().__init__(
            _esm=loader,
            _scene={"layers": [self._describe(i) for i in range(len(self._things))]},
            _version=version,
            settings={str(i): self._first_settings(i) for i in range(len(self._things))},
            index=dict(zip(axes, further, strict=True)),
            height=height,
        )
        self.on_msg(self._receive)

    def fit(self) -> None:
        """Show the whole base scan."""
        with self.hold_sync():
            self.center, self.zoom, self.rotation = None, None, 0.0

    def set_layer(self, name: str | int, /, **changes: Any) -> None:
        """Change the settings of one layer.

        Parameters
        ----------
        name
            Name of the layer, or its number from the bottom.
        changes
            ``visible``, ``opacity``, ``channel`` (number or name), ``colors``, ``threshold``, ``hidden``.

        Raises
        ------
        UnknownNameError
            If there is no such layer or setting.
        BadValueError
            If a value is out of range.
        """
        names = [_title(t) for t in self._things]
        number = names.index(name) if name in names else name
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise UnknownNameError(f"no layer {name!r}.{suggest(str(name), names)}")
        key = str(number)
        settings: dict[str, Any] = dict(self.settings)
        if unknown := set(changes) - set(settings[key]):
            raise UnknownNameError(f"no setting {min(unknown)!r}.{suggest(min(unknown), settings[key])}")
        thing = self._things[number]
        if isinstance(channel := changes.get("channel"), str) and isinstance(thing, Scan):
            if channel not in thing.channels:
                raise UnknownNameError(f"no channel {channel!r}.{suggest(channel, thing.channels)}")
            changes["channel"] = thing.channels.index(channel)
        merged = {**settings[key], **changes}
        if not 0 <= merged["opacity"] <= 1:
            raise BadValueError(f"opacity {merged['opacity']}; expected a number from 0 to 1.")
        if isinstance(thing, Scan):
            Style(**{k: merged[k] for k in STYLE_KEYS})
        self.settings = settings | {key: merged}

    def link(self, other: Viewer) -> None:
        """Follow the place, zoom and rotation of another viewer, and let it follow this one.

        Places are matched in physical units, so two scans of one tissue at different pixel sizes stay together.

        Parameters
        ----------
        other
            The other viewer.

        Raises
        ------
        BadValueError
            If the units of the two base scans cannot be converted.
        """
        place = locate(other._base, self._base)

        def follow(target: Viewer, center: Sequence[float] | None, zoom: float | None, rotation: float) -> None:
            new = None if center is None else (float(center[0]), float(center[1]))
            if _close(target.center, new) and _close(target.zoom, zoom) and _close(target.rotation, rotation):
                return
            with target.hold_sync():
                target.center, target.zoom, target.rotation = new, zoom, rotation

        def to_other(_change: object) -> None:
            center = self.center and [
                (c - o) / s for c, o, s in zip(self.center, place.offset, place.scale, strict=True)
            ]
            follow(other, center, self.zoom and self.zoom * place.scale[1], self.rotation)

        def to_self(_change: object) -> None:
            center = other.center and [
                c * s + o for c, o, s in zip(other.center, place.offset, place.scale, strict=True)
            ]
            follow(self, center, other.zoom and other.zoom / place.scale[1], other.rotation)

        names = ["center", "zoom", "rotation"]
        self.observe(to_other, names)
        other.observe(to_self, names)
        to_self(None)

    def snapshot(self, max_px: int = 1200, *, legend: bool = True, whole: bool = False) -> NDArray[np.uint8]:
        """Draw what is shown as a picture, in Python, without the browser.

        Parameters
        ----------
        max_px
            Longest side in pixels.
        legend
            Draw class names, colours and a scale bar.
        whole
            Draw the whole base scan instead of the present view. A rotated view is drawn upright.

        Returns
        -------
        ndarray
            ``(height, width, 3)`` uint8.
        """
        visible = [i for i in range(len(self._things)) if self.settings[str(i)]["visible"]]
        base = next(i for i, t in enumerate(self._things) if t is self._base)
        overlays = [i for i in visible if i != base]
        styles = {n: self._style(i) for n, i in enumerate(overlays) if i in self._sources}
        region = None
        if self.center is not None and self.zoom is not None and not whole:
            # The width is the browser's; four to three is what a cell usually has.
            height = self.height / self.zoom
            size = (height, height * 4 / 3)
            region = ((self.center[0] - size[0] / 2, self.center[1] - size[1] / 2), size)
        return compose(
            self._base,
            *(self._without_hidden(i) for i in overlays),
            max_px=max_px,
            region=region,
            opacity=[self.settings[str(i)]["opacity"] for i in overlays],
            legend=legend,
            styles=styles | {-1: self._style(base)},
            index=self.index,
        )

    def close(self) -> None:
        """Stop sending tiles and forget them; the view in the browser goes away."""
        for future in list(self._futures.values()):
            future.cancel()
        for source in self._sources.values():
            source.clear()
        super().close()

    def __repr__(self) -> str:
        return f"Viewer of {', '.join(_title(t) for t in self._things)}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), "text/plain": repr(self), "image/png": self._still()}, metadata

    def _still(self) -> str:
        """Return a small picture for places without widgets as base64 PNG, its colours reduced to keep it light."""
        import base64

        from PIL import Image

        buffer = io.BytesIO()
        picture = Image.fromarray(self.snapshot(STILL_PX, whole=True)).quantize(192, dither=Image.Dither.FLOYDSTEINBERG)
        picture.save(buffer, "PNG", optimize=True)
        return base64.b64encode(buffer.getvalue()).decode()

    def _style(self, number: int) -> Style:
        settings = self.settings[str(number)]
        return Style(**{k: settings[k] for k in STYLE_KEYS})

    def _without_hidden(self, number: int) -> Scan | Annotations:
        thing = self._things[number]
        hidden = self.settings[str(number)]["hidden"]
        if isinstance(thing, Scan) or not hidden:
            return thing
        return thing[~np.isin(shapes_of(thing).labels, hidden)]

    def _first_settings(self, number: int) -> dict[str, Any]:
        thing = self._things[number]
        base = thing is self._base
        settings = {"visible": True, "opacity": 1.0 if base or isinstance(thing, Annotations) else 0.5, "hidden": []}
        if isinstance(thing, Annotations):
            return settings
        display = self._sources[number].display
        return settings | {
            "channel": None,
            "colors": COLOR_MAPS[0],
            "threshold": 0.0,
            "low": display.low,
            "high": display.high,
        }

    def _describe(self, number: int) -> dict[str, Any]:
        """Return what the browser needs to know of a layer, once."""
        thing = self._things[number]
        place = locate(thing, self._base) if thing is not self._base else None
        common: dict[str, Any] = {
            "id": number,
            "name": _title(thing),
            "base": thing is self._base,
            "scale": list(place.scale) if place else [1.0, 1.0],
            "offset": list(place.offset) if place else [0.0, 0.0],
        }
        if isinstance(thing, Annotations):
            shapes = shapes_of(thing)
            counts = np.bincount(shapes.labels, minlength=len(shapes.names)).tolist()
            classes = [
                {"name": n, "color": list(c), "count": k}
                for n, c, k in zip(shapes.names, shapes.colors, counts, strict=True)
            ]
            return common | {"kind": "shapes", "classes": classes, "count": len(shapes.labels)}
        info = self._sources[number].info()
        names = class_names(thing) if thing.kind != "image" else list(thing.channels)
        classes = [{"name": n, "color": list(class_color(i))} for i, n in enumerate(names)]
        stops = np.linspace(0, 255, GRADIENT_STOPS).astype(int)
        maps = {m: color_map(m)[stops].tolist() for m in COLOR_MAPS if m != "class"}
        metre = LENGTHS.get(thing.unit)
        return common | {"kind": thing.kind, "classes": classes, "maps": maps, "metre": metre, "info": info}

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        """Answer a message of the browser; anything slow is left to other threads."""
        kind, view, number = content.get("type"), str(content.get("view", "")), int(content.get("id", 0))
        if kind == "bundle":
            script, style, _, version = _bundle()
            self._answer({"type": "bundle", "version": version}, [script, style])
        elif kind in ("tile", "shapes"):
            work = self._send_tile if kind == "tile" else self._send_shapes
            # A thread of its own does not know which message it answers; the context does.
            future = _workers().submit(contextvars.copy_context().run, work, content)
            self._futures[view, number] = future
            future.add_done_callback(lambda _: self._futures.pop((view, number), None))
        elif kind == "cancel":
            for stale in content.get("ids", ()):
                if waiting := self._futures.get((view, int(stale))):
                    waiting.cancel()

    def _send_tile(self, content: dict[str, Any]) -> None:
        head = {k: content.get(k) for k in ("type", "view", "id")}
        try:
            number = int(content["layer"])
            source = self._sources[number]
            settings = {k: v for k, v in content.get("style", {}).items() if k in STYLE_KEYS}
            index = self._index_on(source.scan, content.get("index") or {})
            place = (int(content[k]) for k in ("level", "row", "column"))
            data, mime = source.encode(*place, **settings, index=index)
        except (DHLabError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            self._answer(head | {"error": f"{type(error).__name__}: {error}"}, [])
        else:
            self._answer(head | {"mime": mime}, [data])

    def _send_shapes(self, content: dict[str, Any]) -> None:
        head = {k: content.get(k) for k in ("type", "view", "id")}
        try:
            thing = self._things[int(content["layer"])]
            assert isinstance(thing, Annotations)
            data, shown = _features(thing)
        except (DHLabError, ValueError, KeyError, IndexError, AssertionError, MemoryError) as error:
            self._answer(head | {"error": f"{type(error).__name__}: {error}"}, [])
        else:
            self._answer(head | {"shown": shown}, [data])

    def _answer(self, head: dict[str, Any], buffers: list[bytes]) -> None:
        with self._lock:
            self.send(head, buffers)

    def _index_on(self, scan: Scan, index: dict[str, int]) -> dict[str, int]:
        """Carry a position on the base's further axes over to another scan, by physical distance."""
        found = {}
        for axis, length in zip(scan.window_axes, scan.shape, strict=True):
            if axis in "yx" or axis not in index:
                continue
            at = int(index[axis])
            if scan is not self._base and axis in self._base.window_axes:
                ours, theirs = scan.window_axes.index(axis), self._base.window_axes.index(axis)
                where = (at + 0.5) * self._base.spacing[theirs]
                shift = scan.origin[ours] - (0 if scan.parent is not None else self._base.origin[theirs])
                at = math.floor((where - shift) / scan.spacing[ours])
                at = min(max(at, 0), length - 1)
            found[axis] = at
        return found


def _features(annotations: Annotations) -> tuple[bytes, int]:
    """Return shapes as GeoJSON in (x, y) for the browser, the largest first where there are too many, and how many."""
    import shapely

    shapes = shapes_of(annotations)
    areas = shapely.area(shapes.geometries)
    picked = np.arange(len(areas))
    if len(picked) > MAX_SHAPES:
        picked = np.sort(np.argsort(areas)[::-1][:MAX_SHAPES])
    texts: list[str] = list(shapely.to_geojson(shapes.geometries[picked])) if len(picked) else []
    features = []
    for i, text in zip(picked.tolist(), texts, strict=True):
        label = int(shapes.labels[i])
        facts: dict[str, Any] = {"label": label, "class": shapes.names[label], "area": float(areas[i])}
        if np.isfinite(annotations.scores[i]):
            facts["score"] = float(annotations.scores[i])
        if annotations.names[i]:
            facts["title"] = str(annotations.names[i])
        features.append(f'{{"type":"Feature","geometry":{text},"properties":{json.dumps(facts)}}}')
    return f'{{"type":"FeatureCollection","features":[{",".join(features)}]}}'.encode(), len(picked)


def _as_picture(scan: Scan) -> Scan:
    if "y" in scan.axes and "x" in scan.axes:
        return scan
    return Scan.from_array(thumbnail(scan, 2048), "yxc", name=scan.name, fill=255)


def _title(thing: Scan | Annotations) -> str:
    return thing.name if isinstance(thing, Scan) else shapes_of(thing).title


def _close(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=1e-6, atol=1e-3))


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, env.thread_count()), thread_name_prefix="dhlab-view")


@cache
def _bundle() -> tuple[bytes, bytes, str, str]:
    """Return script and style of the viewer, the loader that fetches them, and their version."""
    try:
        script, style = (STATIC / "viewer.js").read_bytes(), (STATIC / "viewer.css").read_bytes()
        loader = (STATIC / "loader.js").read_text("utf-8")
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"the browser part of the viewer is not built ({error.filename} is missing); plan: install dhlab from a "
            f"wheel, or build it in a checkout with Node.js: {BUILD}"
        ) from error
    # The whole script in the widget's state would be stored with every executed notebook; the loader asks for it.
    return script, style, loader, hashlib.sha256(script + style).hexdigest()[:16]
