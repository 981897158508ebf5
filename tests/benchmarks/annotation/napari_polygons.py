"""A hundred thousand outlines of nuclei in napari: ours, drawn where one looks, beside napari's own Shapes layer."""

from __future__ import annotations

import gc
import os
import time
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from viewer.polygons import nuclei

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Bench

    from dhlab.annotations import Annotations

TESTS = ["tests/napari/test_documents.py"]
COUNT, SIDE, SPACING = 100_000, 8000, 0.25
SHOWN_S, MOVED_MS = 3.0, 100.0
SCREEN = (1600, 1000)
ROUNDS = {"ours": 5, "Shapes": 1}
# Screen pixels for a level-0 pixel, where a nucleus has 24 px; and moves there.
CLOSE, MOVES = 1.0, 5


def measure(bench: Bench) -> None:
    """From annotations to the painted window, and from a move of the view to its painted end."""
    import napari

    annotations = nuclei(COUNT, SIDE, 0)
    with ExitStack() as stack:
        if not os.environ.get("DISPLAY"):
            from pyvirtualdisplay import Display

            stack.enter_context(Display(visible=False, size=SCREEN))
        viewer = napari.Viewer(show=True)
        stack.callback(viewer.close)
        viewer.window.resize(*SCREEN)
        paint(viewer)
        seconds, moves = {}, {}
        # Plain napari triangulates in Python: a hundred thousand take it more than ten minutes.
        compiled = find_spec("bermuda") is not None
        for name, add in (("ours", add_picture), *([("Shapes", add_shapes)] if compiled else [])):
            # What is imported and compiled the first time counts for nobody.
            show(viewer, add, annotations[:100])
            seconds[name] = min(show(viewer, add, annotations) for _ in range(ROUNDS[name]))
            moves[name] = pan(viewer)
        case = f"{COUNT:,} polygons in napari"
        peer = {"peer_name": "napari's Shapes with bermuda", "package": "napari"}
        bench.record(f"{case}: shown", seconds["ours"], seconds.get("Shapes"), unit="s", **peer)
        bench.record(f"{case}: shown", seconds["ours"], SHOWN_S, peer_name=f"limit: {SHOWN_S:g} s", unit="s", goal=1.0)
        middle = {name: float(np.median(each)) for name, each in moves.items()}
        ours = middle["ours"]
        bench.record(f"{case}: view moved, nuclei of 24 px", ours, middle.get("Shapes"), unit="ms", **peer)
        limit = f"limit: {MOVED_MS:g} ms"
        bench.record(f"{case}: view moved, nuclei of 24 px", ours, MOVED_MS, peer_name=limit, unit="ms", goal=1.0)


def show(viewer: Any, add: Callable[[Any, Annotations], None], annotations: Annotations) -> float:
    """Return how many seconds it takes from annotations to the painted window, with nothing else in it."""
    viewer.layers.clear()
    gc.collect()
    begin = time.perf_counter()
    add(viewer, annotations)
    viewer.reset_view()
    paint(viewer)
    return time.perf_counter() - begin


def add_picture(viewer: Any, annotations: Annotations) -> None:
    """Add annotations as `dh.show(…, front="napari")` does."""
    from napari.layers import Layer

    from dhlab_napari.layers import describe

    for layer in describe(annotations):
        viewer.add_layer(Layer.create(*layer))


def add_shapes(viewer: Any, annotations: Annotations) -> None:
    """Add annotations as rows of a Shapes layer."""
    from napari.layers import Layer

    from dhlab.view.layers import to_layers

    for layer in to_layers(annotations):
        viewer.add_layer(Layer.create(*layer))


def pan(viewer: Any) -> list[float]:
    """Return how many milliseconds each move by a third of the view takes until it is painted, close by."""
    viewer.scene.camera.zoom = CLOSE
    viewer.scene.camera.center = (0.0, SIDE / 3, SIDE / 3)
    paint(viewer)
    found = []
    for _ in range(MOVES):
        _, y, x = viewer.scene.camera.center
        found.append(milliseconds(lambda y=y, x=x: move(viewer, y + 100, x + 300)))
    return found


def move(viewer: Any, y: float, x: float) -> None:
    """Look at another place, and wait until it is painted."""
    viewer.scene.camera.center = (0.0, y, x)
    paint(viewer)


def paint(viewer: Any) -> None:
    """Wait until the canvas shows what the layers hold."""
    from qtpy.QtWidgets import QApplication

    QApplication.processEvents()
    viewer.screenshot(canvas_only=True, flash=False)


def milliseconds(work: Callable[[], Any]) -> float:
    """Return how long something takes."""
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000
