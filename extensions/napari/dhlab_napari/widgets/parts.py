"""What the dock widgets share: a choice of layers, a line of news, and work in a thread that can be ended."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QComboBox, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from dhlab.errors import DHLabError, describe
from dhlab_napari.layers import is_scan, scan_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer
    from napari.viewer import Viewer

    from dhlab.scan import Scan

__all__ = ["Cancelled", "LayerChoice", "Work", "attempt"]


class Cancelled(Exception):  # noqa: N818 (it is no error)
    """Whoever waits does not want the result any more."""


class LayerChoice(QComboBox):
    """A choice among the layers of a viewer that are scans; it follows the list of layers.

    Parameters
    ----------
    viewer
        The viewer.
    wanted
        Which scans are offered.
    none
        Text of the choice of none; without it there is none.
    """

    def __init__(self, viewer: Viewer, *, wanted: Callable[[Scan], bool] = lambda _: True, none: str = "") -> None:
        super().__init__()
        self._viewer, self._wanted, self._none = viewer, wanted, none
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.renamed):
            event.connect(self._fill)
        self._fill()

    def _fill(self, _event: object = None) -> None:
        before = self.currentText()
        names = [layer.name for layer in self._viewer.layers if is_scan(layer) and self._is_wanted(layer)]
        self.blockSignals(True)
        self.clear()
        self.addItems([*([self._none] if self._none else []), *names])
        self.setCurrentText(before)
        self.blockSignals(False)
        if self.currentText() != before:
            self.currentTextChanged.emit(self.currentText())

    def _is_wanted(self, layer: Layer) -> bool:
        try:
            return self._wanted(scan_of(layer))
        except DHLabError:
            return False

    @property
    def layer(self) -> Layer | None:
        """The layer that is chosen, or None."""
        name = self.currentText()
        return self._viewer.layers[name] if name and name != self._none and name in self._viewer.layers else None

    @property
    def scan(self) -> Scan | None:
        """The scan of the chosen layer, or None."""
        return None if self.layer is None else scan_of(self.layer)


class _Steps(QObject):
    done = Signal(int, int)


class Work(QWidget):
    """A button that starts long work in a thread, a bar that shows how far it is, a button that ends it, and its news.

    Parameters
    ----------
    label
        Text of the button.
    make
        Called in the main thread when the button is pressed; returns the work, or None for none. The work is called
        in another thread with a function to be told the steps that are done and all; that function raises `Cancelled`
        when the work is to end.
    show
        Called in the main thread with what the work returned; returns the news.
    """

    def __init__(
        self,
        label: str,
        make: Callable[[], Callable[[Callable[[int, int], None]], Any] | None],
        show: Callable[[Any], str],
    ) -> None:
        super().__init__()
        self._make, self._show = make, show
        self.button, self.cancel, self.bar, self.news = (
            QPushButton(label),
            QPushButton("Cancel"),
            QProgressBar(),
            QLabel(),
        )
        self.news.setWordWrap(True)
        self._steps = _Steps()
        self._steps.done.connect(self._on_steps)
        self.button.clicked.connect(self.start)
        self.cancel.clicked.connect(self.end)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        for part in (self.button, self.bar, self.cancel, self.news):
            box.addWidget(part)
        self.worker: Any = None
        self._ending = Event()
        self._set_busy(busy=False)

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self.worker is not None:
            return
        try:
            work = self._make()
        except DHLabError as error:
            self.news.setText(str(error))
            return
        if work is None:
            return

        def tell(done: int, total: int) -> None:
            if self._ending.is_set():
                raise Cancelled
            self._steps.done.emit(done, total)

        self._ending.clear()
        self._set_busy(busy=True)
        self.news.setText("")
        self.worker = create_worker(attempt, work, tell, _start_thread=False)
        self.worker.returned.connect(self._on_result)
        self.worker.start()

    def end(self) -> None:
        """Ask the work to end; it does at its next step."""
        if self.worker is not None:
            # The worker's own quit would keep the outcome to itself.
            self._ending.set()
            self.news.setText("Ending …")

    def _on_steps(self, done: int, total: int) -> None:
        self.bar.setRange(0, total)
        self.bar.setValue(done)

    def _on_result(self, outcome: tuple[Any, Exception | None]) -> None:
        self.worker = None
        self._set_busy(busy=False)
        result, error = outcome
        if error is None:
            self.news.setText(self._show(result))
        elif isinstance(error, Cancelled):
            self.news.setText("Cancelled.")
        else:
            self.news.setText(describe(error))
            if not isinstance(error, DHLabError):
                raise error

    def _set_busy(self, *, busy: bool) -> None:
        self.button.setEnabled(not busy)
        self.cancel.setVisible(busy)
        self.bar.setVisible(busy)
        self.bar.setRange(0, 0)


def attempt(work: Callable[..., Any], *given: Any) -> tuple[Any, Exception | None]:
    """Return what work returns and raises: what it raises in a thread is news for the person first."""
    try:
        return work(*given), None
    except Exception as error:  # noqa: BLE001 (told in the main thread)
        return None, error
