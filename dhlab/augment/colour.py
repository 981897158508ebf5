"""Named transforms of colour: a matrix and an offset on light per sample, or its power."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dhlab.augment.steps import Range, Stage, Transform, between, check_number, check_span
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft

__all__ = [
    "Brightness",
    "ChannelShuffle",
    "ColourJitter",
    "Contrast",
    "Gamma",
    "Greyscale",
    "Hue",
    "Invert",
    "Saturation",
]

# Weights of red, green and blue in a grey level (ITU-R BT.601).
GREY = np.array([0.299, 0.587, 0.114])
# Red, green and blue to luma and two axes of chroma (YIQ, NTSC 1953).
YIQ = np.array([GREY, [0.59590059, -0.27455667, -0.32134392], [0.21153661, -0.52273617, 0.31119955]])
RGB = np.linalg.inv(YIQ)
ORDERS = np.array([np.eye(3)[list(order)] for order in permutations(range(3))])


class Colour(Transform):
    """A transform that is a matrix and an offset on light; several in a row become one, not clipped in between."""

    stage: ClassVar[Stage] = Stage.COLOUR


@dataclass(frozen=True, repr=False)
class Brightness(Colour):
    """Multiply light, and add to it.

    Parameters
    ----------
    factor
        Range of factors.
    shift
        Range of what is added, in light 0..1.
    p
        Probability that a sample gets this step.
    """

    factor: Range = (0.8, 1.2)
    shift: Range = (0.0, 0.0)

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "factor", 0, 100)
        check_span(self, "shift", -1, 1)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_even(between(numbers[:, 0], self.factor), between(numbers[:, 1], self.shift)), chosen)


@dataclass(frozen=True, repr=False)
class Contrast(Colour):
    """Spread light about a grey level.

    Parameters
    ----------
    factor
        Range of factors.
    about
        Light that stays, 0..1; or ``"mean"``, the mean grey of each picture (as torchvision has it), which costs a
        look at the pictures, and is only known before they are bent or cut in the same pass.
    p
        Probability that a sample gets this step.
    """

    factor: Range = (0.8, 1.2)
    about: float | str = 0.5

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "factor", 0, 100)
        _check_about(self, self.about)

    @property
    def needs_images(self) -> bool:
        """Whether the mean of the pictures is looked at."""
        return self.about == "mean"

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        _spread(draft, between(numbers[:, 0], self.factor), self.about, chosen)


@dataclass(frozen=True, repr=False)
class Saturation(Colour):
    """Spread colours about their grey level: 0 leaves greys.

    Parameters
    ----------
    factor
        Range of factors.
    p
        Probability that a sample gets this step.
    """

    factor: Range = (0.8, 1.2)

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "factor", 0, 100)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_saturated(between(numbers[:, 0], self.factor)), chosen)


@dataclass(frozen=True, repr=False)
class Hue(Colour):
    """Turn colours about the grey axis, in YIQ: linear, so it keeps grey levels (torchvision turns in HSV).

    Parameters
    ----------
    turns
        Range of angles, 1 is once round.
    p
        Probability that a sample gets this step.
    """

    turns: Range = (-0.05, 0.05)

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "turns", -1, 1)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_turned(between(numbers[:, 0], self.turns)), chosen)


@dataclass(frozen=True, repr=False)
class ColourJitter(Colour):
    """Change brightness, contrast, saturation and hue, in this order.

    Parameters
    ----------
    brightness, contrast, saturation
        Ranges of factors.
    hue
        Range of angles, 1 is once round.
    about
        Light about which contrast spreads, as in `Contrast`.
    p
        Probability that a sample gets this step.
    """

    brightness: Range = (0.8, 1.2)
    contrast: Range = (0.8, 1.2)
    saturation: Range = (0.8, 1.2)
    hue: Range = (-0.05, 0.05)
    about: float | str = 0.5

    draws: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brightness", "contrast", "saturation"):
            check_span(self, name, 0, 100)
        check_span(self, "hue", -1, 1)
        _check_about(self, self.about)

    @property
    def needs_images(self) -> bool:
        """Whether the mean of the pictures is looked at."""
        return self.about == "mean"

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_even(between(numbers[:, 0], self.brightness), np.zeros(len(numbers))), chosen)
        _spread(draft, between(numbers[:, 1], self.contrast), self.about, chosen)
        saturated = _saturated(between(numbers[:, 2], self.saturation))
        turned = _turned(between(numbers[:, 3], self.hue))
        draft.recolour(turned[..., :3] @ saturated, chosen)


@dataclass(frozen=True, repr=False)
class Greyscale(Colour):
    """Replace colours by their grey level (ITU-R BT.601).

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.1

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_saturated(np.zeros(len(numbers))), chosen)


@dataclass(frozen=True, repr=False)
class Invert(Colour):
    """Swap light and dark.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.5

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_even(-np.ones(len(numbers)), np.ones(len(numbers))), chosen)


@dataclass(frozen=True, repr=False)
class ChannelShuffle(Colour):
    """Put red, green and blue in one of their six orders, all alike likely.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = field(default=0.5, kw_only=True)

    draws: ClassVar[int] = 1

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.recolour(_without_offset(ORDERS[(numbers[:, 0] * 6).astype(np.int64)]), chosen)


@dataclass(frozen=True, repr=False)
class Gamma(Transform):
    """Raise light 0..1 to a power.

    Parameters
    ----------
    gamma
        Range of powers; below 1 brightens.
    p
        Probability that a sample gets this step.
    """

    gamma: Range = (0.8, 1.25)

    stage: ClassVar[Stage] = Stage.GAMMA
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "gamma", 1e-3, 1e3)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        power = draft.pick(chosen, between(numbers[:, 0], self.gamma), 1.0)
        draft.set("gamma", power * draft.parts.get("gamma", 1.0), None)


def _check_about(step: Transform, about: float | str) -> None:
    if isinstance(about, str) and about != "mean":
        raise BadValueError(f"about of {type(step).__name__} is {about!r}; expected light 0..1, or 'mean'.")
    if not isinstance(about, str):
        check_number(step, "about", 0, 1)


def _even(factor: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.zeros((len(factor), 3, 4))
    matrix[:, (0, 1, 2), (0, 1, 2)], matrix[:, :, 3] = factor[:, None], shift[:, None]
    return matrix


def _without_offset(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([matrix, np.zeros((len(matrix), 3, 1))], -1)


def _saturated(factor: NDArray[np.float64]) -> NDArray[np.float64]:
    factor = factor[:, None, None]
    return _without_offset(factor * np.eye(3) + (1 - factor) * GREY)


def _turned(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    angle = 2 * np.pi * turns
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return _without_offset(RGB @ turn @ YIQ)


def _spread(draft: Draft, factor: NDArray[np.float64], about: float | str, chosen: NDArray[np.bool_] | None) -> None:
    if about == "mean":
        assert draft.images is not None
        means = draft.images.reshape(draft.batch, -1, 3).mean(1) / 255  # (B, 3)
        before = draft.parts.get("colour")
        if before is not None:
            means = (before[..., :3] @ means[..., None])[..., 0] + before[..., 3]
        middle = means @ GREY
    else:
        middle = np.full(len(factor), float(about))
    draft.recolour(_even(factor, (1 - factor) * middle), chosen)
