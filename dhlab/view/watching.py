"""A layer that follows an image while it is being written, until it is at its place."""

from __future__ import annotations

import contextvars
import threading
import warnings
from typing import TYPE_CHECKING

from dhlab.errors import BadFileError, BadValueError, DHLabError, DHLabWarning, NotFoundError, UnknownNameError
from dhlab.io import open as open_scan
from dhlab.io.growing import GrowingImage

if TYPE_CHECKING:
    from pathlib import Path

    from dhlab.view.viewer import Viewer

__all__ = ["Watch"]

PAUSE_S = 0.5


class Watch:
    """Looks at an image that is being written, in a thread of its own, and keeps a layer of a viewer up to date.

    Parameters
    ----------
    viewer
        Whose layer it is.
    path
        Where the finished image will appear.
    name
        Name of the layer; else the image's own.
    """

    def __init__(self, viewer: Viewer, path: Path, name: str | None) -> None:
        self.viewer, self.path, self.name = viewer, path, name
        self._layer: int | None = None
        self._image: GrowingImage | None = None
        self._ended = threading.Event()
        # A front sends what changes to the cell that asked for the watch: the context says which one that was.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="dhlab-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking; the layer stays as it is."""
        self._ended.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing more to look for, at most `timeout` seconds, and return whether that is so."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                if self._look():
                    return
            except UnknownNameError:
                return  # the layer was removed
            except BadValueError as error:
                warnings.warn(f"{self.path.name} is not shown as it grows: {error}", DHLabWarning, stacklevel=1)
                return
            except (DHLabError, OSError):
                pass  # caught while it was being moved or begun: the next look finds it whole
            self._ended.wait(PAUSE_S)

    def _look(self) -> bool:
        """Show what is new, and return whether nothing more will come."""
        if self._layer is not None:
            self.viewer.layer(self._layer)
        if self._image is None:
            try:
                self._image = GrowingImage(self.path)
            except BadFileError:
                return self._finish()
            self._show()
        if self._image.is_over:
            return self._finish()
        if self._image.look() and self._layer is not None:
            self.viewer.refresh(self._layer)
        return False

    def _show(self) -> None:
        assert self._image is not None
        if self._layer is None:
            self._layer = self.viewer.add(self._image.scan, name=self.name).id
        else:
            self.viewer.replace(self._layer, self._image.scan)

    def _finish(self) -> bool:
        """Show the finished image, if it is there; a run that was discarded may begin anew."""
        self._image = None
        try:
            scan = open_scan(self.path)
        except NotFoundError:
            return False
        if self._layer is None:
            self.viewer.add(scan, name=self.name)
        else:
            self.viewer.replace(self._layer, scan)
        return True
