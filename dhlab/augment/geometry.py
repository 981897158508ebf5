"""Named transforms of geometry: flips and turns, affine and perspective maps, sizes and crops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dhlab.augment.steps import (
    Range,
    Size,
    Stage,
    Transform,
    between,
    check_fill,
    check_number,
    check_pair,
    check_size,
    check_span,
    check_word,
    levels_of,
)
from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels.plan import BORDERS, INTERPOLATIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft

__all__ = [
    "Affine",
    "CenterCrop",
    "Flip",
    "Geometric",
    "Mirror",
    "Perspective",
    "QuarterTurns",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "Rotate",
    "Scale",
    "Translate",
    "Transpose",
]


class Exact(Transform):
    """A transform that moves whole pixels and loses none: masks and colours stay exact."""

    stage: ClassVar[Stage] = Stage.GEOMETRY
    exact: ClassVar[bool] = True


@dataclass(frozen=True, repr=False)
class Flip(Exact):
    """Turn upside down.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.5

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.move(_matrix((-1, 0, draft.size[0] - 1), (0, 1, 0)), chosen)


@dataclass(frozen=True, repr=False)
class Mirror(Exact):
    """Swap left and right.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.5

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.move(_matrix((1, 0, 0), (0, -1, draft.size[1] - 1)), chosen)


@dataclass(frozen=True, repr=False)
class Transpose(Exact):
    """Swap rows and columns; pictures that are not square need ``p=1``, since a batch has one size.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.5

    def _resized(self, size: Size) -> Size:
        return size[::-1]

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.move(_matrix((0, 1, 0), (1, 0, 0)), chosen)


@dataclass(frozen=True, repr=False)
class QuarterTurns(Exact):
    """Turn by none to three quarters, all alike likely, as `numpy.rot90` does; by half turns where sides differ.

    Parameters
    ----------
    turns
        What is drawn from.
    p
        Probability that a sample gets this step.
    """

    turns: tuple[int, ...] = (0, 1, 2, 3)

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.turns
        turns = (given,) if isinstance(given, int) else tuple(given)
        if not turns or not all(isinstance(n, int) for n in turns):
            raise BadValueError(f"turns of QuarterTurns is {self.turns!r}; expected whole numbers of quarters.")
        object.__setattr__(self, "turns", turns)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        turns = np.array(self.turns)[(numbers[:, 0] * len(self.turns)).astype(np.int64)] % 4
        height, width = draft.size
        if height != width:
            turns -= turns % 2
        # Rows of np.rot90: the turned picture at (y, x) shows the source at (x, w - 1 - y) after one quarter.
        quarters = np.stack(
            [
                _matrix((1, 0, 0), (0, 1, 0)),
                _matrix((0, 1, 0), (-1, 0, width - 1)),
                _matrix((-1, 0, height - 1), (0, -1, width - 1)),
                _matrix((0, -1, height - 1), (1, 0, 0)),
            ]
        )
        draft.move(quarters[turns], chosen)


@dataclass(frozen=True, kw_only=True, repr=False)
class Geometric(Transform):
    """A transform of geometry that samples between pixels or beyond the edge.

    Parameters
    ----------
    interpolation
        ``"nearest"``, ``"bilinear"`` or ``"bicubic"`` for images; masks are always sampled nearest.
    border
        Beyond the edge: ``"constant"``, ``"replicate"``, ``"reflect"``, ``"reflect101"`` or ``"wrap"``; None leaves it
        to the other steps of the pass, or replicates.
    fill
        Grey level 0..255, or three, beyond a constant border.
    mask_fill
        Value of masks beyond a constant border.
    p
        Probability that a sample gets this step.

    Raises
    ------
    BadValueError
        If there is something to fill with, but the border is not constant.
    """

    interpolation: str | None = "bilinear"
    border: str | None = None
    fill: float | tuple[float, float, float] = (0.0, 0.0, 0.0)
    mask_fill: int = 0

    stage: ClassVar[Stage] = Stage.GEOMETRY

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word(self, "interpolation", INTERPOLATIONS)
        check_word(self, "border", BORDERS)
        check_fill(self)
        if self.border != "constant" and (self.mask_fill or any(levels_of(self.fill))):
            raise BadValueError(
                f"{self!r} fills nothing, since its border is {self.border}; expected border='constant'."
            )

    @property
    def _demands(self) -> dict[str, Any]:
        constant = {"fill": self.fill, "mask_fill": self.mask_fill} if self.border == "constant" else {}
        return {"interpolation": self.interpolation, "border": self.border} | constant


@dataclass(frozen=True, repr=False)
class Rotate(Geometric):
    """Rotate about a point; the frame stays.

    Parameters
    ----------
    degrees
        Range of angles, counter-clockwise as seen.
    center
        ``(y, x)`` in pixels; None is the middle.
    scale
        Range of factors of size.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    degrees: Range = (-180.0, 180.0)
    center: tuple[float, float] | None = None
    scale: Range = (1.0, 1.0)
    border: str | None = field(default="reflect101", kw_only=True)

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "degrees")
        check_span(self, "scale", 1e-3, 1e3)
        if self.center is not None:
            check_pair(self, "center")

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        angle = np.deg2rad(between(numbers[:, 0], self.degrees))
        factor = 1 / between(numbers[:, 1], self.scale)
        inverse = _rotation(angle) * factor[:, None, None]
        draft.move(_about(inverse, self.center or _middle(draft.size)), chosen)
        draft.reduction *= max(1.0, 1 / self.scale[0])


@dataclass(frozen=True, repr=False)
class Affine(Geometric):
    """Rotate, shear, scale and move about the middle, as torchvision's `RandomAffine` does; the frame stays.

    Parameters
    ----------
    degrees
        Range of angles, counter-clockwise as seen (torchvision's turn clockwise).
    translate
        Range of shifts as a share of height and of width.
    scale
        Range of factors of size.
    shear_y, shear_x
        Ranges of angles of shear in degrees, along columns and along rows.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    degrees: Range = (0.0, 0.0)
    translate: Range = (0.0, 0.0)
    scale: Range = (1.0, 1.0)
    shear_y: Range = (0.0, 0.0)
    shear_x: Range = (0.0, 0.0)
    border: str | None = field(default="reflect101", kw_only=True)

    draws: ClassVar[int] = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "degrees")
        check_span(self, "translate")
        check_span(self, "scale", 1e-3, 1e3)
        check_span(self, "shear_y", -89, 89)
        check_span(self, "shear_x", -89, 89)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        # Clockwise in rows that count downwards, as the source of the formula has it.
        angle = -np.deg2rad(between(numbers[:, 0], self.degrees))
        tan_y = np.tan(np.deg2rad(between(numbers[:, 1], self.shear_y)))
        tan_x = np.tan(np.deg2rad(between(numbers[:, 2], self.shear_x)))
        cos_y = 1 / np.sqrt(1 + tan_y * tan_y)
        slanted = angle - np.arctan(tan_y)
        cos, sin = np.cos(slanted) / cos_y, np.sin(slanted) / cos_y
        forward = np.array([[np.cos(angle) - sin * tan_x, sin], [-np.sin(angle) - cos * tan_x, cos]])  # of (y, x)
        forward *= between(numbers[:, 3], self.scale)
        (a, b), (c, d) = forward
        inverse = (np.array([[d, -b], [-c, a]]) / (a * d - b * c)).transpose(2, 0, 1)
        shift = between(numbers[:, 4:6], self.translate) * draft.size
        draft.move(_about(inverse, _middle(draft.size), shift), chosen)
        draft.reduction *= max(1.0, 1 / self.scale[0])


@dataclass(frozen=True, repr=False)
class Translate(Geometric):
    """Move.

    Parameters
    ----------
    share
        Range of shifts as a share of height and of width.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    share: Range = (-0.1, 0.1)
    border: str | None = field(default="reflect101", kw_only=True)

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "share")

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        shift = between(numbers, self.share) * draft.size
        draft.move(_about(np.eye(2), (0.0, 0.0), shift), chosen)


@dataclass(frozen=True, repr=False)
class Scale(Geometric):
    """Enlarge or shrink about the middle; the frame stays (`Resize` changes it).

    Parameters
    ----------
    factor
        Range of factors of size.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    factor: Range = (0.8, 1.25)
    border: str | None = field(default="reflect101", kw_only=True)

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "factor", 1e-3, 1e3)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        inverse = np.eye(2) / between(numbers[:, 0], self.factor)[:, None, None]
        draft.move(_about(inverse, _middle(draft.size)), chosen)
        draft.reduction *= max(1.0, 1 / self.factor[0])


@dataclass(frozen=True, repr=False)
class Perspective(Geometric):
    """Move each corner inwards at random, as torchvision's `RandomPerspective` does; the frame stays.

    Parameters
    ----------
    distortion
        The furthest that a corner moves, as a share of half the height and half the width.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; the border is reflected.
    """

    distortion: float = 0.5
    border: str | None = field(default="reflect101", kw_only=True)
    p: float = field(default=0.5, kw_only=True)

    draws: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "distortion", 0, 0.99)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        spans = np.maximum(np.array(draft.size, np.float64) - 1, 1)
        signs = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
        corners = signs * spans
        moved = corners + numbers.reshape(-1, 4, 2) * (1 - 2 * signs) * (0.5 * self.distortion * spans)
        draft.move(_homography(moved, corners), chosen)


@dataclass(frozen=True, repr=False)
class Resize(Geometric):
    """Change height and width.

    Parameters
    ----------
    size
        ``(height, width)`` in pixels, or one number for both.
    scale
        ``(down, across)``: factors instead of a size.
    antialias
        Average over the pixels that become one, up to 8 by 8; without, some are left out.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; whether `border` is constant or not only shows within half a pixel of the edge.
    """

    size: Size | None = None
    scale: tuple[float, float] | None = None
    antialias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.size is None) == (self.scale is None):
            raise BadValueError("Resize has a size in pixels or a scale, one of them.")
        if self.size is not None:
            check_size(self, "size")
            return
        check_pair(self, "scale", 1e-6)

    def _resized(self, size: Size) -> Size:
        if self.size is not None:
            return self.size
        assert self.scale is not None
        height, width = (max(1, math.floor(n * s + 0.5)) for n, s in zip(size, self.scale, strict=True))
        return height, width

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        new = self._resized(draft.size)
        down, across = (n / m for n, m in zip(draft.size, new, strict=True))
        draft.move(_matrix((down, 0, (down - 1) / 2), (0, across, (across - 1) / 2)), chosen)
        draft.reduction *= max(1.0, down, across) if self.antialias else 1.0
        draft.size = new


@dataclass(frozen=True, repr=False)
class CenterCrop(Geometric):
    """Cut out the middle.

    Parameters
    ----------
    size
        ``(height, width)`` in pixels, or one number for both; None is a square with the shorter side.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; a picture that is too small is an error unless a `border` is named.
    """

    size: Size | None = None
    interpolation: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            check_size(self, "size")

    def _resized(self, size: Size) -> Size:
        return _cropped(self, size, self.size or (min(size), min(size)))

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        new = self._resized(draft.size)
        y, x = ((n - m) // 2 for n, m in zip(draft.size, new, strict=True))
        draft.move(_matrix((1, 0, y), (0, 1, x)), chosen)
        draft.size = new


@dataclass(frozen=True, repr=False)
class RandomCrop(Geometric):
    """Cut out a part at a random place.

    Parameters
    ----------
    size
        ``(height, width)`` in pixels, or one number for both.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`; a picture that is too small is an error unless a `border` is named.
    """

    size: Size = (224, 224)
    interpolation: str | None = field(default=None, kw_only=True)

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self, "size")

    def _resized(self, size: Size) -> Size:
        return _cropped(self, size, self.size)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        new = self._resized(draft.size)
        room = np.subtract(draft.size, new)
        starts = np.minimum(room, 0) // 2 + np.floor(numbers * (np.maximum(room, 0) + 1))
        draft.move(_about(np.eye(2), (0.0, 0.0), -starts), chosen)
        draft.size = new


@dataclass(frozen=True, repr=False)
class RandomResizedCrop(Geometric):
    """Cut out a part of random area, shape and place, and resize it.

    Parameters
    ----------
    size
        ``(height, width)`` in pixels, or one number for both.
    scale
        Range of areas as a share of the picture's.
    ratio
        Range of width over height, drawn evenly in its logarithm; what does not fit is cut down.
    antialias
        Average over the pixels that become one, up to 8 by 8.
    interpolation, border, fill, mask_fill, p
        As in `Geometric`.
    """

    size: Size = (224, 224)
    scale: Range = (0.08, 1.0)
    ratio: Range = (0.75, 4 / 3)
    antialias: bool = True

    draws: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self, "size")
        check_span(self, "scale", 1e-6, 1)
        check_span(self, "ratio", 1e-3, 1e3)

    def _resized(self, size: Size) -> Size:
        return self.size

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        height, width = draft.size
        area = between(numbers[:, 0], self.scale) * height * width
        low, high = np.log(self.ratio)
        ratio = np.exp(between(numbers[:, 1], (low, high)))
        cut = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 1).round().clip(1, (height, width))  # (B, 2)
        starts = np.floor(numbers[:, 2:4] * (np.array((height, width)) - cut + 1))
        factor = cut / self.size
        matrix = np.zeros((len(numbers), 3, 3))
        matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = factor[:, 0], factor[:, 1], 1
        matrix[:, :2, 2] = starts + (factor - 1) / 2
        draft.move(matrix, chosen)
        if self.antialias:
            share = math.sqrt(self.scale[1])
            draft.reduction *= max(1.0, share * height / self.size[0], share * width / self.size[1])
        draft.size = self.size


def _cropped(step: CenterCrop | RandomCrop, size: Size, wanted: Size) -> Size:
    if step.border is None and (wanted[0] > size[0] or wanted[1] > size[1]):
        raise BadShapeError(
            f"{step!r} of pictures of {size[0]} x {size[1]}: they are too small. Name a border to go beyond the edge."
        )
    return wanted


def _matrix(down: tuple[float, float, float], across: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.array([down, across, (0, 0, 1)], np.float64)


def _middle(size: Size) -> tuple[float, float]:
    return (size[0] - 1) / 2, (size[1] - 1) / 2


def _rotation(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return output to source in (y, x) for pictures turned counter-clockwise, ``(B, 2, 2)``."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.empty((len(angle), 2, 2))
    turned[:, 0, 0] = turned[:, 1, 1] = cos
    turned[:, 0, 1], turned[:, 1, 0] = sin, -sin
    return turned


def _about(
    inverse: NDArray[np.floating[Any]], center: tuple[float, float], shift: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """Return ``(B, 3, 3)`` for ``source = inverse (output - center - shift) + center``."""
    batch = max(len(np.atleast_2d(shift)), len(inverse) if inverse.ndim == 3 else 1)
    matrix = np.zeros((batch, 3, 3))
    matrix[:, :2, :2], matrix[:, 2, 2] = inverse, 1
    offset = np.asarray(center) + shift
    matrix[:, :2, 2] = np.asarray(center) - (matrix[:, :2, :2] * offset[..., None, :]).sum(-1)
    return matrix


def _homography(outputs: NDArray[np.float64], sources: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(B, 3, 3)`` that maps four points ``(B, 4, 2)`` to four others ``(4, 2)``."""
    batch = len(outputs)
    equations = np.zeros((batch, 8, 8))
    ones = np.concatenate([outputs, np.ones((batch, 4, 1))], -1)
    equations[:, 0::2, 0:3] = equations[:, 1::2, 3:6] = ones
    equations[:, 0::2, 6:8] = -outputs * sources[:, :1]
    equations[:, 1::2, 6:8] = -outputs * sources[:, 1:]
    wanted = np.broadcast_to(sources.reshape(8, 1), (batch, 8, 1))
    solved = np.linalg.solve(equations, wanted)[..., 0]
    return np.concatenate([solved, np.ones((batch, 1))], 1).reshape(batch, 3, 3)
