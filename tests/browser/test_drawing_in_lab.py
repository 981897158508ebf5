"""Drawing in a real JupyterLab: every tool, undo across reloads, two people at once, lost kernels and servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from screens import wait_until
from servers import PEOPLE
from shapely.geometry import mapping
from waiting import wait_for

import dhlab as dh

EXTENSIONS = Path(__file__).parents[2] / "extensions"
AXE = EXTENSIONS / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (EXTENSIONS / "jupyterlab" / "labextension" / "package.json").exists(),
        reason="the Lab extension is not built",
    ),
]

OPEN = """
import os
import dhlab as dh
slide = dh.open("{slide}")
document = dh.Document.open(slide, "{name}.geojson", author="anna")
for number, (name, color) in enumerate({{"tumour": (200, 0, 0), "stroma": (0, 114, 178)}}.items(), 1):
    if name not in [one.name for one in document.classes]:
        document.set_class(name, color=color, shortcut=str(number))
"""
SHOW = """
viewer = dh.show(slide, document, height=640)
viewer.center, viewer.zoom, viewer.active_class = (1000, 1200), 0.4, "tumour"
viewer
"""
VIOLET_AT = (1000, 1500)


@pytest.fixture(scope="module")
def slide(lab) -> Path:
    """Write a slide of which the wand knows what to do: a violet disc of radius 300 px at y 1000, x 1500."""
    import tifffile

    y, x = np.mgrid[:2000, :2600]
    disc = np.hypot(y - VIOLET_AT[0], x - VIOLET_AT[1]) < 300
    pixels = np.where(disc[..., None], np.array([150, 70, 160], np.uint8), np.uint8(244))
    path = lab.folder / "disc.tif"
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(256, 256), compression="deflate", resolution=(40_000, 40_000),
        resolutionunit="centimeter",
    )  # fmt: skip
    return path


@pytest.fixture
def open_document(open_cell, slide, lab, tmp_path) -> Callable[..., tuple[Any, Path]]:
    """Open a document of the slide in a notebook; returns the view and the path of the document."""

    def open_one(*cells: str, name: str = tmp_path.name) -> tuple[Any, Path]:
        cell = open_cell(OPEN.format(slide=slide.name, name=name), SHOW, *cells)
        return cell, lab.folder / f"{name}.geojson"

    return open_one


class Reader:
    """What is on the disk, read as another program would."""

    def __init__(self, slide: Path, path: Path) -> None:
        self.slide, self.path = slide, path

    @property
    def annotations(self) -> dh.Annotations:
        """The objects as they are now."""
        with dh.Document.open(dh.open(self.slide), self.path, author="reader") as document:
            return document.annotations

    @property
    def names(self) -> list[str]:
        """Names of the classes of the objects."""
        annotations = self.annotations
        return [annotations.class_names[label] for label in annotations.classes]

    @property
    def tools(self) -> list[str]:
        """Tools of all edits."""
        with dh.Document.open(dh.open(self.slide), self.path, author="reader") as document:
            return [edit.tool for edit in document.history()]

    def last(self) -> Any:
        """The geometry that was drawn last."""
        annotations = self.annotations
        return annotations.geometries[int(np.argmax(annotations.times.astype(str)))]


def features(path: Path) -> list[Any]:
    """Return what the file holds."""
    return json.loads(path.read_text())["features"]


def alike(one: Any, other: Any) -> float:
    """Return the intersection over union."""
    return float(shapely.area(shapely.intersection(one, other)) / shapely.area(shapely.union(one, other)))


def test_each_tool_draws_what_its_name_says(open_document, slide, watch) -> None:
    cell, path = open_document("print(len(document.annotations))")
    disk = Reader(slide, path)
    assert cell.viewer.locator(".dhv-saving").inner_text() == "Saved"

    cell.press("r")
    cell.drag((400, 500), (700, 900))
    cell.saved()
    assert alike(disk.last(), shapely.box(500, 400, 900, 700)) > 0.98
    assert disk.names == ["tumour"]
    assert disk.annotations.authors.tolist() == ["anna"]
    selected = cell.viewer.locator(".dhv-selected")
    # 400 × 300 px of 0.25 µm.
    assert "7 5" in selected.inner_text().replace("\u202f", " ")
    assert "µm²" in selected.inner_text()

    cell.press("2", "o")
    cell.drag((400, 1000), (600, 1400))
    cell.saved()
    circle = shapely.affinity.scale(shapely.Point(1200, 500).buffer(1, 64), 200, 100)
    assert alike(disk.last(), circle) > 0.97
    assert sorted(disk.names) == ["stroma", "tumour"]

    cell.press("p")
    corners = [(1500, 500), (1500, 900), (1750, 700)]
    for corner in corners:
        cell.click(*corner)
    assert "µm" in cell.viewer.locator(".dhv-tip").inner_text()
    cell.press("Enter")
    cell.saved()
    assert alike(disk.last(), shapely.Polygon([(x, y) for y, x in corners])) > 0.96

    cell.press("d")
    cell.drag((1500, 1000), (1450, 1200), (1650, 1250), (1700, 1050), (1500, 1000))
    cell.saved()
    rough = shapely.Polygon([(1000, 1500), (1200, 1450), (1250, 1650), (1050, 1700)])
    assert alike(disk.last(), rough) > 0.95

    cell.press("l")
    cell.drag((850, 400), (900, 600), (850, 800))
    cell.saved()
    line = disk.last()
    assert line.geom_type == "LineString"
    assert shapely.hausdorff_distance(line, shapely.LineString([(400, 850), (600, 900), (800, 850)])) < 8

    cell.press(".")
    cell.click(950, 450)
    cell.saved()
    assert shapely.distance(disk.last(), shapely.Point(450, 950)) < 4

    # A stroke on the object that is selected adds to it, one beside it is another object.
    cell.press("1", "b")
    count = len(disk.annotations)
    cell.drag((1100, 400), (1100, 700))
    cell.drag((1100, 700), (1300, 700))
    cell.drag((1300, 400), (1300, 500))
    cell.saved()
    painted = disk.annotations
    assert len(painted) == count + 2
    radius = 20 / 0.4
    stroke = shapely.LineString([(400, 1100), (700, 1100), (700, 1300)]).buffer(radius)
    assert max(alike(g, stroke) for g in painted.geometries if g.geom_type == "Polygon") > 0.93

    cell.press("Escape", "e")
    cell.drag((1300, 600), (1300, 800))
    cell.saved()
    left = stroke.difference(shapely.LineString([(600, 1300), (800, 1300)]).buffer(radius))
    assert max(alike(g, left) for g in disk.annotations.geometries if g.geom_type == "Polygon") > 0.92

    cell.press("Escape", "w")
    cell.click(*VIOLET_AT)
    cell.saved()
    disc = shapely.Point(1500, 1000).buffer(300)
    assert alike(disk.last(), disc) > 0.95

    # It is selected: the hole is cut into it, the line splits it.
    cell.press("h")
    cell.drag((950, 1350), (950, 1450), (1050, 1450), (1050, 1350), (950, 1350))
    cell.saved()
    rings = [g for g in disk.annotations.geometries if g.geom_type == "Polygon" and len(g.interiors) == 1]
    assert len(rings) == 1
    assert alike(rings[0], disc.difference(shapely.box(1350, 950, 1450, 1050))) > 0.94
    count = len(disk.annotations)
    cell.press("x")
    cell.drag((1000, 1150), (1000, 1850))
    cell.saved()
    halves = disk.annotations
    assert len(halves) == count + 1
    upper = disc.intersection(shapely.box(0, 0, 2600, 1000)).difference(shapely.box(1350, 950, 1450, 1050))
    assert max(alike(g, upper) for g in halves.geometries if g.geom_type == "Polygon") > 0.93

    # Both halves again as one, without its hole, and simpler.
    cell.press("s")
    cell.drag((650, 1150), (1350, 1950))
    assert "2 selected" in selected.inner_text()
    cell.press("j")
    cell.saved()
    assert len(disk.annotations) == count
    cell.drag((650, 1150), (1350, 1950))
    selected.get_by_role("button", name="Fill holes").click()
    cell.saved()
    selected.get_by_role("button", name="Simplify").click()
    cell.saved()
    whole = max(disk.annotations.geometries, key=lambda g: g.area)
    assert alike(whole, disc) > 0.94
    assert len(whole.interiors) == 0
    assert disk.tools[-3:] == ["merge", "fill", "simplify"]

    # A vertex is moved, another is taken away, a side gets a new one.
    cell.press("Escape", "s")
    cell.click(550, 700)
    cell.press("v")
    cell.drag((400, 500), (300, 450))
    cell.saved()
    moved = shapely.Polygon([(450, 300), (900, 400), (900, 700), (500, 700)])
    assert max(alike(g, moved) for g in disk.annotations.geometries if g.geom_type == "Polygon") > 0.97
    cell.page.keyboard.down("Alt")
    cell.click(300, 450)
    cell.page.keyboard.up("Alt")
    cell.page.wait_for_timeout(300)  # what could become a double click
    cell.saved()
    triangle = shapely.Polygon([(900, 400), (900, 700), (500, 700)])
    assert max(alike(g, triangle) for g in disk.annotations.geometries if g.geom_type == "Polygon") > 0.96

    # Snapped to its neighbour, a corner is the neighbour's.
    cell.press("n", "p")
    for corner in ((400 + 8, 900 + 8), (400, 1000), (650, 1000)):
        cell.click(*corner)
    cell.press("Enter")
    cell.saved()
    polygons = [g for g in disk.annotations.geometries if g.geom_type == "Polygon"]
    neighbour = shapely.MultiPoint(max(polygons, key=lambda g: alike(g, triangle)).exterior.coords)
    assert min(shapely.distance(shapely.points(disk.last().exterior.coords), neighbour)) < 0.02
    assert cell.run(2) == str(len(disk.annotations))
    assert watch.errors == []


ADD = """
import shapely
boxes = [shapely.box(x, y, x + 60, y + 60) for y in range(500, 1500, 100) for x in range(700, 1700, 100)]
document.add(dh.Annotations.from_geometries(boxes, "stroma"))
print(len(document.annotations))
"""
HALF = """
import numpy as np
half = dh.Scan.from_array(np.full((1000, 1300, 3), 244, np.uint8), "yxc", spacing=0.5, unit="µm", fill=255)
copy = dh.Document.open(half, document.path.with_name("copy.geojson"), author="anna")
other = dh.show(half, copy, link=viewer)
other
"""


def test_many_are_selected_classed_reviewed_commented_copied_and_removed(
    open_document, open_stage, slide, watch
) -> None:
    cell, path = open_document(
        ADD,
        "print(len(viewer.selection))",
        HALF,
        "print(sorted([round(v, 1) for v in g.bounds[:2]] for g in copy.annotations.geometries))",
    )
    disk = Reader(slide, path)
    # An edit by a script appears by itself.
    assert cell.run(2) == "100"
    cell.viewer.locator(".dhv-table summary").click()
    listed(cell, 100)
    cell.press("s")
    cell.drag((450, 650), (780, 980))
    selected = cell.viewer.locator(".dhv-selected")
    assert "9 selected" in selected.inner_text()
    cell.press("1")
    cell.saved()
    assert disk.names.count("tumour") == 9
    selected.get_by_role("button", name="Accepted").click()
    cell.saved()
    selected.get_by_label("New comment").fill("all of one gland")
    cell.page.keyboard.press("Enter")
    cell.saved()
    assert (disk.annotations.reviews == "accepted").sum() == 9
    assert cell.run(3) == "9"
    cell.click(530, 730)
    assert "all of one gland" in selected.inner_text()
    assert "anna" in selected.inner_text()

    # Found by class and review on the whole slide, whatever is in view.
    find = cell.viewer.locator(".dhv-find")
    find.locator("summary").click()
    find.get_by_label("Class to find").select_option("stroma")
    find.get_by_role("button", name="Select").click()
    find.get_by_text("91 selected").wait_for()
    cell.press("Delete")
    cell.saved()
    assert len(disk.annotations) == 9
    cell.press("Control+z")
    cell.saved()
    assert len(disk.annotations) == 100
    cell.press("Control+Shift+z")
    cell.saved()
    assert len(disk.annotations) == 9

    # Copied and put beside itself; and into a linked view of other pixels, where it lies at the same place.
    cell.drag((450, 650), (680, 780))
    assert "2 selected" in selected.inner_text()
    cell.press("Control+c", "Control+v")
    cell.saved()
    assert len(disk.annotations) == 11
    cell.page.locator(".jp-Notebook .jp-Cell >> nth=4").locator(".cm-content").click()
    cell.page.keyboard.press("Control+Enter")
    cell.page.locator(".dhlab-viewer").nth(1).wait_for(timeout=30_000)
    other = open_stage(".jp-Cell:has-text('half =') .dhlab-viewer")
    other.press("Control+v")
    other.saved()
    assert cell.run(5) == "[[350.0, 250.0], [350.0, 300.0]]"

    # A class is added by name, colour and key, renamed, and removed with what its objects become.
    cell.viewer.get_by_role("button", name="Add a class").click()
    cell.viewer.get_by_label("Name of the class").fill("fat")
    cell.page.keyboard.press("Enter")
    cell.saved()
    cell.viewer.get_by_label("Change the class tumour").click()
    # A derived class is written by its parts, as QuPath does.
    cell.viewer.get_by_label("Name of the class").fill("Tumor: Positive")
    cell.page.keyboard.press("Enter")
    cell.saved()
    assert "Tumor: Positive" in disk.names
    assert "tumour" not in disk.names
    cell.click(730, 930)
    chosen = selected.get_by_label("Class of the selection")
    assert chosen.input_value() == "Tumor: Positive"
    foreign = [{"type": "Feature", "geometry": mapping(shapely.box(x, 350, x + 60, 410))} for x in (500, 600)]
    label = {"names": ["Tumor", "Positive"], "color": [0, 0, 0]}
    cell.paste(foreign[0] | {"properties": {"classification": label}})
    cell.saved()
    assert chosen.input_value() == "Tumor: Positive"
    cell.paste(foreign[1] | {"properties": None})
    cell.saved()
    assert chosen.input_value() == ""
    assert len(disk.annotations) == 13
    cell.viewer.get_by_label("Change the class Tumor: Positive").click()
    cell.viewer.get_by_role("button", name="Remove").click()
    cell.viewer.get_by_label("What becomes of the objects of Tumor: Positive").select_option("fat")
    cell.viewer.get_by_role("button", name="Remove").click()
    cell.saved()
    assert set(disk.names[:12]) == {"fat"}
    assert watch.errors == []


def test_undo_goes_on_after_a_reload_and_history_says_who(open_document, slide, page, lab) -> None:
    cell, path = open_document()
    disk = Reader(slide, path)
    for top in (400, 700, 1000):
        cell.press("r")
        cell.drag((top, 500), (top + 200, 800))
    cell.saved()
    cell, path = open_document(name=path.stem)
    assert len(disk.annotations) == 3
    cell.press("Control+z", "Control+z")
    cell.saved()
    assert len(disk.annotations) == 1
    cell.press("Control+Shift+z")
    cell.saved()
    assert len(disk.annotations) == 2
    history = cell.viewer.locator(".dhv-history")
    history.locator("summary").click()
    rows = history.locator("tbody tr")
    rows.nth(5).wait_for()
    said = [rows.nth(i).inner_text().split()[-2:] for i in range(3)]
    assert said == [["anna", "redo"], ["anna", "undo"], ["anna", "undo"]]
    assert rows.nth(3).get_attribute("class") == "dhv-undone"
    rows.nth(4).get_by_role("button").click()
    assert "Selected" in cell.viewer.locator(".dhv-selected").inner_text()
    # Another program saves what it had read before the second.
    wait_for(lambda: len(features(path)) == 2)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features(path)[:1]}))
    cell.viewer.get_by_text("without 1 of the objects drawn here").wait_for()
    history.get_by_role("button", name="Take back").click()
    history.locator("tr.dhv-undone", has_text="file").wait_for()
    cell.saved()
    assert len(disk.annotations) == 2
    assert history.get_by_role("button", name="Take back").count() == 0


def test_nothing_acknowledged_is_lost_with_the_kernel_and_the_rest_is_offered_again(open_document, slide, page) -> None:
    cell, path = open_document("print(os.getpid())")
    disk = Reader(slide, path)
    kernel = int(cell.run(2))
    cell.press("r")
    cell.drag((400, 500), (700, 900))
    cell.saved()
    os.kill(kernel, signal.SIGKILL)
    cell.drag((900, 500), (1200, 900))
    cell.viewer.locator(".dhv-saving[data-state=unsaved]").wait_for(timeout=60_000)
    assert "not saved" in cell.viewer.locator(".dhv-fault").inner_text()
    assert len(disk.annotations) == 1
    # Dismiss JupyterLab's note, run the cells again: the new view offers what the old one could not save.
    page.locator(".jp-Dialog button").first.click(timeout=60_000)
    page.wait_for_selector("text=/\\| Idle/", timeout=60_000)
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    again = page.locator(".dhlab-viewer .dhv-fault:visible")
    again.wait_for(timeout=60_000)
    assert "One edit is not saved" in again.inner_text()
    again.get_by_role("button", name="Try again").click()
    cell.viewer.locator(".dhv-saving[data-state=saved]").wait_for(timeout=20_000)
    boxes = [shapely.box(500, 400, 900, 700), shapely.box(500, 900, 900, 1200)]
    assert len(disk.annotations) == 2
    assert all(max(alike(g, box) for g in disk.annotations.geometries) > 0.97 for box in boxes)


def open_tab(page: Any, lab: Any, folder: str) -> None:
    page.goto(f"{lab.url}lab/tree/{folder}?reset&token={lab.token}")
    page.dblclick(".jp-DirListing-item >> text=disc.tif", timeout=90_000)


def listed(stage: Any, count: int) -> None:
    """Wait until the table of what is in view has so many rows."""
    stage.viewer.locator(f".dhv-table summary:has-text('In view: {count}')").wait_for(timeout=30_000)


def test_a_notebook_and_a_tab_draw_on_one_document(open_document, open_stage, browser, lab, slide) -> None:
    folder = lab.folder / "two"
    folder.mkdir()
    shutil.copyfile(slide, folder / "disc.tif")
    shared = folder / "disc.geojson"
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    open_tab(tab, lab, "two")
    stage = open_stage(page=tab)
    # Nothing is written before somebody draws.
    assert not shared.exists()
    stage.press("r")
    stage.drag((300, 300), (600, 600))
    stage.saved()
    cell, _ = open_document(name="two/disc")
    cell.press("Shift+L", "Shift+L")
    cell.viewer.locator(".dhv-table summary").click()
    listed(cell, 1)
    cell.press("o")
    cell.drag((900, 900), (1200, 1200))
    cell.saved()
    listed(stage, 2)
    stage.press("s")
    stage.click(1050, 1050)
    stage.press("Delete")
    stage.saved()
    # The pointer has not moved: what it had marked is gone, too.
    stage.settle()
    assert np.ptp(stage.color(1050, 1050)) == 0
    listed(cell, 1)
    disk = Reader(folder / "disc.tif", shared)
    assert [tool for tool in disk.tools if tool != "class"] == ["rectangle", "ellipse", "delete"]
    assert len(disk.annotations) == 1

    # What the server fails at is not sent over and over: it is told, and others are sent.
    address = "**/dhlab/documents/*"
    tab.route(address, lambda route: route.fulfill(status=500, json={"message": "the server failed (KeyError)"}))
    stage.press("o")
    stage.drag((300, 300), (600, 600))
    stage.viewer.get_by_text("the server failed (KeyError)").wait_for(timeout=30_000)
    stage.press("r")
    with tab.expect_request(lambda request: "rectangle" in (request.post_data or "")):
        stage.drag((300, 900), (600, 1200))
    stage.viewer.get_by_text("2 edits are not saved").wait_for(timeout=30_000)
    tab.unroute(address)
    stage.viewer.get_by_role("button", name="Try again").click()
    stage.saved()
    assert len(disk.annotations) == 3
    tab.close()


# Ben may draw, and run no programs.
NO_KERNELS = """
class NoKernels(Guests):
    def is_authorized(self, handler, user, action, resource):
        return user.username != "ben" or action == "read" or resource not in ("kernels", "sessions")

c.ServerApp.authorizer_class = NoKernels
"""


def test_two_people_draw_at_once_and_go_on_after_the_server_was_killed(
    browser, start_lab, open_stage, slide, tmp_path
) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    folder = root / "slides"
    folder.mkdir(parents=True)
    home.mkdir()
    shutil.copyfile(slide, folder / "disc.tif")
    disk = Reader(folder / "disc.tif", folder / "disc.geojson")
    with start_lab(root, home, configuration=PEOPLE + NO_KERNELS) as lab:
        pages = [
            browser.new_context(
                viewport={"width": 1400, "height": 1000}, extra_http_headers={"X-User": name}
            ).new_page()
            for name in ("anna", "ben")
        ]
        for page in pages:
            open_tab(page, lab, "slides")
        anna, ben = (open_stage(page=page) for page in pages)
        anna.press("r")
        anna.drag((300, 300), (600, 600))
        listed(ben, 1)
        ben.press("r")
        ben.drag((300, 900), (600, 1200))
        listed(anna, 2)
        # One gives it a class while the other moves it: both count.
        ben.press("s")
        ben.click(450, 450)
        ben.viewer.get_by_label("New comment").fill("is this one right?")
        ben.page.keyboard.press("Enter")
        anna.press("v")
        anna.drag((300, 300), (200, 200))
        for stage in (anna, ben):
            stage.saved()
        anna.viewer.get_by_text("is this one right?").wait_for(timeout=30_000)
        assert sorted(disk.annotations.authors) == ["anna", "ben"]
        assert max(disk.annotations.geometries, key=lambda g: g.area).area > 300**2 + 20_000
        history = anna.viewer.locator(".dhv-history")
        history.locator("summary").click()
        history.locator("tr:has-text('ben')").nth(1).wait_for()
        ben.viewer.get_by_role("button", name="Learn from what is drawn").click()
        ben.viewer.get_by_text("You may not start kernels on this server").wait_for(timeout=30_000)

        lab.process.kill()
        lab.process.wait()
        anna.press("o")
        anna.drag((1200, 300), (1500, 600))
        anna.viewer.locator(".dhv-saving[data-state=unsaved]").wait_for(timeout=30_000)
        assert len(disk.annotations) == 2
    with start_lab(root, home, port=lab.port):
        # It is saved by itself, and the other one sees it.
        anna.viewer.locator(".dhv-saving[data-state=saved]").wait_for(timeout=30_000)
        ben.viewer.locator(".dhv-table summary:has-text('In view: 3')").wait_for(timeout=30_000)
        assert len(disk.annotations) == 3
        # JupyterLab's own note that the server was away, if it asked for something meanwhile.
        if (note := ben.page.locator(".jp-Dialog button").first).is_visible():
            note.click()
        ben.press("Control+z")
        ben.saved()
        found = [dict(disk.annotations.metadata(row)) for row in range(3)]
        assert (found, disk.tools[-1]) == ([{}, {}, {}], "undo")
        for page in pages:
            page.context.close()


def test_a_document_that_cannot_be_written_says_so_before_anybody_draws(open_cell, slide) -> None:
    cell = open_cell(OPEN.format(slide=slide.name, name="/proc/disc").split("for number")[0], SHOW)
    assert cell.viewer.locator(".dhv-saving").inner_text() == "Read-only"
    assert "/proc" in cell.viewer.locator(".dhv-said").inner_text()
    assert cell.viewer.get_by_label("Rectangle").is_disabled()
    cell.press("r")
    assert cell.stage.get_attribute("data-tool") == "pan"


def test_strokes_teach_and_a_map_that_is_renewed_interrupts_nobody(open_document, slide, watch) -> None:
    cell, path = open_document("print(sorted(viewer.learning['strokes'].items()), len(viewer.layers))")
    cell.press("1", "l")
    cell.drag((1000, 1300), (1100, 1700))
    cell.press("2")
    cell.drag((600, 600), (700, 1000))
    cell.saved()
    cell.viewer.get_by_role("button", name="Learn from what is drawn").click()
    state = cell.viewer.locator(".dhv-learning-state")
    cell.viewer.locator(".dhv-learning-state[data-state=ready]").wait_for(timeout=60_000)
    assert cell.run(2) == "[('stroma', 1), ('tumour', 1)] 3"

    def redness(y: float, x: float) -> int:
        red, _, blue = cell.color(y, x)
        return int(red - blue)

    # The map shows the violet of the disc in the red of tumour, and glass in the blue of stroma.
    wait_until(cell.page, lambda: redness(850, 1500) > 0 > redness(400, 1900))

    # Half way through a stroke another program adds one; the map follows, and the stroke goes on.
    cell.press("l")
    cell.move(1250, 600)
    cell.page.mouse.down()
    cell.page.mouse.move(*cell.move(1300, 800), steps=4)
    with dh.Document.open(dh.open(slide), path, author="ben") as other:
        other.add(shapely.LineString([(700, 1350), (1000, 1400)]), class_name="stroma")
    cell.viewer.locator(".dhv-learning:has-text('stroma2')").wait_for(timeout=20_000)
    cell.viewer.locator(".dhv-learning-state[data-state=ready]").wait_for(timeout=20_000)
    cell.move(1250, 1000)
    cell.page.mouse.up()
    cell.saved()
    line = Reader(slide, path).last()
    assert shapely.hausdorff_distance(line, shapely.LineString([(600, 1250), (800, 1300), (1000, 1250)])) < 8
    cell.viewer.get_by_role("button", name="Stop").click()
    state.wait_for(state="hidden")
    assert watch.errors == []


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core (npm ci --prefix extensions/viewer)")
def test_drawing_is_accessible(open_document, page) -> None:
    cell, _ = open_document()
    # By the keyboard alone: three corners in the middle of the view, which the arrows move.
    cell.press("p", "Enter", "ArrowRight")
    cell.settle()
    cell.press("Enter", "ArrowDown")
    cell.settle()
    cell.press("Enter", "Enter")
    cell.saved()
    cell.viewer.locator(".dhv-history summary").click()
    cell.viewer.locator(".dhv-find summary").click()
    cell.viewer.get_by_role("button", name="Add a class").click()
    page.evaluate(AXE.read_text())
    for light in ("true", "false"):
        page.evaluate(f"document.body.dataset.jpThemeLight = '{light}'")
        page.wait_for_timeout(100)
        found = page.evaluate("axe.run('.dhlab-viewer')")["violations"]
        assert [json.dumps(one)[:600] for one in found] == []
