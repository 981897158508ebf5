"""Light to light through optical density: one form for every stain change, so that kernels need one stage for all."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StainMap", "through_density_reference"]


@dataclass(frozen=True)
class StainMap:
    """A change of stain per sample: ``after · 2^(mix · max(unmix · log2(max(before · v + offset, least)), floor))``.

    Light ``v`` is 0..1 per channel (red, green, blue); the last column of `unmix` and `mix` is added. With matrices
    for haematoxylin, eosin and DAB this is jitter of stains, with fitted ones Macenko's or Vahadane's normalisation,
    and with matrices to cone responses Reinhard's transfer of mean and spread.

    Parameters
    ----------
    unmix
        ``(B, 3, 4)`` float32: log2 of light to amounts of three stains.
    mix
        ``(B, 3, 4)`` float32: amounts of stains to log2 of light.
    floor
        ``(B, 3)`` float32, the least amount of each stain; minus infinity where there is none.
    before, after
        ``(B, 3, 3)`` float32, applied to light before the logarithm and after the power; None where they are identity.
    offset, least
        Added to light, and the least light, before the logarithm.

    Raises
    ------
    BadShapeError
        If the shapes do not fit each other.
    BadValueError
        If a value is not finite (`floor` may be minus infinity).
    """

    unmix: Tensor
    mix: Tensor
    floor: Tensor
    before: Tensor | None = None
    after: Tensor | None = None
    offset: float = 0.0
    least: float = 1e-6

    def __post_init__(self) -> None:
        batch = len(self.unmix)
        expected = {"unmix": (3, 4), "mix": (3, 4), "floor": (3,), "before": (3, 3), "after": (3, 3)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and (tuple(value.shape) != (batch, *shape) or value.dtype != torch.float32):
                raise BadShapeError(
                    f"{name} is {tuple(value.shape)} {value.dtype}; expected {(batch, *shape)} float32."
                )
            if value is None or value.device.type != "cpu":
                continue
            numbers = value.detach().numpy()
            if not (np.isfinite(numbers) | ((numbers == -np.inf) & (name == "floor"))).all():
                raise BadValueError(f"{name} of the stain map holds values that are not finite.")
        if (self.before is None) != (self.after is None):
            raise BadValueError("a stain map has both matrices around the logarithm, before and after, or neither.")

    def __len__(self) -> int:
        return len(self.unmix)

    def to(self, device: torch.device | str) -> StainMap:
        """Return the same map with its tensors on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: t.to(device, non_blocking=True) for n, t in tensors.items() if hasattr(t, "device")})

    def pack(self) -> Tensor:
        """Return ``(B, 45)`` float32: unmix, mix, floor, before, after, as the kernels read them."""
        batch, device = len(self), self.unmix.device
        identity = torch.eye(3, device=device).expand(batch, 3, 3)
        around = [identity if m is None else m for m in (self.before, self.after)]
        return torch.cat([part.reshape(batch, -1) for part in (self.unmix, self.mix, self.floor, *around)], 1)


def through_density_reference(light: Tensor, stain: StainMap) -> Tensor:
    """Apply a `StainMap` in plain PyTorch: the specification of that stage in every kernel.

    Parameters
    ----------
    light
        ``(B, 3, *space)`` float, 0..1.
    stain
        One map per sample.

    Returns
    -------
    Tensor
        ``(B, 3, *space)`` of the type of `light`, not clamped.
    """
    flat, kind = light.flatten(2), light.dtype  # (B, 3, P)
    if stain.before is not None:
        flat = stain.before.to(kind) @ flat
    amounts = _affine(stain.unmix.to(kind), (flat + stain.offset).clamp_min(stain.least).log2())
    amounts = torch.maximum(amounts, stain.floor.to(kind).unsqueeze(-1))
    flat = _affine(stain.mix.to(kind), amounts).exp2()
    if stain.after is not None:
        flat = stain.after.to(kind) @ flat
    return flat.view(light.shape)


def _affine(matrix: Tensor, values: Tensor) -> Tensor:
    return matrix[..., :3] @ values + matrix[..., 3:]
