"""Named transforms that bend: elastic, grid and optical distortion, each a displacement of every position."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dhlab.augment.geometry import Geometric
from dhlab.augment.steps import Range, between, check_span
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft

__all__ = ["Elastic", "GridDistortion", "OpticalDistortion"]

# So many nodes along a side show a strong lens to within a hundredth of a pixel.
FINE = 65
MOST_NODES = 257
MOST_CELLS = 64


@dataclass(frozen=True, repr=False)
class Elastic(Geometric):
    """Bend like rubber: noise from -1 to 1 per pixel, blurred with `sigma`, times `alpha` pixels (Simard, 2003).

    The noise is drawn at nodes about a `sigma` apart and has the spread and the smoothness that it would have if it
    were drawn for every pixel and blurred with a window of 17.

    Parameters
    ----------
    alpha
        Range of strengths in pixels.
    sigma
        Range of standard deviations of the blur in pixels.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    alpha: Range = (30.0, 60.0)
    sigma: Range = (4.0, 6.0)
    border: str | None = field(default="reflect101", kw_only=True)

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "alpha", 0, 1e4)
        check_span(self, "sigma", 0.1, 1e3)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        height, width = draft.size
        spacing = max(1.0, self.sigma[0])
        nodes = (_nodes(height, spacing), _nodes(width, spacing))
        alpha, sigma = between(numbers[:, 0], self.alpha), between(numbers[:, 1], self.sigma)
        assert draft.noise is not None
        drawn = 2 * draft.noise(2 * nodes[0] * nodes[1]) - 1  # float32 is fine enough for noise
        down, across = (
            _gaussian(g, sigma * (g - 1) / max(1, n - 1))[:, None] for g, n in zip(nodes, draft.size, strict=True)
        )
        smooth = down @ drawn.reshape(-1, 2, *nodes) @ across.transpose(0, 1, 3, 2)
        # The middle row of a matrix says how far it narrows the spread; the window of 17 how far it should.
        narrowed = [np.sqrt((m[:, 0, m.shape[-1] // 2] ** 2).sum(-1)) for m in (down, across)]
        window = np.exp(-0.5 * (np.arange(-8, 9) / sigma[:, None]) ** 2)
        wanted = (window**2).sum(1) / window.sum(1) ** 2
        field = smooth * (alpha * wanted / (narrowed[0] * narrowed[1]))[:, None, None, None].astype(np.float32)
        draft.displace(lambda positions: _sample(field, positions, (height, width)), chosen, nodes, nodal=field)


@dataclass(frozen=True, repr=False)
class GridDistortion(Geometric):
    """Stretch the columns and the rows of a grid by random factors.

    Parameters
    ----------
    cells
        Range of numbers of cells down and across.
    limit
        Range of what a cell is stretched by, as a share of its size.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    cells: tuple[int, int] = (5, 5)
    limit: Range = (-0.3, 0.3)
    border: str | None = field(default="reflect101", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "cells", 1, MOST_CELLS)
        if any(n % 1 for n in self.cells):
            raise BadValueError(f"cells of GridDistortion is {self.cells!r}; expected whole numbers.")
        object.__setattr__(self, "cells", tuple(int(n) for n in self.cells))
        check_span(self, "limit", -1, 10)

    @property
    def draws(self) -> int:
        """Uniform numbers that a sample needs."""
        return 1 + 2 * self.cells[1]

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        low, high = self.cells
        counts = low + np.floor(numbers[:, :1] * (high - low + 1))[..., None]  # (B, 1, 1)
        stretched = between(numbers[:, 1:].reshape(-1, 2, high), self.limit)
        # Where the edges of the cells lie in the source, in cells.
        edges = np.concatenate([np.zeros((len(numbers), 2, 1)), np.cumsum(1 + stretched, -1)], -1)
        spans = np.maximum(np.array(draft.size, np.float64) - 1, 1)[:, None]

        def shift(positions: NDArray[np.float64]) -> NDArray[np.float64]:
            cells = positions / spans * counts
            first = np.clip(np.floor(cells), 0, counts - 1)
            start = np.take_along_axis(edges, first.astype(np.int64), -1)
            width = 1 + np.take_along_axis(stretched, first.astype(np.int64), -1)
            source: NDArray[np.float64] = start + (cells - first) * width
            return source / counts * spans - positions

        # Nodes on every edge of every count of cells keep the kinks sharp.
        shared = math.lcm(*range(low, high + 1))
        nodes = [shared + 1 if shared <= n else _nodes(n, n / FINE) for n in draft.size]
        draft.displace(shift, chosen, (nodes[0], nodes[1]))


@dataclass(frozen=True, repr=False)
class OpticalDistortion(Geometric):
    """Distort as a lens does: a position r from the middle shows the source at r (1 + k r² + k r⁴).

    Parameters
    ----------
    limit
        Range of k; distances count in heights and widths of the picture.
    shift
        Range of what the picture moves by in pixels, down and across.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.

    References
    ----------
    Brown, "Decentering distortion of lenses", 1966; OpenCV's ``initUndistortRectifyMap``.
    """

    limit: Range = (-0.3, 0.3)
    shift: Range = (0.0, 0.0)
    border: str | None = field(default="reflect101", kw_only=True)

    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "limit", -10, 10)
        check_span(self, "shift")

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        strength = between(numbers[:, :1], self.limit)[..., None]  # (B, 1, 1)
        moved = between(numbers[:, 1:], self.shift)[..., None]  # (B, 2, 1)
        sides = np.array(draft.size, np.float64)[:, None]

        def shift(positions: NDArray[np.float64]) -> NDArray[np.float64]:
            away = positions - (sides - 1) / 2
            squared = ((away / sides) ** 2).sum(1, keepdims=True)
            found: NDArray[np.float64] = away * (strength * squared * (1 + squared)) + moved
            return found

        height, width = draft.size
        draft.displace(shift, chosen, (_nodes(height, height / FINE), _nodes(width, width / FINE)))


def _nodes(pixels: int, spacing: float) -> int:
    return min(MOST_NODES, max(2, math.ceil((pixels - 1) / max(1, spacing)) + 1))


def _gaussian(count: int, sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return ``(B, count, count)``: each row the weights of a Gaussian about its own place, of sum 1."""
    apart = np.arange(count, dtype=np.float32)[:, None] - np.arange(count, dtype=np.float32)
    weights = np.exp(-0.5 * (apart / np.maximum(sigma, 1e-3)[:, None, None].astype(np.float32)) ** 2)
    normed: NDArray[np.float32] = weights / weights.sum(-1, keepdims=True)
    return normed


def _sample(
    field: NDArray[np.floating[Any]], positions: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Interpolate a field ``(B, 2, gh, gw)`` over pictures of `size` at positions ``(B, 2, N)`` bilinearly."""
    batch, _, height, width = field.shape
    most = np.array([[height - 1], [width - 1]], np.float64)
    spans = np.maximum(np.array(size, np.float64) - 1, 1)[:, None]
    at = np.clip(positions / spans * most, 0, most)
    first = np.minimum(np.floor(at), most - 1)
    y, x = (at - first)[:, :1], (at - first)[:, 1:]
    start = (first[:, 0] * width + first[:, 1]).astype(np.int64)[:, None]  # (B, 1, N)
    flat = field.reshape(batch, 2, -1)
    corners = [np.take_along_axis(flat, start + o, -1) for o in (0, 1, width, width + 1)]
    upper, lower = corners[0] * (1 - x) + corners[1] * x, corners[2] * (1 - x) + corners[3] * x
    found: NDArray[np.float64] = upper * (1 - y) + lower * y
    return found
