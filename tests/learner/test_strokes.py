"""Which pixels a stroke teaches: inside, on the scan, spread, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.errors import BadShapeError, BadValueError
from dhlab.learner import draw_strokes
from dhlab.learner.strokes import MOST_CELLS, MOST_PIXELS, Frame, sample_pixels, thin_strokes

FRAME = Frame((3000, 4000), (2.0, 2.0))
HOLED = shapely.Polygon([(0, 0), (900, 0), (900, 900), (0, 900)], [[(100, 100), (800, 100), (800, 800), (100, 800)]])


@pytest.mark.parametrize(
    "shape",
    [
        shapely.Point(50, 60),
        shapely.MultiPoint([(50, 60), (7000, 5000)]),
        shapely.LineString([(0, 0), (8000, 6000)]),
        shapely.box(100, 100, 140, 130),
        shapely.box(0, 0, 8000, 6000),
        shapely.Polygon([(0, 0), (8000, 6000), (8000, 5990)]),
        HOLED,
        shapely.GeometryCollection([shapely.Point(50, 60), shapely.box(500, 500, 600, 600)]),
        shapely.box(10.1, 10.1, 10.3, 10.3),
        shapely.box(-1000, -1000, 60, 60),
        # It reaches over the border with one part, and touches it with another.
        shapely.union_all(
            [shapely.box(-20, 100, -5, 140), shapely.box(-10, 100, 8, 110), shapely.box(-10, 130, 0, 140)]
        ),
    ],
    ids=lambda shape: f"{shape.geom_type} {shape.area:.0f}",
)
def test_pixels_lie_inside(shape: shapely.Geometry) -> None:
    pixels = sample_pixels(shape, FRAME, width=5.0)
    assert 0 < len(pixels) <= MOST_PIXELS
    assert len(np.unique(pixels // 64, axis=0)) <= MOST_CELLS
    assert len(np.unique(pixels, axis=0)) == len(pixels)
    assert (pixels >= 0).all()
    assert (pixels < FRAME.shape).all()
    middles = (pixels[:, ::-1] + 0.5) * 2.0
    near = shape.buffer(6.0 if shape.area == 0 or shape.area < 1 else 2.0)
    assert shapely.contains_xy(near, *middles.T).all()
    np.testing.assert_array_equal(pixels, sample_pixels(shape, FRAME, width=5.0))


def test_large_shapes_are_spread_over() -> None:
    pixels = sample_pixels(shapely.box(0, 0, 8000, 6000), FRAME, width=5.0)
    assert np.ptp(pixels, axis=0).min() > 2500


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=30), st.integers(4, 900))
def test_small_classes_and_strokes_are_kept(strokes: list[tuple[int, int]], most: int) -> None:
    labels, sizes = (np.array(part) for part in zip(*strokes, strict=True))
    chosen, kinds = thin_strokes(labels.tolist(), sizes.tolist(), most=most)
    counts = np.array([len(rows) for rows in chosen])
    assert counts.sum() == min(most, sizes.sum())
    np.testing.assert_array_equal(kinds, np.repeat(labels, counts))
    for rows, size in zip(chosen, sizes, strict=True):
        assert len(np.unique(rows)) == len(rows)
        assert ((rows >= 0) & (rows < size)).all()
    for label in np.unique(labels):
        own = labels == label
        assert counts[own].sum() >= min(sizes[own].sum(), most // len(np.unique(labels)))
        # No stroke gives fewer than another, but those that gave all and one of rounding.
        assert (counts[own] >= np.minimum(sizes[own], counts[own].max() - 1)).all()


def test_nothing_outside() -> None:
    for shape in (shapely.box(9000, 0, 9100, 50), shapely.Point(-10, 5), shapely.LineString([(0, -9), (99, -9)])):
        assert len(sample_pixels(shape, FRAME, width=1.0)) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-500, 9000), st.integers(-500, 7000)), min_size=2, max_size=9), st.floats(0.1, 40)
)
def test_any_line(points: list[tuple[int, int]], width: float) -> None:
    line = shapely.LineString(points)
    pixels = sample_pixels(line, FRAME, width=width)
    assert (pixels >= 0).all()
    assert (pixels < FRAME.shape).all()
    if len(pixels):
        middles = shapely.points((pixels[:, ::-1] + 0.5) * 2.0)
        assert (shapely.distance(line, middles) <= max(width, 2.0) + 2).all()


def test_simulated_strokes_stay_in_their_class(truth: np.ndarray) -> None:
    strokes = draw_strokes(truth, ("a", "b", "c", "d"), 16, seed=4)
    for geometry, label in zip(strokes.geometries, strokes.classes, strict=True):
        x, y = shapely.get_coordinates(geometry).T.astype(int)
        assert set(truth[y, x].tolist()) == {"abcd".index(strokes.class_names[label])}
    fewer = draw_strokes(truth, ("a", "b", "c", "d"), 5, seed=4)
    assert all(a.equals(b) for a, b in zip(fewer.geometries, strokes.geometries[:5], strict=True))


def test_corrections_begin_where_it_is_wrong(truth: np.ndarray) -> None:
    wrong = np.zeros(truth.shape, bool)
    wrong[300:500, 300:500] = True
    strokes = draw_strokes(truth, ("a", "b", "c", "d"), 8, wrong=wrong)
    starts = np.array([shapely.get_coordinates(g)[0] for g in strokes.geometries])
    there = {int(k) for k in np.unique(truth[wrong])}
    for (x, y), label in zip(starts, strokes.classes, strict=True):
        if "abcd".index(strokes.class_names[label]) in there:
            assert wrong[int(y), int(x)]


def test_simulation_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(BadValueError, match="2 classes"):
        draw_strokes(np.full((9, 9), 5), ("a", "b"), 2)
    with pytest.raises(BadShapeError, match="height"):
        draw_strokes(np.zeros((9, 9), int), ("a", "b"), 2, wrong=np.zeros((3, 3), bool))
