"""Things become layers in one physical frame, without napari, Qt or a read of pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import shapely

from dhlab.annotations import Annotations
from dhlab.errors import BadValueError
from dhlab.scan import Scan
from dhlab.view.layers import LazyArray, locate, shapes_of, to_layers


class Untouchable:
    """A level that must not be read."""

    shape = (300, 200, 3)
    dtype = np.dtype("u1")

    def __getitem__(self, key):
        raise AssertionError("read")


def slide(spacing: float = 0.5, **changes: object) -> Scan:
    array = np.zeros((300, 200, 3), np.uint8)
    return Scan.from_array(array, "yxc", spacing=spacing, unit="µm", name="slide").replace(**changes)


def heat(base: Scan, factor: int = 10, **changes: object) -> Scan:
    scores = np.zeros((2, base.shape[0] // factor, base.shape[1] // factor), np.float32)
    spacing = base.spacing[0] * factor
    scan = Scan.from_array(scores, "cyx", spacing=spacing, unit=base.unit, kind="heatmap", channels=["a", "b"])
    return scan.replace(parent=base.as_parent(), **changes)


def test_a_slide_is_one_rgb_image_whose_first_pixel_has_its_corner_at_the_origin() -> None:
    scan = Scan((Untouchable(), Untouchable()), "yxc", (0.5, 0.25), "µm", scales=((1, 1), (4, 4)), origin=(10, 20))
    [(data, meta, kind)] = to_layers(scan)
    assert kind == "image"
    assert (meta["rgb"], meta["multiscale"], meta["scale"]) == (True, True, (0.5, 0.25))
    assert meta["translate"] == (10.25, 20.125)
    assert [d.shape for d in data] == [(300, 200, 3)] * 2
    assert (data[0].ndim, data[0].size) == (3, 180_000)


def test_a_heat_map_is_one_image_for_each_class_that_reads_its_own_channel() -> None:
    scores = np.random.default_rng(0).random((3, 7, 11), np.float32)
    scan = Scan.from_array(scores, "cyx", kind="heatmap", channels=["x", "y", "z"], name="heat")
    layers = to_layers(scan)
    assert [m["name"] for _, m, _ in layers] == ["heat x", "heat y", "heat z"]
    for number, (data, meta, kind) in enumerate(layers):
        assert kind == "image"
        assert meta["contrast_limits"] == (0.0, 1.0)
        assert np.array_equal(np.asarray(data), scores[number])
        assert np.array_equal(data[2:4, ..., 1], scores[number][2:4, 1])


def test_volumes_masks_and_signals_have_layers() -> None:
    volume = Scan.from_array(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "zyx", spacing=(5, 1, 1), unit="mm")
    [(data, meta, kind)] = to_layers(volume)
    assert (kind, data.shape, meta["scale"], meta["multiscale"]) == ("image", (3, 4, 5), (5, 1, 1), False)
    [(data, meta, kind)] = to_layers(Scan.from_array(np.ones((4, 5), np.uint8), "yx", kind="labels"))
    assert (kind, meta["opacity"]) == ("labels", 0.5)
    signal = Scan.from_array(np.zeros((2, 50), np.float32), "ct", spacing=0.004, unit="s", channels=["C3", "C4"])
    assert [m["name"] for _, m, _ in to_layers(signal)] == ["array C3", "array C4"]


def test_lazy_arrays_index_like_the_array_they_stand_for() -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    lazy = LazyArray(array, axis=1, channel=2)
    plain = array[:, 2]
    assert (lazy.shape, lazy.ndim, len(lazy)) == (plain.shape, 3, 2)
    for key in (0, slice(1, 2), (slice(None), 3), (..., 4), (1, ..., slice(0, 2)), (0, 1, 2)):
        assert np.array_equal(lazy[key], plain[key])


def test_shapes_follow_y_x_keep_holes_and_lie_where_the_scan_lies() -> None:
    ring = shapely.Polygon([(10, 20), (50, 20), (50, 80), (10, 80)], [[(20, 30), (40, 30), (40, 70), (20, 70)]])
    zones = Annotations.from_geometries(
        [ring, shapely.Point(5, 6), shapely.LineString([(1, 2), (3, 4)]), shapely.MultiPolygon([ring])],
        ["tumour", None, "duct", "tumour"],
        scores=[0.9, np.nan, np.nan, 0.5],
    )
    base = slide(origin=(100.0, 200.0))
    [(data, meta, kind)] = to_layers(zones, base=base)
    assert kind == "shapes"
    assert meta["shape_type"] == ["polygon", "ellipse", "path", "polygon"]
    assert meta["features"]["class"] == ["tumour", "no class", "duct", "tumour"]
    assert (meta["scale"], meta["translate"]) == ((0.5, 0.5), (100.0, 200.0))
    outline = data[0]
    assert outline.shape[1] == 2
    assert {tuple(v) for v in outline.tolist()} >= {(20, 10), (80, 50), (30, 20), (70, 40)}
    # The joined outline encloses what the polygon encloses: the way to the hole and back cancels.
    y, x = outline.T
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    assert area in (pytest.approx(ring.area), pytest.approx(40 * 60 + 20 * 40))
    assert np.array_equal(data[2], [[2, 1], [4, 3]])


def test_shapes_without_class_get_one_of_their_own() -> None:
    shapes = shapes_of(Annotations.from_geometries([shapely.Point(0, 0), shapely.Point(1, 1)], ["a", None]))
    assert shapes.names == ("a", "no class")
    assert shapes.labels.tolist() == [0, 1]
    assert shapes_of(Annotations.from_geometries([shapely.Point(0, 0)], "a")).title == "a"


def test_a_heat_map_lies_on_its_parent_wherever_the_parent_lies() -> None:
    for base in (slide(), slide(origin=(1000.0, 2000.0))):
        assert locate(heat(base), base).scale == pytest.approx((10, 10))
        assert locate(heat(base), base).offset == (0, 0)
        assert locate(heat(base, origin=(25.0, 10.0)), base).offset == pytest.approx((50, 20))


def test_two_children_and_parent_on_child() -> None:
    base = slide()
    first, second = heat(base, origin=(10.0, 10.0)), heat(base, 5, origin=(20.0, 40.0))
    assert locate(second, first).offset == pytest.approx((10 / 5, 30 / 5))
    assert locate(second, first).scale == pytest.approx((0.5, 0.5))
    place = locate(base, first)
    assert place.scale == pytest.approx((0.1, 0.1))
    assert place.offset == pytest.approx((-2, -2))
    zones = Annotations.from_geometries(shapely.Point(40, 60), "a", parent=base)
    assert locate(zones, first).offset == pytest.approx((-2, -2))
    assert locate(zones, first).scale == pytest.approx((0.1, 0.1))
    assert locate(zones, base).scale == (1, 1)


def test_units_are_converted_and_unknown_ones_take_the_pixels_of_the_base() -> None:
    base = slide(0.5)
    millimetres = Scan.from_array(np.zeros((10, 10)), "yx", spacing=0.01, unit="mm", name="mm")
    assert locate(millimetres, base).scale == pytest.approx((20, 20))
    pixels = Scan.from_array(np.zeros((300, 200), np.uint8), "yx", kind="mask")
    assert locate(pixels, base).scale == pytest.approx((1, 1))
    seconds = Scan.from_array(np.zeros((10, 10)), "yx", spacing=1, unit="s")
    with pytest.raises(BadValueError, match="pixel size"):
        locate(seconds, base)


def test_other_things_are_refused() -> None:
    with pytest.raises(BadValueError, match="expected a Scan or Annotations"):
        to_layers("slide.svs")  # type: ignore[arg-type] # wrong, as is tried here


def test_layers_need_no_viewer_nor_torch() -> None:
    code = (
        "import sys, dhlab.view.layers, dhlab.view.tiles, dhlab.view.composite\n"
        "print(sorted({'anywidget', 'ipywidgets', 'napari', 'qtpy', 'torch', 'cv2', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
