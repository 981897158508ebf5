"""Scan: windows, borders, levels, pictures; the same for slides, volumes and signals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.errors import BadShapeError, BadValueError, DHLabError
from dhlab.scan import Scan, halve


def random_scan(shape: tuple[int, ...], axes: str, **options: object) -> Scan:
    array = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    return Scan.from_array(array, axes, **options)  # type: ignore[arg-type] # options of any kind


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from([("yxc", (37, 63, 3)), ("zyx", (5, 13, 1)), ("ct", (2, 101)), ("cyx", (4, 31, 17))]),
    data=st.data(),
)
def test_read_equals_padded_slicing(case: tuple[str, tuple[int, ...]], data: st.DataObject) -> None:
    axes, shape = case
    scan = random_scan(shape, axes, fill=7)
    lengths = scan.shape
    start = [data.draw(st.integers(-n - 3, n + 3)) for n in lengths]
    size = [data.draw(st.integers(1, 70)) for _ in lengths]
    pad = 150
    widths = [(0, 0) if a == "c" else (pad, pad) for a in axes]
    padded = np.pad(np.asarray(scan.levels[0][...]), widths, constant_values=7)
    corners = iter(zip(start, size, strict=True))
    key = []
    for axis in axes:
        if axis == "c":
            key.append(slice(None))
            continue
        first, length = next(corners)
        key.append(slice(first + pad, first + pad + length))
    np.testing.assert_array_equal(scan.read(start, size), padded[tuple(key)])


def test_read_many_fills_the_array_it_is_given() -> None:
    scan = random_scan((64, 64, 3), "yxc")
    out = np.zeros((2, 8, 9, 3), np.uint8)
    assert scan.read_many([(0, 0), (10, 20)], (8, 9), out=out) is out
    np.testing.assert_array_equal(out[1], scan.levels[0][10:18, 20:29])
    assert scan.read_many([], (8, 9)).shape == (0, 8, 9, 3)
    with pytest.raises(BadShapeError, match="expected \\(2, 8, 9, 3\\) uint8"):
        scan.read_many([(0, 0), (1, 1)], (8, 9), out=out[:1])


def test_positions_are_level_0_pixels_and_sizes_level_pixels() -> None:
    scan = random_scan((2100, 1300, 3), "yxc", spacing=0.25, unit="µm")
    assert scan.scales == ((1, 1), (2, 2), (4, 4))
    window = scan.read((400, 800), (16, 16), level=2)
    np.testing.assert_array_equal(window, scan.levels[2][100:116, 200:216])
    assert scan.spacing_of(2) == (1.0, 1.0)
    assert [scan.level_for(s) for s in (0.1, 0.25, 0.3, 0.5, 0.502, 0.9, 1.0, 100)] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf, (0.5, 0)])
def test_spacing_must_be_positive_and_finite(spacing: float) -> None:
    with pytest.raises(BadValueError, match="positive, finite"):
        random_scan((4, 4, 3), "yxc", spacing=spacing)


@pytest.mark.parametrize("axes", ["", "c", "yxx", "abc", "yx", "zyxc"])
def test_axes_must_fit(axes: str) -> None:
    with pytest.raises(BadShapeError):
        random_scan((4, 4, 3), axes)


def test_levels_must_agree() -> None:
    with pytest.raises(BadShapeError, match="level 1 has dtype uint16"):
        Scan((np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint16)), "yx", (1, 1))
    with pytest.raises(BadShapeError, match="level 0 is empty"):
        Scan((np.zeros((0, 4), np.uint8),), "yx", (1, 1))


def test_wrong_windows_say_what_was_expected() -> None:
    scan = random_scan((9, 9, 3), "yxc")
    for call in (
        lambda: scan.read((0,), (4, 4)),
        lambda: scan.read((0, 0), (4,)),
        lambda: scan.read((0, 0), (0, 4)),
        lambda: scan.read((0, 0), (4, 4), level=3),
    ):
        with pytest.raises(DHLabError, match="expected"):
            call()


@pytest.mark.parametrize("shape", [(1, 1, 3), (63, 1, 3), (7, 13, 3)])
def test_halve_is_the_mean_with_repeated_edge(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    padded = np.pad(array, [(0, shape[0] % 2), (0, shape[1] % 2), (0, 0)], mode="edge").astype(float)
    mean = (padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]) / 4
    np.testing.assert_array_equal(halve(array, (0, 1)), np.rint(mean))
    np.testing.assert_array_equal(halve(array, (0, 1), nearest=True), array[::2, ::2])


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((1, 1, 3), "yxc"), ((97, 13, 3), "yxc"), ((7, 31, 63), "zyx"), ((3, 500), "ct"), ((5, 9, 7), "cyx")],
)
def test_a_repr_is_pure_and_has_a_picture(shape: tuple[int, ...], axes: str) -> None:
    scan = random_scan(shape, axes)
    before = np.array(scan.levels[0][...])
    html = scan._repr_html_()
    assert "data:image/png;base64," in html
    assert html == scan._repr_html_()
    assert repr(scan).startswith("Scan 'array'")
    np.testing.assert_array_equal(scan.levels[0][...], before)
    picture = scan.thumbnail(64)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert max(picture.shape[:2]) <= 64 or "t" in axes


def test_thumbnail_keeps_physical_proportions() -> None:
    scan = random_scan((40, 40), "yx", spacing=(3.0, 1.0), unit="mm")
    height, width = scan.thumbnail(30).shape[:2]
    assert height == 30
    assert width == 10


def test_a_name_with_markup_stays_text() -> None:
    assert "<script>" not in random_scan((4, 4, 3), "yxc", name="<script>x</script>")._repr_html_()


def test_scans_pickle() -> None:
    scan = random_scan((31, 17, 3), "yxc", spacing=0.5, unit="µm")
    copy = pickle.loads(pickle.dumps(scan))
    np.testing.assert_array_equal(copy.read((-1, 3), (5, 5)), scan.read((-1, 3), (5, 5)))
    assert copy.spacing == scan.spacing
