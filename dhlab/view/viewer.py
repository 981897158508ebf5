"""`Viewer`: layers on one another, the part of them that is looked at, and how they are shown; no front end."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from dhlab.annotations import Annotations, Document
from dhlab.errors import BadValueError, UnknownNameError, suggest
from dhlab.scan import Scan
from dhlab.view.composite import compose
from dhlab.view.editing import MOST_CHANGES, Editor
from dhlab.view.layers import locate, shapes_of
from dhlab.view.shapes import ShapeSource
from dhlab.view.tiles import COLOR_MAPS, Style, TileSource, index_of, plane_axes
from dhlab.view.traces import as_pages

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.learner import Learner
    from dhlab.view.learning import Learning
    from dhlab.view.watching import Watch

__all__ = ["NOT_LEARNING", "STYLE_KEYS", "Layer", "Thing", "Viewer"]

Thing = Scan | Annotations | Document

NOT_LEARNING = {"state": "off", "message": "", "progress": 0.0, "strokes": {}, "layer": None}
STYLE_KEYS = ("channel", "colors", "threshold", "low", "high")
# The width of a view that was never on a screen: what a cell usually has.
USUAL_ASPECT = 4 / 3


@dataclass(frozen=True, eq=False)
class Layer:
    """One thing in a viewer.

    Parameters
    ----------
    id
        Number that no other layer of the viewer ever has.
    name
        Name that no other layer of the viewer has at the time.
    thing
        What is shown.
    tiles
        The pixels of a scan, as tiles.
    shapes
        The shapes of annotations, as packed numbers.
    revision
        Counts how often the thing was replaced.
    document
        The document whose annotations, as of its revision `packed`, are the thing; None if they are no document's.
    packed
        Later edits of the document are told to fronts one by one.
    """

    id: int
    name: str
    thing: Scan | Annotations
    tiles: TileSource | None = None
    shapes: ShapeSource | None = None
    revision: int = 0
    document: Document | None = None
    packed: int = 0

    @classmethod
    def of(cls, thing: Thing, **fields: Any) -> Layer:
        """Return a layer that shows a thing; `fields` are its other ones."""
        if isinstance(thing, Scan):
            return cls(thing=thing, tiles=TileSource(thing), **fields)
        if isinstance(thing, Document):
            drawn, packed = thing.at_revision()
            return cls(thing=drawn, shapes=ShapeSource(drawn, named=True), document=thing, packed=packed, **fields)
        return cls(thing=thing, shapes=ShapeSource(thing), **fields)

    def showing(self, thing: Thing) -> Layer:
        """Return the same layer with another thing in it."""
        return Layer.of(thing, id=self.id, name=self.name, revision=self.revision + 1)


class Viewer(traitlets.HasTraits):
    """Scans, annotations and documents on one another, and the view of them; without any front end.

    Every attribute is a trait: ``viewer.observe(act, "center")`` calls ``act(change)`` whenever it changes, by Python
    or by whoever sits in front of it; ``change["new"]`` is its value. A front follows by the same means. Attributes
    are replaced, never changed in place.

    Parameters
    ----------
    things
        Scans, annotations and documents, from bottom to top; the first scan is the base. Only documents can be edited.
    height
        Height of the view in screen pixels.

    Attributes
    ----------
    layers
        What is shown, a tuple of `Layer` from bottom to top; change it with `add`, `remove` and `replace`.
    center
        Middle of the view in level-0 pixels of the base (y, x); None until it is fitted.
    zoom
        Screen pixels per level-0 pixel of the base; None fits the whole.
    rotation
        Clockwise, in degrees.
    index
        Position on further axes (``{"z": 12}``).
    settings
        Settings of every layer by its id as text. Of all: ``visible``, ``opacity``. Of scans: ``channel``, ``colors``,
        ``threshold``, ``low``, ``high``. Of annotations: ``hidden`` (indices of classes that are not drawn),
        ``class_colors`` (RGB of every class).
    tool
        What the pointer does: ``"pan"``, or the name of a tool that the front offers.
    active_class
        Name of the class that new shapes get; None for none.
    selection
        Ids of the objects that are selected in the documents.
    learning
        How live learning stands: ``state`` (``"off"``, ``"waiting"``, ``"training"``, ``"ready"``, ``"applying"``),
        ``message``, ``progress`` from 0 to 1, ``strokes`` (their number by class), ``layer`` (id of the heat map).
    height
        Height of the view in screen pixels.
    size
        Height and width of the view on the screen, in pixels, as the front last told it; None before.

    Raises
    ------
    BadValueError
        If there is no scan, a thing is neither scan nor annotations, or units cannot be converted.
    """

    # A trait is a value of its type for whoever reads it, which its declaration cannot say.
    layers: tuple[Layer, ...] = traitlets.Tuple(read_only=True)  # type: ignore[assignment] # see above
    center: tuple[float, float] | None = traitlets.Tuple(  # type: ignore[assignment] # see above
        traitlets.Float(), traitlets.Float(), default_value=None, allow_none=True
    ).tag(sync=True)
    zoom: float | None = traitlets.Float(None, allow_none=True).tag(sync=True)  # type: ignore[assignment] # see above
    rotation = traitlets.Float(0.0).tag(sync=True)
    index = traitlets.Dict().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    tool = traitlets.Unicode("pan").tag(sync=True)
    active_class = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    learning: dict[str, Any] = traitlets.Dict().tag(sync=True)  # type: ignore[assignment] # see above
    selection: list[str] = traitlets.List(traitlets.Unicode()).tag(sync=True)  # type: ignore[assignment] # see above
    height = traitlets.Int(500, min=120, max=10_000).tag(sync=True)
    size: tuple[float, float] | None = traitlets.Tuple(  # type: ignore[assignment] # see above
        traitlets.Float(), traitlets.Float(), default_value=None, allow_none=True
    ).tag(sync=True)

    def __init__(self, *things: Thing, height: int = 500, **traits: Any) -> None:
        self._editors: dict[int, Editor] = {}
        self._learning: Learning | None = None
        self._beginning = RLock()
        for thing in things:
            _check_thing(thing)
        if not any(isinstance(t, Scan) for t in things):
            raise BadValueError("nothing to show annotations on; expected a Scan first: dh.show(scan, annotations).")
        self._last_id = -1
        self._watches: list[Watch] = []
        shown = [_as_plane(thing) for thing in things]
        self._base: Scan = next(t for t in shown if isinstance(t, Scan))
        layers: list[Layer] = []
        for thing in shown:
            layers.append(self._new_layer(thing, taken=[layer.name for layer in layers]))
        axes = [a for a in self._base.window_axes if a not in "yx"]
        # Time begins at its beginning, a volume is best seen in its middle.
        index = dict(zip(axes, index_of(self._base, {"t": 0}), strict=True))
        self.set_trait("layers", tuple(layers))
        super().__init__(
            settings={str(layer.id): self._first_settings(layer) for layer in layers},
            index=index,
            height=height,
            **traits,
        )

    @traitlets.default("learning")
    def _learn_nothing(self) -> dict[str, Any]:
        return dict(NOT_LEARNING)

    @property
    def base(self) -> Scan:
        """The scan that everything else lies on; positions are its level-0 pixels."""
        return self._base

    @property
    def spacing(self) -> tuple[float, float]:
        """Physical size of a level-0 pixel of the base (y, x), in `unit`."""
        y, x = plane_axes(self._base)
        return self._base.spacing[y], self._base.spacing[x]

    @property
    def unit(self) -> str:
        """Unit of the base: ``"µm"``, ``"mm"``, or ``"px"`` where the physical size is unknown."""
        return self._base.unit

    @property
    def position(self) -> tuple[float, float] | None:
        """Middle of the view (y, x) as distance from the base's first corner, in `unit`; None until it is fitted."""
        if self.center is None:
            return None
        return self.center[0] * self.spacing[0], self.center[1] * self.spacing[1]

    @position.setter
    def position(self, position: Sequence[float] | None) -> None:
        y, x = position or (0.0, 0.0)
        self.center = None if position is None else (y / self.spacing[0], x / self.spacing[1])

    @property
    def resolution(self) -> float | None:
        """Physical width of a screen pixel, in `unit`; None fits the whole."""
        return None if self.zoom is None else self.spacing[1] / self.zoom

    @resolution.setter
    def resolution(self, resolution: float | None) -> None:
        if resolution is not None and not resolution > 0:
            raise BadValueError(f"resolution {resolution}; expected a positive number of {self.unit} per pixel.")
        self.zoom = None if resolution is None else self.spacing[1] / resolution

    @property
    def region(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """First corner and size (y, x) of what is in view, in level-0 pixels; that of the upright view if rotated."""
        if self.center is None or self.zoom is None:
            y, x = plane_axes(self._base)
            return (0.0, 0.0), (float(self._base.shape[y]), float(self._base.shape[x]))
        height, width = self.size or (self.height, self.height * USUAL_ASPECT)
        extent = (height / self.zoom * self.spacing[1] / self.spacing[0], width / self.zoom)
        return (self.center[0] - extent[0] / 2, self.center[1] - extent[1] / 2), extent

    def layer(self, name: str | int) -> Layer:
        """Return a layer by its name or id.

        Raises
        ------
        UnknownNameError
            If there is none.
        """
        for layer in self.layers:
            if name in (layer.name, layer.id):
                return layer
        raise UnknownNameError(f"no layer {name!r}.{suggest(str(name), [layer.name for layer in self.layers])}")

    def add(self, thing: Thing, *, name: str | None = None, below: str | int | None = None) -> Layer:
        """Put a thing on top of the others.

        Parameters
        ----------
        thing
            A scan, annotations or a document; placed by spacing, origin and parent.
        name
            Name of the layer; else the thing's own. A number is added where it is taken.
        below
            Name or id of a layer under which to put it instead.

        Returns
        -------
        Layer
            The new layer.

        Raises
        ------
        BadValueError
            If the thing is none of these, or its unit cannot be converted into the base's.
        """
        _check_thing(thing)
        layer = self._new_layer(_as_plane(thing), taken=[one.name for one in self.layers], name=name)
        settings = self.settings | {str(layer.id): self._first_settings(layer)}
        place = len(self.layers) if below is None else self.layers.index(self.layer(below))
        self._change_layers((*self.layers[:place], layer, *self.layers[place:]), settings)
        return layer

    def remove(self, name: str | int) -> None:
        """Take a layer away, by its name or id.

        Raises
        ------
        UnknownNameError
            If there is no such layer.
        BadValueError
            If it is the base.
        """
        layer = self.layer(name)
        if layer.thing is self._base:
            raise BadValueError(f"{layer.name!r} is what the others lie on; hide it: set_layer(…, visible=False).")
        settings = {key: value for key, value in self.settings.items() if key != str(layer.id)}
        self._change_layers(tuple(one for one in self.layers if one is not layer), settings)
        self._let_go(layer)

    def replace(self, name: str | int, thing: Thing) -> Layer:
        """Show another thing in a layer, with the settings that it has.

        Parameters
        ----------
        name
            Name of the layer, or its id.
        thing
            A scan where a scan was, annotations where annotations were.

        Returns
        -------
        Layer
            The layer as it is now.

        Raises
        ------
        UnknownNameError
            If there is no such layer.
        BadValueError
            If the thing is of another type, or the layer is the base.
        """
        layer = self.layer(name)
        _check_thing(thing)
        shown = layer.thing if layer.document is None else layer.document
        another = layer.document is not None and thing is not layer.document
        if type(thing) is not type(shown) or layer.thing is self._base or another:
            raise BadValueError(
                f"cannot show {type(thing).__name__} in layer {layer.name!r}; expected another "
                f"{type(shown).__name__}, and neither the base nor a document. Make a new viewer: dh.show(…)."
            )
        new = layer.showing(_as_plane(thing))
        locate(new.thing, self._base)
        fresh = self._first_settings(new)
        own = self.settings[str(layer.id)]
        if new.document is not None:
            own = own | {"class_colors": fresh["class_colors"]}
        elif isinstance(thing, Annotations) and len(own["class_colors"]) != len(fresh["class_colors"]):
            own = own | {"class_colors": fresh["class_colors"], "hidden": []}
        self._change_layers(
            tuple(new if one is layer else one for one in self.layers), self.settings | {str(layer.id): own}
        )
        return new

    def edit(self, name: str | int, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a front's message about a document that is shown.

        Parameters
        ----------
        name
            Name of the layer, or its id.
        message
            As of `dhlab.view.editing.Editor.answer`, which also says what is returned and raised.
        """
        layer = self.layer(name)
        if layer.document is None:
            raise BadValueError(f"{layer.name!r} is no document; expected one to edit: dh.Document.open(scan).")
        answer = self._editors[layer.id].answer(message)
        self._renew(layer.id)
        return answer

    @property
    def learner(self) -> Learner | None:
        """What learns from a document at present, see `learn`; None if nothing does."""
        return None if self._learning is None else self._learning.learner

    def learn(self, name: str | int, action: str = "start", *, wait: bool = False) -> dict[str, Any]:
        """Let a document that is shown teach a classifier while one draws, and see what it has learned as a layer.

        Parameters
        ----------
        name
            Name of the document's layer, or its id.
        action
            ``"start"``, ``"stop"``; and while it learns: ``"next"`` (go where it is unsure), ``"apply"`` (map the whole
            slide in the background), ``"cancel"`` (end that), ``"polygons"`` (outline the classes, as proposals).
        wait
            Wait until all that is drawn has been learned, and nothing is being mapped any more.

        Returns
        -------
        dict
            `learning` as it is then.

        Raises
        ------
        UnknownNameError
            If there is no such layer or action.
        BadValueError
            If it is no document of a plane, or nothing is learned yet.
        """
        from dhlab.view.learning import Learning

        layer = self.layer(name)
        if layer.document is None:
            raise BadValueError(f"{layer.name!r} is no document; expected one to draw in: dh.Document.open(scan).")
        # To end takes a moment; who starts meanwhile, in another tab, begins after it.
        with self._beginning:
            running = self._learning
            other = running is None or running.number != layer.id
            if running is not None and (action == "stop" or (action == "start" and other)):
                running.end()
                self._learning = None
            if action == "start" and other:
                self._learning = Learning(self, layer.id)
        if action not in ("start", "stop"):
            if running is None or other:
                raise BadValueError(f"nothing is being learned from {layer.name!r}; start that first.")
            running.do(action)
        if wait and self._learning is not None:
            self._learning.wait()
        return dict(self.learning)

    def refresh(self, name: str | int) -> None:
        """Let fronts ask anew for what a layer shows, because its pixels have changed.

        Parameters
        ----------
        name
            Name of the layer, or its id.

        Raises
        ------
        UnknownNameError
            If there is no such layer.
        """
        layer = self.layer(name)
        new = dataclasses.replace(layer, revision=layer.revision + 1)
        self._change_layers(tuple(new if one is layer else one for one in self.layers), self.settings)

    def watch(self, path: str | os.PathLike[str], *, name: str | None = None) -> Watch:
        """Show an image while `predict` or another run writes it, as a layer on top that grows with it.

        Parameters
        ----------
        path
            Where the finished image will appear, ``….ome.zarr``: the `out` of `predict`. It need not have begun.
        name
            Name of the layer; else the image's own.

        Returns
        -------
        Watch
            ``end()`` stops looking, ``wait()`` waits for the finished image. Removing the layer or closing the viewer
            ends it too.
        """
        from dhlab.view.watching import Watch

        watch = Watch(self, Path(path).expanduser(), name)
        self._watches.append(watch)
        return watch

    def fit(self) -> None:
        """Show the whole base scan."""
        with self._together():
            self.center, self.zoom, self.rotation = None, None, 0.0

    def set_layer(self, name: str | int, /, **changes: Any) -> None:
        """Change the settings of one layer.

        Parameters
        ----------
        name
            Name of the layer, or its id.
        changes
            ``visible``, ``opacity``; of scans ``channel`` (number or name), ``colors``, ``threshold``, ``low``,
            ``high``; of annotations ``hidden``, ``class_colors`` (RGB of every class, or of some by name).

        Raises
        ------
        UnknownNameError
            If there is no such layer or setting.
        BadValueError
            If a value is out of range.
        """
        layer = self.layer(name)
        own = self.settings[str(layer.id)]
        if unknown := set(changes) - set(own):
            raise UnknownNameError(f"no setting {min(unknown)!r}.{suggest(min(unknown), own)}")
        if isinstance(channel := changes.get("channel"), str) and isinstance(layer.thing, Scan):
            if channel not in layer.thing.channels:
                raise UnknownNameError(f"no channel {channel!r}.{suggest(channel, layer.thing.channels)}")
            changes["channel"] = layer.thing.channels.index(channel)
        if "class_colors" in changes and isinstance(layer.thing, Annotations):
            changes["class_colors"] = _all_colors(changes["class_colors"], layer.thing, own["class_colors"])
        merged = {**own, **changes}
        if not 0 <= merged["opacity"] <= 1:
            raise BadValueError(f"opacity {merged['opacity']}; expected a number from 0 to 1.")
        if isinstance(layer.thing, Scan):
            Style(**{k: merged[k] for k in STYLE_KEYS})
        self.settings = self.settings | {str(layer.id): merged}

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
            with target._together():
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
        things: list[Scan | Annotations] = []
        shares: list[float] = []
        styles: dict[int, Style] = {}
        for layer in self.layers:
            settings = self.settings[str(layer.id)]
            if layer.thing is self._base:
                styles[-1] = self._style(layer)
            elif settings["visible"]:
                if layer.tiles is not None:
                    styles[len(things)] = self._style(layer)
                things.append(self._as_set(layer))
                shares.append(settings["opacity"])
        return compose(
            self._base,
            *things,
            max_px=max_px,
            region=None if whole or self.center is None or self.zoom is None else self.region,
            opacity=shares,
            legend=legend,
            styles=styles,
            index=self.index,
        )

    def close(self) -> None:
        """Forget every tile and stop watching; the viewer cannot be used afterwards."""
        for watch in getattr(self, "_watches", ()):
            watch.end()
        if (learning := getattr(self, "_learning", None)) is not None:
            learning.end()
        for layer in self.layers:
            self._let_go(layer)

    def __repr__(self) -> str:
        return f"Viewer of {', '.join(layer.name for layer in self.layers)}"

    def _together(self) -> AbstractContextManager[Any]:
        """Let whoever observes see several changes as one."""
        return self.hold_trait_notifications()

    def _change_layers(self, layers: tuple[Layer, ...], settings: Mapping[str, Any]) -> None:
        with self._together():
            self.settings = dict(settings)
            self.set_trait("layers", layers)

    def _new_layer(self, thing: Thing, *, taken: Sequence[str], name: str | None = None) -> Layer:
        if thing is not self._base:
            locate(thing.annotations if isinstance(thing, Document) else thing, self._base)
        wanted = name or _title(thing)
        free = wanted
        number = 1
        while free in taken:
            number += 1
            free = f"{wanted} {number}"
        self._last_id += 1
        if isinstance(thing, Document):
            self._editors[self._last_id] = Editor(thing, partial(self._hear_of_edit, self._last_id))
        return Layer.of(thing, id=self._last_id, name=free)

    def _hear_of_edit(self, number: int, news: dict[str, Any]) -> None:
        """Learn of an edit of a document that was not made here."""
        del news
        self._renew(number)

    def _renew(self, number: int) -> None:
        """Give fronts all shapes of a document anew, if very many have changed since they got them."""
        for layer in self.layers:
            if layer.id == number and layer.document is not None:
                changed = layer.document.changes_since(layer.packed)
                if changed is None or len(changed.objects) > MOST_CHANGES:
                    self.replace(number, layer.document)

    def _let_go(self, layer: Layer) -> None:
        if layer.tiles is not None:
            layer.tiles.clear()
        if self._learning is not None and self._learning.number == layer.id:
            self._learning.end()
            self._learning = None
        if editor := self._editors.pop(layer.id, None):
            editor.end()

    def _first_settings(self, layer: Layer) -> dict[str, Any]:
        thing = layer.thing
        if isinstance(thing, Annotations):
            colors = [list(c) for c in shapes_of(thing).colors]
            return {"visible": True, "opacity": 1.0, "hidden": [], "class_colors": colors}
        assert layer.tiles is not None
        display = layer.tiles.display
        return {
            "visible": True,
            "opacity": 1.0 if thing is self._base else 0.5,
            "hidden": [],
            "channel": None,
            "colors": COLOR_MAPS[0],
            "threshold": 0.0,
            "low": display.low,
            "high": display.high,
        }

    def _style(self, layer: Layer) -> Style:
        settings = self.settings[str(layer.id)]
        return Style(**{k: settings[k] for k in STYLE_KEYS})

    def _as_set(self, layer: Layer) -> Scan | Annotations:
        """Return a layer's thing; annotations without hidden classes and in the colours that were chosen."""
        if isinstance(layer.thing, Scan):
            return layer.thing
        settings = self.settings[str(layer.id)]
        thing = layer.thing if layer.document is None else layer.document.annotations
        if settings["hidden"]:
            thing = thing[~np.isin(shapes_of(thing).labels, settings["hidden"])]
        if layer.document is not None:
            return thing
        return thing.replace(class_colors=tuple(map(tuple, settings["class_colors"][: len(thing.class_names)])))


def _check_thing(thing: object) -> None:
    if not isinstance(thing, (Scan, Annotations, Document)):
        raise BadValueError(
            f"cannot show {type(thing).__name__}; expected Scans, Annotations and Documents. Open files with dh.open."
        )


def _title(thing: Thing) -> str:
    if isinstance(thing, Document):
        return "annotations"
    return thing.name if isinstance(thing, Scan) else shapes_of(thing).title


def _as_plane(thing: Thing) -> Thing:
    """Return what can be panned in: a signal as the pages of its traces, everything else as it is."""
    return as_pages(thing) if isinstance(thing, Scan) and thing.window_axes == "t" else thing


def _all_colors(colors: Any, thing: Annotations, known: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the RGB of every class as lists; a mapping changes those that it names."""
    names = shapes_of(thing).names
    if hasattr(colors, "items"):
        if unknown := set(colors) - set(names):
            raise UnknownNameError(f"no class {min(unknown)!r}.{suggest(min(unknown), names)}")
        colors = [colors.get(name, old) for name, old in zip(names, known, strict=True)]
    with suppress(TypeError, ValueError):
        table = [[int(v) for v in color] for color in colors]
        if len(table) == len(names) and all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in table):
            return table
    raise BadValueError(f"class_colors {colors!r}; expected {len(names)} triples of 0 to 255, or some by class name.")


def _close(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=1e-6, atol=1e-3))
