"""Stored pixels to what a network wants: scaled, normalised, channels as the second axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dhlab.errors import BadShapeError
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.normalize import can_normalize, normalize_cpu
from dhlab.kernels._operators import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["normalize", "normalize_reference"]


def normalize(
    images: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: tuple[float, float] = (0, 255),
    channel_axis: int = -1,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Map `value_range` to 0..1, subtract `mean`, divide by `std`; arithmetic is in float32.

    Parameters
    ----------
    images
        ``(B, *space, C)`` or ``(B, C, *space)``, uint8 or any other integer or float.
    mean
        Mean per channel, in 0..1.
    std
        Standard deviation per channel, in 0..1.
    value_range
        Stored values that become 0 and 1.
    channel_axis
        Where the channels are: -1 (last) or 1.
    dtype
        Float type of the result.
    out
        ``(B, C, *space)`` to write to, dense with channels first or last. Reuse it: fresh memory costs more than the
        arithmetic.

    Returns
    -------
    Tensor
        ``(B, C, *space)`` of `dtype`; the memory keeps the order of `images`, so interleaved pixels come out in
        PyTorch's ``channels_last`` without a transposition.

    Raises
    ------
    BadShapeError
        If `images`, `mean`, `std` and `out` do not fit each other.
    """
    channels = images.shape[channel_axis] if images.ndim > 2 else -1
    if channel_axis not in (1, -1, images.ndim - 1) or not channels == len(mean) == len(std):
        raise BadShapeError(
            f"images {tuple(images.shape)} with channels on axis {channel_axis}, {len(mean)} means and {len(std)} "
            "standard deviations; expected (B, *space, C) or (B, C, *space) and C of each."
        )
    moved = images.movedim(channel_axis, 1)
    if out is not None and (out.shape != moved.shape or out.dtype != dtype or not _is_dense(out)):
        raise BadShapeError(
            f"out is {tuple(out.shape)} {out.dtype}, strides {out.stride()}; expected {tuple(moved.shape)} {dtype}, "
            "dense with channels first or last."
        )
    if images.requires_grad or torch.compiler.is_exporting():
        result = normalize_reference(moved, mean=mean, std=std, value_range=value_range, dtype=dtype)
        return result if out is None else out.copy_(result)
    out = torch.empty_like(moved if _is_dense(moved) else moved.contiguous(), dtype=dtype) if out is None else out
    scale, shift = _affine(mean, std, value_range, images.device)
    OPERATOR(moved, scale, shift, out)
    return out


def _run(images: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Write ``images * scale + shift`` to `out`, both ``(B, C, *space)``, in the form that `choose` names."""
    dense = images if _is_dense(images) else images.contiguous()
    form = choose(images, covered=can_normalize(dense, out))
    if form == "triton":
        from dhlab.kernels._triton.normalize import normalize_triton

        normalize_triton(dense, scale=scale, shift=shift, out=out)
    elif form == "cpu":
        normalize_cpu(dense, scale=scale, shift=shift, out=out)
    else:
        out.copy_(_apply(images, scale, shift))


OPERATOR = register("normalize(Tensor images, Tensor scale, Tensor shift, Tensor(a!) out) -> ()", _run)


def normalize_reference(
    images: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: tuple[float, float] = (0, 255),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Say in plain PyTorch what `normalize` does: the specification, the CPU path, and what export traces.

    Parameters
    ----------
    images
        ``(B, C, *space)``, any integer or float, any strides.
    mean
        Mean per channel, in 0..1.
    std
        Standard deviation per channel, in 0..1.
    value_range
        Stored values that become 0 and 1.
    dtype
        Float type of the result.

    Returns
    -------
    Tensor
        ``(B, C, *space)`` of `dtype`.
    """
    return _apply(images, *_affine(mean, std, value_range, images.device)).to(dtype)


def _apply(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    per_channel = (-1,) + (1,) * (images.ndim - 2)
    return images.to(torch.float32) * scale.view(per_channel) + shift.view(per_channel)


def _affine(
    mean: Sequence[float], std: Sequence[float], value_range: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift, ``(C,)`` float32 each, with ``normalised = stored * scale + shift``."""
    low, high = value_range
    scale = [1 / ((high - low) * s) for s in std]
    shift = [-(low / (high - low) + m) / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.movedim(1, -1).is_contiguous()
