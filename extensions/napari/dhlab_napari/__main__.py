"""``python -m dhlab_napari [PATH]``: napari over the whole screen, ready for annotating."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import napari
from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer

from dhlab.errors import DHLabError
from dhlab.io import open as open_scan
from dhlab_napari.compilers import load_triton
from dhlab_napari.showing import add
from dhlab_napari.widgets.annotations import AnnotationsWidget

__all__ = ["Desk", "main"]

LOOK_MS = 400
# A name that nobody came for is not kept for the next napari.
STALE_S = 120


class Desk:
    """A viewer for one scan after the other, each with its document.

    Parameters
    ----------
    viewer
        The viewer.
    """

    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        _, self.dock = viewer.window.add_plugin_dock_widget("dhlab", "Annotations")
        assert isinstance(self.dock, AnnotationsWidget)
        viewer.canvas.overlays.scale_bar.visible = True

    def open(self, path: Path) -> None:
        """Show a scan and its document instead of what is shown."""
        try:
            scan = open_scan(path)
        except DHLabError as error:
            show_warning(str(error))
            return
        self.dock.close_document()
        self.viewer.layers.clear()
        add(self.viewer, scan, base=scan)
        self.viewer.title = scan.name
        self.dock.open()
        self.viewer.reset_view()
        # The window may just be growing to the whole screen.
        QTimer.singleShot(LOOK_MS, self.viewer.reset_view)

    def look(self, inbox: Path) -> None:
        """Open the file that was named last in a folder of names, and take the names away."""
        # Named by when they were written: a file server's clock may differ.
        letters = sorted(inbox.glob("*.path"))
        fresh = [letter for letter in letters if time.time() - int(letter.stem) / 1e9 < STALE_S]
        names = [letter.read_text("utf-8") for letter in fresh]
        for letter in letters:
            letter.unlink(missing_ok=True)
        if names:
            self.open(Path(names[-1]))


def main() -> None:
    """Open napari and wait until it is closed."""
    parser = argparse.ArgumentParser("python -m dhlab_napari", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, help="a scan to open")
    parser.add_argument("--inbox", type=Path, help="folder in which names of further scans appear")
    given = parser.parse_args()
    load_triton()
    viewer = napari.Viewer(title="napari")
    desk = Desk(viewer)
    if given.path:
        desk.open(given.path)
    timer = QTimer()
    if given.inbox:
        timer.timeout.connect(lambda: desk.look(given.inbox))
        timer.start(LOOK_MS)
    viewer.window._qt_window.showMaximized()  # napari's public window knows only sizes
    napari.run()


if __name__ == "__main__":
    main()
