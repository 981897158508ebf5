"""One colour path: every kind of scan becomes RGB for the eye."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab.display import Display, class_color, default_display, heat_colors, to_rgb
from dhlab.scan import Scan


def test_rgb_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    scan = Scan.from_array(pixels, "yxc")
    np.testing.assert_array_equal(to_rgb(pixels, scan), pixels)
    np.testing.assert_array_equal(to_rgb(pixels, scan, Display(channel=1))[..., 0], pixels[..., 1])


def test_sixteen_bits_use_the_range_that_holds_something() -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[10:50, 10:50] = 3000
    scan = Scan.from_array(pixels, "yx")
    picture = to_rgb(pixels, scan)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[30, 30].tolist() == [255, 255, 255]
    assert default_display(scan).high == 3000


def test_labels_have_their_class_colours_and_unlabelled_is_white() -> None:
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    picture = to_rgb(labels, Scan.from_array(labels, "yx", kind="labels"))
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert tuple(picture[0, 1].tolist()) == class_color(0)
    assert tuple(picture[1, 1].tolist()) == class_color(2)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.float32, 1)])
def test_heat_maps_show_the_highest_score(dtype: type, top: float) -> None:
    heat = np.zeros((2, 3, 4), dtype)
    heat[1, 0, 0] = top
    picture = to_rgb(heat, Scan.from_array(heat, "cyx", kind="heatmap"))
    np.testing.assert_array_equal(picture[0, 0], heat_colors()[255])
    np.testing.assert_array_equal(picture[2, 3], heat_colors()[0])


def test_many_channels_mix_and_missing_values_are_dark() -> None:
    pixels = np.full((5, 3, 3), np.nan, np.float32)
    pixels[0] = 1
    picture = to_rgb(pixels, Scan.from_array(pixels, "cyx"), Display(0, 1))
    assert tuple(picture[0, 0].tolist()) == class_color(0)
    assert to_rgb(pixels, Scan.from_array(pixels, "cyx"), Display(0, 1, channel=2)).max() == 0
