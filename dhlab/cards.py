"""`ModelCard`: what a model wants, gives and may be used for."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadValueError, suggest
from dhlab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RANGES", "ModelCard"]

ACTIVATIONS = ("softmax", "sigmoid", "none")
TEXTS = ("licence", "intended_use", "limits", "data", "base_model", "authors", "citation", "version", "created")
LAYOUTS = ("window", "channels_first")
# Stored values that become 0 and 1, where a card does not say otherwise.
RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": None, "int32": None, "float32": (0.0, 1.0)}


@dataclass(frozen=True)
class ModelCard:
    """What a model wants, gives and may be used for.

    Parameters
    ----------
    name
        Short name for people and files.
    architecture
        Name of the network (see `create_model`), or ``"onnx"`` for a graph from elsewhere.
    task
        ``"segmentation"`` (scores per pixel), or per window ``"classification"``, ``"multilabel"`` (any number of
        classes may be right) or ``"regression"`` (numbers).
    classes
        Class names, of a regression the names of its numbers; one score each.
    tile
        Window size in pixels at `spacing`, per window axis.
    spacing
        Physical pixel size that the model looks at, per window axis, in `unit`.
    unit
        Unit of `spacing`; ``"px"`` for a model that knows no physical size.
    axes
        Axis letters of a window as stored: ``"yxc"``, ``"zyx"``, ``"ct"`` …; ``"ic"`` a bag of instances, whose rows
        of NaN are padding.
    dtype
        Stored type of a window.
    value_range
        Stored values that become 0 and 1 before `mean` and `std`; ``(0, 1)`` leaves values as they are.
    mean
        Mean per channel, in 0..1.
    std
        Standard deviation per channel, in 0..1.
    activation
        What turns logits into scores: ``"softmax"``, ``"sigmoid"`` or ``"none"``.
    temperature
        What logits are divided by before the activation, so that scores are as sure as they are right.
    target_mean, target_std
        Of a regression, per number: scores are logits times `target_std` plus `target_mean`. Empty until trained.
    output_stride
        Window pixels per pixel of a segmentation, the same along all axes.
    margin
        Of a segmentation, pixels along the rim of a window whose scores lack what lies beyond it: `predict` takes
        them from the next window, wherever there is one.
    input_layout
        ``"window"``: the network takes windows as stored through dhlab's own normalisation (an ONNX graph of this
        kind holds it and gives scores). ``"channels_first"``: an ONNX graph from elsewhere that takes normalised
        float32 ``(B, C, *space)`` and gives logits.
    architecture_options
        Keyword arguments of the network, such as ``width``.
    licence
        Licence of the weights.
    intended_use
        What it is for.
    limits
        Where it fails or was not tried.
    data
        What it learned from.
    base_model
        What its training started from: published weights or another model; empty where it began at random.
    authors
        Who made it and answers questions about it.
    citation
        What to cite where it is used.
    metrics
        How good it was, on what.
    version
        Version of the weights.
    created
        When, as ISO 8601.

    Raises
    ------
    BadValueError
        If a field does not hold what it should; the message names it.
    """

    name: str
    architecture: str
    task: str
    classes: tuple[str, ...]
    tile: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str = "µm"
    axes: str = "yxc"
    dtype: str = "uint8"
    value_range: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    activation: str = "softmax"
    temperature: float = 1.0
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    output_stride: int = 1
    margin: int = 0
    input_layout: str = "window"
    architecture_options: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    intended_use: str = "Research use only."
    limits: str = "Not stated."
    data: str = "Not stated."
    base_model: str = ""
    authors: str = "Not stated."
    citation: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    version: str = "1"
    created: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "architecture", "unit", "axes", *TEXTS):
            self._expect(name, isinstance(getattr(self, name), str), "a text")
        self._expect("name", bool(self.name.strip()), "a text that is not empty")
        for name, known in (("task", TASKS), ("activation", ACTIVATIONS), ("input_layout", LAYOUTS), ("dtype", RANGES)):
            self._expect(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        good = len(set(self.axes)) == len(self.axes) and (set(self.axes) <= set("tczyx") or self.axes == "ic")
        wanted = "distinct letters of 'tczyx', 1 to 3 besides c, or 'ic'"
        self._expect("axes", good and 1 <= len(self.window_axes) <= 3, wanted)
        for name in ("architecture_options", "metrics"):
            self._expect(name, hasattr(getattr(self, name), "keys"), "a table of names and values")
            object.__setattr__(self, name, dict(getattr(self, name)))
        ndim, several = len(self.window_axes), "one number per window axis"
        self._sequence("classes", str, None, "names")
        self._expect("classes", len(set(self.classes)) == len(self.classes), "distinct names")
        self._sequence("tile", int, ndim, f"positive pixels, {several} of {self.window_axes!r}")
        self._sequence("spacing", float, ndim, f"positive numbers, {several} of {self.window_axes!r}")
        self._sequence("mean", float, None, "a number per channel")
        self._sequence("std", float, len(self.mean), "a positive number per channel")
        self._sequence("value_range", float, 2, "two numbers, low and high")
        self._expect("value_range", self.value_range[0] < self.value_range[1], "two numbers, low and high")
        for name in ("target_mean", "target_std"):
            if not getattr(self, name):
                object.__setattr__(self, name, ())
                continue
            self._expect(name, self.task == "regression", "nothing, unless the task is regression")
            self._sequence(name, float, len(self.classes), "a number per class, or none")
        for name in ("tile", "spacing", "std", *(("target_std",) if self.target_std else ())):
            self._expect(name, min(getattr(self, name)) > 0, "positive numbers")
        number = type(self.temperature) in (int, float)
        self._expect("temperature", number and 0 < self.temperature < math.inf, "a positive number")
        self._expect("mean", "c" in self.axes or len(self.mean) == 1, f"one number, since axes {self.axes!r} lack 'c'")
        self._expect("output_stride", type(self.output_stride) is int and self.output_stride > 0, "pixels, >= 1")
        divides = all(t % self.output_stride == 0 for t in self.tile)
        self._expect("output_stride", divides, f"a divisor of the tile {self.tile}")
        narrow = type(self.margin) is int and 0 <= 2 * self.margin < min(self.tile)
        self._expect("margin", narrow, f"pixels, less than half of the tile {self.tile}")

    @property
    def window_axes(self) -> str:
        """Axes along which windows are cut: all but ``c``."""
        return self.axes.replace("c", "")

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.mean)

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Array shape of a window as stored, in the order of `axes`."""
        sizes = iter(self.tile)
        return tuple(self.channels if a == "c" else next(sizes) for a in self.axes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one window's scores: ``(classes,)``, and the space of a segmentation."""
        space = tuple(t // self.output_stride for t in self.tile) if TASKS[self.task].dense else ()
        return (len(self.classes), *space)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-compatible values."""
        card: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return card

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """Make a card of what `to_dict` gave.

        Parameters
        ----------
        values
            Fields by name; those with a default may be left out.

        Returns
        -------
        ModelCard
            The card.

        Raises
        ------
        BadValueError
            If a field is missing, unknown or holds what it should not; the message names it.
        """
        known = [f.name for f in fields(cls)]
        if not hasattr(values, "keys"):
            raise BadValueError(f"model card: got {type(values).__name__}; expected a table of names and values.")
        for name in values:
            if name not in known:
                raise BadValueError(f"model card: unknown field {name!r}.{suggest(str(name), known)}")
        missing = [n for n in ("name", "architecture", "task", "classes", "tile", "spacing") if n not in values]
        if missing:
            raise BadValueError(f"model card: {', '.join(missing)} missing; got {', '.join(values) or 'nothing'}.")
        return cls(**values)

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise BadValueError(f"model card: {name} is {getattr(self, name)!r}; expected {expected}.")

    def _sequence(self, name: str, kind: type, length: int | None, expected: str) -> None:
        values = getattr(self, name)
        self._expect(name, isinstance(values, (list, tuple)) and len(values) > 0, expected)
        self._expect(name, length is None or len(values) == length, expected)
        accepted = (int, float) if kind is float else kind
        self._expect(name, all(isinstance(v, accepted) and not isinstance(v, bool) for v in values), expected)
        self._expect(name, kind is str or all(math.isfinite(v) for v in values), expected)
        object.__setattr__(self, name, tuple(map(kind, values)))
