"""Named transforms of stain: amounts of haematoxylin, eosin and DAB, or towards the stains of other slides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dhlab.augment.steps import Range, Stage, Transform, between, check_number, check_span
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.draft import Draft
    from dhlab.kernels.stain import Stains

__all__ = ["StainJitter", "StainTarget"]

# Haematoxylin, eosin and DAB in optical density (Ruifrok and Johnston, 2001), as scikit-image has them.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
UNMIXING = np.linalg.inv(STAINS)
DARKEST = 1e-6
# An amount of 1 darkens to the darkest light, in scikit-image's units.
UNIT = math.log2(DARKEST)
UNMIX = np.concatenate([UNMIXING.T / UNIT, np.zeros((3, 1))], 1)
Stain = tuple[float, float, float]


@dataclass(frozen=True, repr=False)
class StainJitter(Transform):
    """Change the amounts of haematoxylin, eosin and DAB: ``amount · (1 + a) + b``, each stain by its own a and b.

    Amounts are those of scikit-image's ``rgb2hed``: 1 takes light down to a millionth, tissue has 0.02 to 0.2.

    Parameters
    ----------
    scale
        Range of a.
    shift
        Range of b.
    strength
        Range of a factor on all three amounts alike.
    cut
        Cut measured amounts off below 0, as scikit-image does. Else colours that the three stains cannot mix, such as
        those of skin, are kept, and only the change is added.
    p
        Probability that a sample gets this step.

    References
    ----------
    Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train distilled
    stain-invariant convolutional networks", IEEE TMI 2018.
    """

    scale: Range = (-0.2, 0.2)
    shift: Range = (-0.002, 0.002)
    strength: Range = (1.0, 1.0)
    cut: bool = False

    stage: ClassVar[Stage] = Stage.STAIN
    draws: ClassVar[int] = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self, "scale", -1, 10)
        check_span(self, "shift", -1, 1)
        check_span(self, "strength", 0, 10)

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        factor = (1 + between(numbers[:, 0:3], self.scale)) * between(numbers[:, 6:7], self.strength)
        mix = np.empty((len(numbers), 3, 4))
        mix[..., :3] = UNIT * STAINS.T * factor[:, None, :]
        mix[..., 3] = UNIT * (between(numbers[:, 3:6], self.shift) @ STAINS)
        draft.restain(unmix=UNMIX, mix=mix, floor=np.full(3, 0.0 if self.cut else -np.inf), chosen=chosen)


@dataclass(frozen=True, repr=False)
class StainTarget(Transform):
    """Carry two stains over to those of other slides, or to somewhere between two of them.

    Parameters
    ----------
    source
        Haematoxylin and eosin of the pictures in optical density, ``(2, 3)``, as Macenko's method fits them.
    targets
        As `source`, one or more; each sample draws two of them and a place between.
    source_amounts
        Amounts of the two stains that count as strong in the pictures, such as their 99th percentile.
    target_amounts
        The same for each target; empty are those of the source.
    white
        Grey level without stain.
    p
        Probability that a sample gets this step.

    References
    ----------
    Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
    """

    source: tuple[Stain, Stain]
    targets: tuple[tuple[Stain, Stain], ...]
    source_amounts: tuple[float, float] = (1.0, 1.0)
    target_amounts: tuple[tuple[float, float], ...] = ()
    white: float = 255.0

    stage: ClassVar[Stage] = Stage.STAIN
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "white", 1, 255)
        if not self.targets:
            raise BadValueError("targets of StainTarget is empty; expected the stains of one slide or more.")
        targets = len(self.targets)
        shapes = {"source": (2, 3), "targets": (targets, 2, 3), "source_amounts": (2,)}
        if self.target_amounts:
            shapes["target_amounts"] = (targets, 2)
        for name, shape in shapes.items():
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise BadValueError(f"{name} of StainTarget has shape {value.shape}; expected {shape}, finite.")
            if "amounts" in name and (value <= 0).any():
                raise BadValueError(f"{name} of StainTarget is {value.tolist()}; expected amounts above 0.")
            object.__setattr__(self, name, _nested(value.tolist()))
        if np.linalg.matrix_rank(np.asarray(self.source)) < 2:
            raise BadValueError("source of StainTarget holds the same stain twice; expected two.")

    @classmethod
    def fitted(cls, source: Stains, targets: Stains, *, p: float = 1.0) -> StainTarget:
        """Return the step that carries the stains of one slide over to those of others.

        Parameters
        ----------
        source
            Fit of the pictures, of one slide: `dhlab.kernels.macenko_fit` or `vahadane_fit` of a sample of its tiles.
        targets
            Fits of the other slides.
        p
            Probability that a sample gets this step.

        Raises
        ------
        BadValueError
            If the source is not one fit, or a fit failed or has no largest amounts.
        """
        fits = (source, targets)
        if len(source) != 1 or source.white != targets.white or not all(bool(f.fitted.all()) for f in fits):
            raise BadValueError(
                f"{source!r} to {targets!r}; expected one source, fits of the same white, and none that failed."
            )
        if source.most is None or targets.most is None:
            raise BadValueError("these stains have no largest amounts to scale by; fit them, or take 'macenko'.")
        return cls(
            _nested(source.matrix[0].tolist()),
            _nested(targets.matrix.tolist()),
            _nested(source.most[0].tolist()),
            _nested(targets.most.tolist()),
            source.white,
            p=p,
        )

    def _write(self, draft: Draft, chosen: NDArray[np.bool_] | None, numbers: NDArray[np.float64]) -> None:
        targets = np.asarray(self.targets) / math.log(2)  # (T, 2, 3), of log2
        amounts = np.asarray(self.target_amounts or (self.source_amounts,) * len(targets))
        scaled = targets * (amounts / np.asarray(self.source_amounts))[..., None]
        first, second = (np.floor(numbers[:, :2] * len(targets)).astype(np.int64)).T
        share = numbers[:, 2, None, None]
        aim = scaled[first] * (1 - share) + scaled[second] * share  # (B, 2, 3)
        unmix, mix = np.zeros((3, 4)), np.zeros((len(numbers), 3, 4))
        inverse = np.linalg.pinv(np.asarray(self.source)).T  # (2, 3)
        unmix[:2, :3], unmix[:2, 3] = -math.log(2) * inverse, inverse.sum(1) * math.log(self.white / 255)
        mix[..., :2], mix[..., 3] = -aim.transpose(0, 2, 1), math.log2(self.white / 255)
        draft.restain(unmix=unmix, mix=mix, floor=np.full(3, -np.inf), chosen=chosen)


def _nested(values: Any) -> Any:
    return tuple(_nested(v) for v in values) if isinstance(values, list) else values
