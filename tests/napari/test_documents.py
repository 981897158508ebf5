"""A document in napari: what is drawn is an edit, what others do appears, and neither comes back as an echo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from napari.components import ViewerModel
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

import dhlab as dh
from dhlab.annotations import Annotations, Document
from dhlab.errors import BadValueError, MissingDependencyError, UnknownNameError
from dhlab.samples import sample_path
from dhlab.scan import Scan
from dhlab_napari.linking import DocumentLayers
from dhlab_napari.raster import Canvas
from dhlab_napari.showing import add, show

RIM, HOLE = (shapely.transform(shapely.Point(1000, 1000).buffer(r), lambda xy: xy.round(2)) for r in (400, 200))
RING = shapely.Polygon(RIM.exterior, [HOLE.exterior])
RED, GREEN = (200, 0, 0), (0, 150, 60)
SQUARE = np.array([(300.0, 300), (300, 500), (500, 500), (500, 300)])


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    (tmp_path / "slide.svs").symlink_to(sample_path("phantom-slide"))
    return dh.open(tmp_path / "slide.svs")


@pytest.fixture
def document(scan: Scan) -> Iterator[Document]:
    with Document.open(scan, author="anna") as opened:
        opened.set_class("tumour", color=RED)
        opened.set_class("stroma", color=GREEN)
        opened.add(RING, "tumour")
        yield opened


@pytest.fixture
def link(qtbot: Any, scan: Scan, document: Document) -> Iterator[DocumentLayers]:
    """Link a document to a viewer without a window."""
    model = ViewerModel()
    add(model, scan, base=scan)
    linked = DocumentLayers(model, document, base=scan)
    yield linked
    linked.end()


def settle(qtbot: Any, until: Any = None) -> None:
    qtbot.wait(20)
    if until is not None:
        qtbot.waitUntil(until, timeout=20_000)
        qtbot.wait(20)


def test_what_is_drawn_is_saved_with_class_author_and_tool(link, document, scan, qtbot) -> None:
    link.classify("stroma")
    link.hand.mode = "add_polygon"
    link.hand.add_polygons(SQUARE)
    settle(qtbot)
    edit = document.history()[-1]
    assert (edit.author, edit.tool, len(edit.objects)) == ("anna", "polygon", 1)
    with Document.open(scan, author="bob") as other:
        drawn = other.annotations[-1]
    assert (drawn.class_name, drawn.author, drawn.color) == ("stroma", "anna", GREEN)
    assert drawn.geometry.equals(shapely.box(300, 300, 500, 500))
    assert link.held == edit.objects
    assert link.hand.edge_color[0] == pytest.approx((*np.array(GREEN) / 255, 1), abs=0.01)


def test_an_edit_from_elsewhere_appears_and_no_edit_comes_back(link, document, scan, qtbot) -> None:
    link.hold([document.annotations.ids[0]])
    count = len(document.history())
    with Document.open(scan, author="bob") as other:
        other.add(shapely.box(0, 0, 90, 90), "stroma")
        other.change(other.annotations.ids[0], geometry=shapely.box(5, 5, 50, 60))
        settle(qtbot, lambda: len(document.history()) == count + 2 and len(link.annotations) == 2)
        assert link.hand.data[0].max(0).tolist() == [60, 50]
        other.remove(str(other.annotations.ids[0]))
        settle(qtbot, lambda: not link.held)
        assert len(link.hand.data) == 0
    settle(qtbot)
    assert [edit.author for edit in document.history()[-3:]] == ["bob"] * 3


def test_two_viewers_follow_each_other(link, document, scan, qtbot) -> None:
    with Document.open(scan, author="bob") as other:
        model = ViewerModel()
        beside = DocumentLayers(model, other, base=scan)
        beside.hold([str(other.annotations.ids[0])])
        link.hold([str(document.annotations.ids[0])])
        data = np.array(link.hand.data[0])
        link.hand.data = [data + 10]
        settle(qtbot, lambda: np.allclose(beside.hand.data[0], data + 10, atol=0.05))
        assert len(document.history()) == len(other.history()) == 4
        beside.end()


def test_a_vertex_of_a_ring_is_moved_and_every_other_stays_exact(link, document, qtbot) -> None:
    key = str(document.annotations.ids[0])
    link.hold([key])
    link.hand.mode = "direct"
    rim = len(RING.exterior.coords) - 1
    data = np.array(link.hand.data[0])
    # The first vertex is the joint from which the hole is walked to: only one of its copies is dragged.
    data[0] += (30, 40)
    link.hand.data = [data]
    settle(qtbot)
    changed = document.annotations.geometries[0]
    assert len(changed.interiors) == 1
    assert changed.interiors[0].equals(RING.interiors[0])
    before, after = shapely.get_coordinates(RING.exterior)[1:rim], shapely.get_coordinates(changed.exterior)
    assert {tuple(p) for p in np.round(before, 2)} <= {tuple(p) for p in np.round(after, 2)}
    assert (1440.0, 1030.0) in {tuple(p) for p in np.round(after, 2)}
    link.undo()
    settle(qtbot)
    assert document.annotations.geometries[0].normalize().equals_exact(RING.normalize(), 0.01)
    assert np.allclose(link.hand.data[0][0], (1000, 1400), atol=0.01)
    link.redo()
    settle(qtbot)
    assert document.annotations.geometries[0].equals(changed)


def test_removed_is_removed_and_comes_back(link, document, qtbot) -> None:
    link.hold([str(document.annotations.ids[0])])
    link.hand.remove_selected()
    settle(qtbot)
    assert len(document) == 0
    assert document.history()[-1].tool == "remove"
    link.undo()
    settle(qtbot)
    assert len(document) == 1
    assert link.find((1000, 1300)) == str(document.annotations.ids[0])
    assert link.find((1000, 1000)) is None, "the middle is a hole"


def test_too_little_is_nothing_and_what_crosses_itself_is_mended(link, document, qtbot) -> None:
    count = len(document.history())
    link.hand.add_polygons(np.array([(5.0, 5), (5, 5), (5, 9)]))
    settle(qtbot)
    assert len(document.history()) == count
    assert len(link.hand.data) == 0
    link.hand.add_polygons(np.array([(0.0, 0), (100, 100), (0, 100), (100, 0)]))
    settle(qtbot)
    assert document.annotations.geometries[1].is_valid


def test_a_read_only_document_says_so_before_anything_is_drawn(qtbot, scan, document, monkeypatch) -> None:
    document.save()
    told: list[str] = []
    monkeypatch.setattr("dhlab_napari.linking.show_warning", told.append)
    document.read_only = "the disk is write-protected."
    linked = DocumentLayers(ViewerModel(), document, base=scan)
    assert "write-protected" in told[0]
    assert not linked.hand.editable
    linked.hand.add_polygons(SQUARE)
    settle(qtbot)
    assert "cannot be edited" in told[1]
    assert len(linked.hand.data) == 0
    linked.end()


def test_holes_and_parts_are_open_in_the_picture_at_every_resolution() -> None:
    parts = shapely.MultiPolygon([RING, shapely.box(1600, 100, 1900, 400) - shapely.box(1700, 200, 1800, 300)])
    canvas = Canvas(Annotations.from_geometries([parts], "a", colors={"a": RED}), (2048, 2048))
    for level in canvas.levels:
        y, x = (
            level.shape[0]
            / canvas.shape[0]
            * canvas.fine
            * np.array([[1000, 1300], [1000, 1000], [150, 1650], [250, 1750], [1500, 1900]]).T
        )
        alpha = [int(level[int(a), int(b), 3]) for a, b in zip(y, x, strict=True)]
        if level.shape[0] < 128:
            continue  # outlines meet where a hole is a few pixels
        assert [a > 0 for a in alpha] == [True, False, True, False, False]
        assert level[int(y[0]), int(x[0])][:3].tolist() == list(RED)


def test_reading_a_canvas_is_like_reading_an_array() -> None:
    shapes = Annotations.from_geometries([RING, shapely.LineString([(0, 0), (2000, 1500)]), shapely.Point(30, 60)], "a")
    level = Canvas(shapes, (2048, 1500)).levels[3]
    whole = np.asarray(level)
    assert whole.shape == level.shape
    for key in [(slice(500, 530), slice(3, 1200)), (7,), (..., 3), (slice(0, 900, 7), slice(None), 0), (3, 4)]:
        assert np.array_equal(level[key], whole[key])


def test_things_are_shown_by_dhlab_and_drawn_with_the_mouse(viewer, picture, scan, document, qtbot) -> None:
    shown = show(scan, document, viewer=viewer)
    assert shown is viewer
    link = viewer.layers[-1].metadata["link"]
    viewer.reset_view()
    qtbot.wait(100)
    canvas = viewer.window._qt_viewer.canvas

    def at(y: float, x: float) -> QPoint:
        """Return where a level-0 pixel is on the canvas."""
        zoom, (_, *middle), size = viewer.scene.camera.zoom, viewer.scene.camera.center, canvas.native.size()
        v, u = ((p * s - m) * zoom for p, s, m in zip((y, x), (0.5, 0.5), middle, strict=True))
        return QPoint(round(size.width() / 2 + u), round(size.height() / 2 + v))

    def color(y: float, x: float) -> np.ndarray:
        image, place = picture(viewer), at(y, x)
        ratio = image.shape[0] / canvas.native.size().height()
        return image[round(place.y() * ratio), round(place.x() * ratio)]

    in_ring, in_hole = color(1000, 1300), color(1000, 1000)
    link.hand.mode = "select"
    QTest.mouseClick(canvas.native, Qt.MouseButton.LeftButton, pos=at(1000, 1300))
    qtbot.waitUntil(lambda: link.held == (str(document.annotations.ids[0]),), timeout=20_000)
    # In hand it looks as it did, the hole too; the picture lets it go.
    assert np.abs(color(1000, 1300) - in_ring).max() < 12
    assert np.abs(color(1000, 1000) - in_hole).max() < 12
    link.hand.visible = False
    assert np.abs(color(1000, 1300) - in_ring).max() > 12
    link.hand.visible = True
    QTest.mouseClick(canvas.native, Qt.MouseButton.LeftButton, pos=at(1900, 100))
    qtbot.waitUntil(lambda: not link.held, timeout=20_000)
    link.classify("stroma")
    link.hand.mode = "add_rectangle"
    QTest.mousePress(canvas.native, Qt.MouseButton.LeftButton, pos=at(1500, 1500))
    for y, x in ((1600, 1600), (1800, 1900)):
        QTest.mouseMove(canvas.native, at(y, x))
        qtbot.wait(20)
    QTest.mouseRelease(canvas.native, Qt.MouseButton.LeftButton, pos=at(1800, 1900))
    qtbot.waitUntil(lambda: len(document) == 2, timeout=20_000)
    drawn = document.annotations[1]
    assert (drawn.class_name, document.history()[-1].tool) == ("stroma", "rectangle")
    assert drawn.geometry.bounds == pytest.approx((1500, 1500, 1900, 1800), abs=6)
    qtbot.wait(50)
    # The keys of the Shapes layer are the document's.
    QTest.keyClick(canvas.native, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(lambda: len(document) == 1, timeout=20_000)


def test_show_finds_its_front_and_says_what_is_missing(scan, monkeypatch) -> None:
    with pytest.raises(UnknownNameError, match="napari"):
        dh.show(scan, front="napary")
    with pytest.raises(BadValueError, match="Scan first"):
        dh.show(Annotations.from_geometries([RING]), front="napari")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingDependencyError, match="launcher"):
        dh.show(scan, front="napari")


def test_qupath_reads_what_was_drawn(link, document, tmp_path, qtbot) -> None:
    link.hand.add_polygons(SQUARE)
    settle(qtbot)
    document.save()
    features = json.loads((tmp_path / "slide.geojson").read_text())["features"]
    assert [f["geometry"]["type"] for f in features] == ["Polygon", "Polygon"]
    assert [len(f["geometry"]["coordinates"]) for f in features] == [2, 1]
    assert features[1]["properties"]["classification"] == {"name": "tumour", "color": list(RED)}
    assert features[1]["properties"]["objectType"] == "annotation"
