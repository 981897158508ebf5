"""The static picture shows what is there, where it is, in the colours of its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely

from dhlab.annotations import Annotations
from dhlab.display import class_color
from dhlab.errors import BadShapeError, BadValueError
from dhlab.scan import Scan
from dhlab.view.composite import compose, nice_length
from dhlab.view.tiles import Style

GREY = 200


def grey(height: int = 400, width: int = 300, **options: object) -> Scan:
    array = np.full((height, width, 3), GREY, np.uint8)
    return Scan.from_array(array, "yxc", **({"spacing": 0.5, "unit": "µm", "name": "slide"} | options))


def mix(color: tuple[int, int, int], share: float) -> np.ndarray:
    return GREY + (np.array(color) - GREY) * share


def changed(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture.astype(int) - GREY).max(-1) > 8


def test_a_mask_is_drawn_over_its_own_place_only() -> None:
    base = grey()
    mask = Scan.from_array(np.ones((10, 5), np.uint8), "yx", spacing=5, unit="µm", kind="mask")
    mask = mask.replace(origin=(50.0, 25.0), parent=base.as_parent())
    picture = compose(base, mask, legend=False, opacity=0.5)
    expected = np.zeros((400, 300), bool)
    expected[100:200, 50:100] = True
    assert np.array_equal(changed(picture), expected)
    assert np.abs(picture[150, 75] - mix(class_color(0), 0.5)).max() <= 1


@pytest.mark.parametrize("max_px", [57, 200, 1200])
def test_regions_and_sizes(max_px: int) -> None:
    base = grey()
    mask = Scan.from_array(np.eye(2, dtype=np.uint8), "yx", spacing=(100, 75), unit="µm", kind="mask")
    picture = compose(base, mask, max_px=max_px, region=((100, 75), (200, 150)), legend=False)
    height = min(200, max_px)
    assert picture.shape == (height, round(height * 0.75), 3)
    half = (picture.shape[0] // 2, picture.shape[1] // 2)
    where = changed(picture)
    assert where[2, 2]
    assert where[-3, -3]
    assert not where[2, -3]
    assert abs(int(where[1].sum()) - half[1]) <= 1
    assert abs(int(where[:, 1].sum()) - half[0]) <= 1


def test_outlines_have_the_class_colour_and_holes_stay_open() -> None:
    hole = [(120, 170), (180, 170), (180, 230), (120, 230)]
    ring = shapely.Polygon([(50, 100), (250, 100), (250, 300), (50, 300)], [hole])
    zones = Annotations.from_geometries([ring, shapely.Point(20, 20)], ["tumour", "mitosis"])
    picture = compose(grey(), zones, legend=False, opacity=0.6).astype(int)
    for y, x in ((100, 150), (200, 50), (170, 150), (200, 120)):
        near = picture[y - 2 : y + 2, x - 2 : x + 2].reshape(-1, 3)
        assert np.abs(near - class_color(0)).max(-1).min() < 40
    assert np.abs(picture[130, 80] - mix(class_color(0), 0.3)).max() <= 2
    assert (picture[200, 150] == GREY).all()
    assert (picture[350, 150] == GREY).all()
    assert np.abs(picture[20, 20] - class_color(1)).max() < 12


def test_outlines_fall_on_the_right_pixel_when_zoomed() -> None:
    zones = Annotations.from_geometries(shapely.box(110, 210, 120, 220), "a")
    picture = compose(grey(), zones, region=((200, 100), (30, 30)), max_px=30, legend=False, opacity=0)
    rows, columns = np.nonzero(np.abs(picture.astype(int) - class_color(0)).max(-1) < 60)
    # The edges at 10 and 20 run in the middle of the drawn lines.
    for found in (rows, columns):
        assert 8 <= found.min() <= 9
        assert found.min() + found.max() == 29
    assert abs(rows.mean() - 14.5) < 0.6
    assert abs(columns.mean() - 14.5) < 0.6


def test_the_legend_names_what_is_seen_and_nothing_is_drawn_on_small_pictures() -> None:
    zones = Annotations.from_geometries([shapely.box(10, 10, 90, 90), shapely.box(200, 300, 290, 390)], ["a", "b"])
    plain, full = (compose(grey(), zones, legend=shown) for shown in (False, True))
    assert np.array_equal(plain[:200], full[:200])
    corner = full[250:, 150:].astype(int)
    assert (np.abs(corner - class_color(1)).max(-1) < 20).any()
    left = compose(grey(), zones, region=((0, 0), (220, 220)))
    assert not (np.abs(left.astype(int) - class_color(1)).max(-1) < 20).any()
    small = grey(63, 1)
    assert (compose(small) == GREY).all()


@pytest.mark.parametrize("spacing", [0.25, 0.5, 3.0])
def test_the_scale_bar_has_its_length(spacing: float) -> None:
    picture = compose(grey(400, 600, spacing=spacing))
    dark = (picture < 60).all(-1)
    rows = dark[300:].sum(1)
    bar = np.nonzero(rows == rows.max())[0]
    length, _ = nice_length(600 * spacing * 0.2, "µm")
    assert abs(rows[bar[0]] - length / spacing) <= 1.5


def test_lengths_are_said_in_round_numbers() -> None:
    assert nice_length(999, "µm") == (500, "500 µm")
    assert nice_length(1000, "µm") == (1000, "1 mm")
    assert nice_length(0.21, "mm")[1] == "200 µm"
    assert nice_length(37, "px") == (20, "20 px")
    assert nice_length(0.0007, "µm")[1] == "0.5 nm"


def test_one_class_of_a_heat_map_and_a_threshold() -> None:
    scores = np.tile(np.linspace(0, 1, 300, dtype=np.float32), (2, 400, 1))
    heat = Scan.from_array(scores, "cyx", spacing=0.5, unit="µm", kind="heatmap", channels=["a", "b"])
    picture = compose(
        grey(), heat, legend=False, opacity=1, styles={0: Style(channel=1, colors="class", threshold=0.5)}
    )
    where = changed(picture)
    assert not where[:, :148].any()
    assert where[:, 152:].all()
    assert tuple(picture[200, 290]) == class_color(1)


def test_volumes_and_signals_are_drawn() -> None:
    volume = np.zeros((5, 40, 30), np.int16)
    volume[2, 10:20] = 1000
    scan = Scan.from_array(volume, "zyx", spacing=(5, 2, 1), unit="mm")
    picture = compose(scan, legend=False)
    assert picture.shape == (80, 30, 3)
    assert picture[30, 10].min() > 250
    assert compose(scan, legend=False, index={"z": 0}).max() == 0
    signal = Scan.from_array(np.sin(np.arange(500) / 9)[None], "ct", spacing=0.01, unit="s")
    assert compose(signal, max_px=300).shape[1] == 300


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadValueError, match="expected a Scan or Annotations"):
        compose(grey(), "heat")  # type: ignore[arg-type] # wrong, as is tried here
    with pytest.raises(BadValueError, match="opacity"):
        compose(grey(), opacity=1.5)
    with pytest.raises(BadValueError, match="opacity"):
        compose(grey(), grey(), opacity=[0.5, 0.5])
    with pytest.raises(BadShapeError, match="region"):
        compose(grey(), region=((0, 0), (0, 5)))
    with pytest.raises(BadValueError, match="max_px"):
        compose(grey(), max_px=0)


def test_a_real_slide_keeps_its_colours(skin_slide: Path) -> None:
    from dhlab.io import open as open_scan

    slide = open_scan(skin_slide)
    picture = compose(slide, max_px=600, legend=False).astype(int)
    assert picture.shape == (600, 449, 3)
    assert picture[200, 60].min() > 225  # glass
    red, green, blue = picture[350:370, 240:260].mean((0, 1))  # epidermis, violet
    assert blue > green + 20
    assert red > green + 20
