"""Layers that are dense, side by side, still being written, or traces, as a person sees them in JupyterLab."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from screens import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

GLASS = (244, 244, 244)
DENSE = """
import numpy as np, shapely
import dhlab as dh
class Glass:
    shape, dtype = (20000, 30000, 3), np.dtype("u1")
    def __getitem__(self, key):
        return np.full([k.stop - k.start for k in key], 244, np.uint8)
class Small(Glass):
    shape = (625, 938, 3)
slide = dh.Scan((Glass(), Small()), "yxc", (0.25, 0.25), "µm", name="glass", fill=255, scales=((1, 1), (32, 32)))
# The left half is full of nuclei of one class, the right half of the other; one gland with a hole lies on both.
y, x = (v.ravel() for v in np.mgrid[50:20000:100, 50:30000:100])
nuclei = shapely.buffer(shapely.points(x, y), 20, quad_segs=4)
gland = shapely.Point(15000, 10000).buffer(3000).difference(shapely.Point(15000, 10000).buffer(1500))
zones = dh.Annotations(geometries=np.array([*nuclei, gland]), class_names=("left", "right", "gland"),
                       classes=np.append(np.where(x < 15000, 0, 1), 2).astype(np.int32),
                       class_colors=((200, 30, 30), (30, 30, 200), (0, 130, 0)),
                       scores=np.append(np.full(len(x), 0.25), np.nan), parent=slide.as_parent())
print(len(zones))
"""


def near(color: np.ndarray, wanted: tuple[int, int, int], tolerance: int = 30) -> bool:
    return bool(np.abs(np.asarray(color, int) - wanted).max() <= tolerance)


def share(picture: np.ndarray, wanted: tuple[int, int, int], tolerance: int = 30) -> float:
    """Return how much of a picture has a colour."""
    return float((np.abs(picture - wanted).max(-1) <= tolerance).mean())


def off_middle(stage: Any, y: float, x: float) -> np.ndarray:
    """Return how far from the middle of a stage a level-0 pixel is shown, as (y, x) in screen pixels."""
    box = stage.stage.bounding_box()
    return np.subtract(stage.place(y, x), (box["height"] / 2, box["width"] / 2))


def test_sixty_thousand_shapes_are_dots_then_outlines_and_change_their_colours(open_cell, watch) -> None:
    cell = open_cell(
        DENSE,
        "viewer = dh.show(slide, zones)\nviewer",
        "viewer.set_layer(1, class_colors={'left': (250, 200, 0)}, hidden=[1]); print('changed')",
        "viewer.center, viewer.zoom = (5050, 2050), 1.0; print('moved')",
        "more = dh.Annotations.from_geometries([shapely.box(1600, 4800, 1800, 5000)], 'added', "
        "colors={'added': (160, 0, 160)})\nlayer = viewer.add(more); print(layer.name)",
        "viewer.remove('added'); print(len(viewer.layers))",
    )
    # As a whole: dots of both classes, each on its side, and the ring that is large enough to have an outline.
    picture = cell.picture()
    top, left = (round(v) for v in cell.place(500, 500))
    bottom, right = (round(v) for v in cell.place(19500, 14500))
    assert share(picture[top:bottom, left:right], (200, 30, 30)) > 0.05
    assert share(picture[top:bottom, left:right], (30, 30, 200)) == 0
    assert share(picture[top:bottom, right + 20 : 2 * right - left], (30, 30, 200)) > 0.05
    row, column = (round(v) for v in cell.place(10000, 18000))
    assert share(picture[row - 3 : row + 4, column - 3 : column + 4], (0, 130, 0)) > 0.1
    cell.move(10000, 17000)
    cell.page.wait_for_selector(".dhv-tip:not([hidden])")
    assert "gland" in cell.viewer.locator(".dhv-tip").inner_text()

    # Colours change at once, a hidden class is gone, with what lies below it seen.
    cell.run(2)
    picture = cell.picture()
    assert share(picture[top:bottom, left:right], (250, 200, 0)) > 0.05
    assert share(picture, (30, 30, 200)) == 0

    # Close by, outlines of those in view: the line on the rim, glass between, the facts under the pointer.
    cell.run(3)
    picture = cell.picture()
    row, column = (round(v) for v in cell.place(5050, 2050))
    assert share(picture[row - 2 : row + 3, column + 18 : column + 23], (250, 200, 0), 60) > 0.15
    assert near(cell.color(5000, 2000), GLASS)
    assert not near(cell.color(5050, 2050), GLASS, 8)
    cell.move(5055, 2045)
    cell.page.wait_for_selector(".dhv-tip:not([hidden])")
    tip = cell.viewer.locator(".dhv-tip").inner_text()
    assert "left" in tip
    assert "score 0.25" in tip
    assert "µm²" in tip
    cell.move(5000, 2000)
    assert cell.viewer.locator(".dhv-tip").is_hidden()

    # Layers that come and go are followed, on the stage and in the list.
    assert cell.run(4) == "added"
    assert not near(cell.color(4880, 1790), GLASS, 8)
    assert cell.viewer.get_by_label("Show added").count() == 2
    assert cell.run(5) == "2"
    assert near(cell.color(4880, 1790), GLASS)
    assert cell.viewer.get_by_label("Show added").count() == 0
    cell.viewer.get_by_label("Colour of left").fill("#00a0a0")
    cell.settle()
    picture = cell.picture()
    assert share(picture[row - 2 : row + 3, column + 18 : column + 23], (0, 160, 160), 60) > 0.15
    assert watch.errors == []


TWO = """
import numpy as np
import dhlab as dh
y, x = np.mgrid[:1200, :1600]
spot = np.hypot(y - 300, x - 400) < 100
he = dh.Scan.from_array(np.where(spot[..., None], np.array([150, 70, 160], np.uint8), np.uint8(244)), "yxc",
                        spacing=0.5, unit="µm", name="he", fill=255)
ihc = dh.Scan.from_array(np.where(spot[::2, ::2, None], np.array([130, 80, 30], np.uint8), np.uint8(236)), "yxc",
                         spacing=1.0, unit="µm", name="ihc", fill=255)
time = np.arange(30000) / 1000
eeg = dh.Scan.from_array(np.sin(2 * np.pi * np.stack([time, 3 * time])).astype("f4") * (time > 10), "ct",
                         spacing=0.001, unit="s", name="eeg", channels=("Fp1", "Fp2"))
"""


def test_two_stains_move_together_and_traces_are_paged(open_cell, open_stage, watch) -> None:
    cell = open_cell(
        TWO,
        "both = dh.show([he], [ihc], height=360)\nboth",
        "import json; print(json.dumps([viewer.center for viewer in both.viewers]))",
        "page = dh.show(eeg, height=360)\npage",
        "print(page.index)",
    )
    other = open_stage(".widget-hbox > :nth-child(2) .dhlab-viewer")
    first, second = cell.viewer.bounding_box(), other.viewer.bounding_box()
    assert first["y"] == pytest.approx(second["y"], abs=1)
    assert first["width"] == pytest.approx(second["width"], abs=4)
    assert first["x"] + first["width"] <= second["x"]
    assert near(cell.color(300, 400), (150, 70, 160))
    assert near(other.color(150, 200), (130, 80, 30))
    cell.move(300, 400)
    for _ in range(3):
        cell.page.mouse.wheel(0, -240)
        cell.page.wait_for_timeout(150)
    cell.settle()
    # The kernel carries the place from one view to the other.
    wait_until(cell.page, lambda: np.abs(off_middle(other, 150, 200) - off_middle(cell, 300, 400)).max() < 3)
    other.settle()
    one, two = json.loads(cell.run(2))
    assert np.array(one) / 2 == pytest.approx(two, abs=1)
    assert near(other.color(150, 200), (130, 80, 30))

    cell.page.locator(".jp-Notebook .jp-Cell >> nth=3").locator(".cm-content").click()
    cell.page.keyboard.press("Control+Enter")
    cell.page.wait_for_selector(".dhlab-viewer >> nth=2", timeout=60_000)
    traces = open_stage(".jp-Cell:has-text('page = dh.show') .dhlab-viewer")
    blue = (0, 114, 178)
    flat = share(traces.picture(), blue, 90)
    assert "1 / 3" in traces.viewer.locator(".dhv-panel").inner_text()
    traces.stage.focus()
    cell.page.keyboard.press("PageUp")
    traces.settle()
    assert share(traces.picture(), blue, 90) > 3 * flat > 0
    assert cell.run(4) == "{'t': 1}"
    assert watch.errors == []


GROWING = """
import numpy as np
import dhlab as dh
from dhlab.io.bands import BandWriter
pixels = np.full((2400, 1800, 3), 244, np.uint8)
slide = dh.Scan.from_array(pixels, "yxc", spacing=0.5, unit="µm", name="glass", fill=255)
viewer = dh.show(slide)
watch = viewer.watch("growing.ome.zarr")
out = BandWriter.create("growing.ome.zarr", shape=(1, 2400, 1800), axes="cyx", dtype=np.uint8, spacing=(0.5, 0.5),
                        unit="µm", channels=("tumour",), name="heat", parent=slide.as_parent(), fingerprint={"a": 1},
                        tile=256)
def write(bands):
    for band in bands:
        out.write_band(band, np.full(out.band_shape(band), 255, np.uint8))
"""


def test_a_heat_map_appears_as_it_is_written(open_cell, watch) -> None:
    cell = open_cell(
        GROWING,
        "viewer",
        "write(range(out.bands // 2)); print(out.band_height * (out.bands // 2))",
        "write(range(out.bands // 2, out.bands)); out.finish(); print(watch.wait(30))",
    )
    written = int(cell.run(2))
    wait_until(cell.page, lambda: not near(cell.color(written - 200, 900), GLASS))
    assert near(cell.color(written + 100, 900), GLASS)
    assert cell.run(3) == "True"
    wait_until(cell.page, lambda: not near(cell.color(2300, 900), GLASS))
    assert cell.viewer.get_by_label("Show heat").count() == 1
    assert cell.viewer.locator(".dhv-panel").is_visible()
    assert cell.viewer.locator(".dhv-alert").is_hidden()
    assert watch.errors == []
