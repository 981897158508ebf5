"""Slides in JupyterLab's own tabs, below a prefix: opened as a person opens them, and found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from screens import workspace_kept

import dhlab as dh

LABEXTENSION = Path(__file__).parents[2] / "extensions" / "jupyterlab" / "labextension"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (LABEXTENSION / "package.json").exists(), reason="the Lab extension is not built (npm)"),
]
# Places on the real slide, level-0 pixels (y, x).
TISSUE = [(1780 + 15 * i, 1240) for i in range(4)]
GLASS = (1000, 200)
BLUE = (0, 114, 178)


@pytest.fixture(scope="module")
def cases(lab, skin_slide) -> Path:
    """Fill a folder as a person would have it: a slide with annotations, the same as OME-Zarr, one that is damaged."""
    import tifffile

    folder = lab.folder / "cases"
    folder.mkdir()
    shutil.copyfile(skin_slide, folder / "skin.svs")
    slide = dh.open(folder / "skin.svs")
    zone = shapely.box(600, 1900, 1100, 2300)
    dh.Annotations.from_geometries([zone], "keratin", scores=[0.75], colors={"keratin": BLUE}).to_geojson(
        folder / "skin.geojson"
    )
    dh.save(slide, folder / "copy.ome.zarr")
    pixels = np.full((4096, 4096, 3), (150, 70, 160), np.uint8)
    damaged = folder / "damaged.tif"
    tifffile.imwrite(damaged, pixels, photometric="rgb", compression="jpeg", tile=(512, 512))
    with tifffile.TiffFile(damaged) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))[32:]
    with damaged.open("r+b") as file:
        for start, count in places:
            file.seek(start)
            file.write(b"\0" * count)
    return folder


def open_folder(page: Any, lab: Any) -> None:
    page.goto(f"{lab.url}lab/tree/cases?reset&token={lab.token}")
    page.wait_for_selector(".jp-DirListing-item >> text=skin.svs", timeout=90_000)


def place(stage: Any) -> list[float]:
    """Return centre, resolution and rotation of the view."""
    found = stage.viewer.evaluate(
        """({ dhlab: { map } }) => {
          const view = map.getView();
          return [...view.getCenter(), view.getResolution(), view.getRotation()];
        }"""
    )
    return list(map(float, found))


def tiles(watch: Any) -> list[str]:
    return [url for url in watch.own if url.startswith("GET dhlab/tiles/")]


def test_a_slide_opens_at_once_is_left_alone_and_found_again(page, lab, cases, watch, open_stage) -> None:
    open_folder(page, lab)
    page.dblclick(".jp-DirListing-item >> text=skin.svs")
    stage = open_stage()
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert stage.color(*GLASS).min() > 225
    assert tiles(watch)
    # The file itself is neither fetched nor copied.
    assert not [url for url in watch.own if "skin.svs" in url and ("content=1" in url or "/files/" in url)]
    assert not [url for url in watch.own if url.startswith("POST") and "checkpoints" in url]
    assert not list(cases.rglob("*checkpoint*.svs"))

    # The annotations that lie beside it lie on it, and in the table.
    table = stage.viewer.locator(".dhv-table")
    assert "In view: 1" in table.inner_text()
    assert "keratin" in table.inner_text()
    assert "0.75" in table.inner_text()
    assert "0.0498 mm²" in table.inner_text()
    row, column = (round(v) for v in stage.place(1900, 850))
    rim = stage.picture()[row - 2 : row + 3, column]
    assert np.abs(rim - BLUE).max(-1).min() < 30
    table.get_by_title("Go to keratin").click()
    page.wait_for_timeout(500)
    stage.settle()
    height = stage.stage.bounding_box()["height"]
    assert height / 4 < stage.place(2300, 0)[0] - stage.place(1900, 0)[0] <= height / 2 + 1
    page.keyboard.press("0")
    stage.settle()

    # Keyboard first: the tab that opened has it.
    page.keyboard.press("+")
    page.keyboard.press("Shift+R")
    stage.settle()
    x, y = stage.move(*TISSUE[0])
    for _ in range(3):
        page.mouse.wheel(0, -240)
        page.wait_for_timeout(120)
    page.mouse.down()
    page.mouse.move(x + 60, y - 40, steps=20)
    page.wait_for_timeout(150)
    page.mouse.up()
    stage.settle()
    before = place(stage)
    assert before[3] == pytest.approx(np.pi / 2)
    stage.viewer.get_by_label("Opacity of skin", exact=True).fill("0.5")
    stage.settle()
    # A file that gets another name keeps its view.
    page.evaluate("() => window.jupyterapp.serviceManager.contents.rename('cases/skin.svs', 'cases/moved.svs')")
    page.wait_for_selector(".lm-TabBar-tabLabel:has-text('moved.svs')")
    page.wait_for_selector(".dhlab-viewer[data-ready]", timeout=30_000)
    stage = open_stage()
    assert place(stage) == pytest.approx(before, rel=1e-3, abs=0.02)
    with workspace_kept(page, '"dhlab-slide:cases/skin.svs":'):
        page.evaluate("() => window.jupyterapp.serviceManager.contents.rename('cases/moved.svs', 'cases/skin.svs')")
        page.wait_for_selector(".lm-TabBar-tabLabel:has-text('skin.svs')")

    page.goto(f"{lab.url}lab")
    page.wait_for_selector(".dhlab-viewer[data-ready]", timeout=90_000)
    stage = open_stage()
    assert place(stage) == pytest.approx(before, rel=1e-3, abs=0.02)
    assert stage.viewer.get_by_label("Opacity of skin", exact=True).input_value() == "0.5"

    # Dark, as JupyterLab.
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_selector('.dhlab-viewer[data-theme="dark"]', timeout=30_000)
    stage.settle()
    ground = stage.viewer.locator(".dhv-tools").evaluate("e => getComputedStyle(e).backgroundColor")
    assert (
        max(float(v) for v in ground.split("(")[1].rstrip(")").replace(",", " ").split()[-4:-1] if v[0].isdigit()) < 80
    )
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
    assert watch.errors == []
    assert watch.external == []


def test_a_notebook_from_a_slide_shows_it_over_http_and_tells_when_its_kernel_has_gone(
    page, lab, cases, watch, open_stage
) -> None:
    open_folder(page, lab)
    page.click(".jp-DirListing-item >> text=skin.svs", button="right")
    page.click(".lm-Menu-item >> text=Open in a new notebook")
    page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
    assert json.loads((cases / "skin.ipynb").read_text())["cells"][0]["source"]
    before = len(tiles(watch))
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    page.keyboard.press("Shift+Enter")
    stage = open_stage(".jp-Notebook .dhlab-viewer")
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert len(tiles(watch)) > before, "the server sends them, not the kernel"
    assert stage.viewer.locator(".dhv-alert").is_hidden()

    # A token that has run out is asked for anew, and nobody notices.
    opened = watch.own.count("POST dhlab/scans")

    def refuse(route: Any) -> None:
        if watch.own.count("POST dhlab/scans") == opened:
            route.fulfill(status=410, body="{}")
        else:
            route.continue_()

    page.route("**/dhlab/tiles/**", refuse)
    page.keyboard.press("Escape")
    stage.stage.focus()
    for _ in range(3):
        page.keyboard.press("+")
        stage.settle()
    assert watch.own.count("POST dhlab/scans") > opened
    assert stage.viewer.locator(".dhv-alert").is_hidden()
    page.unroute("**/dhlab/tiles/**")

    # Where the server is away, the kernel sends the tiles.
    page.route("**/dhlab/tiles/**", lambda route: route.abort())
    before = place(stage)
    stage.viewer.evaluate("({ dhlab: { map, frame } }) => map.getView().setCenter(frame.toWorld(1800, 1250))")
    stage.settle()
    assert place(stage) != before
    violet = np.mean([stage.color(1770 + 15 * i, 1240) for i in range(4)], 0)
    assert violet[2] > violet[1] + 15
    assert stage.viewer.locator(".dhv-alert").is_hidden()

    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:restart-kernel')")
    page.click(".jp-Dialog button:has-text('Restart')")
    stage.viewer.locator(".dhv-alert:not([hidden])").wait_for(timeout=60_000)
    assert "kernel" in stage.viewer.locator(".dhv-alert").inner_text()
    assert "Run the cell again" in stage.viewer.locator(".dhv-alert").inner_text()
    assert watch.external == []


def test_folders_damaged_files_and_curated_notebooks(page, lab, cases, watch, open_stage) -> None:
    open_folder(page, lab)
    # A folder that is a slide.
    page.click(".jp-DirListing-item >> text=copy.ome.zarr", button="right")
    page.click(".lm-Menu-item >> text=Open as slide")
    stage = open_stage()
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert watch.errors == []

    # Half of a file is damaged: the viewer says so, and shows the other half.
    page.dblclick(".jp-DirListing-item >> text=damaged.tif")
    page.wait_for_function("() => document.querySelectorAll('.dhlab-viewer').length > 1", timeout=60_000)
    stage = open_stage()
    alert = stage.viewer.locator(".dhv-alert:not([hidden])")
    stage.viewer.evaluate(
        """({ dhlab: { map, frame } }) => {
          map.getView().setResolution(1);
          map.getView().setCenter(frame.toWorld(2600, 900));
        }"""
    )
    alert.wait_for(timeout=30_000)
    assert "damaged" in alert.inner_text()
    stage.viewer.evaluate("({ dhlab: { map, frame } }) => map.getView().setCenter(frame.toWorld(900, 900))")
    stage.settle()
    assert np.abs(stage.color(900, 900) - (150, 70, 160)).max() < 14

    # Another slide takes its place on disk: said again, and shown on demand.
    page.wait_for_timeout(1200)
    tifffile = pytest.importorskip("tifffile")
    green = np.full((4096, 4096, 3), (60, 160, 80), np.uint8)
    tifffile.imwrite(cases / "damaged.tif", green, photometric="rgb", compression="jpeg", tile=(512, 512))
    stage.viewer.get_by_label("Dismiss").click()
    stage.viewer.evaluate("({ dhlab: { map, frame } }) => map.getView().setCenter(frame.toWorld(900, 3500))")
    alert.wait_for(timeout=30_000)
    assert "has changed" in alert.inner_text()
    alert.get_by_text("Try again").click()
    page.wait_for_selector(".dhlab-viewer:visible:not([data-ready])", state="detached", timeout=30_000)
    stage = open_stage()
    assert np.abs(stage.color(900, 3500) - (60, 160, 80)).max() < 14

    # A card in the launcher opens a copy here.
    page.evaluate("() => window.jupyterapp.commands.execute('launcher:create', { cwd: 'cases' })")
    page.click(".jp-LauncherCard:has-text('A first slide'):visible")
    page.wait_for_selector(".jp-Notebook h1:has-text('A first slide'):visible", timeout=60_000)
    assert (cases / "00_first_slide.ipynb").exists()
    assert watch.external == []
