"""`show`: the viewer in a notebook cell; pixels and shapes travel over the kernel's own connection."""

from __future__ import annotations

import contextvars
import hashlib
import io
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import anywidget
import ipywidgets
import numpy as np
import traitlets

from dhlab import env
from dhlab.errors import BadValueError, DHLabError, MissingDependencyError
from dhlab.scan import Scan
from dhlab.view.fronts import find_front
from dhlab.view.layers import carry_index
from dhlab.view.scene import describe_layer
from dhlab.view.tiles import read_values
from dhlab.view.viewer import STYLE_KEYS, Thing, Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


__all__ = ["SideBySide", "ViewerWidget", "show"]

STATIC = Path(__file__).parent / "static"
BUILD = "npm ci --prefix extensions/viewer && npm run --prefix extensions/viewer build"
STILL_PX = 560
# Between views side by side in a picture.
GAP_PX = 12
# Of answers that travel together, about.
MOST_BYTES = 1 << 21
LOG = logging.getLogger(__name__)
# What is answered to a message, and its buffers.
Reply: TypeAlias = tuple[dict[str, Any], list[bytes]]


@overload
def show(*things: Thing, height: int = 500, link: Viewer | None = None) -> ViewerWidget: ...
@overload
def show(*things: Sequence[Thing], height: int = 500, link: Viewer | None = None) -> SideBySide: ...
@overload
def show(*things: Any, front: str) -> Any: ...
def show(*things: Any, height: int = 500, link: Viewer | None = None, front: str = "notebook") -> Any:
    """Show scans, annotations and documents in the notebook, on top of one another, or in lists side by side.

    The first scan is the base. A document can be drawn in: ``dh.show(slide, dh.Document.open(slide))``. Heat maps,
    masks, label maps and further scans are placed by spacing, origin and parent, annotations by their level-0 pixels.
    Pixels travel as tiles, from the Jupyter server where it can open the same file, else over the kernel's own
    connection; no port is opened, and nothing but small settings is stored in the notebook.

    Parameters
    ----------
    things
        Scans, annotations and documents, from bottom to top. Or a list of them for each view:
        ``show([slide, heat], [ihc])`` gives two views beside one another that pan, zoom and turn together, by physical
        distance.
    height
        Height of the viewer in screen pixels.
    link
        Another viewer whose place, zoom and rotation this one follows, and the other way round.
    front
        ``"notebook"``, or ``"napari"`` for a window of its own.

    Returns
    -------
    ViewerWidget or SideBySide
        A `Viewer`, or several; the last expression of a cell shows it. In napari: its viewer.

    Raises
    ------
    BadValueError
        If there is no scan in a view, a thing cannot be shown, or units cannot be converted.
    UnknownNameError
        If there is no such front.
    MissingDependencyError
        If the browser part of the viewer is not built, or the front is not installed.
    """
    if front != "notebook":
        return find_front(front)(*things)
    beside = [isinstance(thing, (list, tuple)) for thing in things]
    if any(beside) and not all(beside):
        raise BadValueError(
            "lists beside single things; expected either things to lie on one another, or one list for each view: "
            "dh.show([slide, heat], [ihc])."
        )
    views = [ViewerWidget(*some, height=height) for some in (things if any(beside) else (things,))]
    for view in views[1:]:
        view.link(views[0])
    if link is not None:
        views[0].link(link)
    return SideBySide(views) if any(beside) else views[0]


class ViewerWidget(Viewer, anywidget.AnyWidget):
    """A `Viewer` in a notebook cell; made by `show`.

    Parameters
    ----------
    things
        Scans, annotations and documents, from bottom to top; the first scan is the base.
    height
        Height in screen pixels.
    """

    _scene = traitlets.Dict().tag(sync=True)
    _version = traitlets.Unicode().tag(sync=True)

    def __init__(self, *things: Thing, height: int = 500) -> None:
        # Also a viewer that was refused below is closed by the garbage collector.
        self._futures: dict[tuple[str, int], Future[None]] = {}
        self._lock = Lock()
        self._answers: deque[tuple[dict[str, Any], list[bytes]]] = deque()
        self._front: contextvars.Context | None = None
        loader, version = _bundle()[2:]
        super().__init__(*things, height=height, _esm=loader, _version=version)
        self.on_msg(self._receive)

    @traitlets.default("_scene")
    def _describe(self) -> dict[str, Any]:
        return {"layers": [describe_layer(layer, self.base) for layer in self.layers]}

    @traitlets.observe("layers")
    def _describe_again(self, _change: object) -> None:
        self._scene = self._describe()

    def close(self) -> None:
        """Stop sending tiles and forget them; the view in the browser goes away."""
        for future in list(self._futures.values()):
            future.cancel()
        Viewer.close(self)
        anywidget.AnyWidget.close(self)

    @contextmanager
    def _together(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.hold_sync())
            stack.enter_context(self.hold_trait_notifications())
            yield

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {
            **(data or {}),
            "text/plain": repr(self),
            "image/png": encode_still(self.snapshot(STILL_PX, whole=True)),
        }, metadata

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        """Answer a message of the browser; anything slow is left to other threads."""
        self._front = contextvars.copy_context()
        kind, view, number = content.get("type"), str(content.get("view", "")), int(content.get("id", 0))
        if kind == "bundle":
            script, style, _, version = _bundle()
            self._answer({"type": "bundle", "version": version}, [script, style])
        elif work := {"tile": self._tile, "shapes": self._shapes, "values": self._values}.get(str(kind)):
            # A thread of its own does not know which message it answers; the context does.
            future = _workers().submit(contextvars.copy_context().run, self._reply, work, content)
            self._futures[view, number] = future
            future.add_done_callback(lambda _: self._futures.pop((view, number), None))
        elif kind == "edit":
            # One after the other, as they were made; none is withdrawn.
            _editing().submit(contextvars.copy_context().run, self._reply, self._edited, content)
        elif kind == "learn":
            _workers().submit(contextvars.copy_context().run, self._reply, self._learned, content)
        elif kind == "several":
            for request in content.get("requests", ()):
                if request.get("type") != "several":
                    self._receive(_widget, request, _buffers)
        elif kind == "cancel":
            for stale in content.get("ids", ()):
                if waiting := self._futures.get((view, int(stale))):
                    waiting.cancel()

    def _reply(self, work: Callable[[dict[str, Any]], Reply], content: dict[str, Any]) -> None:
        """Do what a message asks for and answer it, whatever happens: the browser waits."""
        head = {k: content[k] for k in ("type", "view", "id", "layer") if k in content}
        try:
            answer, buffers = work(content)
        except (DHLabError, OSError) as error:
            self._answer(head | {"error": str(error)}, [])
        except Exception as error:
            LOG.warning("a message of the viewer failed: %.200s", content, exc_info=True)
            self._answer(head | {"error": f"{type(error).__name__}: {error}"}, [])
        else:
            self._answer(head | answer, buffers)

    def _tile(self, content: dict[str, Any]) -> Reply:
        layer = self.layer(int(content["layer"]))
        assert layer.tiles is not None
        settings = {k: v for k, v in content.get("style", {}).items() if k in STYLE_KEYS}
        index = carry_index(content.get("index") or {}, self.base, layer.tiles.scan)
        place = (int(content[k]) for k in ("level", "row", "column"))
        data, mime = layer.tiles.encode(*place, **settings, index=index)
        return {"mime": mime}, [data]

    def _values(self, content: dict[str, Any]) -> Reply:
        thing = self.layer(int(content["layer"])).thing
        assert isinstance(thing, Scan)
        index = carry_index(content.get("index") or {}, self.base, thing)
        return {"values": read_values(thing, int(content["y"]), int(content["x"]), index=index)}, []

    def _shapes(self, content: dict[str, Any]) -> Reply:
        layer = self.layer(int(content["layer"]))
        assert layer.shapes is not None
        cells = content.get("cells")
        # Other shapes have other cells: a browser that does not know of them yet gets none.
        current = int(content.get("revision", layer.revision)) == layer.revision
        return {}, [layer.shapes.catalogue() if cells is None else layer.shapes.outlines(cells if current else ())]

    def _edited(self, content: dict[str, Any]) -> Reply:
        return self.edit(int(content["layer"]), content), []

    def _learned(self, content: dict[str, Any]) -> Reply:
        return {"learning": self.learn(int(content["layer"]), str(content.get("action")))}, []

    def _hear_of_edit(self, number: int, news: dict[str, Any]) -> None:
        self._answer({"type": "edited", "layer": number, **news}, [])
        super()._hear_of_edit(number, news)

    def _send(self, msg: Any, buffers: Any = None) -> None:
        # A kernel hands the browser's next messages to the shell that sent last. Were that the one of a running cell,
        # tiles would wait for its end: whoever changes the viewer sends from the shell that the browser speaks to.
        front = contextvars.copy_context() if self._front is None else self._front.copy()
        front.run(super()._send, msg, buffers)

    def _answer(self, head: dict[str, Any], buffers: list[bytes]) -> None:
        """Send an answer, together with those that became ready while another was sent."""
        self._answers.append((head, buffers))
        # Whoever finds the way free sends for all, and looks again after clearing it: nothing is left lying.
        while self._answers and self._lock.acquire(blocking=False):
            try:
                ready, size = [], 0
                while self._answers and size < MOST_BYTES:
                    ready.append(self._answers.popleft())
                    size += sum(map(len, ready[-1][1]))
                self._send_answers(ready)
            finally:
                self._lock.release()

    def _send_answers(self, ready: list[tuple[dict[str, Any], list[bytes]]]) -> None:
        if len(ready) == 1:
            self.send(*ready[0])
        elif ready:
            heads = [head | {"buffers": len(buffers)} for head, buffers in ready]
            self.send({"type": "several", "answers": heads}, [data for _, buffers in ready for data in buffers])


class SideBySide(ipywidgets.HBox):  # type: ignore[misc] # ipywidgets ships no types
    """Views beside one another; made by `show`.

    Parameters
    ----------
    viewers
        From left to right.
    """

    def __init__(self, viewers: Sequence[ViewerWidget]) -> None:
        self.viewers = tuple(viewers)
        column = {"flex": "1 1 0", "min_width": "0", "width": "auto"}
        columns = [
            ipywidgets.VBox([ipywidgets.Label(viewer.base.name), viewer], layout=ipywidgets.Layout(**column))
            for viewer in self.viewers
        ]
        super().__init__(columns, layout=ipywidgets.Layout(width="100%"))

    def snapshot(self, max_px: int = 1200, *, legend: bool = True, whole: bool = False) -> NDArray[np.uint8]:
        """Draw what is shown as one picture, in Python, without the browser.

        Parameters
        ----------
        max_px
            Longest side of each view in pixels.
        legend
            Draw class names, colours and scale bars.
        whole
            Draw the whole base scans instead of the present view.

        Returns
        -------
        ndarray
            ``(height, width, 3)`` uint8.
        """
        pictures = [viewer.snapshot(max_px, legend=legend, whole=whole) for viewer in self.viewers]
        height = max(len(picture) for picture in pictures)
        columns = []
        for picture in pictures:
            above = (height - len(picture)) // 2
            rows = (above, height - len(picture) - above)
            columns.append(np.pad(picture, (rows, (GAP_PX // 2, GAP_PX // 2), (0, 0)), constant_values=255))
        return np.concatenate(columns, 1)[:, GAP_PX // 2 : -(GAP_PX // 2)]

    def close(self) -> None:
        """Close every view."""
        for viewer in self.viewers:
            viewer.close()
        super().close()

    def __repr__(self) -> str:
        return " | ".join(repr(viewer) for viewer in self.viewers)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        data = super()._repr_mimebundle_(**kwargs)
        still = encode_still(self.snapshot(STILL_PX, whole=True))
        return {**(data or {}), "text/plain": repr(self), "image/png": still}


def encode_still(picture: NDArray[np.uint8]) -> str:
    """Return a picture for places without widgets as base64 PNG, its colours reduced to keep it light."""
    import base64

    from PIL import Image

    buffer = io.BytesIO()
    still = Image.fromarray(picture).quantize(192, dither=Image.Dither.FLOYDSTEINBERG)
    still.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, env.thread_count()), thread_name_prefix="dhlab-view")


@cache
def _editing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="dhlab-edit")


@cache
def _bundle() -> tuple[bytes, bytes, str, str]:
    """Return script and style of the viewer, the loader that fetches them, and their version."""
    try:
        script, style = (STATIC / "viewer.js").read_bytes(), (STATIC / "viewer.css").read_bytes()
        loader = (STATIC / "loader.js").read_text("utf-8")
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"the browser part of the viewer is not built ({error.filename} is missing); plan: install dhlab from a "
            f"wheel, or build it in a checkout with Node.js: {BUILD}"
        ) from error
    # The whole script in the widget's state would be stored with every executed notebook; the loader asks for it.
    return script, style, loader, hashlib.sha256(script + style).hexdigest()[:16]
