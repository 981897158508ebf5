"""How far the outline that was found lies from the true one, in physical units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["average_surface_distance", "hausdorff95", "surface_distances"]


def surface_distances(
    truth: ArrayLike, prediction: ArrayLike, *, spacing: Sequence[float] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far each surface pixel of one mask lies from the surface of the other, both ways.

    A surface pixel belongs to the mask and touches, side by side, one that does not; outside the picture is not mask.

    Parameters
    ----------
    truth
        Mask, any number of axes, true inside.
    prediction
        Mask of the same shape.
    spacing
        Pixel size per axis in any physical unit (mm, µm), which distances then have; empty counts pixels.

    Returns
    -------
    tuple of ndarray
        Distances of the true surface from the predicted one, and of the predicted from the true, 1-D float64 each.
        Infinite if the other mask is empty; no distances for an empty mask.

    Raises
    ------
    BadShapeError
        If the shapes differ, or `spacing` has another number of axes.
    BadValueError
        If a spacing is not positive.
    """
    from scipy.spatial import KDTree

    masks = [np.asarray(mask).astype(bool) for mask in (truth, prediction)]
    if masks[0].shape != masks[1].shape or not masks[0].ndim:
        raise BadShapeError(f"truth has shape {masks[0].shape}, prediction {masks[1].shape}; expected the same.")
    step = np.asarray(spacing if len(spacing) else (1.0,) * masks[0].ndim, np.float64)
    if step.shape != (masks[0].ndim,):
        raise BadShapeError(f"spacing {tuple(spacing)} for masks of {masks[0].ndim} axes; expected one number each.")
    if not (np.isfinite(step) & (step > 0)).all():
        raise BadValueError(f"spacing {tuple(spacing)}; expected positive numbers.")
    places = [_surface(mask) * step for mask in masks]
    if not all(map(len, places)):
        return np.full(len(places[0]), np.inf), np.full(len(places[1]), np.inf)
    first, second = (KDTree(points, balanced_tree=False, compact_nodes=False) for points in places)
    return second.query(places[0])[0], first.query(places[1])[0]


def hausdorff95(truth: ArrayLike, prediction: ArrayLike, *, spacing: Sequence[float] = ()) -> float:
    """Return the distance within which 95 % of each surface lies from the other (HD95), the larger of both ways.

    Parameters
    ----------
    truth
        Mask, any number of axes, true inside.
    prediction
        Mask of the same shape.
    spacing
        Pixel size per axis in any physical unit (mm, µm), which the distance then has; empty counts pixels.

    Returns
    -------
    float
        At least 0; infinite if one mask is empty, NaN if both are.

    References
    ----------
    Huttenlocher, Klanderman and Rucklidge, "Comparing images using the Hausdorff distance", PAMI 15, 1993.
    """
    ways = surface_distances(truth, prediction, spacing=spacing)
    return max((_quantile(way) for way in ways if len(way)), default=float("nan"))


def average_surface_distance(truth: ArrayLike, prediction: ArrayLike, *, spacing: Sequence[float] = ()) -> float:
    """Return the mean distance of all surface pixels of two masks from each other's surface (ASSD).

    Parameters
    ----------
    truth
        Mask, any number of axes, true inside.
    prediction
        Mask of the same shape.
    spacing
        Pixel size per axis in any physical unit (mm, µm), which the distance then has; empty counts pixels.

    Returns
    -------
    float
        At least 0; infinite if one mask is empty, NaN if both are.

    References
    ----------
    Heimann et al., "Comparison and evaluation of methods for liver segmentation from CT datasets", TMI 28, 2009.
    """
    both = np.concatenate(surface_distances(truth, prediction, spacing=spacing))
    return float(both.mean()) if len(both) else float("nan")


def _quantile(distances: NDArray[np.float64]) -> float:
    return float("inf") if np.isinf(distances[0]) else float(np.quantile(distances, 0.95))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices of surface pixels, ``(points, axes)``."""
    from scipy.ndimage import binary_erosion, find_objects

    box = find_objects(mask.view(np.uint8))
    if not box:
        return np.zeros((0, mask.ndim), np.int64)
    inside = mask[box[0]]
    return np.argwhere(inside & ~binary_erosion(inside)) + [part.start for part in box[0]]
