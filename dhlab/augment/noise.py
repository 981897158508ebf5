"""Named transforms of noise and of loss: grain, salt and pepper, dropped cells and boxes; blur and sharpening."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dhlab.augment.steps import Range, Stage, Transform, between, check_fill, check_number, check_size, check_span

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft

__all__ = [
    "CoarseDropout",
    "Cutout",
    "GaussianBlur",
    "GaussianNoise",
    "LaplaceNoise",
    "Pepper",
    "PoissonNoise",
    "RandomErasing",
    "Salt",
    "SaltAndPepper",
    "Sharpen",
]


@dataclass(frozen=True, kw_only=True, repr=False)
class Grain(Transform):
    """Noise of each pixel by itself.

    Parameters
    ----------
    per_channel
        Whether red, green and blue have noise of their own.
    p
        Probability that a sample gets this step.
    """

    per_channel: bool = False

    draws: ClassVar[int] = 1

    @property
    def _demands(self) -> dict[str, Any]:
        return {"noise_per_channel": self.per_channel}


@dataclass(frozen=True, repr=False)
class GaussianNoise(Grain):
    """Add normal noise.

    Parameters
    ----------
    std
        Range of standard deviations, in light 0..1.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    std: Range = (0.0, 0.05)

    stage: ClassVar[Stage] = Stage.GAUSSIAN

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "std", 0, 10)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.set("gaussian", between(numbers[:, 0], self.std), chosen)


@dataclass(frozen=True, repr=False)
class LaplaceNoise(Grain):
    """Add noise that decays exponentially on both sides.

    Parameters
    ----------
    std
        Range of standard deviations, in light 0..1.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    std: Range = (0.0, 0.05)

    stage: ClassVar[Stage] = Stage.LAPLACE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "std", 0, 10)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.set("laplace", between(numbers[:, 0], self.std), chosen)


@dataclass(frozen=True, repr=False)
class PoissonNoise(Grain):
    """Add or subtract, with equal chance, counts of a Poisson distribution.

    Parameters
    ----------
    mean
        Range of mean counts, 0 to 64 grey levels.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    mean: Range = (0.0, 10.0)

    stage: ClassVar[Stage] = Stage.POISSON

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "mean", 0, 64)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.set("poisson", between(numbers[:, 0], self.mean), chosen)


@dataclass(frozen=True, repr=False)
class Specks(Grain):
    """White or black pixels.

    Parameters
    ----------
    share
        Range of probabilities of a pixel.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    share: Range = (0.0, 0.02)

    stage: ClassVar[Stage] = Stage.SALT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "share", 0, 1)

    def _speckle(
        self, draft: Draft, salt: NDArray[np.float64] | float, pepper: NDArray[np.float64] | float, chosen: Any
    ) -> None:
        """Put specks over those before: a pixel that both would take shows the later."""
        salt, pepper = draft.pick(chosen, salt, 0.0), draft.pick(chosen, pepper, 0.0)
        spared = 1 - salt - pepper
        none = np.zeros(draft.batch)
        draft.set("salt", none + salt + spared * draft.parts.get("salt", 0.0), None)
        draft.set("pepper", none + pepper + spared * draft.parts.get("pepper", 0.0), None)


@dataclass(frozen=True, repr=False)
class Salt(Specks):
    """Make pixels white.

    Parameters
    ----------
    share
        Range of probabilities of a pixel.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        self._speckle(draft, between(numbers[:, 0], self.share), 0.0, chosen)


@dataclass(frozen=True, repr=False)
class Pepper(Specks):
    """Make pixels black.

    Parameters
    ----------
    share
        Range of probabilities of a pixel.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        self._speckle(draft, 0.0, between(numbers[:, 0], self.share), chosen)


@dataclass(frozen=True, repr=False)
class SaltAndPepper(Specks):
    """Make pixels white or black, both alike likely.

    Parameters
    ----------
    share
        Range of probabilities of a pixel to be either.
    per_channel, p
        As in the other kinds of noise: for each channel its own; probability that a sample gets this step.
    """

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        half = between(numbers[:, 0], self.share) / 2
        self._speckle(draft, half, half, chosen)


@dataclass(frozen=True, repr=False)
class CoarseDropout(Transform):
    """Fill the cells of a grid at random.

    Parameters
    ----------
    share
        Range of probabilities of a cell.
    size
        Range of the side of a cell as a share of height and width.
    per_channel
        Whether red, green and blue are dropped apart.
    fill
        Grey level 0..255, or three.
    p
        Probability that a sample gets this step.
    """

    share: Range = (0.02, 0.1)
    size: Range = (0.02, 0.1)
    per_channel: bool = False
    fill: float | tuple[float, float, float] = (0.0, 0.0, 0.0)

    stage: ClassVar[Stage] = Stage.DROPOUT
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "share", 0, 1)
        check_span(self, "size", 0, 1)
        check_fill(self)

    @property
    def _demands(self) -> dict[str, Any]:
        return {"dropout_per_channel": self.per_channel, "fill": self.fill}

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        cells = np.maximum(np.floor(between(numbers[:, 1:], self.size) * draft.size), 1)
        draft.set("dropout", np.concatenate([between(numbers[:, :1], self.share), cells], 1), chosen)


class Boxes(Transform):
    """A transform that fills boxes."""

    stage: ClassVar[Stage] = Stage.CUTOUTS

    def _cut(self, draft: Draft, boxes: NDArray[np.float64], chosen: NDArray[np.bool_] | None) -> None:
        """Add boxes ``(B, R, 4)`` to those before."""
        boxes = draft.pick(chosen, boxes, 0.0)
        before = draft.parts.get("cutouts")
        draft.parts["cutouts"] = boxes if before is None else np.concatenate([before, boxes], 1)


@dataclass(frozen=True, repr=False)
class Cutout(Boxes):
    """Fill boxes of a given size at random places, cut off at the edge (DeVries and Taylor, 2017).

    Parameters
    ----------
    size
        ``(height, width)`` in pixels, or one number for both.
    count
        Number of boxes.
    fill
        Grey level 0..255, or three.
    p
        Probability that a sample gets this step.
    """

    size: tuple[int, int] = (16, 16)
    count: int = 1
    fill: float | tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self, "size")
        check_number(self, "count", 1, 64, whole=True)
        check_fill(self)

    @property
    def draws(self) -> int:
        """Uniform numbers that a sample needs."""
        return 2 * self.count

    @property
    def _demands(self) -> dict[str, Any]:
        return {"fill": self.fill}

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        centers = np.floor(numbers.reshape(-1, self.count, 2) * draft.size)
        starts = centers - np.array(self.size) // 2
        boxes = np.concatenate([starts, starts + self.size], -1)
        self._cut(draft, boxes.clip(0, (*draft.size, *draft.size)), chosen)


@dataclass(frozen=True, repr=False)
class RandomErasing(Boxes):
    """Fill boxes of random area, shape and place (Zhong et al., 2020).

    Parameters
    ----------
    scale
        Range of areas as a share of the picture's.
    ratio
        Range of height over width, drawn evenly in its logarithm; what does not fit is cut down.
    count
        Number of boxes.
    fill
        Grey level 0..255, or three.
    p
        Probability that a sample gets this step.
    """

    scale: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    count: int = 1
    fill: float | tuple[float, float, float] = (0.0, 0.0, 0.0)
    p: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "scale", 0, 1)
        check_span(self, "ratio", 1e-3, 1e3)
        check_number(self, "count", 1, 64, whole=True)
        check_fill(self)

    @property
    def draws(self) -> int:
        """Uniform numbers that a sample needs."""
        return 4 * self.count

    @property
    def _demands(self) -> dict[str, Any]:
        return {"fill": self.fill}

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        numbers = numbers.reshape(-1, self.count, 4)
        height, width = draft.size
        area = between(numbers[..., 0], self.scale) * height * width
        ratio = np.exp(between(numbers[..., 1], (math.log(self.ratio[0]), math.log(self.ratio[1]))))
        sides = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], -1).round().clip(0, (height, width))
        starts = np.floor(numbers[..., 2:] * (np.array(draft.size) - sides + 1))
        self._cut(draft, np.concatenate([starts, starts + sides], -1), chosen)


class Neighbourhood(Transform):
    """A transform that looks at the pixels around each."""

    stage: ClassVar[Stage] = Stage.BLUR
    draws: ClassVar[int] = 1


@dataclass(frozen=True, repr=False)
class GaussianBlur(Neighbourhood):
    """Blur with a Gaussian, cut off at three standard deviations, pictures reflected at their edges.

    Parameters
    ----------
    sigma
        Range of standard deviations in pixels, 0 to 8.
    p
        Probability that a sample gets this step.
    """

    sigma: Range = (0.1, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "sigma", 0, 8)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.set("blur", between(numbers[:, 0], self.sigma), chosen)


@dataclass(frozen=True, repr=False)
class Sharpen(Neighbourhood):
    """Add a share of the difference to the picture blurred with a Gaussian of standard deviation 1.

    Parameters
    ----------
    amount
        Range of shares.
    p
        Probability that a sample gets this step.
    """

    amount: Range = (0.2, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "amount", 0, 100)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        draft.set("sharpen", between(numbers[:, 0], self.amount), chosen)
