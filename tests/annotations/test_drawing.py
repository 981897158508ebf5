"""Drawing tools against shapes that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import dhlab as dh
from dhlab import phantoms
from dhlab.annotations import drawing
from dhlab.annotations.raster import fill
from dhlab.errors import BadShapeError, BadValueError

SQUARE = shapely.box(0, 0, 100, 100)
RING = shapely.Polygon(SQUARE.exterior, [shapely.box(40, 40, 60, 60).exterior.coords])
paths = st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=1, max_size=12)


def test_a_brush_covers_what_is_within_its_radius() -> None:
    disc = drawing.brush(None, [(50, 50)], 20)
    assert disc.area == pytest.approx(np.pi * 400, rel=0.01)
    line = drawing.brush(None, [(0, 0), (100, 0), (100, 0)], 10)
    assert line.area == pytest.approx(2000 + np.pi * 100, rel=0.01)
    assert drawing.brush(SQUARE, [(50, 50)], 20).equals(SQUARE)
    assert drawing.brush(SQUARE, [(300, 50)], 20).geom_type == "MultiPolygon"


def test_a_brush_that_closes_a_circle_leaves_a_hole() -> None:
    angles = np.linspace(0, 2 * np.pi, 80)
    ring = drawing.brush(None, np.stack([np.cos(angles), np.sin(angles)], 1) * 100, 10)
    assert len(ring.interiors) == 1
    assert drawing.fill_holes(ring).area == pytest.approx(np.pi * 110**2, rel=0.01)


def test_an_eraser_takes_away_splits_and_ends() -> None:
    assert drawing.erase(SQUARE, [(50, -10), (50, 110)], 5).geom_type == "MultiPolygon"
    assert len(drawing.erase(SQUARE, [(50, 50)], 5).interiors) == 1
    assert drawing.erase(SQUARE, [(50, 50)], 500) is None
    assert drawing.erase(SQUARE, [(500, 500)], 5).equals(SQUARE)


@settings(max_examples=60, deadline=None)
@given(paths, paths, st.floats(0.5, 60))
def test_strokes_of_any_shape_give_valid_polygons_that_stay_valid_when_written(first, second, radius) -> None:
    painted = drawing.brush(drawing.brush(None, first, radius), second, radius)
    rest = drawing.erase(painted, first, radius / 2)
    for shape in [painted] + ([rest] if rest is not None else []):
        assert shape.is_valid
        assert shapely.transform(shape, lambda xy: np.round(xy, 2)).is_valid
    assert rest is None or rest.area < painted.area


def test_a_line_splits_polygons_with_holes_and_lines() -> None:
    pieces = drawing.split(RING, [(50, -10), (50, 110)])
    assert [piece.area for piece in pieces] == [4800, 4800]
    pieces = drawing.split(shapely.MultiPolygon([SQUARE, shapely.box(200, 0, 300, 50)]), [(-10, 20), (110, 20)])
    assert [piece.area for piece in pieces] == [8000, 5000, 2000]
    assert len(drawing.split(shapely.LineString([(0, 0), (100, 0)]), [(50, -5), (50, 5)])) == 2


@pytest.mark.parametrize("line", [[(-10, 50), (50, 50)], [(200, 0), (200, 100)], [(10, 10), (20, 20)]])
def test_a_line_that_does_not_cross_splits_nothing(line) -> None:
    with pytest.raises(BadValueError, match="from edge to edge"):
        drawing.split(SQUARE, line)


def test_merging_filling_cutting() -> None:
    assert drawing.merge([SQUARE, shapely.box(50, 0, 150, 100)]).equals(shapely.box(0, 0, 150, 100))
    assert drawing.fill_holes(RING).equals(SQUARE)
    assert drawing.cut_hole(SQUARE, [(40, 40), (60, 40), (60, 60), (40, 60)]).equals(RING)
    assert drawing.cut_hole(SQUARE, SQUARE.exterior.coords) is None
    wiggly = shapely.segmentize(SQUARE, 5)
    assert (
        drawing.simplify(wiggly, 1).equals_exact(SQUARE.normalize(), 0)
        or len(drawing.simplify(wiggly, 1).exterior.coords) <= 6
    )


@pytest.mark.parametrize("pixel", [1.0, 4.0])
def test_the_wand_outlines_what_has_the_colour(pixel: float) -> None:
    y, x = np.mgrid[:600, :800]
    disc = (x - 400) ** 2 + (y - 300) ** 2 < 120**2
    hole = (x - 400) ** 2 + (y - 300) ** 2 < 30**2
    picture = np.full((600, 800, 3), 240, np.uint8)
    picture[disc & ~hole] = (200, 60, 140)
    scan = dh.Scan.from_array(picture, "yxc", spacing=0.5, unit="µm", name="disc")
    shape = drawing.wand(scan, (400, 220), pixel=pixel)
    assert shape.area == pytest.approx(np.pi * (120**2 - 30**2), rel=0.05)
    assert shape.is_valid
    assert drawing.wand(scan, (900, 220)) is None
    assert drawing.wand(scan, (400, 220), window=50).area == pytest.approx(50 * 50, rel=0.05)


@pytest.mark.parametrize(("kind", "least"), [("stroma", 0.7), ("epithelium", 0.02)])
def test_the_wand_takes_textured_tissue_whole(kind: str, least: float) -> None:
    """Most clicks on fibres take all that hangs together; those on the wall of a gland, of which there are many, it."""
    image, truth = phantoms.paint_slide((512, 512), rng=3, spacing=1.0)
    scan = dh.Scan.from_array(image, "yxc", spacing=1.0, unit="µm", name="tissue")
    theirs = truth == phantoms.CLASSES.index(kind) + 1
    places = np.random.default_rng(0).permutation(np.argwhere(theirs))[:15] + 0.5
    shares, right = [], []
    for y, x in places:
        shape = drawing.wand(scan, (x, y))
        mask = np.zeros(truth.shape, np.uint8)
        fill(mask, np.array([shape], object), np.ones(1, np.uint8), start=np.zeros(2), scale=np.ones(2))
        shares.append(theirs[mask > 0].sum() / theirs.sum())
        right.append(theirs[mask > 0].mean())
    assert np.median(shares) > least
    assert np.median(right) > 0.8


def test_the_wand_reads_one_plane_of_a_volume() -> None:
    volume = np.zeros((5, 60, 60), np.uint8)
    volume[3, 10:30, 10:40] = 200
    scan = dh.Scan.from_array(volume, "zyx", spacing=(3, 1, 1), unit="mm", name="volume")
    assert drawing.wand(scan, (20, 20), index={"z": 3}).bounds == (10, 10, 40, 30)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadValueError, match="radius"):
        drawing.brush(None, [(0, 0)], 0)
    with pytest.raises(BadValueError, match="finite"):
        drawing.brush(None, [(0, np.nan)], 5)
    for path in ([], [1, 2], "path", [(1, 2, 3)]):
        with pytest.raises(BadShapeError, match="positions"):
            drawing.brush(None, path, 5)
    with pytest.raises(BadShapeError, match="no area"):
        drawing.brush(shapely.Point(0, 0), [(0, 0)], 5)
    with pytest.raises(BadShapeError, match="at least one"):
        drawing.merge([])
