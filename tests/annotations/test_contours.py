"""From masks and heat maps to polygons and back: exact pixels, any tiling, physical positions."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dhlab.annotations import Annotations
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.scan import Parent, Scan

SHAPES = st.tuples(st.integers(1, 23), st.integers(1, 23))


def mask_scan(mask: np.ndarray) -> Scan:
    return Scan.from_array(mask.astype(np.uint8), "yx", kind="mask")


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.bool_, SHAPES), st.sampled_from([4096, 7, 4, 1]))
def test_outlines_follow_the_pixels_exactly(mask: np.ndarray, band: int) -> None:
    from scipy import ndimage

    zones = Annotations.from_heatmap(mask_scan(mask), "tissue", simplify=0, band=band)
    assert shapely.is_valid(zones.geometries).all()
    assert zones.areas.sum() == mask.sum()
    assert len(zones) == ndimage.label(mask)[1], "regions of pixels that share edges"
    np.testing.assert_array_equal(np.asarray(zones.mask().levels[0]), mask)
    assert (zones.scores == 1).all()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, SHAPES), st.integers(1, 9))
def test_tiling_bounds_memory_and_not_the_result(values: np.ndarray, band: int) -> None:
    heat = Scan.from_array(values[None], "cyx", kind="heatmap", channels=("a",))
    whole, parts = (Annotations.from_heatmap(heat, "a", band=b) for b in (4096, band))
    assert shapely.equals_exact(whole.geometries, parts.geometries).all()
    np.testing.assert_allclose(whole.scores, parts.scores, atol=1.01e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (63, 1), (127, 131)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_scores_are_the_mean_heat_inside(shape: tuple[int, int], dtype: type) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(sum(shape))
    unit = ndimage.gaussian_filter(rng.random(shape), 1.0, mode="nearest")
    unit = (unit - unit.min()) / max(float(np.ptp(unit)), 1e-9)
    values = (unit * 255).round().astype(np.uint8) if dtype is np.uint8 else unit.astype(np.float32)
    stack = np.stack([np.zeros_like(values), values])
    heat = Scan.from_array(stack, "cyx", kind="heatmap", channels=("no", "yes"))
    zones = Annotations.from_heatmap(heat, "yes", threshold=0.6, simplify=0)
    scaled = values / 255 if dtype is np.uint8 else values
    labels, count = ndimage.label(scaled >= 0.6)
    expected = np.sort(ndimage.mean(scaled, labels, range(1, count + 1)) if count else [])
    np.testing.assert_allclose(np.sort(zones.scores), expected, atol=1e-4)
    assert len(Annotations.from_heatmap(heat, "no")) == 0


def test_holes_and_islands_in_holes() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:18, 2:18] = True
    mask[5:15, 5:15] = False
    mask[8:12, 8:12] = True
    zones = Annotations.from_heatmap(mask_scan(mask), "ring", simplify=0)
    assert sorted(len(g.interiors) for g in zones.geometries) == [0, 1]
    assert sorted(zones.areas) == [16, 256 - 100]


def test_nan_is_outside() -> None:
    values = np.full((1, 5, 5), np.nan, np.float32)
    values[0, 2, 2] = 0.7
    zones = Annotations.from_heatmap(Scan.from_array(values, "cyx", kind="heatmap", channels=("a",)), "a", simplify=0)
    assert shapely.equals(zones.geometries[0], shapely.box(2, 2, 3, 3))
    assert zones.scores[0] == 0.7


def test_positions_go_through_spacing_and_origin() -> None:
    parent = Parent("slide", (0.25, 0.5), (4000, 4000), "µm")
    mask = np.zeros((9, 7), np.uint8)
    mask[2:4, 3:6] = 1
    scan = Scan.from_array(mask, "yx", spacing=(4.0, 8.0), unit="µm", kind="mask")
    scan = scan.replace(parent=parent, origin=(100.0, 40.0))
    zones = Annotations.from_heatmap(scan, "x", simplify=0)
    assert zones.parent == parent
    # y: (100 + 2 * 4) / 0.25 … (100 + 4 * 4) / 0.25; x: (40 + 3 * 8) / 0.5 … (40 + 6 * 8) / 0.5
    assert shapely.equals(zones.geometries[0], shapely.box(128, 432, 176, 464))
    assert zones.areas[0] == pytest.approx(2 * 4 * 3 * 8)
    back = zones.mask(spacing=(4.0, 8.0), region=((400, 80), (9 * 16, 7 * 16)))
    np.testing.assert_array_equal(np.asarray(back.levels[0]), mask)
    assert back.origin == (100.0, 40.0)


def test_label_maps_name_their_classes() -> None:
    labels = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    scan = Scan.from_array(labels, "yx", kind="labels")
    scan = scan.replace(meta={**scan.meta, "classes": ["epidermis", "dermis"]})
    assert Annotations.from_heatmap(scan, "dermis").areas.tolist() == [2]
    with pytest.raises(UnknownNameError, match="Did you mean 'dermis'"):
        Annotations.from_heatmap(scan, "derms")
    heat = Scan.from_array(np.zeros((2, 3, 3), np.float32), "cyx", kind="heatmap", channels=("benign", "adenoma"))
    with pytest.raises(UnknownNameError, match="adenoma"):
        Annotations.from_heatmap(heat, "adenomas")


def test_small_regions_are_left_out_by_physical_area() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[0, 0] = mask[4:6, 4:6] = 1
    scan = Scan.from_array(mask, "yx", spacing=2.0, unit="µm", kind="mask")
    assert Annotations.from_heatmap(scan, "x", min_area=4.0).areas.size == 2
    assert Annotations.from_heatmap(scan, "x", min_area=4.1, simplify=0).areas.tolist() == [16]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, SHAPES), st.floats(0, 6))
def test_simplified_outlines_stay_valid_and_near(mask: np.ndarray, tolerance: float) -> None:
    exact = Annotations.from_heatmap(mask_scan(mask), "x", simplify=0)
    simple = Annotations.from_heatmap(mask_scan(mask), "x", simplify=tolerance)
    assert shapely.is_valid(simple.geometries).all()
    assert len(simple) == len(exact)
    assert (shapely.hausdorff_distance(simple.geometries, exact.geometries) <= tolerance + 1e-6).all()
    assert (shapely.get_num_coordinates(simple.geometries) <= shapely.get_num_coordinates(exact.geometries)).all()


def test_the_default_straightens_a_staircase() -> None:
    mask = np.tri(60, dtype=bool)
    zones = Annotations.from_heatmap(mask_scan(mask), "x")
    assert shapely.get_num_coordinates(zones.geometries[0]) < 8
    assert zones.areas[0] == pytest.approx(mask.sum(), rel=0.03)


def test_bad_input_is_refused() -> None:
    plane = Scan.from_array(np.zeros((1, 4, 4), np.float32), "cyx", kind="heatmap", channels=("a",))
    for field in ({"threshold": np.nan}, {"min_area": -1.0}, {"simplify": np.inf}, {"band": 0}):
        with pytest.raises(BadValueError, match=next(iter(field))):
            Annotations.from_heatmap(plane, "a", **field)
    volume = Scan.from_array(np.zeros((3, 4, 4), np.uint8), "zyx", kind="mask")
    with pytest.raises(BadShapeError, match="plane"):
        Annotations.from_heatmap(volume, "a")


def test_a_lazy_level_is_read_part_by_part() -> None:
    class Watched:
        shape, dtype, most = (1, 300, 400), np.dtype(np.float32), 0

        def __getitem__(self, key):
            part = np.broadcast_to(np.float32(1), self.shape)[key]
            self.most = max(self.most, part.size)
            return part

    level = Watched()
    heat = Scan((level,), "cyx", (1.0, 1.0), kind="heatmap", channels=("a",))
    zones = Annotations.from_heatmap(heat, "a", band=64)
    assert level.most == 64 * 64
    assert zones.areas.tolist() == [300 * 400]
    assert shapely.get_num_coordinates(zones.geometries[0]) == 5
