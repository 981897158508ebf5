"""`Tiles`: what a grid's windows hold, at a level, between levels, for every kind of scan."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dhlab.errors import BadShapeError
from dhlab.grid import TileGrid
from dhlab.scan import Scan
from dhlab.tiles import Tiles


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> NDArray:
    high = 256 if dtype == "uint8" else 3000
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def test_an_item_is_the_stored_window_and_its_index() -> None:
    picture = noise((63, 101, 3))
    grid = TileGrid.cover(Scan.from_array(picture, "yxc"), 32)
    tiles = Tiles(Scan.from_array(picture, "yxc"), grid)
    window, index = tiles[5]
    assert (index, window.dtype, tuple(window.shape)) == (5, torch.uint8, (32, 32, 3))
    np.testing.assert_array_equal(window[:31].numpy(), picture[32:63, 32:64])
    assert (window[31:] == 0).all()
    with pytest.raises(IndexError):
        tiles[len(tiles)]


def test_index_survives_a_mask() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[40, 40] = 1
    scan = Scan.from_array(noise((64, 64, 3)), "yxc")
    grid = TileGrid.cover(scan, 32, within=Scan.from_array(mask, "yx", kind="mask"))
    assert [index for _, index in Tiles(scan, grid).__getitems__([0])] == [3]


def test_a_loader_reads_batches() -> None:
    scan = Scan.from_array(noise((100, 70, 3)), "yxc")
    tiles = Tiles(scan, TileGrid.cover(scan, 16, overlap=0.5))
    seen: list[int] = []
    for windows, indices in torch.utils.data.DataLoader(tiles, batch_size=7):
        seen += indices.tolist()
        for window, index in zip(windows, indices, strict=True):
            np.testing.assert_array_equal(window, scan.read(tiles.grid[int(index)], (16, 16)))
    assert seen == list(range(len(tiles)))


def test_pickles() -> None:
    scan = Scan.from_array(noise((40, 41, 3)), "yxc")
    tiles = Tiles(scan, TileGrid.cover(scan, 16))
    copy = pickle.loads(pickle.dumps(tiles))
    np.testing.assert_array_equal(copy.read([0, 3]), tiles.read([0, 3]))


def test_reads_into_out() -> None:
    scan = Scan.from_array(noise((40, 41, 3)), "yxc", spacing=1.0)
    for spacing in (1.0, 2.0):
        tiles = Tiles(scan, TileGrid.cover(scan, 16, spacing=spacing))
        out = np.zeros((2, 16, 16, 3), np.uint8)
        assert tiles.read([0, 1], out) is out
        np.testing.assert_array_equal(out, tiles.read([0, 1]))
        with pytest.raises(BadShapeError, match="out is"):
            tiles.read([0], out)


def test_takes_the_right_level() -> None:
    scan = Scan.from_array(noise((3000, 2100, 3)), "yxc", spacing=0.25, unit="µm")
    half = Tiles(scan, TileGrid.cover(scan, 64, spacing=0.5))
    assert (half.level, half.resampled) == (1, False)
    np.testing.assert_array_equal(half.read([0])[0], np.asarray(scan.levels[1])[:64, :64])
    near = Tiles(scan, TileGrid.cover(scan, 64, spacing=0.2524))
    assert (near.level, near.resampled, near.source_size) == (0, False, (64, 64))
    between = Tiles(scan, TileGrid.cover(scan, 64, spacing=0.75))
    assert (between.level, between.resampled, between.source_size) == (1, True, (96, 96))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("axes", ["yxc", "cyx", "yx"])
def test_halving_an_image_averages(dtype: str, axes: str) -> None:
    """A linear ramp stays one, so resampling by 2 is checked exactly away from the edges."""
    y, x = np.mgrid[:64, :96]
    plane = (2 * y + x / 2).astype(dtype)
    picture = {"yx": plane, "yxc": np.stack([plane, plane // 2], -1), "cyx": np.stack([plane, plane // 2])}[axes]
    scan = Scan.from_array(picture, axes, pyramid=False)
    tiles = Tiles(scan, TileGrid.cover(scan, (32, 48), spacing=2.0))
    result = tiles.read([0])[0]
    assert result.dtype == np.dtype(dtype)
    first = np.moveaxis(result, axes.index("c"), 0)[0] if "c" in axes else result
    truth = plane.astype(float).reshape(32, 2, 48, 2).mean((1, 3))
    np.testing.assert_allclose(first[2:-2, 2:-2], truth[2:-2, 2:-2], atol=1)


@pytest.mark.parametrize("kind", ["mask", "labels"])
def test_masks_and_labels_keep_their_values(kind: str) -> None:
    labels = noise((60, 60)) % 5
    scan = Scan.from_array(labels * 50, "yx", kind=kind, pyramid=False)
    tiles = Tiles(scan, TileGrid.cover(scan, 20, spacing=3.0))
    np.testing.assert_array_equal(tiles.read([0])[0], labels[1::3, 1::3] * 50)


def test_enlarges_where_the_scan_is_too_coarse() -> None:
    scan = Scan.from_array(np.full((20, 30, 3), 77, np.uint8), "yxc", spacing=4.0)
    result = Tiles(scan, TileGrid.cover(scan, 16, spacing=1.0)).read([0])
    assert result.shape == (1, 16, 16, 3)
    assert (result == 77).all()


def test_volumes_and_signals_are_resampled_along_every_axis() -> None:
    z, y, x = np.mgrid[:8, :32, :48]
    volume = Scan.from_array((100 * z + 3 * y + x).astype(np.int16), "zyx", spacing=(2, 1, 1), unit="mm")
    tiles = Tiles(volume, TileGrid.cover(volume, (4, 16, 24), spacing=(4.0, 2.0, 2.0)))
    truth = np.asarray(volume.levels[0]).astype(float).reshape(4, 2, 16, 2, 24, 2).mean((1, 3, 5))
    np.testing.assert_allclose(tiles.read([0])[0], truth, atol=1)
    signal = Scan.from_array(np.stack([np.arange(200.0), -np.arange(200.0)]).astype(np.float32), "ct", unit="s")
    result = Tiles(signal, TileGrid.cover(signal, 50, spacing=2.0)).read([1])[0]
    np.testing.assert_allclose(result, [np.arange(100.5, 200, 2), -np.arange(100.5, 200, 2)], atol=1e-3)


def test_refuses_another_number_of_axes() -> None:
    volume, picture = Scan.from_array(noise((4, 8, 8)), "zyx"), Scan.from_array(noise((8, 8, 3)), "yxc")
    with pytest.raises(BadShapeError, match="window axes"):
        Tiles(picture, TileGrid.cover(volume, 4))
