"""What a pixel looks like at several scales: the features from which a few strokes teach a classifier."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.filters import can_filter, filter_bank_cpu
from dhlab.kernels._operators import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["FEATURES", "derivative_weights", "filter_bank", "filter_bank_reference", "filter_names", "filter_reach"]

FEATURES = {"gaussian": 1, "gradient": 1, "laplacian": 1, "structure": 2, "hessian": 2}
SIGMAS = (0.7, 1.6, 3.5, 8.0)
# Gradients are multiplied and then smoothed by this share of sigma, as in ilastik.
OUTER = 0.5
LEAST_SIGMA = 0.1
# Relative luminance of linear RGB, ITU-R BT.709.
LUMINANCE = (0.2126, 0.7152, 0.0722)


def filter_bank(
    images: Tensor,
    *,
    sigmas: Sequence[float] = SIGMAS,
    features: Sequence[str] = tuple(FEATURES),
    luminance: bool = False,
    truncate: float = 4.0,
    channel_axis: int = -1,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Compute Gaussian features of every pixel at several scales, as ilastik does; arithmetic is in float32.

    At each standard deviation: ``"gaussian"`` is the smoothed image, ``"gradient"`` the length of its gradient,
    ``"laplacian"`` the sum of its second derivatives, ``"structure"`` the eigenvalues of its structure tensor (products
    of gradients, smoothed by half the standard deviation), ``"hessian"`` those of its matrix of second derivatives, the
    larger eigenvalue first. Derivatives are per pixel and not multiplied by the scale. Pixels beyond the border equal
    those on it.

    Parameters
    ----------
    images
        ``(B, H, W, C)`` or ``(B, C, H, W)``, uint8 or float32 read as they lie, other types by way of float32.
    sigmas
        Standard deviations in pixels, at least 0.1.
    features
        Names, in the order of the result; see `FEATURES`.
    luminance
        Filter the luminance of RGB (ITU-R BT.709) instead of each channel.
    truncate
        Weights reach this many standard deviations from the centre, one pixel at least.
    channel_axis
        Where the channels are: -1 (last) or 1.
    dtype
        Float type of the result.
    memory_format
        ``torch.channels_last`` puts the features of a pixel next to one another, which makes
        ``result.movedim(1, -1).reshape(-1, F)`` a view: rows for scikit-learn.
    out
        ``(B, F, H, W)`` of `dtype` to write to, any strides. Reuse it: fresh memory costs much of the time.

    Returns
    -------
    Tensor
        ``(B, F, H, W)`` of `dtype`; `filter_names` names the F features: channels, in each the scales, in each the
        features.

    Raises
    ------
    BadShapeError
        If `images` or `out` have the wrong shape or type.
    BadValueError
        If a standard deviation or `truncate` is too small or not finite, or nothing is asked for.
    UnknownNameError
        If a feature has none of the known names.

    Notes
    -----
    Weights are a sampled Gaussian and its derivatives, normalised to answer a constant, a ramp and a parabola exactly
    at any scale, as in VIGRA; where Gaussians are wide and barely truncated they are those of `scipy.ndimage`.

    References
    ----------
    Berg et al., "ilastik: interactive machine learning for (bio)image analysis", Nature Methods 2019.
    """
    if images.ndim != 4 or channel_axis not in (1, -1, 3):
        raise BadShapeError(
            f"images {tuple(images.shape)} with channels on axis {channel_axis}; expected (B, H, W, C) and -1, or "
            "(B, C, H, W) and 1."
        )
    _check(sigmas, features, truncate)
    planes = images.movedim(channel_axis, 1)
    if luminance:
        planes = _mix(planes)
    samples, channels, height, width = planes.shape
    shape = (samples, channels * len(sigmas) * sum(FEATURES[name] for name in features), height, width)
    if out is not None and (out.shape != shape or out.dtype != dtype or out.device != images.device):
        raise BadShapeError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}; expected {shape} {dtype} on {images.device}."
        )
    if images.requires_grad or torch.compiler.is_exporting():
        result = filter_bank_reference(planes, sigmas=sigmas, features=features, truncate=truncate)
        result = result.to(dtype, memory_format=memory_format)
        return result if out is None else out.copy_(result)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)
    OPERATOR(planes, list(map(float, sigmas)), list(features), float(truncate), out)
    return out


def filter_names(
    channels: Sequence[str] = ("red", "green", "blue"),
    *,
    sigmas: Sequence[float] = SIGMAS,
    features: Sequence[str] = tuple(FEATURES),
) -> list[str]:
    """Name the features of `filter_bank` in their order, for example ``"red gaussian 0.7"``.

    Parameters
    ----------
    channels
        Name of each channel; one, ``["luminance"]``, where the luminance was filtered.
    sigmas
        Standard deviations in pixels.
    features
        Names, in the order of the result.

    Returns
    -------
    list of str
        One name per feature; eigenvalues are numbered 1 (the larger) and 2.

    Raises
    ------
    UnknownNameError
        If a feature has none of the known names.
    """
    _check(sigmas, features, 1.0)
    kinds = [
        name if FEATURES[name] == 1 else f"{name} {number + 1}" for name in features for number in range(FEATURES[name])
    ]
    return [f"{channel} {kind} {sigma:g}" for channel in channels for sigma in sigmas for kind in kinds]


def filter_reach(sigma: float, *, truncate: float = 4.0) -> int:
    """Return how far from a pixel, in pixels, others still count for its features.

    Parameters
    ----------
    sigma
        Largest standard deviation in pixels.
    truncate
        How many standard deviations the weights reach.
    """
    return _radius(sigma, truncate) + _radius(sigma * OUTER, truncate)


def filter_bank_reference(
    planes: Tensor,
    *,
    sigmas: Sequence[float] = SIGMAS,
    features: Sequence[str] = tuple(FEATURES),
    truncate: float = 4.0,
) -> Tensor:
    """Say in plain PyTorch what `filter_bank` does: the specification, and what runs without a kernel.

    Parameters
    ----------
    planes
        ``(B, C, H, W)``; float64 stays float64, everything else becomes float32.
    sigmas
        Standard deviations in pixels.
    features
        Names, in the order of the result.
    truncate
        Weights reach this many standard deviations from the centre, one pixel at least.

    Returns
    -------
    Tensor
        ``(B, F, H, W)`` float32 or float64.
    """
    planes = planes if planes.dtype == torch.float64 else planes.to(torch.float32)
    found = []  # (B, C, H, W) each, scales outside, features inside
    for sigma in sigmas:
        value, slope, bend = derivative_weights(sigma, truncate).unbind(1)
        smooth = derivative_weights(sigma * OUTER, truncate)[:, 0]
        down, across = _correlate(planes, slope, axis=2, odd=True), _correlate(planes, value, axis=2)
        y, x = _correlate(down, value, axis=3), _correlate(across, slope, axis=3, odd=True)
        xx, xy = _correlate(across, bend, axis=3), _correlate(down, slope, axis=3, odd=True)
        yy = _correlate(_correlate(planes, bend, axis=2), value, axis=3)
        products = [_correlate(_correlate(p, smooth, axis=2), smooth, axis=3) for p in (x * x, x * y, y * y)]
        larger, smaller = _eigenvalues(*products)
        kinds = {
            "gaussian": [_correlate(across, value, axis=3)],
            "gradient": [(x * x + y * y).sqrt()],
            "laplacian": [xx + yy],
            "structure": [larger, smaller.clamp_min(0)],
            "hessian": _eigenvalues(xx, xy, yy),
        }
        found += [feature for name in features for feature in kinds[name]]
    return torch.stack(found, 2).flatten(1, 2)  # (B, C, scales and features, H, W) to (B, F, H, W)


@cache
def derivative_weights(sigma: float, truncate: float) -> Tensor:
    """Return the weights of a Gaussian and of its first two derivatives from the centre outwards.

    Parameters
    ----------
    sigma
        Standard deviation in pixels.
    truncate
        How many standard deviations they reach.

    Returns
    -------
    Tensor
        ``(radius + 1, 3)`` float64 for offsets 0, 1, …; the first derivative is odd, the others even. Correlated with a
        constant, x and x²/2 they give exactly (1, 0, 0), (0, 1, 0) and (·, 0, 1) at 0.
    """
    offset = torch.arange(_radius(sigma, truncate) + 1, dtype=torch.float64)
    value = torch.exp(-offset.square() / (2 * sigma**2))
    twice = torch.where(offset > 0, 2.0, 1.0)  # an offset stands for both sides
    value = value / (twice * value).sum()
    second, fourth = ((twice * value * offset**power).sum() for power in (2, 4))
    bend = 2 * value * (offset.square() - second) / (fourth - second.square())
    return torch.stack([value, value * offset / second, bend], 1)


@cache
def _weights(sigma: float, truncate: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the weights of a scale, ``(radius + 1, 3)`` and ``(reach + 1,)`` float32.

    They are kept where they are used, so that no call but the first waits for a GPU.
    """
    inner, outer = derivative_weights(sigma, truncate), derivative_weights(sigma * OUTER, truncate)[:, 0]
    return inner.to(device, torch.float32), outer.to(device, torch.float32).contiguous()


def _run(planes: Tensor, sigmas: list[float], features: list[str], truncate: float, out: Tensor) -> None:
    """Write the features of ``(B, C, H, W)`` to `out` in the form that `choose` names."""
    if out.numel() == 0:
        return
    radius = _radius(max(sigmas), truncate)
    readable = planes if planes.dtype in (torch.uint8, torch.float32) else planes.to(torch.float32)
    form = choose(planes, covered=can_filter(readable, out, radius=radius))
    if form == "torch":
        out.copy_(filter_bank_reference(planes, sigmas=sigmas, features=features, truncate=truncate))
        return
    first = dict(zip(features, accumulate((FEATURES[name] for name in features), initial=0), strict=False))
    places = [first.get(name, -1) for name in FEATURES]
    weights = [_weights(sigma, truncate, planes.device) for sigma in sigmas]
    per_scale = sum(FEATURES[name] for name in features)
    if form == "triton":
        from dhlab.kernels._triton.filters import filter_bank_triton

        filter_bank_triton(readable, weights=weights, places=places, per_scale=per_scale, out=out)
    else:
        filter_bank_cpu(readable, weights=weights, places=places, per_scale=per_scale, out=out)


OPERATOR = register(
    "filter_bank(Tensor planes, float[] sigmas, str[] features, float truncate, Tensor(a!) out) -> ()", _run
)


def _check(sigmas: Sequence[float], features: Sequence[str], truncate: float) -> None:
    if not sigmas or not all(LEAST_SIGMA <= sigma < float("inf") for sigma in sigmas):
        raise BadValueError(f"sigmas {tuple(sigmas)}; expected standard deviations of {LEAST_SIGMA} pixels or more.")
    if not 0 < truncate < float("inf"):
        raise BadValueError(f"truncate={truncate}; expected how many standard deviations the weights reach, such as 4.")
    if not features or len(set(features)) < len(features):
        raise BadValueError(f"features {tuple(features)}; expected some of {', '.join(FEATURES)}, each once.")
    for name in features:
        if name not in FEATURES:
            raise UnknownNameError(f"no feature {name!r}.{suggest(name, FEATURES)}")


def _radius(sigma: float, truncate: float) -> int:
    return max(1, int(truncate * sigma + 0.5))


def _mix(planes: Tensor) -> Tensor:
    """Return the luminance of ``(B, 3, H, W)`` as ``(B, 1, H, W)``, float32 or float64."""
    if planes.shape[1] != len(LUMINANCE):
        raise BadShapeError(f"luminance of {planes.shape[1]} channels; expected red, green and blue.")
    red, green, blue = planes.to(torch.promote_types(planes.dtype, torch.float32)).unbind(1)
    return (red * LUMINANCE[0] + green * LUMINANCE[1] + blue * LUMINANCE[2]).unsqueeze(1)


def _correlate(planes: Tensor, weights: Tensor, *, axis: int, odd: bool = False) -> Tensor:
    """Correlate one axis with weights given from the centre outwards; beyond the border lies the border."""
    size, radius = planes.shape[axis], len(weights) - 1
    index = torch.arange(-radius, size + radius, device=planes.device).clamp(0, size - 1)
    padded = planes.index_select(axis, index)
    whole = torch.cat(
        [weights.flip(0)[:-1] * (-1 if odd else 1), weights * (torch.arange(radius + 1) > 0 if odd else 1)]
    )
    shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
    kernel = whole.to(planes).reshape(shape)
    return torch.nn.functional.conv2d(padded.flatten(0, 1)[:, None], kernel).reshape(planes.shape)


def _eigenvalues(xx: Tensor, xy: Tensor, yy: Tensor) -> list[Tensor]:
    """Return the larger and the smaller eigenvalue of the symmetric matrices ``(xx, xy; xy, yy)``, ``(B, C, H, W)``."""
    half = (xx - yy) / 2
    # ONNX knows no hypot.
    middle, spread = (xx + yy) / 2, (half * half + xy * xy).sqrt()
    return [middle + spread, middle - spread]
