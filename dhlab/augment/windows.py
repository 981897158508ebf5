"""Windows of a dataset: what a pipeline does to RGB tiles, and its flips and turns to all else that has a plane."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.augment.colour import Brightness
from dhlab.augment.draft import Draft
from dhlab.augment.geometry import Mirror, QuarterTurns
from dhlab.augment.language import parse_augmentations
from dhlab.augment.pipeline import Compose
from dhlab.augment.schedule import Numbers
from dhlab.augment.stains import StainJitter
from dhlab.augment.steps import Transform, from_dict
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError
from dhlab.kernels.philox import sample_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["augment_batch", "check_applies", "default_pipeline", "read_pipeline"]


@cache
def default_pipeline(strength: float = 1.0, *, coloured: bool = True) -> Compose:
    """Return what training does unless told otherwise: quarter turns, mirroring, and for RGB a change of stain.

    Parameters
    ----------
    strength
        Scales the change of colour; 0 only flips and turns.
    coloured
        Whether the pictures are RGB.
    """
    steps: list[Transform] = [QuarterTurns(), Mirror()]
    if coloured and strength > 0:

        def about(middle: float, width: float) -> tuple[float, float]:
            return max(0.0, middle - width * strength), middle + width * strength

        scale = min(1.0, 0.2 * strength)
        steps.append(StainJitter((-scale, scale), (-0.002 * strength, 0.002 * strength), about(1.0, 0.14)))
        steps.append(Brightness(about(1.0, 0.05)))
    return Compose(tuple(steps))


def read_pipeline(source: Any) -> Compose:
    """Return the pipeline that something describes.

    Parameters
    ----------
    source
        A transform, what `Compose.to_dict` gave, ECVL's text, or the path of a file with either (``.json`` for the
        former).

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadFileError
        If a file cannot be read.
    UnknownNameError, BadValueError
        If it says what cannot be done.
    """
    if isinstance(source, Transform):
        return source if isinstance(source, Compose) else Compose((source,))
    if isinstance(source, Mapping):
        return read_pipeline(from_dict(dict(source)))
    if isinstance(source, str) and ("\n" in source or source.split(" ")[0].startswith(("Aug", "Sequential", "OneOf"))):
        return parse_augmentations(source)
    if not isinstance(source, str | os.PathLike):
        raise BadValueError(
            f"augment is {source!r}; expected True, False, a number, transforms of dhlab.augment, ECVL's text, or a "
            "path."
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise NotFoundError(f"{path} is not there; expected a file with ECVL's text, or .json of a pipeline.")
    try:
        text = path.read_text("utf-8")
        return read_pipeline(json.loads(text)) if path.suffix == ".json" else parse_augmentations(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadFileError(f"{path}: {error}; expected ECVL's text, or .json of a pipeline.") from error


def check_applies(pipeline: Compose, *, axes: str, shape: Sequence[int], dtype: str) -> None:
    """Raise if a pipeline cannot be used on the windows of a training.

    Parameters
    ----------
    pipeline
        The pipeline.
    axes
        Axis letters of a window, as in `Scan`.
    shape
        Shape of a window.
    dtype
        Its type, such as ``"uint8"``.

    Raises
    ------
    BadValueError
        If its steps need RGB and this is none, or it changes the size.
    BadShapeError
        If windows of this size cannot go through.
    """
    if "y" not in axes or "x" not in axes:
        raise BadValueError(f"windows with axes {axes!r} have no plane to flip or turn; use augment=False.")
    plain = pipeline.without_output()
    if not _is_coloured(axes, shape, dtype):
        others = sorted({type(p.step).__name__ for p in plain._schedule.placed if not p.step.exact})
        if others:
            raise BadValueError(
                f"{', '.join(others)} need uint8 windows with axes 'yxc' and three channels; these are {dtype}, axes "
                f"{axes!r}, shape {tuple(shape)}. Use Flip, Mirror, Transpose and QuarterTurns alone."
            )
    size = (shape[axes.index("y")], shape[axes.index("x")])
    if (new := plain.size_of(size)) != size:
        raise BadValueError(
            f"the pipeline makes {new[0]} × {new[1]} of windows of {size[0]} × {size[1]}; the model takes the latter. "
            "Cut or resize the windows in the dataset instead."
        )


def augment_batch(
    images: NDArray[Any],
    targets: NDArray[Any],
    *,
    axes: str,
    seed: int,
    epoch: int,
    indices: Sequence[int] | NDArray[np.int64],
    pipeline: Compose | float = 1.0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return random variants of a batch; the same sample in the same epoch always comes out the same.

    RGB tiles of uint8 go through the fused kernel. Anything else that has a plane (``y`` and ``x``) is flipped and
    turned by quarters as it is, which leaves masks exact. Signals stay as they are.

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
    pipeline
        What is done; a number is the strength of `default_pipeline`.

    Returns
    -------
    tuple of ndarray
        Images and targets, new arrays.

    Raises
    ------
    BadShapeError
        If batch, axes and indices do not fit.
    BadValueError
        If the pipeline cannot be used on these windows.
    """
    if images.ndim != 1 + len(axes) or not len(images) == len(targets) == len(indices):
        raise BadShapeError(
            f"{images.shape} images with axes {axes!r}, {len(targets)} targets and {len(indices)} indices; "
            f"expected {1 + len(axes)} axes and equal numbers."
        )
    coloured = _is_coloured(axes, images.shape[1:], str(images.dtype))
    if not isinstance(pipeline, Compose):
        if "y" not in axes or "x" not in axes:
            return images.copy(), targets.copy()
        pipeline = default_pipeline(float(pipeline), coloured=coloured)
    space = axes.replace("c", "")
    masked = targets.ndim == 1 + len(space) and targets.shape[1:] == _space(images.shape[1:], axes)
    if not coloured or all(p.step.exact for p in pipeline._schedule.placed):
        check_applies(pipeline, axes=axes, shape=images.shape[1:], dtype=str(images.dtype))
        found = _turn_each(pipeline, images, targets if masked else None, axes, (seed, epoch), indices)
        return found[0], targets.copy() if found[1] is None else found[1]
    draws: dict[str, Any] = {"seed": seed, "epoch": epoch, "indices": indices, "channel_axis": -1}
    if not masked:
        return pipeline(_tensor(images), **draws).numpy(), targets.copy()
    pictures, masks = pipeline(_tensor(images), _tensor(targets), **draws)
    return pictures.numpy(), masks.numpy()


def _is_coloured(axes: str, shape: Sequence[int], dtype: str) -> bool:
    return axes == "yxc" and shape[-1] == 3 and dtype == "uint8"


def _space(shape: Sequence[int], axes: str) -> tuple[int, ...]:
    return tuple(n for n, axis in zip(shape, axes, strict=True) if axis != "c")


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    # PyTorch warns of arrays that must not be written to; a memory map of a file is one.
    return torch.from_numpy(array if array.flags.writeable and min(array.strides) >= 0 else array.copy())


def _turn_each(
    pipeline: Compose,
    images: NDArray[Any],
    masks: NDArray[Any] | None,
    axes: str,
    draw: tuple[int, int],
    indices: Sequence[int] | NDArray[np.int64],
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Flip and turn as the steps draw it, pixels of any type untouched."""
    plane = (axes.index("y"), axes.index("x"))
    space = axes.replace("c", "")
    below = (space.index("y"), space.index("x"))
    size = (images.shape[1 + plane[0]], images.shape[1 + plane[1]])
    keys = sample_keys(draw[0], epoch=draw[1], indices=np.asarray(indices, np.int64))
    numbers = Numbers(pipeline._schedule, keys)
    draft = Draft(len(images), size)
    before, _ = pipeline._schedule.sizes(pipeline, size)
    for placed in pipeline._schedule.placed:
        draft.size = before[placed.number]
        placed.step._write(draft, numbers.chosen(placed.gate), numbers.of(placed.number))
    matrix = draft.matrix()[:, :2, :2].astype(np.int64)
    new = images if masks is None else masks
    pictures, moved = np.empty_like(images), np.empty_like(new)
    for position, turn in enumerate(matrix):
        pictures[position] = turn_plane(images[position], plane, turn)
        if masks is not None:
            moved[position] = turn_plane(masks[position], below, turn)
    return pictures, None if masks is None else moved


def turn_plane(array: NDArray[Any], plane: tuple[int, int], turn: NDArray[np.int64]) -> NDArray[Any]:
    """Flip and transpose a plane.

    Parameters
    ----------
    array
        Any shape and type.
    plane
        Its axes of rows and of columns.
    turn
        ``(2, 2)``, output ``(y, x)`` to source: one entry of 1 or -1 in each row and column.
    """
    down, across = (bool(row.sum() < 0) for row in turn)
    swapped = turn[0, 0] == 0
    if plane == (0, 1) and array.ndim <= 3 and array.dtype in (np.uint8, np.uint16, np.float32):
        import cv2

        # NumPy copies turned pictures a channel value at a time, OpenCV in blocks: five times as fast.
        turned = cv2.flip(array, -1 if down and across else int(across)) if down or across else array
        turned = cv2.transpose(turned) if swapped else turned
        return turned.reshape(turned.shape[:2] + array.shape[2:])
    flipped = np.flip(array, tuple(axis for axis, there in zip(plane, (down, across), strict=True) if there))
    return np.swapaxes(flipped, *plane) if swapped else flipped
