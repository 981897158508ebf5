"""TileGrid: every pixel covered, windows in order, masks exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.errors import BadShapeError, BadValueError
from dhlab.grid import TileGrid
from dhlab.scan import Scan


def blank(shape: tuple[int, ...], axes: str = "yx", **options: object) -> Scan:
    return Scan.from_array(np.zeros(shape, np.uint8), axes, pyramid=False, **options)  # type: ignore[arg-type] # options of any kind


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    tile=st.integers(1, 97),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_windows_cover_every_pixel_and_none_is_superfluous(shape: tuple[int, int], tile: int, overlap: float) -> None:
    grid = TileGrid.cover(blank(shape), tile, overlap=overlap)
    seen = np.zeros((shape[0] + tile, shape[1] + tile), int)
    for y, x in grid:
        seen[y : y + tile, x : x + tile] += 1
    assert seen[: shape[0], : shape[1]].min() >= 1
    if overlap == 0:
        assert seen.max() == 1
    last = grid[len(grid) - 1]
    for axis in range(2):
        before_last = last[axis] - grid.stride[axis]
        assert grid.shape[axis] == 1 or before_last + tile < shape[axis]


def test_spacing_sets_the_step_in_level_0_pixels() -> None:
    scan = blank((1000, 500), spacing=0.25, unit="µm")
    grid = TileGrid.cover(scan, 64, spacing=0.5)
    assert grid.extent == (500, 250)
    assert grid.shape == (8, 4)
    assert grid[1] == (0, 128)
    assert grid[-1] == (7 * 128, 3 * 128)
    with pytest.raises(IndexError):
        grid[len(grid)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_within_agrees_with_looking_at_every_window(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(5, 60), st.integers(5, 60)))
    filled = data.draw(st.sampled_from([0.01, 0.3, 1]))
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < filled
    factor = data.draw(st.sampled_from([1, 2, 3]))
    mask = Scan.from_array(pixels.astype(np.uint8), "yx", spacing=float(factor), unit="µm", kind="mask")
    scan = blank((shape[0] * factor, shape[1] * factor), spacing=1.0, unit="µm")
    tile = data.draw(st.integers(1, 20)) * factor
    share = data.draw(st.sampled_from([0.0, 0.25, 1.0]))
    grid = TileGrid.cover(scan, tile)
    whole = np.kron(pixels, np.ones((factor, factor), bool))
    expected = []
    for index, (y, x) in enumerate(grid):
        window = whole[y : y + tile, x : x + tile]
        if window.any() and window.sum() >= share * tile * tile:
            expected.append(index)
    np.testing.assert_array_equal(grid.within(mask, min_share=share).indices, expected)


def test_an_empty_mask_keeps_nothing() -> None:
    scan = blank((64, 64))
    grid = TileGrid.cover(scan, 16, within=blank((8, 8), spacing=8.0))
    assert len(grid) == 0
    assert grid.starts().shape == (0, 2)
    assert list(grid) == []


def test_split_keeps_all_windows_once() -> None:
    grid = TileGrid.cover(blank((97, 31)), 8)
    parts = grid.split(5)
    np.testing.assert_array_equal(np.concatenate([p.indices for p in parts]), grid.indices)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts[1][0] == grid[len(parts[0])]


def test_volumes_and_signals_use_the_same_grid() -> None:
    volume = blank((31, 63, 65), "zyx", spacing=(3.0, 1.0, 1.0), unit="mm")
    assert TileGrid.cover(volume, (16, 32, 32)).shape == (2, 2, 3)
    assert TileGrid.cover(volume, (0, 32, 32)).tile == (31, 32, 32)
    signal = blank((19, 5000), "ct", spacing=1 / 256, unit="s")
    assert TileGrid.cover(signal, 256, overlap=0.5).shape == (39,)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 2.0])
def test_overlap_out_of_range(overlap: float) -> None:
    with pytest.raises(BadValueError, match="overlap"):
        TileGrid.cover(blank((8, 8)), 4, overlap=overlap)


def test_wrong_arguments_say_what_was_expected() -> None:
    scan = blank((8, 8))
    with pytest.raises(BadShapeError, match="tile"):
        TileGrid.cover(scan, (4, 4, 4))
    with pytest.raises(BadShapeError, match="tile"):
        TileGrid.cover(scan, -1)
    for spacing in (0, -1, np.nan):
        with pytest.raises(BadValueError, match="spacing"):
            TileGrid.cover(scan, 4, spacing=spacing)
    with pytest.raises(BadShapeError, match="mask has axes"):
        TileGrid.cover(scan, 4, within=blank((2, 8, 8), "cyx"))
