"""What `augment` does to a batch, as data: one sampling map and one block of colour parameters per sample."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels.density import StainMap

__all__ = ["BORDERS", "INTERPOLATIONS", "Plan"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
BORDERS = ("constant", "replicate", "reflect", "reflect101", "wrap")
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


@dataclass(frozen=True)
class Plan:
    """What `augment` does to a batch of B samples; the stages run in the order in which they are listed here.

    Positions are ``(y, x)`` in pixels, pixel centres at whole numbers. Light is 0..1 per channel after sampling. A
    stage that is None is left out for the whole batch; within a batch a sample is spared by its neutral value.

    Parameters
    ----------
    size
        Height and width of the result in pixels.
    matrix
        ``(B, 3, 3)`` float32, output ``(y, x, 1)`` to source ``(y, x, 1)``, projective.
    keys
        ``(B,)`` int64: seeds of the counter-based noise, one per sample, independent of the batch it is in.
    interpolation
        ``"nearest"``, ``"bilinear"`` or ``"bicubic"`` (a = -0.75, as torch and OpenCV have it) for images; masks are
        always sampled nearest.
    border
        Beyond the source: ``"constant"``, ``"replicate"``, ``"reflect"`` (edge pixel repeated), ``"reflect101"``
        (edge pixel not repeated) or ``"wrap"``.
    supersample
        Samples per axis and output pixel that are averaged, 1 to 8; more than 1 keeps strong reductions from aliasing.
    field
        ``(B, 2, gh, gw)`` float32, gh and gw at least 2: displacement ``(dy, dx)`` in source pixels that is added after
        `matrix`, interpolated bilinearly between nodes spread evenly from the first to the last output pixel.
    fill
        ``(B, 3)`` float32, grey levels 0..255 beyond a constant border, in cutouts and in dropped cells; None is 0.
    mask_fill
        Value of masks beyond a constant border.
    table
        ``(B, 3, 256)`` float32, grey level 0..255 to grey level: replaces the sampled level, rounded to a whole one.
    stain
        `StainMap` per sample; its result is clamped to 0..1.
    colour
        ``(B, 3, 4)`` float32: matrix and offset on light, for brightness, contrast, saturation, hue and grey-scale; its
        result is clamped to 0..1.
    gamma
        ``(B,)`` float32: light to this power.
    gaussian, laplace
        ``(B,)`` float32: standard deviation of noise that is added, in light.
    poisson
        ``(B,)`` float32, 0 to 64: mean of counts, in grey levels, that are added or subtracted with equal chance.
    salt, pepper
        ``(B,)`` float32: probability of a white and of a black pixel.
    noise_per_channel
        Whether noise, salt and pepper are drawn for each channel or once for a pixel.
    dropout
        ``(B, 3)`` float32: probability that a cell is filled, height and width of cells in output pixels.
    dropout_per_channel
        Whether cells are drawn for each channel.
    cutouts
        ``(B, R, 4)`` int32: boxes ``(y0, x0, y1, x1)`` in output pixels that are filled; empty where y1 <= y0.
    blur
        ``(B,)`` float32: standard deviation of a Gaussian in output pixels, up to 8; 0 leaves a sample alone. One
        further pass, after all others.
    sharpen
        ``(B,)`` float32: share of the difference to the blurred image (standard deviation 1, or `blur`) that is
        added, in place of blurring, where it is above 0.

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
            if value.device.type == "cpu" and value.is_floating_point() and not bool(value.isfinite().all()):
                raise BadValueError(f"{name} of the plan holds values that are not finite.")
        if self.stain is not None and len(self.stain) != batch:
            raise BadShapeError(f"stain of the plan is for {len(self.stain)} samples; expected {batch}.")

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def device(self) -> torch.device:
        """Where the plan's tensors lie."""
        return self.matrix.device

    def to(self, device: torch.device | str) -> Plan:
        """Return the same plan with its tensors on `device`, without waiting for the copies."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name in (*SHAPES, "stain")}
        tensors = {name: value for name, value in moved.items() if value is not None}
        moved = {n: v.to(device) if n == "stain" else v.to(device, non_blocking=True) for n, v in tensors.items()}
        return replace(self, **moved)
