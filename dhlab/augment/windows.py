"""Random variants of training samples whose draws depend on seed, epoch and sample alone, never on the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["augment_batch"]

# Haematoxylin, eosin and DAB in optical density (Ruifrok and Johnston, 2001), rows of unit length.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS)


def augment_batch(
    images: NDArray[Any],
    targets: NDArray[np.int64],
    *,
    axes: str,
    seed: int,
    epoch: int,
    indices: Sequence[int] | NDArray[np.int64],
    strength: float = 1.0,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Flip, turn and recolour a batch; the same sample in the same epoch always comes out the same.

    Planes (``y`` and ``x``) are flipped and turned by quarters, which leaves masks exact. RGB pictures of uint8 also
    change in amount of each stain, in brightness and in contrast. Signals stay as they are.

    Parameters
    ----------
    images
        ``(B, *window)``, any dtype.
    targets
        ``(B, *space)`` masks, which move with their image, or any other targets, which stay.
    axes
        Axis letters of a window, as in `Scan`.
    seed, epoch
        With the sample's index they decide every draw.
    indices
        ``(B,)`` indices of the samples in their dataset.
    strength
        Scales the change of colour; 0 only flips and turns.

    Returns
    -------
    tuple of ndarray
        Images and targets, new arrays of the same shape and dtype.

    Raises
    ------
    BadShapeError
        If batch, axes and indices do not fit.
    """
    if images.ndim != 1 + len(axes) or not len(images) == len(targets) == len(indices):
        raise BadShapeError(
            f"{images.shape} images with axes {axes!r}, {len(targets)} targets and {len(indices)} indices; "
            f"expected {1 + len(axes)} axes and equal numbers."
        )
    pictures, masks = np.empty_like(images), np.empty_like(targets)
    plane = (axes.index("y"), axes.index("x")) if "y" in axes and "x" in axes else None
    space = axes.replace("c", "")
    below = (space.index("y"), space.index("x")) if plane else None
    coloured = images.dtype == np.uint8 and axes.endswith("c") and images.shape[-1] == 3 and strength > 0
    for position, index in enumerate(np.asarray(indices, np.uint64).tolist()):
        draw = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, index, 0]))
        picture, mask = images[position], targets[position]
        if plane is not None and below is not None:
            turns, flip = int(draw.integers(4)), bool(draw.integers(2))
            if picture.shape[plane[0]] != picture.shape[plane[1]]:
                turns -= turns % 2
            picture = _turn(picture, plane, turns, flip)
            if mask.ndim == len(space):
                mask = _turn(mask, below, turns, flip)
        if coloured:
            picture = _recolour(picture, draw, strength)
        pictures[position], masks[position] = picture, mask
    return pictures, masks


def _turn(array: NDArray[Any], plane: tuple[int, int], turns: int, flip: bool) -> NDArray[Any]:
    """Turn by quarters in the direction of `np.rot90`, then mirror left and right."""
    if plane == (0, 1) and array.ndim <= 3 and array.dtype in (np.uint8, np.uint16, np.float32):
        import cv2

        # NumPy copies turned pictures a channel value at a time, OpenCV in blocks: five times as fast.
        turned = cv2.rotate(array, QUARTERS[turns % 4]) if turns % 4 else array
        turned = cv2.flip(turned, 1) if flip else turned
        return turned.reshape(turned.shape[:2] + array.shape[2:])
    turned = np.rot90(array, turns, plane)
    return np.flip(turned, plane[1]) if flip else turned


def _recolour(picture: NDArray[np.uint8], draw: np.random.Generator, strength: float) -> NDArray[np.uint8]:
    """Scale the amount of each stain, then contrast and brightness, in one product on optical density."""
    amounts = np.exp(draw.normal(0, 0.12 * strength, 3)) * np.exp(draw.normal(0, 0.08 * strength))
    shift = draw.normal(0, 0.015 * strength, 3)
    gain = 1 + draw.normal(0, 0.03 * strength)
    mixing = (UNMIX @ np.diag(amounts) @ STAINS).astype(np.float32)
    density = DENSITY[picture] @ mixing + shift.astype(np.float32)
    light = np.float32(255 * gain) * np.exp(-density) + np.float32(0.5)
    recoloured: NDArray[np.uint8] = np.clip(light, 0, 255).astype(np.uint8)
    return recoloured


QUARTERS = {1: 2, 2: 1, 3: 0}  # turns to OpenCV's codes of rotation
DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
