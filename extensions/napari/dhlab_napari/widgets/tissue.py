"""Find the tissue of a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFormLayout, QWidget

from dhlab.tissue import find_tissue
from dhlab_napari.showing import add
from dhlab_napari.widgets.parts import LayerChoice, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.viewer import Viewer

    from dhlab.scan import Scan

__all__ = ["TissueWidget"]


class TissueWidget(QWidget):
    """The dock for `dhlab.find_tissue`: a mask as a labels layer, to be mended with napari's brush.

    Parameters
    ----------
    napari_viewer
        The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.scans = LayerChoice(napari_viewer, wanted=lambda scan: scan.kind == "image")
        self.sensitivity = QDoubleSpinBox()
        self.sensitivity.setRange(0.1, 10)
        self.sensitivity.setSingleStep(0.1)
        self.sensitivity.setValue(1)
        self.sensitivity.setToolTip("Above 1 finds paler tissue, below 1 only what is clearly stained.")
        self.background = QComboBox()
        self.background.addItems(["auto", "bright", "dark"])
        self.ink = QCheckBox("pen ink counts as tissue")
        self.work = Work("Find tissue", self._make, self._show)
        form = QFormLayout(self)
        form.addRow("Scan", self.scans)
        form.addRow("Sensitivity", self.sensitivity)
        form.addRow("Background", self.background)
        form.addRow("", self.ink)
        form.addRow(self.work)

    def _make(self) -> Callable[[Callable[[int, int], None]], Scan] | None:
        scan = self.scans.scan
        if scan is None:
            self.work.news.setText("Open a slide or a picture first.")
            return None
        chosen: dict[str, Any] = {
            "sensitivity": self.sensitivity.value(),
            "background": self.background.currentText(),
            "ink": self.ink.isChecked(),
        }
        self._base = scan
        return lambda _tell: find_tissue(scan, **chosen)

    def _show(self, mask: Scan) -> str:
        add(self.viewer, mask, base=self._base)
        return f"{mask.meta['share']:.0%} of {self._base.name} is tissue."
