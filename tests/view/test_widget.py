"""The widget in a real kernel, spoken to as the browser does: tiles, errors, withdrawal, small state, still picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dhlab as dh
from dhlab.errors import BadValueError, MissingDependencyError, UnknownNameError
from dhlab.scan import Scan
from dhlab.view import widget

ROOT = Path(__file__).parents[2]
BUILT = (widget.STATIC / "viewer.js").exists()
needs_build = pytest.mark.skipif(not BUILT, reason=f"the viewer is not built: {widget.BUILD}")

SETUP = """
import numpy as np, shapely, threading, time
import dhlab as dh
from dhlab.errors import BadFileError
from dhlab.view.widget import show
y, x = np.mgrid[:900, :700]
tissue = (x > 200) & (x < 500)
pixels = np.where(tissue[..., None], np.array([200, 60, 140], np.uint8), np.uint8(245))
slide = dh.Scan.from_array(pixels, "yxc", spacing=0.5, unit="µm", name="slide", fill=255)
scores = np.stack([~tissue, tissue]).astype(np.float32)[:, ::10, ::10]
heat = dh.Scan.from_array(scores, "cyx", spacing=5.0, unit="µm", name="heat", kind="heatmap",
                          channels=["background", "tumour"]).replace(parent=slide.as_parent())
class Slow:
    shape, dtype, reads, gate = (4096, 4096, 3), np.dtype("u1"), [], threading.Event()
    def __getitem__(self, key):
        self.reads.append(key[0].start)
        self.gate.wait(20)
        if key[0].start >= 2048:
            raise BadFileError("tile 9 of slow.svs is damaged; expected JPEG. Copy the file again.")
        return np.full((key[0].stop - key[0].start, key[1].stop - key[1].start, 3), 90, np.uint8)
slow = dh.Scan((Slow(),), "yxc", (0.5, 0.5), "µm", name="slow")
"""


def apart(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers of a message that holds several, as messages of their own; else the message."""
    content = message["content"].get("data", {}).get("content", {}) if message["msg_type"] == "comm_msg" else {}
    if content.get("type") != "several":
        return [message]
    buffers = iter(message["buffers"])
    return [
        message
        | {
            "content": {"data": {"content": {k: v for k, v in answer.items() if k != "buffers"}}},
            "buffers": [next(buffers) for _ in range(answer["buffers"])],
        }
        for answer in content["answers"]
    ]


class Kernel:
    """A real kernel and the messages that a browser would exchange with it."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.manager, self.client = start_new_kernel(env=environment)
        self.backlog: list[dict[str, Any]] = []

    def run(self, code: str) -> tuple[str, list[dict[str, Any]]]:
        """Execute and return what was printed and every other message."""
        message = self.client.execute(code)
        printed, others = "", []
        while True:
            got = self.client.get_iopub_msg(timeout=60)
            kind, content = got["msg_type"], got["content"]
            if got["parent_header"].get("msg_id") != message:
                self.backlog += apart(got)
                continue
            if kind == "stream":
                printed += content["text"]
            elif kind == "error":
                raise AssertionError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return printed.strip(), others
            else:
                others.append(got)

    def send(self, comm: str, **content: Any) -> None:
        """Send a custom message as anywidget's front end does."""
        session = self.client.session
        data = {"method": "custom", "content": content}
        session.send(self.client.shell_channel.socket, session.msg("comm_msg", {"comm_id": comm, "data": data}))

    def receive(self, number: int, timeout: float = 60) -> tuple[dict[str, Any], list[bytes]]:
        """Wait for the answer to a request."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            # Answers come in any order; the others are kept for those who wait for them.
            for place, got in enumerate(self.backlog):
                content = got["content"].get("data", {}).get("content", {}) if got["msg_type"] == "comm_msg" else {}
                if content.get("id") == number or (number == 0 and content.get("type") == "bundle"):
                    del self.backlog[place]
                    return content, [bytes(b) for b in got["buffers"]]
            self.backlog += apart(self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic())))
        raise AssertionError(f"no answer to {number}")

    def stop(self) -> None:
        """Shut the kernel down."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    if not BUILT:
        pytest.skip(f"the viewer is not built: {widget.BUILD}")
    pytest.importorskip("ipykernel", reason="needs ipykernel (the extra 'lab')")
    kernel = Kernel()
    kernel.run(SETUP)
    yield kernel
    kernel.stop()


def open_viewer(kernel: Kernel, *things: str) -> str:
    return kernel.run(f"viewer = show({', '.join(things)}); print(viewer.comm.comm_id)")[0]


def tile(**changes: Any) -> dict[str, Any]:
    return {"type": "tile", "view": "a", "layer": 0, "level": 0, "row": 0, "column": 0, "style": {}} | changes


def pushed(kernel: Kernel, kind: str, timeout: float = 30) -> dict[str, Any]:
    """Wait for a message of a kind that nobody asked for."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for place, got in enumerate(kernel.backlog):
            content = got["content"].get("data", {}).get("content", {}) if got["msg_type"] == "comm_msg" else {}
            if content.get("type") == kind:
                del kernel.backlog[place]
                return content
        kernel.backlog += apart(kernel.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic())))
    raise AssertionError(f"no message of type {kind}")


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_tiles_and_their_errors_come_over_the_comm(kernel: Kernel) -> None:
    comm = open_viewer(kernel, "slide", "heat")
    kernel.send(comm, **tile(id=1))
    head, buffers = kernel.receive(1)
    assert (head["mime"], head["view"], len(buffers)) == ("image/jpeg", "a", 1)
    shown = picture(buffers[0])
    assert np.abs(shown[300, 350].astype(int) - (200, 60, 140)).max() < 10
    assert shown[300, 100].min() > 235
    kernel.send(comm, **tile(id=2, layer=1, style={"channel": 1, "colors": "class"}))
    head, buffers = kernel.receive(2)
    assert head["mime"] == "image/png"
    scores = picture(buffers[0])
    assert scores[30, 35, 3] == 255
    assert scores[30, 10, 3] == 0
    for number, changes in enumerate([{"row": 99}, {"layer": 7}, {"style": {"colors": "nonsense"}}, {"level": "x"}], 3):
        kernel.send(comm, **tile(id=number, **changes))
        head, buffers = kernel.receive(number)
        assert head["error"]
        assert not buffers
    kernel.send(comm, **tile(id=9))
    assert kernel.receive(9)[0]["mime"] == "image/jpeg"


def test_requests_made_together_are_all_answered(kernel: Kernel) -> None:
    comm = open_viewer(kernel, "slide", "heat")
    asked = [tile(id=1000 + i, row=i % 2, column=i // 2 % 2) for i in range(60)]
    asked += [
        tile(id=1060, row=99),
        {"type": "values", "view": "a", "id": 1061, "layer": 0, "y": 3, "x": 5, "index": {}},
    ]
    kernel.send(comm, type="several", view="a", requests=asked)
    for request in asked[:60]:
        head, buffers = kernel.receive(request["id"])
        alone = request | {"id": request["id"] + 500}
        kernel.send(comm, **alone)
        assert kernel.receive(alone["id"])[1] == buffers
        assert (head["type"], len(buffers)) == ("tile", 1)
    assert "99" in kernel.receive(1060)[0]["error"]
    assert len(kernel.receive(1061)[0]["values"]) == 3
    nested = {"type": "several", "requests": [{"type": "several", "requests": [tile(id=1700)]}, tile(id=1701)]}
    kernel.send(comm, **nested)
    assert kernel.receive(1701)[1]


def test_a_busy_reader_blocks_neither_the_kernel_nor_other_layers_and_stale_requests_are_not_read(
    kernel: Kernel,
) -> None:
    comm = open_viewer(kernel, "slow")
    workers = int(kernel.run("from dhlab.view import widget; print(widget._workers()._max_workers)")[0])
    kernel.run("Slow.reads.clear(); Slow.gate.clear()")
    for number in range(100, 100 + workers + 4):
        kernel.send(comm, **tile(id=number, row=number % 4, column=(number - 100) // 4))
    # The main thread is free while every worker waits in the reader.
    assert kernel.run("print(6 * 7)")[0] == "42"
    kernel.send(comm, type="cancel", view="a", ids=list(range(100 + workers, 100 + workers + 4)))
    kernel.run("time.sleep(0.2); Slow.gate.set()")
    for number in range(100, 100 + workers):
        assert "mime" in kernel.receive(number)[0]
    kernel.send(comm, **tile(id=300, row=7, column=7))
    assert "tile 9 of slow.svs is damaged" in kernel.receive(300)[0]["error"]
    assert int(kernel.run("print(len(Slow.reads))")[0]) == workers + 1
    # What is done is forgotten.
    kernel.run("while viewer._futures: time.sleep(0.01)")


def test_tiles_come_while_a_cell_that_changed_the_viewer_runs_on(kernel: Kernel, tmp_path: Path) -> None:
    comm = open_viewer(kernel, "slide")
    session, client = kernel.client.session, kernel.client
    client.control_channel.send(session.msg("create_subshell_request"))
    shell = client.get_control_msg(timeout=30)["content"]["subshell_id"]

    def ask(number: int) -> None:
        data = {"method": "custom", "content": tile(id=number, column=number % 2)}
        message = session.msg("comm_msg", {"comm_id": comm, "data": data})
        message["header"]["subshell_id"] = shell
        session.send(client.shell_channel.socket, message)

    ask(900)
    kernel.receive(900)
    seen = tmp_path / "seen"
    wait = f"import os\nwhile not os.path.exists({str(seen)!r}): time.sleep(0.05)"
    running = client.execute(f"viewer.zoom = 0.25\nheat_layer = viewer.add(heat)\n{wait}")
    while True:
        got = client.get_iopub_msg(timeout=30)
        if got["content"].get("data", {}).get("state", {}).get("zoom") == 0.25:
            break
    time.sleep(0.5)
    for number in (901, 902):
        ask(number)
        assert "mime" in kernel.receive(number)[0]
    # The cell has waited for this.
    seen.touch()
    while client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != running:
        pass


def test_stored_values_come_over_the_comm(kernel: Kernel) -> None:
    comm = open_viewer(kernel, "slide", "heat")
    for number, layer, place in ((700, 0, (5, 250)), (701, 1, (1, 30)), (702, 0, (5, 700))):
        kernel.send(comm, type="values", view="a", id=number, layer=layer, y=place[0], x=place[1], index={})
    assert kernel.receive(700)[0]["values"] == [200, 60, 140]
    assert kernel.receive(701)[0]["values"] == [0, 1]
    assert "900 × 700" in kernel.receive(702)[0]["error"]


def test_shapes_come_packed_and_cells_of_other_shapes_do_not(kernel: Kernel) -> None:
    kernel.run(
        "boxes = lambda n: dh.Annotations.from_geometries([shapely.box(i, 0, i + 1, 1) for i in range(n)], 'a')\n"
        "viewer = show(slide, boxes(1500)); before = viewer.layers[1].shapes"
    )
    comm = kernel.run("print(viewer.comm.comm_id)")[0]
    ask: dict[str, Any] = {"type": "shapes", "view": "a", "layer": 1, "revision": 0}
    kernel.send(comm, **ask, id=800)
    assert len(kernel.receive(800)[1][0]) == int(kernel.run("print(len(before.catalogue()))")[0])
    kernel.send(comm, **ask, id=801, cells=[1, 0])
    size = int(kernel.run("print(len(before.outlines([1, 0])))")[0])
    assert len(kernel.receive(801)[1][0]) == size
    kernel.send(comm, **ask, id=802, cells=[2])
    assert "expected 0 to 1" in kernel.receive(802)[0]["error"]
    kernel.run("viewer.replace('a', boxes(3))")
    kernel.send(comm, **ask, id=803, cells=[1])
    head, [data] = kernel.receive(803)
    assert "error" not in head
    assert len(data) < size / 100
    kernel.send(comm, **ask | {"id": 804, "layer": 0})
    assert "AssertionError" in kernel.receive(804)[0]["error"]


def test_the_state_is_small_and_the_script_comes_on_request(kernel: Kernel) -> None:
    _, messages = kernel.run("viewer = show(slide, heat); print(viewer.comm.comm_id)")
    states = [m["content"]["data"]["state"] for m in messages if m["msg_type"] == "comm_open"]
    assert states
    assert sum(len(json.dumps(s)) for s in states) < 12_000
    assert all(not m["buffers"] for m in messages)
    comm = kernel.run("print(viewer.comm.comm_id)")[0]
    kernel.send(comm, type="bundle")
    head, buffers = kernel.receive(0)
    script, style = buffers
    assert script == (widget.STATIC / "viewer.js").read_bytes()
    assert style == (widget.STATIC / "viewer.css").read_bytes()
    assert head["version"] == kernel.run("print(viewer._version)")[0]


def test_a_cell_shows_the_widget_and_a_still_picture(kernel: Kernel) -> None:
    _, messages = kernel.run("show(slide, heat)")
    [data] = [m["content"]["data"] for m in messages if m["msg_type"] == "execute_result"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "Viewer of slide, heat"
    still = picture(base64.b64decode(data["image/png"]))
    assert len(data["image/png"]) < 200_000
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")).astype(int)
    assert still.shape[0] == 560
    assert image[300, 20].min() > 225
    assert image[260, 218, 2] > image[260, 218, 1] + 20


def test_closing_frees_tiles(kernel: Kernel) -> None:
    comm = open_viewer(kernel, "slide")
    kernel.send(comm, **tile(id=500))
    kernel.receive(500)
    assert kernel.run("print(viewer.layers[0].tiles._tiles.used > 0)")[0] == "True"
    assert kernel.run("viewer.close(); print(viewer.layers[0].tiles._tiles.used, viewer.comm)")[0] == "0 None"


@needs_build
def test_views_are_linked_in_physical_units() -> None:
    fine = Scan.from_array(np.zeros((800, 600, 3), np.uint8), "yxc", spacing=0.25, unit="µm", name="fine")
    coarse = Scan.from_array(np.zeros((80, 60, 3), np.uint8), "yxc", spacing=2.5, unit="µm", name="coarse")
    first = widget.show(fine)
    second = widget.show(coarse, link=first)
    first.center, first.zoom = (400.0, 300.0), 0.5
    assert second.center == pytest.approx((40, 30))
    assert second.zoom == pytest.approx(5)
    second.center = (10.0, 20.0)
    assert first.center == pytest.approx((100, 200))
    second.rotation = 30.0
    assert first.rotation == 30
    first.fit()
    assert (second.center, second.zoom, second.rotation) == (None, None, 0)
    other = Scan.from_array(np.zeros((80, 60)), "yx", spacing=0.1, unit="s", name="other")
    with pytest.raises(BadValueError, match="spacing"):
        widget.show(other, link=first)
    first.close()
    second.close()


@needs_build
def test_lists_are_views_side_by_side_that_move_together() -> None:
    red = Scan.from_array(np.full((800, 600, 3), (200, 30, 30), np.uint8), "yxc", spacing=0.25, unit="µm", name="he")
    blue = Scan.from_array(np.full((60, 80, 3), (30, 30, 200), np.uint8), "yxc", spacing=2.5, unit="µm", name="ihc")
    beside = widget.show([red], [blue, blue], height=300)
    assert isinstance(beside, widget.SideBySide)
    assert repr(beside) == "Viewer of he | Viewer of ihc, ihc 2"
    left, right = beside.viewers
    left.center, left.zoom = (400.0, 300.0), 0.5
    assert right.center == pytest.approx((40, 30))
    right.zoom = 10.0
    assert left.zoom == pytest.approx(1)
    assert {viewer.height for viewer in beside.viewers} == {300}
    left.fit()
    picture = beside.snapshot(400, legend=False)
    # The first is 300 px wide and 400 high, the second, never enlarged, 80 by 60, in the middle of its height.
    assert picture.shape == (400, 300 + widget.GAP_PX + 80, 3)
    assert tuple(picture[200, 150]) == (200, 30, 30)
    assert tuple(picture[200, 300 + widget.GAP_PX + 40]) == (30, 30, 200)
    assert tuple(picture[10, 300 + widget.GAP_PX + 40]) == (255, 255, 255)
    data = beside._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size[1] == 560
    beside.close()
    for wrong in ([[red], blue], [[red], []], [[red], [blue.replace(unit="s")]]):
        with pytest.raises(BadValueError):
            widget.show(*wrong)


@needs_build
def test_settings_change_by_name_and_snapshot_follows() -> None:
    slide = Scan.from_array(np.full((300, 400, 3), 250, np.uint8), "yxc", spacing=1, unit="µm", name="slide")
    scores = np.zeros((2, 30, 40), np.float32)
    scores[1, :, 20:] = 1
    heat = Scan.from_array(scores, "cyx", spacing=10, unit="µm", name="heat", kind="heatmap", channels=["a", "b"])
    viewer = widget.show(slide, heat)
    before = viewer.snapshot(400, legend=False)
    assert before.shape == (300, 400, 3)
    assert before[150, 100].min() > 240
    assert before[150, 300].min() < 220
    viewer.set_layer("heat", channel="b", opacity=1.0, colors="class")
    assert viewer.settings["1"]["channel"] == 1
    from dhlab.display import class_color

    assert tuple(viewer.snapshot(400, legend=False)[150, 300]) == class_color(1)
    viewer.set_layer("heat", visible=False)
    assert viewer.snapshot(400, legend=False).min() == 250
    viewer.center, viewer.zoom = (150.0, 200.0), 10.0
    assert viewer.snapshot(legend=False).shape == (50, 67, 3)
    for wrong in ({"opacty": 1}, {"channel": "c"}):
        with pytest.raises(UnknownNameError):
            viewer.set_layer("heat", **wrong)
    with pytest.raises(UnknownNameError, match="heat"):
        viewer.set_layer("heta", visible=True)
    with pytest.raises(BadValueError, match="opacity"):
        viewer.set_layer(1, opacity=2)
    assert repr(viewer) == "Viewer of slide, heat"
    viewer.close()


@needs_build
def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(BadValueError, match="expected Scans, Annotations and Documents"):
        widget.show(np.zeros((4, 4)))  # type: ignore[arg-type] # wrong, as is tried here
    with pytest.raises(BadValueError, match="a Scan first"):
        widget.show()


def test_without_the_build_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widget, "STATIC", tmp_path)
    widget._bundle.cache_clear()
    with pytest.raises(MissingDependencyError, match="npm ci --prefix extensions/viewer && npm run"):
        widget.show(Scan.from_array(np.zeros((4, 4)), "yx"))
    widget._bundle.cache_clear()


@needs_build
def test_an_executed_notebook_holds_no_script_and_shows_the_picture_on_a_web_page(tmp_path: Path) -> None:
    pytest.importorskip("nbconvert", reason="needs nbconvert")
    import nbformat.v4 as v4

    cells = [v4.new_code_cell(SETUP), v4.new_code_cell("show(slide, heat)")]
    notebook = v4.new_notebook(cells=cells)
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def convert(*arguments: str) -> None:
        command = [sys.executable, "-m", "nbconvert", *arguments]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=200)

    convert("--execute", "--to", "notebook", "--output", "b.ipynb", "a.ipynb")
    written = json.loads((tmp_path / "b.ipynb").read_text())
    stored = json.dumps(written["metadata"].get("widgets", {}))
    assert len(stored) < 15_000
    stripped = written | {"metadata": {k: v for k, v in written["metadata"].items() if k != "widgets"}}
    (tmp_path / "c.ipynb").write_text(json.dumps(stripped))
    convert("--to", "html", "--no-input", "c.ipynb")
    assert "data:image/png;base64," in (tmp_path / "c.html").read_text()


def test_a_document_is_edited_over_the_comm_and_tells_what_others_do(kernel: Kernel, tmp_path: Path) -> None:
    path = str(tmp_path / "slide.geojson")
    kernel.run(f"document = dh.Document.open(slide, {path!r}, 'anna')")
    comm = open_viewer(kernel, "slide", "document")
    scene = json.loads(kernel.run("import json; print(json.dumps(viewer._scene['layers'][1]))")[0])
    assert scene["kind"] == "shapes"
    assert scene["document"] | {"classes": 0} == {
        "readOnly": None,
        "classes": 0,
        "author": "anna",
        "revision": 0,
        "path": path,
        "can": ["learn"],
    }
    geometry = {"type": "Polygon", "coordinates": [[[0, 0], [90, 0], [90, 90], [0, 0]]]}
    change = {"object": "one", "after": {"exists": True, "geometry": geometry}}
    edit = {"type": "edit", "view": "a", "layer": 1}
    kernel.send(comm, **edit, id=2001, action="apply", tool="polygon", changes=[change], key="k")
    answer, _ = kernel.receive(2001)
    assert answer["edit"]["author"] == "anna"
    # An answer means that it is on the disk.
    assert len(dh.Document.open(make_slide(), path, "ben")) == 1
    for number in range(2002, 2022):
        stroke = {"path": [[number - 2000, 50]], "radius": 30, "objects": ["one"]}
        kernel.send(comm, **edit, id=number, action="draw", tool="brush", **stroke)
    revisions = [kernel.receive(number)[0]["revision"] for number in range(2002, 2022)]
    assert revisions == sorted(revisions)
    kernel.send(comm, **edit, id=2030, action="draw", tool="split", path=[[500, 0], [500, 9]], objects=["one"])
    assert "does not cut" in kernel.receive(2030)[0]["error"]
    kernel.send(comm, **edit | {"layer": 0}, id=2031, action="undo")
    assert "is no document" in kernel.receive(2031)[0]["error"]
    # A mistake that nobody foresaw is answered, too.
    kernel.send(comm, **edit, id=2032, action="find", filter="tumour")
    assert "AttributeError" in kernel.receive(2032)[0]["error"]
    with dh.Document.open(make_slide(), path, "ben") as ben:
        ben.change("one", review="accepted")
        news = pushed(kernel, "edited")
    assert (news["author"], news["layer"]) == ("ben", 1)
    assert news["changes"][0]["feature"]["properties"]["metadata"]["review"] == "accepted"
    kernel.run("document.add(shapely.Point(1, 2), 'cell'); document.close()")
    assert pushed(kernel, "edited")["classes"][0]["name"] == "cell"


def test_a_kernel_that_is_killed_while_one_draws_loses_nothing_that_it_answered(tmp_path: Path) -> None:
    path = str(tmp_path / "slide.geojson")
    kernel = Kernel()
    try:
        kernel.run(SETUP + f"document = dh.Document.open(slide, {path!r}, 'anna')")
        comm = open_viewer(kernel, "slide", "document")
        for number in range(1, 400):
            stroke = {"path": [[number, 50]], "radius": 5, "create": f"stroke {number}", "key": f"key {number}"}
            kernel.send(comm, type="edit", view="a", layer=1, id=number, action="draw", tool="brush", **stroke)
        assert kernel.receive(20)[0]["edit"]
        kernel.manager.signal_kernel(9)
        answered = {f"stroke {number}" for number in range(1, 21)}
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                for got in apart(kernel.client.get_iopub_msg(timeout=0.2)):
                    content = got["content"].get("data", {}).get("content", {})
                    if got["msg_type"] == "comm_msg" and content.get("edit"):
                        answered.add(f"stroke {content['id']}")
    finally:
        kernel.stop()
    with dh.Document.open(make_slide(), path, "anna") as document:
        assert answered <= set(document.annotations.ids)
        assert len(document) >= 20
        document.undo()
    assert len(dh.Annotations.from_geojson(path)) == len(document)


def make_slide() -> Scan:
    """Return a scan that a document takes for the kernel's slide."""
    return Scan.from_array(np.zeros((900, 700, 3), np.uint8), "yxc", spacing=0.5, unit="µm", name="slide")
