"""Label maps from polygons: exact at pixel centres, in a stated order, at any spacing."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.annotations import Annotations
from dhlab.annotations import raster as drawing
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.scan import Parent, Scan

SLIDE = Parent("slide", (0.5, 0.5), (41, 67), "µm")


def pixels(scan: Scan) -> np.ndarray:
    return np.asarray(scan.levels[0])


def by_points(shape: tuple[int, int], geometry, start=(0.0, 0.0), step=(1.0, 1.0)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return shapely.contains_xy(geometry, x * step[1] + start[1], y * step[0] + start[0])


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 90), st.floats(-20, 60)), min_size=3, max_size=12),
    st.sampled_from([1.0, 0.7, 3.3]),
)
def test_a_pixel_is_filled_if_its_centre_lies_inside(points: list, step: float) -> None:
    shape = shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False).buffer(0)
    if shape.is_empty:
        return
    zones = Annotations.from_geometries([shape], "a", parent=SLIDE)
    got = pixels(zones.rasterize(spacing=0.5 * step))
    expected = by_points(got.shape, shape, step=(step, step))
    y, x = np.nonzero(got != expected)
    # Only centres that lie on an edge may fall on either side.
    on_edge = shapely.distance(shape.boundary, shapely.points((x + 0.5) * step, (y + 0.5) * step)) < 1e-6
    assert on_edge.all()


def test_edges_are_shared_without_gap_or_overlap() -> None:
    rng = np.random.default_rng(0)
    cuts = shapely.voronoi_polygons(
        shapely.multipoints(rng.uniform(0, 60, (80, 2))), extend_to=shapely.box(-5, -5, 70, 70)
    )
    counts = np.zeros((60, 60), int)
    for cell in cuts.geoms:
        zone = Annotations.from_geometries([cell], "a")
        counts += pixels(zone.mask(region=((0, 0), (60, 60))))
    assert (counts == 1).all()


@pytest.mark.parametrize("long_span", [0, 1000])
def test_both_ways_to_fill_agree(long_span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    shapes = [shapely.Point(*rng.uniform(0, 60, 2)).buffer(rng.uniform(1, 20)) for _ in range(60)]
    zones = Annotations.from_geometries(shapes, [str(i % 7) for i in range(60)], parent=SLIDE)
    monkeypatch.setattr(drawing, "LONG_SPAN", long_span)
    monkeypatch.setattr(drawing, "CROSSINGS", 50)
    order = np.argsort(-shapely.area(zones.geometries), kind="stable")
    expected = np.zeros(SLIDE.shape, int)
    for row in order:
        expected[by_points(SLIDE.shape, zones.geometries[row])] = zones.classes[row] + 1
    np.testing.assert_array_equal(pixels(zones.rasterize()), expected)


def test_holes_and_multipolygons() -> None:
    ring = shapely.box(0, 0, 30, 30).difference(shapely.box(10, 10, 20, 20))
    both = shapely.union_all([ring, shapely.box(40, 5, 50, 15), shapely.box(13, 13, 15, 15)])
    zones = Annotations.from_geometries([both], "a", parent=SLIDE)
    np.testing.assert_array_equal(pixels(zones.mask()), by_points(SLIDE.shape, both))
    nested = shapely.GeometryCollection([shapely.Point(1, 1), both])
    np.testing.assert_array_equal(
        pixels(zones.replace(geometries=np.array([nested], object)).mask()), pixels(zones.mask())
    )


def test_order_is_by_size_or_as_given() -> None:
    shapes = [shapely.box(0, 0, 4, 4), shapely.box(0, 0, 20, 20), shapely.box(2, 2, 6, 6)]
    zones = Annotations.from_geometries(shapes, ["a", "b", "c"], parent=SLIDE)
    by_size, given_order = pixels(zones.rasterize()), pixels(zones.rasterize(order="given"))
    assert (by_size[0, 0], by_size[3, 3], by_size[10, 10]) == (1, 3, 2), "equal sizes: the later one wins"
    assert (given_order[0, 0], given_order[3, 3], given_order[10, 10]) == (2, 3, 2)
    with pytest.raises(BadValueError, match="order"):
        zones.rasterize(order="random")


def test_classes_choose_and_number_the_labels() -> None:
    shapes = [shapely.box(0, 0, 4, 4), shapely.box(10, 10, 14, 14), shapely.box(20, 20, 24, 24)]
    zones = Annotations.from_geometries(shapes, ["a", "b", None], parent=SLIDE)
    chosen = zones.rasterize(classes=["b", "a"])
    assert chosen.meta["classes"] == ["b", "a"]
    assert (pixels(chosen)[0, 0], pixels(chosen)[10, 10], pixels(chosen)[20, 20]) == (2, 1, 0)
    assert pixels(zones.mask())[20, 20] == 1
    assert pixels(zones.mask(classes=["a"])).sum() == 16
    with pytest.raises(UnknownNameError, match="no class 'c'"):
        zones.rasterize(classes=["c"])


def test_more_than_255_classes() -> None:
    shapes = [shapely.box(i % 20, i // 20, i % 20 + 1, i // 20 + 1) for i in range(300)]
    labels = Annotations.from_geometries(shapes, [f"c{i}" for i in range(300)]).rasterize()
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(pixels(labels), np.arange(1, 301).reshape(15, 20))


@pytest.mark.parametrize(
    "region", [((-5, -3), (13, 17)), ((30, 50), (40, 40)), ((3.5, 2.25), (1, 1)), ((500, 500), (7, 7))]
)
def test_a_region_is_a_window_on_the_whole(region: tuple) -> None:
    rng = np.random.default_rng(2)
    shapes = [shapely.Point(*rng.uniform(0, 60, 2)).buffer(rng.uniform(1, 15)) for _ in range(20)]
    zones = Annotations.from_geometries(shapes, "a", parent=SLIDE)
    scan = zones.mask(region=region)
    (y, x), (height, width) = region
    expected = by_points((height, width), shapely.union_all(shapes), start=(y, x))
    np.testing.assert_array_equal(pixels(scan), expected)
    assert scan.origin == (y * 0.5, x * 0.5)
    assert scan.parent == SLIDE


def test_hostile_spacings_and_sizes() -> None:
    zones = Annotations.from_geometries(shapely.box(0, 0, 67, 41), "a", parent=SLIDE)
    assert zones.rasterize(spacing=1e6).shape == (1, 1)
    assert zones.rasterize(spacing=(0.5, 5.0)).shape == (41, 7)
    for spacing in (0, -1, np.nan, np.inf, (1, 2, 3)):
        with pytest.raises(BadValueError, match="spacing"):
            zones.rasterize(spacing=spacing)
    with pytest.raises(BadValueError, match="too large"):
        zones.rasterize(spacing=1e-6)
    for region in (((0, 0), (0, 5)), ((0, np.nan), (5, 5))):
        with pytest.raises(BadValueError, match="region"):
            zones.rasterize(region=region)
    with pytest.raises(BadShapeError, match="region"):
        zones.rasterize(region=((0, 0, 0), (1, 1, 1)))


def test_without_a_parent() -> None:
    zones = Annotations.from_geometries(shapely.box(0, 0, 6.2, 4), "a")
    assert zones.rasterize().shape == (4, 7)
    assert zones.rasterize().unit == "px"
    with pytest.raises(BadValueError, match="region="):
        Annotations.from_geometries([]).rasterize()
    with pytest.raises(BadValueError, match="outside"):
        Annotations.from_geometries(shapely.box(-5, -5, -1, -1), "a").rasterize()
    assert pixels(Annotations.from_geometries([]).rasterize(parent=SLIDE)).sum() == 0


def test_points_and_lines_are_not_drawn() -> None:
    zones = Annotations.from_geometries(
        [shapely.Point(3, 3), shapely.LineString([(0, 0), (30, 30)])], "a", parent=SLIDE
    )
    assert pixels(zones.rasterize()).sum() == 0
