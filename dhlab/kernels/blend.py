"""Overlapping windows to one map: gathered per pixel in one pass, or summed on a canvas of any dimension."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.blend import ACTIVATIONS, RESULTS, blend_cpu, can_blend
from dhlab.kernels._cpu.floats import FLOATS
from dhlab.kernels._operators import register
from dhlab.kernels._windows import arrange_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "accumulate_windows",
    "blend_windows",
    "blend_windows_reference",
    "gaussian_weights",
    "resolve_scores",
]

# Standard deviation as a share of the window, and the least weight: the choice of nnU-Net and MONAI.
SIGMA, LEAST = 1 / 8, 1e-3


def gaussian_weights(tile: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Return how much each pixel of a window counts: most in the middle, where the network sees context all round.

    Parameters
    ----------
    tile
        Window size in pixels, per axis.
    device
        Where the result lives.

    Returns
    -------
    Tensor
        ``tile``-shaped float32, at most 1, at least 1e-3.

    References
    ----------
    Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    Nature Methods 2021.
    """
    weights = torch.ones((), dtype=torch.float64)
    for size in tile:
        distance = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size * SIGMA)
        weights = weights.unsqueeze(-1) * torch.exp(-distance.square() / 2)
    return weights.clamp_min(LEAST).to(device, torch.float32)


def accumulate_windows(canvas: Tensor, scores: Tensor, *, corners: Sequence[Sequence[int]], weights: Tensor) -> Tensor:
    """Add weighted windows to a canvas, one after the other, so that the sums do not depend on batches.

    Parameters
    ----------
    canvas
        ``(C + 1, *space)`` float32, changed in place: C weighted sums and the sum of weights.
    scores
        ``(B, C, *tile)`` float32.
    corners
        First corner of each window on the canvas, ``(B, ndim)``; windows lie wholly inside.
    weights
        ``tile``-shaped float32 (see `gaussian_weights`).

    Returns
    -------
    Tensor
        The canvas.

    Raises
    ------
    BadShapeError
        If a window does not fit the canvas.
    """
    tile, space = scores.shape[2:], canvas.shape[1:]
    if scores.shape[1] + 1 != canvas.shape[0] or tile != weights.shape or len(scores) != len(corners):
        raise BadShapeError(
            f"scores {tuple(scores.shape)}, {len(corners)} corners and weights {tuple(weights.shape)} for a canvas "
            f"{tuple(canvas.shape)}; expected (B, C, *tile), B, tile and (C + 1, *space)."
        )
    for window, corner in zip(scores, corners, strict=True):
        if any(c < 0 or c + t > n for c, t, n in zip(corner, tile, space, strict=True)):
            raise BadShapeError(f"window of {tuple(tile)} at {tuple(corner)} leaves the canvas {tuple(space)}.")
        part = canvas[(slice(None), *(slice(c, c + t) for c, t in zip(corner, tile, strict=True)))]
        part[:-1].addcmul_(window, weights)
        part[-1].add_(weights)
    return canvas


def resolve_scores(canvas: Tensor) -> Tensor:
    """Divide the sums by the weights and quantise: score 0..1 to 0..255, 0 where no window came.

    Parameters
    ----------
    canvas
        ``(C + 1, *space)`` float32, as `accumulate_windows` left it; its values are used up.

    Returns
    -------
    Tensor
        ``(C, *space)`` uint8.
    """
    tiny = torch.finfo(torch.float32).tiny
    sums = canvas[:-1].div_(canvas[-1].clamp_min_(tiny))
    return sums.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def blend_windows(
    scores: Tensor | Sequence[Tensor],
    corners: Tensor | Sequence[Sequence[int]],
    *,
    size: tuple[int, int],
    weights: Tensor | None = None,
    result: str = "scores",
    activation: str = "none",
    threshold: float = 0.5,
    first_row: int = 0,
    channel_axis: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Blend overlapping windows of a picture: each pixel is the weighted mean of the windows that cover it.

    Each pixel gathers its windows by row, then by column, and is written once: the result does not depend on the order
    or the batches of the windows, nor on the bands in which a picture is made. For a picture of any height, pass the
    windows that touch a band, and where the band begins as `first_row`; no canvas is kept between bands. Arithmetic is
    in float32, with an error below 1e-6 of the largest score. This is for two axes; signals and volumes take
    `accumulate_windows` and `resolve_scores`.

    Parameters
    ----------
    scores
        ``(B, C, h, w)`` or ``(B, h, w, C)``, float32, bfloat16 or float16, finite, any strides; or several such
        batches, which are not put together in memory.
    corners
        ``(N, 2)``, N windows in all, on the CPU: row and column of the first pixel of each. Windows may leave the
        picture; what lies outside is ignored.
    size
        Rows and columns of the result.
    weights
        ``(h, w)``, at least 0: how much each pixel of a window counts; None takes `gaussian_weights`.
    result
        ``"scores"``: float32; ``"quantised"``: uint8, scores 0..1 to 0..255, rounded to even; ``"mask"``: uint8, 1
        where a score reaches `threshold`; ``"classes"``: uint8, the channel with the largest score, of equals the
        first. Where no window came, all are 0.
    activation
        What each window goes through before it is blended: ``"none"``, ``"softmax"`` over channels or ``"sigmoid"``.
    threshold
        Least score inside a mask.
    first_row
        Row, as `corners` count, of the result's first row.
    channel_axis
        Where the channels are: 1 or -1 (last).
    out
        Where to write, of the result's shape and type, columns next to one another; rows and channels may be strided,
        as in a band of a larger picture. Reuse it: fresh memory costs as much as the arithmetic.

    Returns
    -------
    Tensor
        ``(C, *size)``, or `size` for classes. Only float32 scores made without `out` have a gradient, by the reference.

    Raises
    ------
    BadShapeError
        If `scores`, `corners`, `weights` and `out` do not fit each other.
    BadValueError
        If `threshold` is not finite, or a class does not fit uint8.
    UnknownNameError
        If there is no such `result` or `activation`.

    References
    ----------
    Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    Nature Methods 2021.
    """
    for kind, name, known in (("result", result, RESULTS), ("activation", activation, ACTIVATIONS)):
        if name not in known:
            raise UnknownNameError(f"{kind} {name!r}; expected one of {', '.join(known)}.{suggest(name, known)}")
    if not math.isfinite(threshold):
        raise BadValueError(f"threshold {threshold}; expected a finite number.")
    batches = _batches(scores, channel_axis)
    channels, *tile = batches[0].shape[1:]
    places = _places(corners)
    if len(places) != sum(len(batch) for batch in batches):
        raise BadShapeError(f"{len(places)} corners for {sum(len(b) for b in batches)} windows; expected one each.")
    if result == "classes" and channels > 256:
        raise BadValueError(f"{channels} classes; expected at most 256, since the result is uint8.")
    device = batches[0].device
    weights = gaussian_weights(tile, device=device) if weights is None else weights
    if list(weights.shape) != tile or weights.device != device:
        raise BadShapeError(
            f"weights are {tuple(weights.shape)} on {weights.device}; expected {tuple(tile)} on {device}."
        )
    if out is None and result == "scores" and torch.is_grad_enabled() and any(b.requires_grad for b in batches):
        return blend_windows_reference(
            batches, places, size=size, weights=weights, activation=activation, first_row=first_row
        )
    shape = tuple(size) if result == "classes" else (channels, *size)
    dtype = torch.float32 if result == "scores" else torch.uint8
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device)
    elif out.shape != shape or out.dtype != dtype or out.device != device or (out.stride(-1) != 1 and shape[-1] > 1):
        raise BadShapeError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, strides {out.stride()}; expected {shape} {dtype} "
            f"on {device}, columns next to one another."
        )
    plane = out.unsqueeze(0) if result == "classes" else out
    OPERATOR([b.detach() for b in batches], places, weights, result, activation, threshold, first_row, plane)
    return out


def _batches(scores: Tensor | Sequence[Tensor], channel_axis: int) -> list[Tensor]:
    """Return batches ``(B, C, h, w)`` that agree in all but B."""
    given = [scores] if isinstance(scores, torch.Tensor) else list(scores)
    if not given or any(b.ndim != 4 for b in given) or channel_axis not in (1, -1, 3):
        raise BadShapeError(
            f"scores {[tuple(b.shape) for b in given[:3]]} with channels on axis {channel_axis}; expected (B, C, h, w) "
            "or, with channel_axis=-1, (B, h, w, C), at least one batch."
        )
    batches = [batch.movedim(channel_axis, 1) for batch in given]
    first = batches[0]
    if any((b.shape[1:], b.dtype, b.device) != (first.shape[1:], first.dtype, first.device) for b in batches):
        raise BadShapeError("batches of scores differ in window, type or device; expected the same of all.")
    if first.dtype not in FLOATS or 0 in first.shape[1:]:
        raise BadShapeError(
            f"scores are {tuple(first.shape)} {first.dtype}; expected windows of at least one pixel and channel, "
            "float32, bfloat16 or float16."
        )
    return batches


def _places(corners: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Return corners as ``(N, 2)`` int64 on the CPU."""
    places = torch.as_tensor(corners) if len(corners) else torch.empty((0, 2), dtype=torch.int64)
    if places.ndim != 2 or places.shape[1] != 2 or places.is_floating_point() or places.device.type != "cpu":
        raise BadShapeError(
            f"corners are {tuple(places.shape)} {places.dtype} on {places.device}; expected (N, 2) whole numbers on "
            "the CPU: row and column of each window."
        )
    return places.to(torch.int64)


def _run(
    scores: Sequence[Tensor],
    corners: Tensor,
    weights: Tensor,
    result: str,
    activation: str,
    threshold: float,
    first_row: int,
    out: Tensor,
) -> None:
    """Write the picture ``(C, *size)``, or ``(1, *size)`` for classes, in the form that `choose` names."""
    form = choose(weights, covered=can_blend(scores[0]))
    settings: dict[str, Any] = {"result": result, "activation": activation, "threshold": threshold}
    _, rows, columns = out.shape
    if form == "torch":
        picture = blend_windows_reference(
            scores, corners, size=(rows, columns), weights=weights, first_row=first_row, **settings
        )
        out.copy_(picture)
        return
    if out.numel() == 0:
        return
    filled = [batch for batch in scores if len(batch)] or list(scores[:1])
    if any(batch.stride()[1:] != filled[0].stride()[1:] for batch in filled):
        filled = [batch.contiguous() for batch in filled]
    base, size = filled[0], filled[0].element_size()
    starts = [
        (batch.data_ptr() - base.data_ptr()) // size + i * batch.stride(0)
        for batch in filled
        for i in range(len(batch))
    ]
    tile = (base.shape[2], base.shape[3])
    layout = arrange_windows(corners, first_row=first_row, tile=tile, size=(rows, columns), device=out.device)
    offsets = torch.tensor(starts, dtype=torch.int64).to(out.device, non_blocking=True)[layout.order]
    weights = weights.to(torch.float32).contiguous()
    if form == "triton":
        from dhlab.kernels._triton.blend import blend_triton

        blend_triton(base, layout, offsets=offsets, weights=weights, out=out, **settings)
    else:
        blend_cpu(base, layout, offsets=offsets, weights=weights, out=out, **settings)


OPERATOR = register(
    "blend_windows(Tensor[] scores, Tensor corners, Tensor weights, str result, str activation, float threshold, "
    "int first_row, Tensor(a!) out) -> ()",
    _run,
)


def blend_windows_reference(
    scores: Tensor | Sequence[Tensor],
    corners: Tensor | Sequence[Sequence[int]],
    *,
    size: tuple[int, int],
    weights: Tensor | None = None,
    result: str = "scores",
    activation: str = "none",
    threshold: float = 0.5,
    first_row: int = 0,
) -> Tensor:
    """Say in plain PyTorch what `blend_windows` does: the specification, and what runs without a compiler.

    Parameters
    ----------
    scores
        ``(B, C, h, w)``, or several such batches; float64 is computed in float64, all else in float32.
    corners
        ``(N, 2)``: row and column of the first pixel of each window.
    weights
        ``(h, w)``; None takes `gaussian_weights`.
    size, result, activation, threshold, first_row
        As for `blend_windows`.

    Returns
    -------
    Tensor
        ``(C, *size)`` float32, float64 or uint8, or `size` for classes, uint8.
    """
    batches = [scores] if isinstance(scores, torch.Tensor) else list(scores)
    channels, *tile = batches[0].shape[1:]
    dtype = torch.float64 if batches[0].dtype == torch.float64 else torch.float32
    weights = gaussian_weights(tile, device=batches[0].device) if weights is None else weights
    weights = weights.to(dtype)
    sums = weights.new_zeros((channels + 1, *size))
    places = torch.as_tensor(corners, dtype=torch.int64).reshape(-1, 2).tolist()
    windows = [window for batch in batches for window in batch]
    for (y, x), window in sorted(zip(places, windows, strict=True), key=lambda pair: tuple(pair[0])):
        top, left = y - first_row, x
        rows = slice(max(0, -top), max(0, min(tile[0], size[0] - top)))
        columns = slice(max(0, -left), max(0, min(tile[1], size[1] - left)))
        values = window[:, rows, columns].to(dtype)
        if activation != "none":
            values = values.softmax(0) if activation == "softmax" else values.sigmoid()
        part = sums[:, max(0, top) : top + rows.stop, max(0, left) : left + columns.stop] if values.numel() else None
        if part is not None:
            weight = weights[rows, columns]
            part += torch.cat([values * weight, weight[None]])
    covered = sums[-1] > 0
    if result == "classes":
        return sums[:-1].argmax(0).to(torch.uint8)
    means = torch.where(covered, sums[:-1] / torch.where(covered, sums[-1], 1), 0)
    if result == "quantised":
        return (means * 255).round().clamp(0, 255).to(torch.uint8)
    return (covered & (means >= threshold)).to(torch.uint8) if result == "mask" else means
