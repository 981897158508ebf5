"""What `augment` does to a batch, as data: one sampling map and one block of colour parameters per sample."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels.density import StainMap

__all__ = ["BORDERS", "GEOMETRIES", "INTERPOLATIONS", "STAGES", "Plan", "unpack"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
BORDERS = ("constant", "replicate", "reflect", "reflect101", "wrap")
GEOMETRIES = ("identity", "whole", "affine", "projective")
# What may be left out, in the order in which it runs.
STAGES = (
    *("table", "stain", "colour", "gamma", "gaussian", "laplace", "poisson", "salt", "pepper", "dropout", "cutouts"),
    *("blur", "sharpen"),
)
# Shapes of the optional tensors after the batch; None stands for any length.
SHAPES: dict[str, tuple[tuple[int | None, ...], torch.dtype]] = {
    "matrix": ((3, 3), torch.float32),
    "keys": ((), torch.int64),
    "field": ((2, None, None), torch.float32),
    "fill": ((3,), torch.float32),
    "table": ((3, 256), torch.float32),
    "colour": ((3, 4), torch.float32),
    "gamma": ((), torch.float32),
    "gaussian": ((), torch.float32),
    "laplace": ((), torch.float32),
    "poisson": ((), torch.float32),
    "salt": ((), torch.float32),
    "pepper": ((), torch.float32),
    "dropout": ((3,), torch.float32),
    "cutouts": ((None, 4), torch.int32),
    "blur": ((), torch.float32),
    "sharpen": ((), torch.float32),
}
LEAST_AND_MOST = {
    **dict.fromkeys(("salt", "pepper"), (0.0, 1.0)),
    **dict.fromkeys(("gaussian", "laplace", "sharpen"), (0.0, inf)),
    **dict.fromkeys(("fill", "table"), (0.0, 255.0)),
    "gamma": (1e-3, inf),
    "poisson": (0.0, 64.0),
    "blur": (0.0, 8.0),
}
# One row per sample holds all that is small: offset and shape of each part, see `Plan.pack`.
PARTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "matrix": (0, (3, 3)),
    "fill": (9, (3,)),
    "unmix": (12, (3, 4)),
    "mix": (24, (3, 4)),
    "floor": (36, (3,)),
    "before": (39, (3, 3)),
    "after": (48, (3, 3)),
    "colour": (57, (3, 4)),
    "gamma": (69, ()),
    "gaussian": (70, ()),
    "laplace": (71, ()),
    "poisson": (72, ()),
    "salt": (73, ()),
    "pepper": (74, ()),
    "dropout": (75, (3,)),
    "blur": (78, ()),
    "sharpen": (79, ()),
}
BLOCK = 80  # floats of a row


@dataclass(frozen=True)
class Plan:
    """What `augment` does to a batch of B samples; the stages run in the order in which they are listed here.

    Positions are ``(y, x)`` in pixels, pixel centres at whole numbers, computed in float32 with every product and sum
    rounded, so that all forms of the kernel look at the same pixels. Light is 0..1 per channel after sampling. A stage
    that is None is left out for the whole batch; within a batch a sample is spared by its neutral value.

    Parameters
    ----------
    size
        Height and width of the result in pixels.
    matrix
        ``(B, 3, 3)`` float32, output ``(y, x, 1)`` to source ``(y, x, 1)``, projective.
    keys
        ``(B,)`` int64: seeds of the counter-based noise, one per sample, independent of the batch it is in, see
        `sample_keys`.
    interpolation
        ``"nearest"`` (the pixel at ``floor(position + 0.5)``), ``"bilinear"`` or ``"bicubic"`` (a = -0.75, as torch and
        OpenCV have it, clamped to 0..1) for images; masks are always sampled nearest.
    border
        Beyond the source: ``"constant"``, ``"replicate"``, ``"reflect"`` (edge pixel repeated), ``"reflect101"``
        (edge pixel not repeated) or ``"wrap"``; it decides for each of the pixels that are weighted together.
    supersample
        Samples per axis and output pixel that are averaged, 1 to 8; more than 1 keeps strong reductions from aliasing.
        Masks are sampled once.
    field
        ``(B, 2, gh, gw)`` float32, gh and gw at least 2: displacement ``(dy, dx)`` in source pixels that is added after
        `matrix`, interpolated bilinearly between nodes spread evenly from the first to the last output pixel.
    fill
        ``(B, 3)`` float32, grey levels 0..255 beyond a constant border, in cutouts and in dropped cells; None is 0.
    mask_fill
        Value of masks beyond a constant border.
    table
        ``(B, 3, 256)`` float32, grey level 0..255 to grey level 0..255: replaces the sampled level, rounded to a whole
        one.
    stain
        `StainMap` per sample; its result is clamped to 0..1.
    colour
        ``(B, 3, 4)`` float32: matrix and offset on light, for brightness, contrast, saturation, hue and grey-scale; its
        result is clamped to 0..1.
    gamma
        ``(B,)`` float32, at least 0.001: light to this power.
    gaussian, laplace
        ``(B,)`` float32: standard deviation of noise that is added, in light.
    poisson
        ``(B,)`` float32, 0 to 64: mean of counts, in grey levels, that are added or subtracted with equal chance. The
        sum of light and all noise is clamped to 0..1.
    salt, pepper
        ``(B,)`` float32: probability of a white and of a black pixel.
    noise_per_channel
        Whether noise, salt and pepper are drawn for each channel or once for a pixel.
    dropout
        ``(B, 3)`` float32: probability that a cell is filled, height and width of cells in output pixels, at least 1;
        a pixel belongs to cell ``floor((position + 0.5) / size)``.
    dropout_per_channel
        Whether cells are drawn for each channel.
    cutouts
        ``(B, R, 4)`` int32: boxes ``(y0, x0, y1, x1)`` in output pixels that are filled; empty where y1 <= y0.
    blur
        ``(B,)`` float32: standard deviation of a Gaussian in output pixels, up to 8, cut off at three of them, the
        picture reflected at its edges (edge pixel not repeated); 0 leaves a sample alone. One further pass, after all
        others.
    sharpen
        ``(B,)`` float32: share of the difference to the blurred image (standard deviation 1, or `blur`) that is
        added, in place of blurring, where it is above 0; the result is clamped to 0..1.
    geometry
        How general the matrices are, which saves work: ``"identity"``, ``"whole"`` (flips, quarter turns and shifts by
        whole pixels), ``"affine"`` or ``"projective"``. None finds out where `matrix` lies on the CPU, and is the last
        elsewhere.

    Raises
    ------
    BadShapeError
        If a tensor has another shape or type, or lies on another device than `matrix`.
    BadValueError
        If a value is not finite or outside its range.
    """

    size: tuple[int, int]
    matrix: Tensor
    keys: Tensor
    interpolation: str = "bilinear"
    border: str = "constant"
    supersample: int = 1
    field: Tensor | None = None
    fill: Tensor | None = None
    mask_fill: int = 0
    table: Tensor | None = None
    stain: StainMap | None = None
    colour: Tensor | None = None
    gamma: Tensor | None = None
    gaussian: Tensor | None = None
    laplace: Tensor | None = None
    poisson: Tensor | None = None
    salt: Tensor | None = None
    pepper: Tensor | None = None
    noise_per_channel: bool = False
    dropout: Tensor | None = None
    dropout_per_channel: bool = False
    cutouts: Tensor | None = None
    blur: Tensor | None = None
    sharpen: Tensor | None = None
    geometry: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("interpolation", INTERPOLATIONS), ("border", BORDERS)):
            if (value := getattr(self, name)) not in known:
                raise BadValueError(f"{name} is {value!r}; expected one of {', '.join(known)}.")
        if min(self.size) < 1 or not 1 <= self.supersample <= 8:
            raise BadValueError(f"size {self.size}, supersample {self.supersample}; expected at least 1, and 1 to 8.")
        batch = len(self.matrix)
        for name, (shape, dtype) in SHAPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            fits = value.ndim == 1 + len(shape) and all(
                n in (None, got) for n, got in zip(shape, value.shape[1:], strict=True)
            )
            if not fits or len(value) != batch or value.dtype != dtype or value.device != self.matrix.device:
                wanted = ", ".join(str(n or "n") for n in (batch, *shape))
                raise BadShapeError(
                    f"{name} of the plan is {tuple(value.shape)} {value.dtype} on {value.device}; expected ({wanted}) "
                    f"{dtype} on {self.matrix.device}."
                )
            if value.device.type == "cpu":
                _check_values(name, value)
        if self.field is not None and min(self.field.shape[2:]) < 2:
            raise BadShapeError(f"field of the plan has {tuple(self.field.shape[2:])} nodes; expected at least (2, 2).")
        if self.stain is not None and (len(self.stain) != batch or self.stain.unmix.device != self.matrix.device):
            raise BadShapeError(
                f"stain of the plan is for {len(self.stain)} samples on {self.stain.unmix.device}; expected {batch} on "
                f"{self.matrix.device}."
            )
        if self.geometry is None:
            object.__setattr__(self, "geometry", _geometry(self.matrix))
        elif self.geometry not in GEOMETRIES:
            raise BadValueError(f"geometry is {self.geometry!r}; expected one of {', '.join(GEOMETRIES)}.")

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def device(self) -> torch.device:
        """Where the plan's tensors lie."""
        return self.matrix.device

    def to(self, device: torch.device | str) -> Plan:
        """Return the same plan with its tensors on `device`, without waiting for the copies.

        All that is small goes in one copy; the tensors of the result are views into it.
        """
        own = {f.name for f in fields(self)} & set(PARTS)
        block = self.pack().to(device, non_blocking=True)
        small = unpack(block)
        moved: dict[str, Any] = {n: small[n] for n in own if getattr(self, n) is not None}
        if self.stain is not None:
            matrices = [n for n in ("unmix", "mix", "floor", "before", "after") if getattr(self.stain, n) is not None]
            views: dict[str, Any] = {n: small[n] for n in matrices}
            moved["stain"] = replace(self.stain, **views)
        for name in ("keys", "field", "table", "cutouts"):
            if (value := getattr(self, name)) is not None:
                moved[name] = value.to(device, non_blocking=True)
        plan = replace(self, **moved)
        plan.__dict__["_packed"] = block
        if self.poisson is not None:
            plan.__dict__["_poisson"] = self.poisson_table().to(device, non_blocking=True)
        return plan

    def pack(self) -> Tensor:
        """Return ``(B, 80)`` float32, all that is small of each sample in one row, as the kernels read it."""
        if "_packed" not in self.__dict__:
            self.__dict__["_packed"] = self._pack()
        packed: Tensor = self.__dict__["_packed"]
        return packed

    def poisson_table(self) -> Tensor:
        """Return ``(B, 128)`` float32: the chance of at most 0, 1, 2, ... counts of `poisson`."""
        if "_poisson" not in self.__dict__:
            mean = self.matrix.new_zeros(len(self)) if self.poisson is None else self.poisson
            k = torch.arange(128, device=self.device, dtype=torch.float64)
            chances = (
                torch.xlogy(k, mean.double().unsqueeze(1)) - mean.double().unsqueeze(1) - torch.lgamma(k + 1)
            ).exp()
            self.__dict__["_poisson"] = chances.cumsum(1).float()
        table: Tensor = self.__dict__["_poisson"]
        return table

    def _pack(self) -> Tensor:
        block = self.matrix.new_zeros(len(self), BLOCK)
        for name, (at, shape) in PARTS.items():
            if (value := getattr(self, name, None)) is not None:
                block[:, at : at + prod(shape)] = value.reshape(len(self), prod(shape))
        if self.stain is not None:
            at = PARTS["unmix"][0]
            block[:, at : at + 45] = self.stain.pack()
        return block


def unpack(block: Tensor) -> dict[str, Tensor]:
    """Return views into the ``(B, 80)`` rows that `Plan.pack` made, by the names of their parts."""
    views = {}
    for name, (offset, shape) in PARTS.items():
        views[name] = block[:, offset : offset + prod(shape)].view(len(block), *shape)
    return views


def _check_values(name: str, value: Tensor) -> None:
    """Raise BadValueError if a tensor of the plan holds what its stage has no meaning for."""
    if not value.numel() or not value.is_floating_point():
        return
    if not np.isfinite(value.detach().numpy()).all():  # PyTorch takes ten times as long for few numbers
        raise BadValueError(f"{name} of the plan holds values that are not finite.")
    if name == "dropout":
        on = value[:, 0] > 0
        if bool(((value[:, 0] < 0) | (value[:, 0] > 1) | (on & (value[:, 1:].amin(1) < 1))).any()):
            raise BadValueError("dropout of the plan; expected probabilities 0..1 and cells of at least 1 pixel.")
    elif name in LEAST_AND_MOST:
        least, most = LEAST_AND_MOST[name]
        low, high = (float(v) for v in value.aminmax())
        if low < least or high > most:
            raise BadValueError(f"{name} of the plan reaches from {low:g} to {high:g}; expected {least:g} to {most:g}.")


def _geometry(matrix: Tensor) -> str:
    """Return the least general of `GEOMETRIES` that covers all matrices."""
    if matrix.device.type != "cpu":
        return "projective"
    rows = matrix.detach().numpy()
    if (rows[:, 2] != (0, 0, 1)).any():
        return "projective"
    if (rows[:, :2] == ((1, 0, 0), (0, 1, 0))).all():
        return "identity"
    turns = rows[:, :2, :2]
    one = ((turns == 0).sum(1) == 1).all() and ((turns == 0).sum(2) == 1).all() and (abs(turns).sum(1) == 1).all()
    return "whole" if one and (rows[:, :2, 2] % 1 == 0).all() else "affine"
