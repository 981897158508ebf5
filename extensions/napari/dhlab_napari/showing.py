"""`show`: what `dhlab.show(…, front="napari")` does."""

from __future__ import annotations

import sys
from typing import Any

import napari
from napari.layers import Layer

from dhlab import env
from dhlab.annotations import Document
from dhlab.errors import BadValueError, MissingDependencyError
from dhlab.scan import Scan
from dhlab_napari.compilers import load_triton
from dhlab_napari.layers import describe
from dhlab_napari.linking import DocumentLayers

__all__ = ["add", "show"]


def show(*things: Any, viewer: napari.Viewer | None = None) -> napari.Viewer:
    """Show scans, annotations and documents in napari, on top of one another.

    Parameters
    ----------
    things
        From bottom to top; the first scan is the base. A document is shown with the dock for annotating, and what is
        drawn there is saved in it.
    viewer
        A viewer to add to; None opens one. In a script, `napari.run` then waits until it is closed.

    Returns
    -------
    napari.Viewer
        The viewer.

    Raises
    ------
    BadValueError
        If there is no scan, or a thing is none of these.
    MissingDependencyError
        If there is no screen to open a window on.
    """
    base = next((thing for thing in things if isinstance(thing, Scan)), None)
    if base is None:
        raise BadValueError("nothing to lie on; expected a Scan first: dh.show(scan, annotations, front='napari').")
    if viewer is None:
        if sys.platform == "linux" and not env.has_screen():
            raise MissingDependencyError(
                "no screen to open napari's window on (neither DISPLAY nor WAYLAND_DISPLAY is set); plan: in "
                "JupyterLab, open napari from the launcher, or leave front= out to look in the notebook."
            )
        load_triton()
        viewer = napari.Viewer(title=base.name)
    for thing in things:
        add(viewer, thing, base=base)
    if any(isinstance(thing, Document) for thing in things):
        viewer.window.add_plugin_dock_widget("dhlab", "Annotations")
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.reset_view()
    return viewer


def add(viewer: napari.Viewer, thing: Any, *, base: Scan) -> list[Layer]:
    """Add a thing to a viewer as layers that lie on a base, and return them; raises as `show` does."""
    if isinstance(thing, Document):
        link = DocumentLayers(viewer, thing, base=base)
        return [link.picture, link.hand]
    return [viewer.add_layer(Layer.create(*data)) for data in describe(thing, base=base)]
