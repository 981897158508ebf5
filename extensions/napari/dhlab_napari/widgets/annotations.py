"""Annotate: classes, review, comments, undo and history of a document."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QColorDialog,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from dhlab.annotations import Document
from dhlab.annotations.edits import describe
from dhlab.errors import DHLabError
from dhlab.view.layers import UNCLASSIFIED_NAME
from dhlab_napari.linking import DocumentLayers, link_of
from dhlab_napari.raster import review_of
from dhlab_napari.widgets.parts import LayerChoice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from napari.viewer import Viewer

    from dhlab.annotations import Annotations

__all__ = ["AnnotationsWidget"]

REVIEWS = ("proposed", "accepted", "rejected")
ANY = "any"
EDITS_SHOWN = 100
SWATCH_PX = 14
EDIT_ROLE = 256  # the first that Qt leaves to others


class AnnotationsWidget(QWidget):
    """The dock for annotating: what is drawn is saved in the document of a scan at once.

    Parameters
    ----------
    napari_viewer
        The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.link: DocumentLayers | None = None
        self._own: Document | None = None
        box = QVBoxLayout(self)
        for part in (self._make_head(), self._make_classes(), self._make_selection(), self._make_history()):
            box.addWidget(part)
        napari_viewer.layers.events.inserted.connect(self._find)
        napari_viewer.layers.events.removed.connect(self._find)
        self._find()

    def open(self, path: str | Path | None = None) -> None:
        """Open the document of the chosen scan.

        Parameters
        ----------
        path
            The GeoJSON; by default that beside the scan's file.
        """
        scan = self.scans.scan
        if scan is None:
            self.news.setText("Open a slide or a picture first.")
            return
        try:
            document = Document.open(scan, path)
        except DHLabError as error:
            self.news.setText(str(error))
            return
        self.close_document()
        self._own = document
        DocumentLayers(self.viewer, document, base=scan)

    def close_document(self) -> None:
        """Take the layers of the document away, and close it if it was opened here."""
        if self.link is not None:
            for layer in (self.link.hand, self.link.picture):
                if layer in self.viewer.layers:
                    self.viewer.layers.remove(layer)
        if self._own is not None:
            self._own.close()
            self._own = None

    def show_next(self) -> None:
        """Take the next proposal in hand, and go there."""
        if self.link is None:
            return
        shown = self.link.annotations
        waiting = [row for row, extra in enumerate(shown.extras) if review_of(extra) == "proposed"]
        if not waiting:
            self.about.setText("Nothing is proposed.")
            return
        rows = {str(key): row for row, key in enumerate(shown.ids)}
        here = max((rows[key] for key in self.link.held if key in rows), default=-1)
        self.link.go_to(str(shown.ids[next((row for row in waiting if row > here), waiting[0])]))

    def take(self) -> None:
        """Take in hand what the two choices describe."""
        if self.link is None:
            return
        shown, name, review = self.link.annotations, self.by_class.currentText(), self.by_review.currentText()
        keep = np.ones(len(shown), bool)
        if name != ANY:
            index = -1 if name == UNCLASSIFIED_NAME else shown.class_index(name)
            keep &= shown.classes == index
        if review != ANY:
            keep &= np.array([review_of(extra) == review for extra in shown.extras], bool)
        self.link.hold(map(str, shown.ids[keep]))

    def review(self, state: str | None) -> None:
        """Give the selected objects a review state."""
        if self.link is not None and (ids := self.link.selected):
            document = self.link.document
            self.link.edit(lambda: document.change(ids, review=state, tool="review"))

    def comment(self) -> None:
        """Add what is written to the selected objects."""
        text = self.words.text().strip()
        if self.link is not None and text and (ids := self.link.selected):
            document = self.link.document
            if self.link.edit(lambda: document.comment(ids, text)) is not None:
                self.words.clear()

    def add_class(self) -> None:
        """Make a class of the name that is written."""
        name = self.new_class.text().strip()
        if self.link is not None and name:
            document = self.link.document
            self.link.edit(lambda: document.set_class(name))
            self.link.active_class = name
            self.new_class.clear()

    def rename_class(self) -> None:
        """Give the active class, and all its objects, the name that is written."""
        to = self.new_class.text().strip()
        if self.link is not None and to and (name := self.link.active_class) is not None:
            document = self.link.document
            if self.link.edit(lambda: document.rename_class(name, to)) is not None:
                self.link.active_class = to
                self.new_class.clear()

    def remove_class(self) -> None:
        """Remove the active class; its objects, if there are any, lose their class only where that is said."""
        if self.link is not None and (name := self.link.active_class) is not None:
            document = self.link.document
            if self.link.edit(lambda: document.remove_class(name)) is not None:
                self.link.active_class = None

    def _make_head(self) -> QWidget:
        part = QWidget()
        self.scans = LayerChoice(self.viewer, wanted=lambda scan: scan.kind == "image" and set("yx") <= set(scan.axes))
        self.opener, elsewhere = QPushButton("Annotate"), QPushButton("…")
        self.opener.setToolTip("Open the GeoJSON beside the scan; it need not exist, and others may have it open.")
        elsewhere.setToolTip("Another GeoJSON")
        self.opener.clicked.connect(lambda _checked: self.open())
        elsewhere.clicked.connect(self._choose)
        elsewhere.setFixedWidth(28)
        self.news = QLabel("No document is open.")
        self.news.setWordWrap(True)
        grid = QGridLayout(part)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.scans, 0, 0)
        grid.addWidget(self.opener, 0, 1)
        grid.addWidget(elsewhere, 0, 2)
        grid.addWidget(self.news, 1, 0, 1, 3)
        grid.setColumnStretch(0, 1)
        return part

    def _make_classes(self) -> QWidget:
        part = QGroupBox("Classes")
        self.classes = QTreeWidget()
        self.classes.setColumnCount(3)
        self.classes.setHeaderLabels(["class", "key", "objects"])
        self.classes.setRootIsDecorated(False)
        self.classes.setToolTip("A click, or the key, gives the selected objects a class, and what is drawn next.")
        self.classes.header().setStretchLastSection(False)
        self.classes.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in (1, 2):
            self.classes.header().setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.classes.itemClicked.connect(self._on_class)
        self.new_class = QLineEdit()
        self.new_class.setPlaceholderText("name of a class")
        self.new_class.returnPressed.connect(self.add_class)
        line = QHBoxLayout()
        line.addWidget(self.new_class)
        acts = {"Add": self.add_class, "Rename": self.rename_class}
        for text, act in (acts | {"Colour…": self._choose_color, "Remove": self.remove_class}).items():
            line.addWidget(_button(text, act))
        box = QVBoxLayout(part)
        box.addWidget(self.classes)
        box.addLayout(line)
        return part

    def _make_selection(self) -> QWidget:
        part = QGroupBox("Selected")
        self.about = QLabel()
        self.about.setWordWrap(True)
        self.about.setMinimumHeight(3 * self.about.fontMetrics().lineSpacing())
        self.by_class, self.by_review = QComboBox(), QComboBox()
        self.by_review.addItems([ANY, *REVIEWS])
        find = QHBoxLayout()
        for one in (self.by_class, self.by_review, _button("Take in hand", self.take)):
            find.addWidget(one)
        judge = QHBoxLayout()
        for text, state in (("Accept", "accepted"), ("Reject", "rejected"), ("Propose", "proposed")):
            judge.addWidget(_button(text, partial(self.review, state)))
        judge.addWidget(_button("Next proposal", self.show_next))
        self.words = QLineEdit()
        self.words.setPlaceholderText("comment on what is selected")
        self.words.returnPressed.connect(self.comment)
        box = QVBoxLayout(part)
        box.addLayout(find)
        box.addWidget(self.about)
        box.addLayout(judge)
        box.addWidget(self.words)
        return part

    def _make_history(self) -> QWidget:
        part = QGroupBox("History")
        self.undo, self.redo = _button("Undo", self._undo), _button("Redo", self._redo)
        self.revert = _button("Take this back", self._revert)
        self.edits = QListWidget()
        self.edits.itemSelectionChanged.connect(lambda: self.revert.setEnabled(bool(self.edits.selectedItems())))
        line = QHBoxLayout()
        for one in (self.undo, self.redo, self.revert):
            line.addWidget(one)
        box = QVBoxLayout(part)
        box.addLayout(line)
        box.addWidget(self.edits)
        return part

    def _find(self, _event: object = None) -> None:
        """Follow the document that is shown in the viewer, whoever opened it."""
        link = link_of(self.viewer.layers)
        if link is not self.link:
            if self.link is not None:
                self.link.changed.disconnect(self._show)
            self.link = link
            if link is not None:
                link.changed.connect(self._show)
        self._show()

    def _show(self) -> None:
        """Show the document as it is."""
        link = self.link
        for one in (self.classes, self.new_class, self.words, self.undo, self.redo, self.by_class, self.by_review):
            one.setEnabled(link is not None)
        self.revert.setEnabled(False)
        self.classes.clear()
        self.edits.clear()
        if link is None:
            self.news.setText("No document is open.")
            self.about.setText("")
            return
        document, shown = link.document, link.annotations
        warning = f"<br><b>Read-only:</b> {document.read_only}" if document.read_only else ""
        self.news.setText(f"{document.path.name}, {len(shown):,} objects, as {document.author}{warning}")
        self.news.setToolTip(str(document.path))
        self._show_classes(link, shown)
        self._show_selection(link, shown)
        only = link.selected[0] if len(link.selected) == 1 else None
        for edit in list(document.history(only))[: -EDITS_SHOWN - 1 : -1]:
            item = QListWidgetItem(f"{edit.time[11:19]}  {edit.author}: {describe(edit.changes)}")
            item.setToolTip(f"{edit.time}, {edit.tool}")
            item.setData(EDIT_ROLE, edit)
            self.edits.addItem(item)
        undos, redos = document.can_undo()
        self.undo.setEnabled(bool(undos) and document.read_only is None)
        self.redo.setEnabled(bool(redos) and document.read_only is None)

    def _show_classes(self, link: DocumentLayers, shown: Annotations) -> None:
        counts = dict(zip(*np.unique(shown.classes, return_counts=True), strict=True))
        names = list(shown.class_names)
        for one in link.document.classes:
            number = int(counts.get(names.index(one.name), 0)) if one.name in names else 0
            item = QTreeWidgetItem([one.name, one.shortcut, f"{number:,}"])
            item.setIcon(0, _swatch(one.color))
            self.classes.addTopLevelItem(item)
            if one.name == link.active_class:
                self.classes.setCurrentItem(item)
        before = self.by_class.currentText()
        self.by_class.clear()
        self.by_class.addItems([ANY, *(one.name for one in link.document.classes), UNCLASSIFIED_NAME])
        self.by_class.setCurrentText(before)

    def _show_selection(self, link: DocumentLayers, shown: Annotations) -> None:
        chosen = shown[np.isin(shown.ids.astype(str), link.selected)] if link.selected else shown[[]]
        if not len(chosen):
            self.about.setText(f"{len(link.held):,} in hand" if link.held else "Click a shape to take it in hand.")
            return
        classes = {shown.class_names[i] if i >= 0 else UNCLASSIFIED_NAME for i in set(chosen.classes.tolist())}
        lines = [f"{len(chosen):,} × {', '.join(sorted(classes))}, {_area(float(chosen.areas.sum()))} {chosen.unit}²"]
        if len(chosen) == 1:
            one = chosen[0]
            lines[0] += f", {review_of(one.extras) or 'not reviewed'}"
            if one.author:
                lines.append(f"drawn by {one.author}, {(one.time or '')[:16].replace('T', ' ')}")
            metadata = one.extras.get("properties", {}).get("metadata", {})
            for key, text in sorted(metadata.items()):
                if key.startswith("comment "):
                    _, time, author = [*key.split(" ", 2), ""][:3]
                    lines.append(f"{author}, {time[:16].replace('T', ' ')}: {text}")
        self.about.setText("\n".join(lines))

    def _on_class(self, item: QTreeWidgetItem) -> None:
        if self.link is not None:
            self.link.classify(item.text(0))

    def _choose(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, "GeoJSON", filter="GeoJSON (*.geojson)", options=QFileDialog.Option.DontConfirmOverwrite
        )
        if name:
            self.open(name)

    def _choose_color(self) -> None:
        if self.link is None or (name := self.link.active_class) is None:
            return
        document = self.link.document
        before = next(one.color for one in document.classes if one.name == name)
        color = QColorDialog.getColor(QColor(*before), self, name)
        if color.isValid():
            chosen = (color.red(), color.green(), color.blue())
            self.link.edit(lambda: document.set_class(name, color=chosen))

    def _undo(self) -> None:
        if self.link is not None:
            self.link.undo()

    def _redo(self) -> None:
        if self.link is not None:
            self.link.redo()

    def _revert(self) -> None:
        if self.link is not None and (chosen := self.edits.selectedItems()):
            document, edit = self.link.document, chosen[0].data(EDIT_ROLE)
            self.link.edit(lambda: document.revert(edit))


def _button(text: str, act: Callable[[], Any]) -> QPushButton:
    button = QPushButton(text)
    button.clicked.connect(lambda _checked: act())
    return button


def _area(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _swatch(color: tuple[int, int, int]) -> QIcon:
    picture = QPixmap(SWATCH_PX, SWATCH_PX)
    picture.fill(QColor(*color))
    return QIcon(picture)
