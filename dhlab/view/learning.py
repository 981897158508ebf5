"""Live learning in a viewer: strokes of a document are learned as they are drawn, and the heat map is a layer."""

from __future__ import annotations

import atexit
import contextvars
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadValueError, UnknownNameError, describe, suggest
from dhlab.learner import Learner
from dhlab.learner.strokes import choose_strokes
from dhlab.tissue import find_tissue
from dhlab.view.viewer import NOT_LEARNING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dhlab.annotations import Annotations
    from dhlab.scan import Scan
    from dhlab.view.viewer import Viewer

__all__ = ["Learning"]

# Edits that follow one another this closely are learned together.
PAUSE_S = 0.1
# Places that are proposed before new ones are looked for.
PLACES = 8
# Steps of progress that a person is told.
STEPS = 100
# Pieces smaller than a square of so many pixels of the heat map are no polygons.
LEAST_SIDE = 8
SUFFIX = ".learned.ome.zarr"


class _CancelledError(Exception):
    """A person has ended what was going on."""


class Learning:
    """Learns from a document that a viewer shows, in a thread of its own, and keeps a layer of the viewer up to date.

    The trait `learning` of the viewer says how it stands. An edit that comes while something is being learned is
    learned next, together with all others that came meanwhile.

    Parameters
    ----------
    viewer
        Whose layer it is.
    number
        Id of the document's layer.
    """

    def __init__(self, viewer: Viewer, number: int) -> None:
        document = viewer.layer(number).document
        assert document is not None
        self.viewer, self.number, self.document = viewer, number, document
        self.learner = Learner(document.scan, document)
        self._layer: int | None = None
        self._classes: tuple[str, ...] = ()
        self._applied: Scan | None = None
        self._places: list[tuple[float, float]] = []
        self._tissue: Scan | None = None
        self._changed, self._ended, self._cancelled = threading.Event(), threading.Event(), threading.Event()
        self._idle = threading.Event()
        self._applying: threading.Thread | None = None
        self._turn = threading.Lock()
        self._strokes = choose_strokes(document.annotations)
        self._tell(state="training", message="", strokes=self._count())
        self._changed.set()
        self._stop_hearing = document.observe(lambda _: self._changed.set())
        self._thread = self._start(self._follow, "dhlab-learn")
        # Python must not end under a thread that is inside torch.
        atexit.register(self._leave)

    def do(self, action: str) -> None:
        """Do what a person asks for.

        Parameters
        ----------
        action
            ``"next"`` (go to a place to draw at), ``"apply"`` (map the whole slide), ``"cancel"`` (end that),
            ``"polygons"`` (outline the classes, in the whole slide if it is mapped, else in what is in view).

        Raises
        ------
        UnknownNameError
            If there is no such action.
        BadValueError
            If there is nothing learned yet.
        """
        actions: dict[str, Callable[[], None]] = {
            "next": self._go_on,
            "apply": self._apply,
            "cancel": self._cancelled.set,
            "polygons": self._outline,
        }
        if action not in actions:
            raise UnknownNameError(f"no action {action!r}.{suggest(action, ('start', 'stop', *actions))}")
        if action != "cancel" and self._layer is None:
            raise BadValueError(f"nothing is learned yet. {self.viewer.learning['message']}".strip())
        actions[action]()

    def end(self) -> None:
        """Stop learning and take the heat map away; the document keeps everything."""
        self._stop_hearing()
        atexit.unregister(self._leave)
        self._leave()
        if self._layer is not None and any(layer.id == self._layer for layer in self.viewer.layers):
            self.viewer.remove(self._layer)
        self._layer = None
        self.viewer.learning = dict(NOT_LEARNING)

    def wait(self, timeout: float = 60.0) -> bool:
        """Wait until all edits are learned and nothing is being applied, and return whether that is so."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self._changed.is_set() and self._idle.is_set() and not self._is_applying():
                return True
            time.sleep(0.02)
        return False

    def _leave(self) -> None:
        """End the threads, and wait until they have gone."""
        for told in (self._ended, self._cancelled, self._changed):
            told.set()
        for thread in (self._thread, self._applying):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def _is_applying(self) -> bool:
        return self._applying is not None and self._applying.is_alive()

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        # A front sends what changes to the cell that asked: the context says which one that was.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(target,), name=name, daemon=True)
        thread.start()
        return thread

    def _tell(self, **changes: Any) -> None:
        if not self._ended.is_set():
            self.viewer.learning = {**self.viewer.learning, "layer": self._layer, **changes}

    def _count(self) -> dict[str, int]:
        return dict(Counter(stroke.class_name for stroke in self._strokes))

    def _follow(self) -> None:
        """Learn after every change, until the end."""
        while self._changed.wait():
            self._ended.wait(PAUSE_S)
            self._idle.clear()
            # Cleared before the document is read: what comes later is learned in the next round.
            self._changed.clear()
            if self._ended.is_set():
                return
            try:
                self._learn()
            except Exception as error:  # noqa: BLE001 (the person is told, and learning goes on)
                self._tell(state="waiting", message=describe(error), strokes=self._count())
            self._idle.set()

    def _learn(self) -> None:
        before, self._strokes = self._strokes, choose_strokes(self.document.annotations)
        # What was said of the last request holds until somebody draws.
        if before != self._strokes and self.viewer.learning["state"] != "applying":
            self._tell(state="training", message="")
        if self.learner.update() or self._layer is None:
            with self._turn:
                if self._ended.is_set():
                    return
                self._applied, self._places = None, []
                self._show(self.learner.heat)
        applying = self.viewer.learning["state"] == "applying"
        self._tell(strokes=self._count(), **({} if applying else {"state": "ready"}))

    def _show(self, heat: Scan) -> None:
        viewer = self.viewer
        known = any(layer.id == self._layer for layer in viewer.layers)
        if known and self._layer is not None and heat.channels == self._classes:
            viewer.replace(self._layer, heat)
            return
        if known and self._layer is not None:
            viewer.remove(self._layer)
        self._layer = viewer.add(heat, name="learned", below=self.number).id
        self._classes = heat.channels

    def _go_on(self) -> None:
        """Look at the next place where the classifier is unsure; strokes make it look for others."""
        if not self._places:
            places = self.learner.propose(PLACES, within=self._find_tissue())
            self._places = [(float(a + c) / 2, float(b + d) / 2) for a, b, c, d in places.bounds]
        if not self._places:
            self._tell(message="no place to look at: all are drawn on, or there is no tissue.")
            return
        viewer, scan = self.viewer, self.learner.scan
        near = 1 / max(scan.scales[self.learner.level])
        with viewer.hold_trait_notifications():
            viewer.center = self._places.pop(0)
            viewer.zoom = max(near, viewer.zoom or 0.0)

    def _find_tissue(self) -> Scan | None:
        if self._tissue is None:
            self._tissue = find_tissue(self.learner.scan)
        return self._tissue if self._tissue.meta["share"] > 0 else None

    def _apply(self) -> None:
        """Map the whole slide in the background."""
        if self._is_applying():
            raise BadValueError("the slide is being mapped already; wait, or cancel that first.")
        self._cancelled.clear()
        self._tell(state="applying", progress=0.0, message="")
        self._applying = self._start(self._map, "dhlab-apply")

    def _map(self) -> None:
        told = [0]

        def tell(done: int, total: int) -> None:
            if self._cancelled.is_set():
                raise _CancelledError
            step = STEPS * done // max(1, total)
            if step > told[0]:
                told[0] = step
                self._tell(state="applying", progress=step / STEPS)

        message = ""
        try:
            before = self.learner.heat
            heat = self.learner.apply(self._place(), within=self._find_tissue(), progress=tell)
            with self._turn:
                if self._ended.is_set():
                    return
                # What was drawn meanwhile is not in it.
                if self.learner.heat is before:
                    self._applied = heat
                    self._show(heat)
                else:
                    message = "strokes were drawn meanwhile: the map is of those before."
        except _CancelledError:
            message = "cancelled."
        except Exception as error:  # noqa: BLE001 (the person is told)
            message = describe(error)
        self._tell(state="ready", progress=0.0, message=message)

    def _place(self) -> Path | None:
        """Return where the map of the slide is kept: beside the document, or in memory where nothing can be written."""
        if self.document.read_only is not None:
            return None
        path = self.document.path
        return path.with_name(path.name.removesuffix(".geojson") + SUFFIX)

    def _outline(self) -> None:
        scan = self.learner.scan
        pixel = [s * LEAST_SIDE for s in scan.spacing_of(self.learner.level)]
        region = None if self._applied is not None else self.viewer.region
        found: Annotations = self.learner.polygons(self._applied, region=region, min_area=pixel[0] * pixel[1])
        if len(found):
            self.document.add(found, tool="learner")
        where = "on the slide" if region is None else "in view"
        self._tell(message=f"{len(found)} polygons {where}, to be accepted or rejected.")
