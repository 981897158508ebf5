"""What every transform is: a frozen set of ranges that writes what it draws into the draft of a pass."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from dhlab.errors import BadValueError, UnknownNameError, suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft

__all__ = [
    "Range",
    "Size",
    "Stage",
    "Transform",
    "between",
    "check_fill",
    "check_number",
    "check_pair",
    "check_size",
    "check_span",
    "check_word",
    "from_dict",
    "levels_of",
    "to_dict",
]

Range = tuple[float, float]
Size = tuple[int, int]
KNOWN: dict[str, type[Transform]] = {}


class Stage(IntEnum):
    """The stages of a pass in the order in which `dhlab.kernels.augment` runs them."""

    GEOMETRY = 0
    TABLE = 1
    STAIN = 2
    COLOUR = 3
    GAMMA = 4
    GAUSSIAN = 5
    LAPLACE = 6
    POISSON = 7
    SALT = 8
    DROPOUT = 9
    CUTOUTS = 10
    BLUR = 11
    OUTPUT = 12


@dataclass(frozen=True, kw_only=True, repr=False)
class Transform:
    """A step of a pipeline: ranges that values are drawn from for each sample.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 1.0

    stage: ClassVar[Stage]
    # Moves whole pixels and loses none, so that it may change places with whatever looks at one pixel alone.
    exact: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        KNOWN[cls.__name__] = cls

    def __post_init__(self) -> None:
        check_number(self, "p", 0, 1)

    @property
    def draws(self) -> int:
        """Uniform numbers that a sample needs, besides the one for `p`."""
        return 0

    @property
    def needs_images(self) -> bool:
        """Whether the pictures are looked at."""
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in self._changed().items())})"

    def _changed(self) -> dict[str, Any]:
        """Return the parameters that differ from their defaults, by name."""
        found = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.default is MISSING or value != item.default:
                found[item.name] = value
        return found

    @property
    def _demands(self) -> dict[str, Any]:
        """What a pass must have for all its steps alike, such as its interpolation; None where it does not matter."""
        return {}

    def _resized(self, size: Size) -> Size:
        """Return height and width of the result for images of `size`."""
        return size

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        """Draw for each sample and write the result into the draft of a pass.

        Parameters
        ----------
        draft
            The pass.
        chosen
            ``(B,)`` samples that get this step; None is all.
        numbers
            ``(B, draws)`` between 0 and 1, not included.
        """
        raise NotImplementedError


def check_span(step: Any, name: str, least: float = -math.inf, most: float = math.inf) -> None:
    """Replace a range, or a number for one, of a frozen step by two floats, and raise if it is out of bounds.

    Parameters
    ----------
    step
        The dataclass.
    name
        Of its field.
    least, most
        Bounds.

    Raises
    ------
    BadValueError
        If it is no number, no pair, or out of range.
    """
    value = getattr(step, name)
    alone = not isinstance(value, tuple | list)
    try:
        pair = tuple(float(v) for v in ((value, value) if alone else value))
    except (TypeError, ValueError):
        pair = ()
    good = len(pair) == 2 and pair[0] <= pair[1] and all(least <= v <= most and math.isfinite(v) for v in pair)
    if not good:
        raise BadValueError(
            f"{name} of {type(step).__name__} is {value!r}; expected a number or a range (low, high)"
            f"{_bounds(least, most)}."
        )
    object.__setattr__(step, name, pair)


def check_number(
    step: Any, name: str, least: float = -math.inf, most: float = math.inf, *, whole: bool = False
) -> None:
    """Raise if a field of a step is no number, not whole where it must be, or out of bounds."""
    value = getattr(step, name)
    kind = int if whole else int | float
    if not (isinstance(value, kind) and math.isfinite(value) and least <= value <= most):
        raise BadValueError(
            f"{name} of {type(step).__name__} is {value!r}; expected a {'whole ' if whole else ''}number"
            f"{_bounds(least, most)}."
        )


def check_pair(step: Any, name: str, least: float = -math.inf) -> None:
    """Replace two numbers of a step, in any order, by floats, and raise if they are not two or below `least`."""
    value = getattr(step, name)
    good = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not good or not all(math.isfinite(v) and v >= least for v in value):
        raise BadValueError(
            f"{name} of {type(step).__name__} is {value!r}; expected two numbers{_bounds(least, math.inf)}."
        )
    object.__setattr__(step, name, tuple(float(v) for v in value))


def _bounds(least: float, most: float) -> str:
    low = "" if least == -math.inf else f" from {least:g}"
    high = "" if most == math.inf else f" up to {most:g}"
    return f"{low}{high}"


def check_size(step: Any, name: str) -> None:
    """Replace a side or ``(height, width)`` of a frozen step by two whole numbers, and raise if it is neither."""
    value = getattr(step, name)
    pair = (value, value) if isinstance(value, int) else value
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(n, int) and n >= 1 for n in pair)):
        raise BadValueError(
            f"{name} of {type(step).__name__} is {value!r}; expected (height, width) in pixels, or one number for both."
        )
    object.__setattr__(step, name, tuple(pair))


def check_word(step: Any, name: str, known: tuple[str, ...]) -> None:
    """Raise if a word of a step is not among `known`."""
    value = getattr(step, name)
    if value is not None and value not in known:
        raise UnknownNameError(
            f"{name} of {type(step).__name__} is {value!r}.{suggest(str(value), known)} Choose among "
            f"{', '.join(known)}."
        )


def check_fill(step: Any, name: str = "fill") -> None:
    """Replace a grey level or three by three floats, and raise if it is neither."""
    value = getattr(step, name)
    levels = tuple(value) if isinstance(value, tuple | list) else (value,) * 3
    if len(levels) != 3 or not all(isinstance(v, int | float) and 0 <= v <= 255 for v in levels):
        raise BadValueError(f"{name} of {type(step).__name__} is {value!r}; expected a grey level 0..255, or three.")
    object.__setattr__(step, name, tuple(float(v) for v in levels))


def levels_of(fill: float | tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a fill as the three floats that `check_fill` has made of it."""
    assert isinstance(fill, tuple)
    return fill


def between(numbers: NDArray[np.float64], span: Range) -> NDArray[np.float64]:
    """Return numbers of any shape, drawn evenly between 0 and 1, spread evenly over a range."""
    low, high = span
    return low + (high - low) * numbers


def to_dict(step: Transform) -> dict[str, Any]:
    """Return a step and all within as JSON-compatible values, which `from_dict` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, Transform):
            return to_dict(value)
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return {"transform": type(step).__name__} | {n: plain(v) for n, v in step._changed().items()}


def from_dict(values: Any) -> Transform:
    """Return the step that `to_dict` described.

    Parameters
    ----------
    values
        Its name under ``"transform"``, and its parameters.

    Raises
    ------
    UnknownNameError
        If there is no such transform or parameter.
    BadValueError
        If a value is out of range, or this is no description of a step.
    """

    def lively(value: Any) -> Any:
        if isinstance(value, dict):
            return from_dict(value)
        return tuple(lively(v) for v in value) if isinstance(value, list) else value

    if not isinstance(values, dict) or "transform" not in values:
        raise BadValueError(f"{values!r} describes no transform; expected its name under 'transform'.")
    name = values["transform"]
    if name not in KNOWN or name == "Geometric":
        raise UnknownNameError(f"there is no transform {name!r}.{suggest(str(name), KNOWN)}")
    kind = KNOWN[name]
    known = [item.name for item in fields(kind)]
    given = {n: lively(v) for n, v in values.items() if n != "transform"}
    for parameter in given:
        if parameter not in known:
            raise UnknownNameError(f"{name} has no parameter {parameter!r}.{suggest(parameter, known)}")
    return kind(**given)
