"""Run a model over a scan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QDoubleSpinBox, QFileDialog, QFormLayout, QHBoxLayout, QLineEdit, QPushButton, QWidget

from dhlab.errors import BadValueError
from dhlab_napari.compilers import load_triton
from dhlab_napari.showing import add
from dhlab_napari.widgets.parts import LayerChoice, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.viewer import Viewer

    from dhlab.scan import Scan

load_triton()

__all__ = ["PredictWidget"]


class PredictWidget(QWidget):
    """The dock for `dhlab.predict`: a heat map for every class, with progress, and an end whenever one wants.

    Parameters
    ----------
    napari_viewer
        The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.scans = LayerChoice(napari_viewer, wanted=lambda scan: scan.kind == "image")
        self.masks = LayerChoice(napari_viewer, wanted=lambda scan: scan.kind == "mask", none="everywhere")
        self.model, self.out = QLineEdit(), QLineEdit()
        self.model.setPlaceholderText("folder of a model")
        self.out.setPlaceholderText("in memory, or ….ome.zarr")
        self.out.setToolTip(
            "A run that was ended goes on where it stopped when it is started again with the same place."
        )
        browse = QPushButton("…")
        browse.clicked.connect(self._browse)
        self.overlap = QDoubleSpinBox()
        self.overlap.setRange(0, 0.9)
        self.overlap.setSingleStep(0.05)
        self.overlap.setValue(0.25)
        self.work = Work("Predict", self._make, self._show)
        line = QHBoxLayout()
        line.addWidget(self.model)
        line.addWidget(browse)
        form = QFormLayout(self)
        form.addRow("Scan", self.scans)
        form.addRow("Model", line)
        form.addRow("Within", self.masks)
        form.addRow("Overlap", self.overlap)
        form.addRow("Save to", self.out)
        form.addRow(self.work)

    def _browse(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Folder of a model", self.model.text()):
            self.model.setText(folder)

    def _make(self) -> Callable[[Callable[[int, int], None]], Scan] | None:
        scan = self.scans.scan
        if scan is None:
            raise BadValueError("nothing to look at; expected a slide or a picture. Open one first.")
        if not self.model.text():
            raise BadValueError("no model; expected the folder that dh.export wrote. Choose one with ….")
        self._base, within = scan, self.masks.scan
        folder, out, overlap = Path(self.model.text()), self.out.text() or None, self.overlap.value()

        from dhlab.inference import predict
        from dhlab.models import load_model

        def work(tell: Callable[[int, int], None]) -> Scan:
            return predict(load_model(folder), scan, within=within, overlap=overlap, out=out, progress=tell)

        return work

    def _show(self, heat: Scan) -> str:
        add(self.viewer, heat, base=self._base)
        stages = heat.meta["stages"]
        return f"{stages['tiles']:,} windows in {stages['seconds']:.1f} s."
