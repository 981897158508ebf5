"""Transforms made of others: all in a row, or one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from dhlab.augment.steps import Stage, Transform
from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from dhlab.augment.steps import Size

__all__ = ["Container", "OneOf", "Sequence", "size_after"]


@dataclass(frozen=True, repr=False)
class Container(Transform):
    """A transform that holds others.

    Parameters
    ----------
    steps
        The others.
    p
        Probability that a sample gets any of them.
    """

    steps: tuple[Transform, ...] = field(default=())

    stage: ClassVar[Stage] = Stage.GEOMETRY

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.steps
        steps = tuple(given) if isinstance(given, tuple | list) else (given,)
        for step in steps:
            if not isinstance(step, Transform):
                raise BadValueError(f"{type(self).__name__} holds {step!r}; expected transforms of dhlab.augment.")
        object.__setattr__(self, "steps", steps)

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.steps))
        rest = "".join(f", {n}={v!r}" for n, v in self._changed().items() if n != "steps")
        return f"{type(self).__name__}([{inner}]{rest})"

    def __len__(self) -> int:
        return len(self.steps)


class Sequence(Container):
    """All steps, one after the other."""

    def _resized(self, size: Size) -> Size:
        for step in self.steps:
            size = size_after(step, size)
        return size


@dataclass(frozen=True, repr=False)
class OneOf(Container):
    """One of several steps.

    Parameters
    ----------
    steps
        To choose from; all must lead to the same size.
    weights
        How likely each is; empty is all alike.
    p
        Probability that a sample gets any of them.
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps:
            raise BadValueError("OneOf holds no steps; expected at least one.")
        weights: tuple[Any, ...] = tuple(self.weights)
        good = all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights)
        if weights and (len(weights) != len(self.steps) or not good or not any(weights)):
            raise BadValueError(f"weights of OneOf is {self.weights!r}; expected {len(self.steps)} numbers from 0.")
        object.__setattr__(self, "weights", weights)

    @property
    def shares(self) -> list[tuple[float, float]]:
        """Ranges of a number between 0 and 1 in which each step is chosen."""
        weights = self.weights or (1.0,) * len(self.steps)
        total, edges = sum(weights), [0.0]
        for weight in weights:
            edges.append(edges[-1] + self.p * weight / total)
        return list(pairwise(edges))

    def _resized(self, size: Size) -> Size:
        sizes = {size_after(step, size) for step in self.steps}
        if len(sizes) > 1:
            raise BadShapeError(
                f"steps of {self!r} lead to {', '.join(f'{h} × {w}' for h, w in sorted(sizes))}; a batch has one size."
            )
        return sizes.pop()


def size_after(step: Transform, size: Size) -> Size:
    """Return height and width of what a step makes of pictures of `size`.

    Parameters
    ----------
    step
        The step.
    size
        Height and width before it.

    Raises
    ------
    BadShapeError
        If it depends on chance, or the pictures are too small.
    """
    new = step._resized(size)
    if step.p < 1 and new != size:
        raise BadShapeError(
            f"{step!r} makes {new[0]} × {new[1]} of {size[0]} × {size[1]} for some samples only (p={step.p:g}); a "
            "batch has one size: use p=1."
        )
    return new
