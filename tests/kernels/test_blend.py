"""Blending: weights, sums on a canvas, scores; against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhlab.errors import BadShapeError
from dhlab.kernels.blend import accumulate_windows, gaussian_weights, resolve_scores


@pytest.mark.parametrize("tile", [(1,), (63,), (1, 1), (7, 64), (3, 5, 8)])
def test_weights_are_a_gaussian(tile: tuple[int, ...]) -> None:
    weights = gaussian_weights(tile)
    grids = np.meshgrid(*(np.arange(n) for n in tile), indexing="ij")
    exponent = sum(((g - (n - 1) / 2) / (n / 8)) ** 2 for g, n in zip(grids, tile, strict=True))
    np.testing.assert_allclose(weights.numpy(), np.exp(-exponent / 2).clip(1e-3), rtol=1e-6)


def test_sums_and_scores_equal_float64() -> None:
    rng = np.random.default_rng(0)
    corners = [(0, 0), (2, 5), (2, 5), (4, 6)]
    windows, weights = rng.random((4, 3, 7, 5)), gaussian_weights((7, 5))
    sums, total = np.zeros((3, 13, 12)), np.zeros((13, 12))
    for window, (y, x) in zip(windows, corners, strict=True):
        sums[:, y : y + 7, x : x + 5] += window * weights.numpy()
        total[y : y + 7, x : x + 5] += weights.numpy()
    canvas = accumulate_windows(
        torch.zeros(4, 13, 12), torch.from_numpy(windows).float(), corners=corners, weights=weights
    )
    np.testing.assert_allclose(canvas.numpy(), np.concatenate([sums, total[None]]), atol=1e-5)
    scores = resolve_scores(canvas)
    assert scores.dtype == torch.uint8
    truth = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0) * 255
    assert np.abs(scores.numpy() - truth).max() <= 0.5 + 1e-3
    assert (scores.numpy()[:, total == 0] == 0).all()
    assert (scores.numpy()[:, total > 0] > 0).any()


def test_batches_do_not_matter() -> None:
    windows, corners = torch.rand(9, 2, 16, 16), [(0, 5 * i) for i in range(9)]
    weights = gaussian_weights((16, 16))
    whole = accumulate_windows(torch.zeros(3, 16, 56), windows, corners=corners, weights=weights)
    parts = torch.zeros(3, 16, 56)
    for first in range(0, 9, 2):
        part = slice(first, first + 2)
        accumulate_windows(parts, windows[part], corners=corners[part], weights=weights)
    assert torch.equal(whole, parts)


def test_scores_beyond_one_are_clipped() -> None:
    canvas = torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    assert resolve_scores(canvas).tolist() == [[255, 0, 128]]


@pytest.mark.parametrize("corner", [(-1, 0), (0, 9), (7, 0)])
def test_refuses_a_window_outside(corner: tuple[int, int]) -> None:
    with pytest.raises(BadShapeError, match="leaves the canvas"):
        accumulate_windows(torch.zeros(2, 10, 12), torch.zeros(1, 1, 4, 4), corners=[corner], weights=torch.ones(4, 4))


def test_refuses_other_classes() -> None:
    with pytest.raises(BadShapeError, match="expected"):
        accumulate_windows(torch.zeros(2, 10, 12), torch.zeros(1, 2, 4, 4), corners=[(0, 0)], weights=torch.ones(4, 4))
