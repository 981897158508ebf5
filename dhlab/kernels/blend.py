"""Overlapping windows to one map: weighted sums on a canvas, divided when no further window can reach a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dhlab.errors import BadShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["accumulate_windows", "gaussian_weights", "resolve_scores"]

# Standard deviation as a share of the window, and the least weight: the choice of nnU-Net and MONAI.
SIGMA, LEAST = 1 / 8, 1e-3


def gaussian_weights(tile: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Return how much each pixel of a window counts: most in the middle, where the network sees context all round.

    Parameters
    ----------
    tile
        Window size in pixels, per axis.
    device
        Where the result lives.

    Returns
    -------
    Tensor
        ``tile``-shaped float32, at most 1, at least 1e-3.

    References
    ----------
    Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    Nature Methods 2021.
    """
    weights = torch.ones((), dtype=torch.float64)
    for size in tile:
        distance = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size * SIGMA)
        weights = weights.unsqueeze(-1) * torch.exp(-distance.square() / 2)
    return weights.clamp_min(LEAST).to(device, torch.float32)


def accumulate_windows(canvas: Tensor, scores: Tensor, *, corners: Sequence[Sequence[int]], weights: Tensor) -> Tensor:
    """Add weighted windows to a canvas, one after the other, so that the sums do not depend on batches.

    Parameters
    ----------
    canvas
        ``(C + 1, *space)`` float32, changed in place: C weighted sums and the sum of weights.
    scores
        ``(B, C, *tile)`` float32.
    corners
        First corner of each window on the canvas, ``(B, ndim)``; windows lie wholly inside.
    weights
        ``tile``-shaped float32 (see `gaussian_weights`).

    Returns
    -------
    Tensor
        The canvas.

    Raises
    ------
    BadShapeError
        If a window does not fit the canvas.
    """
    tile, space = scores.shape[2:], canvas.shape[1:]
    if scores.shape[1] + 1 != canvas.shape[0] or tile != weights.shape or len(scores) != len(corners):
        raise BadShapeError(
            f"scores {tuple(scores.shape)}, {len(corners)} corners and weights {tuple(weights.shape)} for a canvas "
            f"{tuple(canvas.shape)}; expected (B, C, *tile), B, tile and (C + 1, *space)."
        )
    for window, corner in zip(scores, corners, strict=True):
        if any(c < 0 or c + t > n for c, t, n in zip(corner, tile, space, strict=True)):
            raise BadShapeError(f"window of {tuple(tile)} at {tuple(corner)} leaves the canvas {tuple(space)}.")
        part = canvas[(slice(None), *(slice(c, c + t) for c, t in zip(corner, tile, strict=True)))]
        part[:-1].addcmul_(window, weights)
        part[-1].add_(weights)
    return canvas


def resolve_scores(canvas: Tensor) -> Tensor:
    """Divide the sums by the weights and quantise: score 0..1 to 0..255, 0 where no window came.

    Parameters
    ----------
    canvas
        ``(C + 1, *space)`` float32, as `accumulate_windows` left it; its values are used up.

    Returns
    -------
    Tensor
        ``(C, *space)`` uint8.
    """
    tiny = torch.finfo(torch.float32).tiny
    sums = canvas[:-1].div_(canvas[-1].clamp_min_(tiny))
    return sums.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
