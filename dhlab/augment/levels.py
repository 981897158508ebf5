"""Named transforms of grey levels: a table of 256 levels per sample and channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dhlab.augment.steps import Stage, Transform, check_number, check_pair, check_span
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft

__all__ = ["AutoContrast", "Equalize", "Posterize", "ScaleFromTo", "ScaleTo", "Solarize"]

LEVELS = np.arange(256.0)


class Levels(Transform):
    """A transform that replaces grey levels by others."""

    stage: ClassVar[Stage] = Stage.TABLE


@dataclass(frozen=True, repr=False)
class Solarize(Levels):
    """Invert the levels from a threshold on.

    Parameters
    ----------
    threshold
        Range of grey levels.
    p
        Probability that a sample gets this step.
    """

    threshold: tuple[float, float] = (128.0, 128.0)
    p: float = field(default=0.5, kw_only=True)

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "threshold", 0, 256)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        low, high = self.threshold
        threshold = low + (high - low) * numbers[:, :1]
        draft.look_up(np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS)[:, None], chosen)


@dataclass(frozen=True, repr=False)
class Posterize(Levels):
    """Keep the upper bits of each level.

    Parameters
    ----------
    bits
        Bits that are kept, 1 to 8.
    p
        Probability that a sample gets this step.
    """

    bits: int = 4
    p: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "bits", 1, 8, whole=True)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        step = 2.0 ** (8 - self.bits)
        draft.look_up(np.floor(LEVELS / step) * step, chosen)


@dataclass(frozen=True, repr=False)
class ScaleFromTo(Levels):
    """Map one range of levels to another, straight; what lies beyond 0..255 then is clipped.

    Parameters
    ----------
    old
        Two levels.
    new
        What they become.
    p
        Probability that a sample gets this step.
    """

    old: tuple[float, float] = (0.0, 255.0)
    new: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self, "old")
        check_pair(self, "new")
        if self.old[0] == self.old[1]:
            raise BadValueError(f"old of ScaleFromTo is {self.old!r}; expected two different levels.")

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        share = (LEVELS - self.old[0]) / (self.old[1] - self.old[0])
        draft.look_up(np.rint(self.new[0] + share * (self.new[1] - self.new[0])), chosen)


class Looking(Levels):
    """A transform that first looks at each picture."""

    needs_images: ClassVar[bool] = True


@dataclass(frozen=True, repr=False)
class ScaleTo(Looking):
    """Map the range from the darkest to the brightest level of a picture to another, straight.

    Parameters
    ----------
    new
        Levels that the darkest and the brightest become.
    p
        Probability that a sample gets this step.
    """

    new: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self, "new")

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        assert draft.images is not None
        flat = draft.images.reshape(draft.batch, -1)
        low, high = (found.astype(np.float64)[:, None] for found in (flat.min(1), flat.max(1)))
        share = np.clip((LEVELS - low) / np.maximum(high - low, 1), 0, 1)
        draft.look_up(np.rint(self.new[0] + share * (self.new[1] - self.new[0]))[:, None], chosen)


@dataclass(frozen=True, repr=False)
class AutoContrast(Looking):
    """Stretch each channel of a picture to 0..255; one of a single level stays.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.5

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        assert draft.images is not None
        flat = draft.images.reshape(draft.batch, -1, 3)
        low, high = (found.astype(np.float64)[..., None] for found in (flat.min(1), flat.max(1)))  # (B, 3, 1)
        stretched = np.floor(np.clip((LEVELS - low) * (255 / np.maximum(high - low, 1)), 0, 255) + 1e-3)
        draft.look_up(np.where(high > low, stretched, LEVELS), chosen)


@dataclass(frozen=True, repr=False)
class Equalize(Looking):
    """Spread the levels of each channel of a picture so that all occur about alike, as PIL and torchvision do.

    Parameters
    ----------
    p
        Probability that a sample gets this step.
    """

    p: float = 0.5

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        assert draft.images is not None
        flat = draft.images.reshape(draft.batch, -1, 3).transpose(0, 2, 1).reshape(draft.batch * 3, -1)
        offsets = 256 * np.arange(len(flat), dtype=np.int64)[:, None]
        counts = np.bincount((flat + offsets).ravel(), minlength=256 * len(flat)).reshape(-1, 256)
        brightest = np.take_along_axis(counts, flat.max(1, keepdims=True).astype(np.int64), 1)
        step = (counts.sum(1, keepdims=True) - brightest) // 255
        before = np.cumsum(counts, 1) - counts
        equal = np.clip((before + step // 2) // np.maximum(step, 1), 0, 255)
        table = np.where(step > 0, equal, LEVELS).reshape(draft.batch, 3, 256)
        draft.look_up(table, chosen)
