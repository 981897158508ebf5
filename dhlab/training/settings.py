"""`Settings`: everything that decides a training besides model and data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dhlab.augment import Compose
from dhlab.augment.windows import read_pipeline
from dhlab.distributed import COMPRESSIONS, REDUCTIONS
from dhlab.errors import BadValueError, DHLabWarning, UnknownNameError, suggest
from dhlab.training.losses import SEGMENTATION_LOSSES

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dhlab.augment import Transform

__all__ = ["Settings"]

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "one-cycle", "constant")
WEIGHTINGS = ("root", "balanced", "none")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
RECOMPUTATIONS = ("low", "mid", "full")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a training besides model and data.

    The fields are the keyword arguments of `dhlab.fit`, which explains them.

    Raises
    ------
    BadValueError
        If a number is out of range.
    UnknownNameError
        If a name is not among the known ones.
    """

    epochs: int = 20
    batch_size: int | None = None
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warm_up: float = 0.1
    accumulate: int = 1
    clip: float | None = 5.0
    augment: bool | float | str | os.PathLike[str] | Mapping[str, Any] | Transform = True
    class_weights: str | Sequence[float] | Mapping[str, float] = "root"
    label_smoothing: float = 0.0
    loss: str | Callable[[Tensor, Tensor], Tensor] | None = None
    averaging: float | None = None
    patience: int | None = None
    freeze: Sequence[str] = ()
    body_rate: float = 1.0
    precision: str = "auto"
    activation_checkpointing: str | None = None
    compile: bool = False
    compression: str = "none"
    reduction: str = "sum"
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        named = (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("compression", COMPRESSIONS),
            ("reduction", REDUCTIONS),
        )
        for name, known in named:
            self._choose(name, known)
        if isinstance(self.class_weights, str):
            self._choose("class_weights", WEIGHTINGS)
        if isinstance(self.loss, str):
            self._choose("loss", SEGMENTATION_LOSSES)
        if self.activation_checkpointing is not None:
            self._choose("activation_checkpointing", RECOMPUTATIONS)
        if isinstance(self.freeze, str):
            object.__setattr__(self, "freeze", (self.freeze,))
        for name in ("epochs", "accumulate", *(n for n in ("batch_size", "patience") if getattr(self, n) is not None)):
            value = getattr(self, name)
            self._expect(name, isinstance(value, int) and value >= 1, "a whole number of at least 1")
        for name in ("learning_rate", *(n for n in ("minutes", "clip") if getattr(self, n) is not None)):
            self._expect(name, 0 < getattr(self, name) < math.inf, "a positive number")
        if not isinstance(self.augment, bool | int | float):
            object.__setattr__(self, "augment", _usable(read_pipeline(self.augment)))
        numbers = ("augment",) if isinstance(self.augment, bool | int | float) else ()
        for name in ("weight_decay", "body_rate", *numbers):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        for name in ("warm_up", "label_smoothing", *(() if self.averaging is None else ("averaging",))):
            self._expect(name, 0 <= getattr(self, name) < 1, "a share from 0 up to but excluding 1")
        self._expect("seed", 0 <= self.seed < 1 << 63, "a whole number from 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-compatible values; a loss of one's own by its name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if isinstance(self.augment, Compose):
            values["augment"] = self.augment.to_dict()
        values["freeze"] = list(self.freeze)
        if isinstance(self.class_weights, Mapping):
            values["class_weights"] = {name: float(weight) for name, weight in self.class_weights.items()}
        elif not isinstance(self.class_weights, str):
            values["class_weights"] = list(map(float, self.class_weights))
        if self.loss is not None and not isinstance(self.loss, str):
            values["loss"] = (
                f"{self.loss.__module__}.{getattr(self.loss, '__qualname__', type(self.loss).__qualname__)}"
            )
        return values

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise BadValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def _choose(self, name: str, known: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise UnknownNameError(f"{name} is {value!r}.{suggest(str(value), known)} Choose among {', '.join(known)}.")


def _usable(pipeline: Compose) -> Compose:
    if not pipeline.makes_floats:
        return pipeline
    warnings.warn(
        "ToFloat32, DivBy255 and Normalize of augment are left out: the model scales and normalises by itself.",
        DHLabWarning,
        stacklevel=5,
    )
    return pipeline.without_output()
