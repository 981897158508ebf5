"""`show` in a real JupyterLab below a prefix, in a real browser: what is seen, and what pan, zoom and layers do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dhlab.display import class_color

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PHANTOM = """
import numpy as np, shapely
import dhlab as dh
from dhlab.errors import BadFileError
y, x = np.mgrid[:3000, :4000]
# A violet disc of radius 600 px at y 1200, x 1500 on white glass.
disc = np.hypot(y - 1200, x - 1500) < 600
pixels = np.where(disc[..., None], np.array([150, 70, 160], np.uint8), np.uint8(244))
slide = dh.Scan.from_array(pixels, "yxc", spacing=0.25, unit="µm", name="phantom", fill=255)
scores = np.stack([x > 1500, (x <= 1500) & disc]).astype(np.float32)[:, ::16, ::16]
heat = dh.Scan.from_array(scores, "cyx", spacing=4.0, unit="µm", name="heat", kind="heatmap",
                          channels=["background", "tumour"]).replace(parent=slide.as_parent())
zones = dh.Annotations.from_geometries([shapely.box(2500, 2000, 3500, 2800)], "necrosis", scores=[0.75],
                                       colors={"necrosis": (213, 94, 0)}, parent=slide)
class Damaged:
    shape, dtype = (4000, 4000, 3), np.dtype("u1")
    def __getitem__(self, key):
        if key[0].start >= 1024:
            raise BadFileError("tile 17 of bad.svs is damaged; expected JPEG. Copy the file again.")
        return np.full((key[0].stop - key[0].start, key[1].stop - key[1].start, 3), 90, np.uint8)
"""
VIOLET, GLASS = (150, 70, 160), (244, 244, 244)


def near(color: np.ndarray, wanted: tuple[int, int, int], tolerance: int = 14) -> bool:
    return bool(np.abs(np.asarray(color) - wanted).max() <= tolerance)


def blend(below: tuple[int, int, int], above: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(b + (a - b) * share) for b, a in zip(below, above, strict=True))
    return red, green, blue


def test_slide_heat_map_and_polygons_are_seen_panned_zoomed_and_switched(open_cell, watch) -> None:
    cell = open_cell(
        PHANTOM,
        "viewer = dh.show(slide, heat, zones)\nviewer",
        "import json; print(json.dumps([viewer.center, viewer.zoom, viewer.rotation, viewer.settings['1']]))",
    )
    tumour, necrosis = class_color(1), (213, 94, 0)
    # All is where it belongs: plain tissue, heat over its left half, glass, the filled polygon.
    assert near(cell.color(1200, 1800), VIOLET)
    assert near(cell.color(1200, 1200), blend(VIOLET, tumour, 0.5))
    assert near(cell.color(400, 3500), GLASS)
    assert near(cell.color(2400, 3000), blend(GLASS, necrosis, 0.12))
    row, column = (round(v) for v in cell.place(2000, 3000))
    rim = cell.picture()[row - 2 : row + 3, column]
    assert np.abs(rim - necrosis).max(-1).min() < 30

    # The cursor says where it is, and what lies under it.
    cell.move(2000, 3000)
    cell.page.wait_for_selector(".dhv-tip:not([hidden])")
    tip = cell.viewer.locator(".dhv-tip").inner_text()
    assert "necrosis" in tip
    assert "score 0.75" in tip
    assert "0.05 mm²" in tip
    row, column = cell.place(1200, 1800)
    cell.move(1200, 1800)
    said = cell.viewer.locator(".dhv-place").inner_text().replace("\u202f", "")
    numbers = [
        float(part) for part in said.replace("µm", "").replace("·", " ").replace(",", " ").split() if part[0].isdigit()
    ]
    step = 3000 / cell.stage.bounding_box()["height"] * 1.1
    assert np.abs(np.array(numbers) - (1200, 1800, 300, 450)).max() <= step, said

    # Drag pans: what was under the mouse stays under it.
    x, y = cell.move(1200, 1800)
    cell.page.mouse.down()
    cell.page.mouse.move(x + 90, y - 45, steps=90)
    cell.page.wait_for_timeout(150)
    cell.page.mouse.up()
    cell.settle()
    assert np.abs(np.array(cell.place(1200, 1800)) - (row - 45, column + 90)).max() < 2
    assert near(cell.color(1200, 1800), VIOLET)

    # The wheel zooms about the mouse.
    before = cell.place(1200, 1530)
    cell.move(1200, 1530)
    for _ in range(4):
        cell.page.mouse.wheel(0, -240)
        cell.page.wait_for_timeout(120)
    cell.settle()
    center, zoom, _, _ = json.loads(cell.run(2))
    assert zoom > 0.3
    # The mouse stands on whole screen pixels, and what it is off by grows with the zoom.
    assert np.abs(np.array(cell.place(1200, 1530)) - before).max() < 1 + zoom / 0.15
    size = cell.stage.bounding_box()
    row, column = size["height"] / 2, size["width"] / 2
    assert np.abs(np.array(cell.place(*center)) - (row, column)).max() < 1.5
    assert near(cell.color(1200, 1530), VIOLET)

    # Layers: opacity by keyboard, off, on, one class; Python sees the same.
    opacity = cell.viewer.get_by_label("Opacity of heat")
    opacity.focus()
    cell.page.keyboard.press("End")
    cell.settle()
    assert near(cell.color(1200, 1470), tumour)
    cell.viewer.get_by_label("Show heat").dispatch_event("click")
    cell.settle()
    assert near(cell.color(1200, 1470), VIOLET)
    cell.viewer.get_by_label("Show heat").dispatch_event("click")
    cell.viewer.get_by_label("Class of heat").select_option("tumour")
    cell.viewer.get_by_label("Colour map of heat").select_option("grey")
    cell.settle()
    assert near(cell.color(1200, 1470), (255, 255, 255))
    settings = json.loads(cell.run(2))[3]
    assert (settings["visible"], settings["opacity"], settings["channel"], settings["colors"]) == (True, 1, 1, "grey")
    assert watch.errors == []
    assert watch.external == []


def test_python_and_keyboard_move_the_view_and_a_second_view_follows(open_cell, watch) -> None:
    cell = open_cell(
        PHANTOM,
        "viewer = dh.show(slide, height=420)\nviewer",
        "viewer.center, viewer.zoom, viewer.rotation = (1200, 1500), 2.0, 30.0\nprint('moved')",
        "viewer.fit()\nprint('fitted')",
        "print(viewer.zoom < 0.2, viewer.rotation == 0, len(viewer.center))",
        "print(round(viewer.zoom, 6), round(viewer.rotation), [round(v) for v in viewer.center])",
    )
    assert cell.run(2) == "moved"
    size = cell.stage.bounding_box()
    middle = np.array([size["height"] / 2, size["width"] / 2])
    assert np.abs(np.array(cell.place(1200, 1500)) - middle).max() < 1
    assert np.hypot(*(np.array(cell.place(1200, 1600)) - middle)) == pytest.approx(200, abs=1)
    cell.page.wait_for_timeout(400)
    assert cell.run(5) == "2.0 30 [1200, 1500]"
    cell.stage.focus()
    cell.page.keyboard.press("0")
    cell.settle()
    assert cell.run(4) == "True True 2"
    cell.stage.focus()
    cell.page.keyboard.press("+")
    cell.page.keyboard.press("ArrowRight")
    cell.settle()
    assert cell.place(1500, 2000)[1] < middle[1] - 40
    cell.page.keyboard.press("Shift+R")
    cell.settle()
    assert cell.run(3) == "fitted"
    corners = np.array([cell.place(0, 0), cell.place(3000, 4000)])
    assert (corners >= 0).all()
    assert (corners <= (size["height"], size["width"])).all()
    # Keys typed in the viewer do nothing to the notebook.
    assert cell.page.locator(".jp-Notebook .jp-Cell").count() == 6
    names = cell.viewer.locator("button, input, select").evaluate_all(
        "all => all.filter(e => !(e.getAttribute('aria-label') || e.title || e.textContent.trim())).length"
    )
    assert names == 0
    assert watch.errors == []


def test_a_damaged_tile_is_told_and_the_viewer_lives(open_cell, watch) -> None:
    cell = open_cell(
        PHANTOM,
        "bad = dh.Scan((Damaged(),), 'yxc', (0.5, 0.5), 'µm', name='bad')\nviewer = dh.show(bad)\n"
        "viewer.center, viewer.zoom = (300, 600), 1.0\nviewer",
    )
    assert near(cell.color(300, 600), (90, 90, 90))
    cell.page.evaluate(
        "() => { const { map, frame } = document.querySelector('.dhlab-viewer').dhlab;"
        " map.getView().setCenter(frame.toWorld(2200, 600)); }"
    )
    cell.page.wait_for_selector(".dhv-alert:not([hidden])", timeout=20_000)
    assert "tile 17 of bad.svs is damaged" in cell.viewer.locator(".dhv-alert").inner_text()
    cell.page.evaluate(
        "() => { const { map, frame } = document.querySelector('.dhlab-viewer').dhlab;"
        " map.getView().setCenter(frame.toWorld(300, 2600)); }"
    )
    cell.settle()
    assert near(cell.color(300, 2600), (90, 90, 90))
    assert watch.errors == []


def test_a_real_slide_with_predicted_like_heat_and_regions(open_cell, watch, skin_slide) -> None:
    cell = open_cell(
        f"""
import dhlab as dh, numpy as np
slide = dh.open({str(skin_slide)!r})
small = slide.thumbnail(740).astype(float)
dark = np.clip((235 - small.mean(-1)) / 80, 0, 1).astype(np.float32)
spacing = tuple(n * s / m for n, s, m in zip(slide.shape, slide.spacing, dark.shape))
heat = dh.Scan.from_array(dark[None], "cyx", spacing=spacing, unit=slide.unit, name="density", kind="heatmap",
                          channels=["density"]).replace(parent=slide.as_parent())
zones = dh.Annotations.from_heatmap(heat, "density", threshold=0.9, min_area=400)
print(len(zones))
""",
        "viewer = dh.show(slide, heat, zones)\nviewer",
        "viewer.set_layer('density', visible=False); viewer.set_layer(2, visible=False); print('off')",
    )
    assert cell.run(2) == "off"
    violet = np.mean([cell.color(1780 + 15 * i, 1240) for i in range(4)], 0)
    assert violet[2] > violet[1] + 15
    assert cell.color(1000, 200).min() > 225
    cell.viewer.get_by_label("Show density").first.dispatch_event("click")
    cell.settle()
    assert near(cell.color(1000, 200), (240, 240, 240), 20)
    assert cell.viewer.locator(".dhv-alert").is_hidden()
    # The server is asked first, refuses what lies outside its root, and the kernel sends the tiles.
    assert all("status of 40" in error for error in watch.errors), watch.errors
    assert watch.external == []


def test_a_volume_is_windowed_leafed_through_measured_and_kept(open_cell, watch, tmp_path) -> None:
    cell = open_cell(
        """
import numpy as np
import dhlab as dh
z, y, x = np.mgrid[:6, :300, :400]
# Air, a brain of 30 HU on the left, bone of 900 HU on the right; each slice adds 10 HU to the brain.
head = np.where(x < 200, 30 + 10 * (z - 3), np.where(y < 150, 900, -1000)).astype(np.int16)
ct = dh.Scan.from_array(head, "zyx", spacing=(5.0, 0.5, 0.5), unit="mm", name="ct").replace(meta={"modality": "CT"})
""",
        "viewer = dh.show(ct, height=420)\nviewer",
        "print(viewer.settings['0']['low'], viewer.settings['0']['high'], viewer.index)",
    )
    window = cell.viewer.get_by_label("Window of ct", exact=True)
    window.select_option("Brain")
    cell.settle()
    # Level 40, width 80: 30 HU is three eighths of the way to white.
    assert near(cell.color(150, 100), (96, 96, 96), 4)
    assert near(cell.color(75, 300), (255, 255, 255), 4)
    assert near(cell.color(225, 300), (0, 0, 0), 4)
    cell.stage.focus()
    cell.page.keyboard.press("PageUp")
    cell.settle()
    assert near(cell.color(150, 100), (128, 128, 128), 4)
    cell.move(75, 300)
    cell.page.wait_for_function("() => document.querySelector('.dhv-pixel').textContent === '900 HU'", timeout=30_000)

    # The right button drags the window, and no menu comes.
    x, y = cell.move(150, 100)
    cell.page.mouse.down(button="right")
    cell.page.mouse.move(x + 200, y, steps=5)
    cell.page.mouse.up(button="right")
    cell.settle()
    assert cell.page.locator(".lm-Menu:visible").count() == 0
    low, high, place = cell.run(2).split(" ", 2)
    assert (float(low), float(high), place) == (-40, 120, "{'z': 4}")
    assert near(cell.color(150, 100), (128, 128, 128), 4)
    assert window.input_value() == ""

    with cell.page.expect_download() as download:
        cell.viewer.get_by_label("Save the view as PNG").click()
    download.value.save_as(tmp_path / "view.png")
    picture = np.asarray(Image.open(tmp_path / "view.png").convert("RGB")).astype(int)
    assert picture.shape[:2] == tuple(round(cell.stage.bounding_box()[side]) for side in ("height", "width"))
    row, column = (round(v) for v in cell.place(150, 100))
    assert near(picture[row, column], (128, 128, 128), 4)
    assert download.value.suggested_filename == "ct.png"
    cell.stage.focus()
    cell.page.keyboard.press("?")
    assert "Window (across) and level" in cell.viewer.get_by_role("dialog").inner_text()
    cell.page.keyboard.press("Escape")
    assert cell.viewer.get_by_role("dialog").count() == 0
    assert watch.errors == []
    assert watch.external == []
