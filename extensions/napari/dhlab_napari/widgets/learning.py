"""Live learning: the slide segments itself after a few strokes, and follows every correction."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.qt.threading import create_worker
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from dhlab.errors import BadValueError, DHLabError, describe
from dhlab.tissue import find_tissue
from dhlab_napari.compilers import load_triton
from dhlab_napari.linking import DocumentLayers, link_of
from dhlab_napari.showing import add
from dhlab_napari.widgets.parts import Work, attempt
from dhlab_napari.winners import WinnerLevel, blank_levels, winner_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.viewer import Viewer

    from dhlab.learner import Learner
    from dhlab.scan import Scan

load_triton()

__all__ = ["LearningWidget"]

PAUSE_MS = 120
LAYER = "live learning"


class LearningWidget(QWidget):
    """The dock for `dhlab.Learner`: what is drawn in the document teaches, while one draws.

    Parameters
    ----------
    napari_viewer
        The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.learner: Learner | None = None
        self.layer: Any = None
        self.heat: Scan | None = None
        self._link: DocumentLayers | None = None
        self._worker: Any = None
        self._again = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PAUSE_MS)
        self._timer.timeout.connect(self._learn)
        self.switch = QPushButton("Learn from strokes")
        self.switch.setCheckable(True)
        self.switch.toggled.connect(self._on_switch)
        self.news = QLabel("Draw a few strokes of two classes or more with the dock Annotations.")
        self.news.setWordWrap(True)
        self.next, self.outline, self.cells = (
            QPushButton(text) for text in ("Where to draw next", "Outline what is in view", "Cells in view")
        )
        for button, act in (
            (self.next, self.show_next),
            (self.outline, self.outline_view),
            (self.cells, self.find_cells),
        ):
            button.clicked.connect(act)
        self.least = QDoubleSpinBox()
        self.least.setRange(0, 1e9)
        self.least.setValue(100)
        self.out = QLineEdit()
        self.out.setPlaceholderText("in memory, or ….ome.zarr")
        self.work = Work("Apply to the whole slide", self._make, self._show)
        line = QHBoxLayout()
        line.addWidget(self.outline)
        line.addWidget(self.cells)
        form = QFormLayout()
        form.addRow("Least area", self.least)
        form.addRow(line)
        form.addRow("Save to", self.out)
        form.addRow(self.work)
        box = QVBoxLayout(self)
        for part in (self.switch, self.news, self.next):
            box.addWidget(part)
        box.addLayout(form)
        box.addStretch()
        napari_viewer.layers.events.removed.connect(self._on_removed)

    def show_next(self) -> None:
        """Look at the place that would teach most."""
        if self.learner is not None:
            learner, region = self.learner, self._view()
            self._ask(lambda: learner.propose(1, region=region), self._go_to)

    def outline_view(self) -> None:
        """Add outlines of what is in view to the document, to be reviewed."""
        if self.learner is not None:
            learner, region, least = self.learner, self._view(), self.least.value()
            self._ask(lambda: learner.polygons(region=region, min_area=least), self._keep)

    def find_cells(self) -> None:
        """Add the cells in view with their classes to the document, to be reviewed."""
        if self.learner is not None:
            learner, region = self.learner, self._view()
            self._ask(lambda: learner.objects(region=region), self._keep)

    def _on_switch(self, checked: bool) -> None:
        if not checked:
            self._stop()
            return
        link = link_of(self.viewer.layers)
        if link is None:
            self.news.setText("No document is open. Open one with the dock Annotations, and draw in it.")
            self.switch.setChecked(False)
            return
        from dhlab.learner import Learner

        try:
            self.learner = Learner(link.base, link.document)
        except DHLabError as error:
            self.news.setText(str(error))
            self.switch.setChecked(False)
            return
        self._link = link
        link.changed.connect(self._timer.start)
        self._learn()

    def _stop(self) -> None:
        if self._link is not None:
            self._link.changed.disconnect(self._timer.start)
        self._link = self.learner = self.heat = None
        if self.layer is not None and self.layer in self.viewer.layers:
            self.viewer.layers.remove(self.layer)
        self.layer = None

    def _on_removed(self, event: Any) -> None:
        if self._link is not None and event.value is self._link.hand:
            self.switch.setChecked(False)
        elif event.value is self.layer:
            self.layer = None
            self.switch.setChecked(False)

    def _learn(self) -> None:
        """Learn anew in a thread, and there compute what is in view."""
        learner = self.learner
        if learner is None:
            return
        if self._worker is not None:
            self._again = True
            return
        view = None if self.layer is None else (self.layer.data_level, np.array(self.layer.corner_pixels))

        def work() -> tuple[Scan, str]:
            learner.update()
            heat = learner.heat
            if view is not None and view[0] < len(heat.levels):
                (top, left), (bottom, right) = view[1][:, :2]
                WinnerLevel(heat, view[0])[top : bottom + 1, left : right + 1]
            counts = ", ".join(f"{count} × {name}" for name, count in learner.counts.items())
            return heat, f"Learned from {counts}."

        self._worker = create_worker(attempt, work, _start_thread=False)
        self._worker.returned.connect(partial(self._on_learned, learner))
        self._worker.start()

    def _on_learned(self, learner: Learner, outcome: tuple[tuple[Scan, str], Exception | None]) -> None:
        self._worker = None
        if learner is not self.learner:
            # Switched off meanwhile, and perhaps on again for another slide.
            self._learn()
            return
        result, error = outcome
        if error is not None:
            self.news.setText(describe(error))
        else:
            heat, text = result
            self.news.setText(text)
            if self.layer is None:
                # What is in view is computed next, in the thread: napari says what that is once there is a layer.
                self.layer = self._add(heat)
                self._again = True
            elif heat is not self.heat:
                self.heat = heat
                self.layer.data = winner_levels(heat)
        if self._again:
            self._again = False
            self._learn()

    def _add(self, heat: Scan) -> Any:
        """Lay a blank picture between the scan and what is drawn."""
        from dhlab_napari.layers import placement

        assert self._link is not None
        active = self.viewer.layers.selection.active
        layer = self.viewer.add_image(
            blank_levels(heat),
            rgb=True,
            multiscale=True,
            name=LAYER,
            opacity=0.5,
            **placement(heat, self._link.base),
        )
        self.viewer.layers.move(self.viewer.layers.index(layer), self.viewer.layers.index(self._link.picture))
        self.viewer.layers.selection.active = active
        return layer

    def _view(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return start and size (y, x) of what is in view, in level-0 pixels of the scan."""
        assert self._link is not None
        picture, fine = self._link.picture, self._link.fine
        factor = picture.downsample_factors[picture.data_level][:2] / fine
        low, high = picture.corner_pixels[0, :2] * factor, (picture.corner_pixels[1, :2] + 1) * factor
        limit = np.array([self._link.base.shape[self._link.base.window_axes.index(a)] for a in "yx"], float)
        low, high = np.clip(low, 0, limit - 1), np.clip(high, 1, limit)
        return (float(low[0]), float(low[1])), (float(high[0] - low[0]), float(high[1] - low[1]))

    def _ask(self, work: Callable[[], Any], show: Callable[[Any], None]) -> None:
        """Compute in a thread, and show what came of it, unless that was for another slide."""
        learner = self.learner

        def finish(outcome: tuple[Any, Exception | None]) -> None:
            result, error = outcome
            if learner is not self.learner:
                return
            if error is None:
                show(result)
            else:
                self.news.setText(describe(error))

        worker = create_worker(attempt, work, _start_thread=False)
        worker.returned.connect(finish)
        worker.start()

    def _go_to(self, places: Any) -> None:
        if self._link is None or not len(places):
            self.news.setText("No place is in doubt here.")
            return
        top, left, bottom, right = places.bounds[0]
        self._link.look_at(((top + bottom) / 2, (left + right) / 2))
        self.news.setText(f"Draw here: the class is in doubt ({places.scores[0]:.0%} sure).")

    def _keep(self, found: Any) -> None:
        if self._link is not None and len(found):
            document = self._link.document
            self._link.edit(lambda: document.add(found, tool="learning", review="proposed"))
        self.news.setText(f"{len(found):,} objects are proposed; the dock Annotations shows one after the other.")

    def _make(self) -> Callable[[Callable[[int, int], None]], tuple[Scan, Scan]]:
        if self.learner is None:
            raise BadValueError("nothing is learned yet; expected strokes of two classes. Press “Learn from strokes”.")
        learner, out = self.learner, self.out.text() or None

        def work(tell: Callable[[int, int], None]) -> tuple[Scan, Scan]:
            tissue = find_tissue(learner.scan)
            within = tissue if tissue.meta["share"] > 0 else None
            return learner.scan, learner.apply(out, within=within, progress=tell)

        return work

    def _show(self, mapped: tuple[Scan, Scan]) -> str:
        scan, heat = mapped
        add(self.viewer, heat, base=scan)
        return f"{heat.meta['stages']['tiles']:,} windows in {heat.meta['stages']['seconds']:.1f} s."
