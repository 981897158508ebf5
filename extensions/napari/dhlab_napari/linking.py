"""A document in a viewer: a picture of all its shapes, a Shapes layer of those in hand, and both ways between them."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from napari.layers import Layer, Shapes
from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import QObject, Qt, QTimer, Signal

from dhlab.annotations.records import CLASS, GEOMETRY, PROPERTIES
from dhlab.errors import DHLabError
from dhlab.view.layers import UNCLASSIFIED, outlines, shapes_of
from dhlab_napari.outlines import Row, move_copies, to_geometry
from dhlab_napari.raster import raster_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from napari.viewer import Viewer
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from dhlab.annotations import Annotations, Document, Update
    from dhlab.scan import Scan

__all__ = ["DocumentLayers", "link_of"]

# What an edit is called that was made in a mode of napari's Shapes layer.
TOOLS = {
    "add_rectangle": "rectangle", "add_ellipse": "ellipse", "add_polygon": "polygon", "add_polygon_lasso": "freehand",
    "add_path": "line", "add_polyline": "line", "add_line": "line", "direct": "edit", "select": "move",
    "vertex_insert": "edit", "vertex_remove": "edit",
}  # fmt: skip
# napari makes something of a mere click in these modes.
BY_DRAGGING, LEAST_PX = ("add_rectangle", "add_ellipse", "add_line"), 4.0
MOST_HELD = 2000
EDGE_PX = 2.0
REACH_PX = 4.0  # on the screen, within which a click means a line or a point
BUSY_MS, QUIET_MS = 100, 20
MOST_BOXES = 2000
# Less than napari's 32 bits and GeoJSON's hundredths of a pixel make of a position on a large slide.
SAME_PX = 0.03
FACE = 0.2


class DocumentLayers(QObject):
    """Shows a document in a viewer, keeps what is drawn there in it, and follows what others draw.

    All shapes are drawn as one picture. A click takes a shape in hand: it leaves the picture for a Shapes layer, where
    napari's tools edit it, and goes back with a click beside it. Every finished stroke is one edit of the document.

    Parameters
    ----------
    viewer
        The viewer.
    document
        The document; whoever opened it closes it.
    base
        The scan that it lies on.

    Attributes
    ----------
    picture, hand
        The two layers.
    changed
        Qt signal: the document, the selection or the class for new shapes is another.
    """

    changed = Signal()
    _told = Signal()

    def __init__(self, viewer: Viewer, document: Document, *, base: Scan) -> None:
        super().__init__()
        self.viewer, self.document, self.base = viewer, document, base
        self._active_class: str | None = document.classes[0].name if document.classes else None
        self._lock = Lock()
        self._touched: set[str] = set()
        self._recolored = self._filling = self._refill = self._waiting = False
        self._edge_width = 1.0
        self._class_keys: set[str] = set()
        self._annotations = document.annotations
        self._index()
        data, meta, _ = raster_layer(self._annotations, base)
        self._canvas = meta["metadata"]["canvas"]
        name = document.path.name
        self.picture = viewer.add_image(data, **{**meta, "name": name})
        frame = {"scale": np.array(meta["scale"]) * self._canvas.fine, "units": meta["units"]}
        corner = np.array(meta["translate"]) - np.array(meta["scale"]) / 2
        self.hand = Shapes(
            None, ndim=2, name=f"in hand: {name}", translate=corner, opacity=1.0, metadata={"link": self}, **frame
        )
        self._held: list[str] = []
        self._rows: list[tuple[str, Row]] = []
        self.hand.editable = document.read_only is None
        self.hand.events.data.connect(self._on_data)
        self.hand.selected_data.events.items_changed.connect(self._on_selection)
        self.hand.mouse_drag_callbacks.append(self._pick)
        viewer.scene.camera.events.zoom.connect(self._on_zoom)
        viewer.layers.events.removed.connect(self._on_removed)
        self._told.connect(self._settle, Qt.ConnectionType.QueuedConnection)
        self._end = document.observe(self._on_update)
        self._bind_keys()
        self._on_zoom()
        # Whoever looks for a document finds it by this layer, so it comes last.
        viewer.add_layer(self.hand)
        self.active_class = self._active_class
        viewer.layers.selection.active = self.hand
        if document.read_only is not None:
            show_warning(f"Nothing can be drawn here: {document.read_only}")

    @property
    def active_class(self) -> str | None:
        """Class of what is drawn next; None for none."""
        return self._active_class

    @active_class.setter
    def active_class(self, name: str | None) -> None:
        self._active_class = name
        red, green, blue = (v / 255 for v in self._colors().get(name, UNCLASSIFIED))
        if not self.hand.selected_data:
            self.hand.current_edge_color = (red, green, blue, 1)
            self.hand.current_face_color = (red, green, blue, FACE)
        self.changed.emit()

    @property
    def annotations(self) -> Annotations:
        """What the layers show: the document's annotations, but for what came in the last moment."""
        return self._annotations

    @property
    def fine(self) -> int:
        """Pixels of the picture's finest level along a level-0 pixel."""
        return self._canvas.fine

    @property
    def held(self) -> tuple[str, ...]:
        """Ids of the objects in hand."""
        return tuple(self._held)

    @property
    def selected(self) -> tuple[str, ...]:
        """Ids of the objects in hand that are selected."""
        return tuple(dict.fromkeys(self._rows[i][0] for i in sorted(self.hand.selected_data) if i < len(self._rows)))

    def hold(self, ids: Iterable[str], *, select: bool = True) -> None:
        """Take objects in hand, and put all others back.

        Parameters
        ----------
        ids
            Their ids; beyond 2,000, the rest stays in the picture.
        select
            Select them, too.
        """
        wanted = [key for key in dict.fromkeys(ids) if key in self._places]
        if len(wanted) > MOST_HELD:
            show_info(f"{MOST_HELD:,} of {len(wanted):,} objects are taken in hand; the others stay as they are.")
        chosen = self.selected
        before, self._held = self._held, wanted[:MOST_HELD]
        self._redraw({*before} ^ {*self._held}, self._annotations)
        self._fill(self._held if select else chosen)

    def go_to(self, key: str) -> None:
        """Take one object in hand, and look at it."""
        if key not in self._places:
            return
        left, top, right, bottom = shapely.bounds(self._geometry(key))
        self.look_at(((top + bottom) / 2, (left + right) / 2))
        self.hold([key])

    def look_at(self, position: tuple[float, float]) -> None:
        """Move a place (y, x) in level-0 pixels into the middle of the view."""
        y, x = self.hand.data_to_world(position)
        self.viewer.scene.camera.center = (0.0, y, x)

    def find(self, position: Sequence[float]) -> str | None:
        """Return the id of the smallest object at a place (y, x) in level-0 pixels, or of a line or point near it."""
        reach = REACH_PX / (self.viewer.scene.camera.zoom * float(self.hand.scale[-1]))
        y, x = position
        rows = self._annotations.indices_in_window((y - reach, x - reach), (2 * reach, 2 * reach))
        shapes = self._annotations.geometries[rows]
        rows = rows[(shapely.get_dimensions(shapes) < 2) | shapely.intersects(shapes, shapely.Point(x, y))]
        if not rows.size:
            return None
        return str(self._annotations.ids[rows[np.argmin(shapely.area(self._annotations.geometries[rows]))]])

    def classify(self, name: str | None) -> None:
        """Give the selected objects a class, and what is drawn next."""
        if ids := self.selected:
            self.edit(lambda: self.document.change(ids, class_name=name, tool="class"))
        self.active_class = name

    def edit(self, make: Callable[[], Any]) -> Any:
        """Make an edit of the document; what it refuses is told, and the layers go back to what the document holds."""
        try:
            done = make()
        except DHLabError as error:
            show_warning(str(error))
            self._refill = True
            self._told.emit()
            return None
        if note := getattr(done, "note", ""):
            show_info(note)
        return done

    def undo(self) -> None:
        """Take back the last edit of the document's author."""
        self.edit(self.document.undo)

    def redo(self) -> None:
        """Make the edit again that was taken back last."""
        self.edit(self.document.redo)

    def end(self) -> None:
        """Stop following; the layers stay."""
        self._end()
        self.hand.events.data.disconnect(self._on_data)
        self.viewer.scene.camera.events.zoom.disconnect(self._on_zoom)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        self.hand.metadata.pop("link", None)

    def _index(self) -> None:
        self._places = {str(key): place for place, key in enumerate(self._annotations.ids)}

    def _colors(self) -> dict[str | None, tuple[int, int, int]]:
        return {one.name: one.color for one in self.document.classes}

    def _geometry(self, key: str) -> BaseGeometry:
        found: BaseGeometry = self._annotations.geometries[self._places[key]]
        return found

    def _on_update(self, update: Update) -> None:
        """Note what was changed, in whichever thread."""
        with self._lock:
            self._touched.update(update.objects)
            self._recolored |= update.classes
        self._told.emit()

    def _settle(self) -> None:
        """Show what was noted, in the main thread."""
        if self._waiting:
            return
        # A shape that is just being drawn is no row of the document yet, and must not be drawn anew under the pointer.
        if self.hand._is_creating or self.hand._is_moving:
            self._waiting = True
            QTimer.singleShot(BUSY_MS, self._resume)
            return
        with self._lock:
            touched, recolored = self._touched, self._recolored
            self._touched, self._recolored = set(), False
        annotations = self.document.annotations
        self._redraw(touched, annotations, everything=recolored)
        kept = [key for key in self._held if key in self._places]
        stale = kept != self._held or any(key in touched and not self._is_drawn(key) for key in kept)
        if recolored:
            self._bind_classes()
        if stale or recolored or self._refill:
            chosen = self.selected
            self._held = kept
            self._fill(chosen)
        self.changed.emit()

    def _resume(self) -> None:
        self._waiting = False
        self._settle()

    def _redraw(self, touched: Iterable[str], annotations: Annotations, *, everything: bool = False) -> None:
        """Draw the picture anew where something is different."""
        boxes = []
        for one in (self._annotations, annotations):
            if one is not self._annotations:
                self._annotations = annotations
                self._index()
            places = [self._places[key] for key in touched if key in self._places]
            boxes.append(shapely.bounds(one.geometries[places]).reshape(-1, 4))
        bounds = np.concatenate(boxes)
        self._canvas.replace(
            annotations, hidden=self._held, touched=None if everything or len(bounds) > MOST_BOXES else bounds
        )
        self.picture.metadata["annotations"] = annotations
        # napari keeps the coarsest level that it has read; setting the levels again lets it forget.
        self.picture.data = self._canvas.levels

    def _is_drawn(self, key: str) -> bool:
        """Return whether the rows of an object in hand show what the document holds."""
        rows = [row for name, row in self._rows if name == key]
        wanted = list(outlines(self._geometry(key)))
        return len(rows) == len(wanted) and all(
            kind == other and a.shape == b.shape and np.allclose(a, b, rtol=0, atol=SAME_PX)
            for (kind, a), (other, b) in zip(rows, wanted, strict=True)
        )

    def _fill(self, selected: Iterable[str]) -> None:
        """Let the Shapes layer hold the objects in hand, as the document has them."""
        self._refill = False
        places = [self._places[key] for key in self._held]
        shapes = shapes_of(self._annotations[places]) if places else None
        self._rows, edges, faces, classes = [], [], [], []
        for number, key in enumerate(self._held):
            assert shapes is not None
            label = int(shapes.labels[number])
            color = tuple(v / 255 for v in shapes.colors[label])
            for kind, vertices in outlines(shapes.geometries[number]):
                self._rows.append((key, (kind, np.asarray(vertices, np.float32))))
                edges.append((*color, 1.0))
                faces.append((*color, FACE))
                classes.append(shapes.names[label])
        chosen = set(selected)
        with self._quiet():
            self.hand.selected_data = set()
            self.hand.data = []
            if self._rows:
                self.hand.add(
                    [vertices for _, (_, vertices) in self._rows],
                    shape_type=[kind for _, (kind, _) in self._rows],
                    edge_color=edges,
                    face_color=faces,
                    edge_width=self._edge_width,
                )
            self.hand.features = {"id": [key for key, _ in self._rows], "class": classes}
            self.hand.selected_data = {i for i, (key, _) in enumerate(self._rows) if key in chosen}
        self.active_class = self._active_class

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        before, self._filling = self._filling, True
        try:
            yield
        finally:
            self._filling = before

    def _on_data(self, event: Any) -> None:
        """Turn what was done in the Shapes layer into one edit."""
        action = str(getattr(event, "action", ""))
        if self._filling or action not in ("added", "changed", "removed"):
            return
        now: list[Row] = [
            (kind, np.asarray(data)) for kind, data in zip(self.hand.shape_type, self.hand.data, strict=True)
        ]
        before = list(self._rows)
        touched: dict[str, None] = {}
        # Rows that are gone are named by the event; also the removal of one vertex too many removes a row.
        if len(now) < len(before):
            for row in sorted((int(i) for i in event.data_indices), reverse=True):
                touched[before.pop(row)[0]] = None
        rows: list[tuple[str, Row]] = []
        for (key, (_, old)), (kind, data) in zip(before, now, strict=False):
            moved = move_copies(old, data)
            if data.shape != old.shape or not np.array_equal(moved, old):
                touched[key] = None
            rows.append((key, (kind, moved)))
        drawn = [(str(uuid.uuid4()), row) for row in now[len(before) :]]
        self._rows = rows + drawn
        changes = [self._change_of(key) for key in touched] + [self._creation_of(key, row) for key, row in drawn]
        wanted = [change for change in changes if change is not None]
        self._refill |= bool(drawn)
        if wanted:
            tool = "remove" if action == "removed" else TOOLS.get(str(self.hand.mode), "edit")
            self._held = list(dict.fromkeys([*self._held, *(change["object"] for change in wanted)]))
            self.edit(lambda: self.document.apply(wanted, tool=tool))
        elif drawn:
            self._told.emit()

    def _change_of(self, key: str) -> dict[str, Any] | None:
        """Return what became of an object in hand."""
        if key not in self._places:
            return None
        geometry = to_geometry([row for name, row in self._rows if name == key], self._geometry(key))
        if geometry.is_empty:
            return {"object": key, "after": {"exists": False}}
        return {"object": key, "after": {GEOMETRY: json.loads(shapely.to_geojson(geometry))}}

    def _creation_of(self, key: str, row: Row) -> dict[str, Any] | None:
        """Return a new object, or None where a stroke was too short to be one."""
        geometry = to_geometry([row])
        is_click = str(self.hand.mode) in BY_DRAGGING and self._on_screen(np.ptp(row[1], axis=0)) < LEAST_PX
        if geometry.is_empty or is_click:
            return None
        after: dict[str, Any] = {"exists": True, GEOMETRY: json.loads(shapely.to_geojson(geometry))}
        after[PROPERTIES + "objectType"] = "annotation"
        if self._active_class is not None:
            after[CLASS] = {"name": self._active_class}
        return {"object": key, "after": after}

    def _on_screen(self, size: NDArray[Any]) -> float:
        """Return the longer side of a size (y, x) in level-0 pixels, in pixels of the screen."""
        return float(np.max(size)) * self.viewer.scene.camera.zoom * float(self.hand.scale[-1])

    def _pick(self, layer: Shapes, event: Any) -> Iterator[None]:
        """Take in hand what a click or a box in the picture means."""
        if str(layer.mode) not in ("select", "direct"):
            return
        was_held = layer.get_value(event.position, world=True)[0] is not None
        start = np.array(layer.world_to_data(event.position))[-2:]
        yield
        boxed = False
        while event.type == "mouse_move":
            boxed = True
            yield
        if was_held:
            return
        stop = np.array(layer.world_to_data(event.position))[-2:]
        if boxed:
            low, high = np.minimum(start, stop), np.maximum(start, stop)
            found = self._annotations.in_window(low, high - low)
            inside = shapely.within(found.geometries, shapely.box(low[1], low[0], high[1], high[0]))
            chosen = [str(key) for key in found.ids[inside]]
        else:
            key = self.find(stop.tolist())
            chosen = [] if key is None else [key]
        self.hold([*self._held, *chosen] if "Shift" in event.modifiers else chosen)

    def _on_selection(self, _event: object = None) -> None:
        if not self._filling:
            self.changed.emit()

    def _on_zoom(self, _event: object = None) -> None:
        """Keep outlines as thin on the screen as those in the picture."""
        width = EDGE_PX / (self.viewer.scene.camera.zoom * float(self.hand.scale[-1]))
        if not 0.8 < width / self._edge_width < 1.25:
            self._edge_width = width
            with self._quiet():
                self.hand.edge_width = width
                if not self.hand.selected_data:
                    self.hand.current_edge_width = max(1, round(width))

    def _on_removed(self, event: Any) -> None:
        if event.value in (self.picture, self.hand):
            self.end()

    def _bind_keys(self) -> None:
        """Undo and redo by the usual keys, classes by their own, where this layer is active."""
        for keys, act in (("Control-Z", self.undo), ("Control-Shift-Z", self.redo), ("Control-Y", self.redo)):
            self.hand.bind_key(keys, lambda _layer, act=act: act(), overwrite=True)
        self._bind_classes()

    def _bind_classes(self) -> None:
        for key in self._class_keys - {one.shortcut for one in self.document.classes}:
            self.hand.bind_key(key, None)
        self._class_keys = {one.shortcut for one in self.document.classes if one.shortcut}
        for one in self.document.classes:
            if one.shortcut:
                self.hand.bind_key(one.shortcut, lambda _layer, name=one.name: self.classify(name), overwrite=True)


def link_of(layers: Iterable[Layer]) -> DocumentLayers | None:
    """Return the document that is shown in layers, or None."""
    return next((layer.metadata["link"] for layer in layers if "link" in layer.metadata), None)
