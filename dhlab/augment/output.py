"""Named transforms of what comes out: float numbers instead of grey levels, scaled and normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dhlab.augment.steps import Stage, Transform
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DivBy255", "Normalize", "Output", "ToFloat32", "Units"]

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Units:
    """What a value of the result is of a grey level: ``level * scale + shift`` for each channel.

    Parameters
    ----------
    scale, shift
        Three each.
    """

    scale: Three = (1.0, 1.0, 1.0)
    shift: Three = (0.0, 0.0, 0.0)

    def then(self, scale: Sequence[float], shift: Sequence[float]) -> Units:
        """Return the units after another ``value * scale + shift``."""
        a, b, c = (mine * theirs for mine, theirs in zip(self.scale, scale, strict=True))
        d, e, f = (mine * theirs + more for mine, theirs, more in zip(self.shift, scale, shift, strict=True))
        return Units((a, b, c), (d, e, f))

    def level(self, value: float) -> Three:
        """Return the grey levels, 0..255, that come out as `value`."""
        a, b, c = (
            min(255.0, max(0.0, (value - shift) / scale)) for scale, shift in zip(self.scale, self.shift, strict=True)
        )
        return a, b, c

    @property
    def mean_std(self) -> tuple[Three, Three]:
        """What `dhlab.kernels.augment` takes as mean and standard deviation of light."""
        a, b, c = (1 / (255 * scale) for scale in self.scale)
        d, e, f = (-shift / (255 * scale) for scale, shift in zip(self.scale, self.shift, strict=True))
        return (d, e, f), (a, b, c)


class Output(Transform):
    """A transform of the numbers that come out; geometry may follow, colour not."""

    stage: ClassVar[Stage] = Stage.OUTPUT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p != 1:
            raise BadValueError(f"p of {type(self).__name__} is {self.p!r}; expected 1: a batch has one type.")

    def _units(self, before: Units | None) -> Units:
        """Return the units after this step; None before it means grey levels."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class ToFloat32(Output):
    """Divide grey levels by a number; the result is float32.

    Parameters
    ----------
    divisor
        What a level is divided by.
    mask_divisor
        Kept for ECVL's text; masks stay the class indices that they are.
    p
        Always 1.
    """

    divisor: float = 1.0
    mask_divisor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("divisor", "mask_divisor"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise BadValueError(f"{name} of ToFloat32 is {value!r}; expected a number above 0.")

    def _units(self, before: Units | None) -> Units:
        return (before or Units()).then((1 / self.divisor,) * 3, (0.0,) * 3)


@dataclass(frozen=True, repr=False)
class DivBy255(Output):
    """Divide grey levels by 255; the result is float32. Masks stay the class indices that they are.

    Parameters
    ----------
    p
        Always 1.
    """

    def _units(self, before: Units | None) -> Units:
        return (before or Units()).then((1 / 255,) * 3, (0.0,) * 3)


@dataclass(frozen=True, repr=False)
class Normalize(Output):
    """Subtract a mean and divide by a standard deviation; the result is float32.

    Parameters
    ----------
    mean, std
        One number or three, in light 0..1, or in the units that `ToFloat32` or `DivBy255` made before.
    p
        Always 1.
    """

    mean: float | Three
    std: float | Three

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            value = getattr(self, name)
            three = tuple(value) if isinstance(value, tuple | list) else (value,) * 3
            good = len(three) == 3 and all(isinstance(v, int | float) and math.isfinite(v) for v in three)
            if not good or (name == "std" and min(three) <= 0):
                raise BadValueError(f"{name} of Normalize is {value!r}; expected a number or three, std above 0.")
            object.__setattr__(self, name, tuple(float(v) for v in three))

    def _units(self, before: Units | None) -> Units:
        mean: Any = self.mean
        std: Any = self.std
        before = Units().then((1 / 255,) * 3, (0.0,) * 3) if before is None else before
        return before.then([1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)])
