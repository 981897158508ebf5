"""Geometry, stain, colour, noise and normalisation of a batch of RGB tiles in one pass, masks moved alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch

from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.augment import augment_cpu, augment_masks_cpu
from dhlab.kernels._operators import register
from dhlab.kernels.density import StainMap, through_density_reference
from dhlab.kernels.philox import Stream, philox, uniform
from dhlab.kernels.plan import STAGES, Plan, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["augment", "augment_reference"]

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
MASK_TYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Beyond this, positions have no fraction worth speaking of in float32; no picture is larger either.
FARTHEST = 2.0**22
CUBIC = -0.75
LARGE_BLUR = 8


@overload
def augment(
    images: Tensor,
    plan: Plan,
    masks: None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channel_axis: int = -1,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
    masks_out: None = None,
) -> Tensor: ...
@overload
def augment(
    images: Tensor,
    plan: Plan,
    masks: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channel_axis: int = -1,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
    masks_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


def augment(
    images: Tensor,
    plan: Plan,
    masks: Tensor | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channel_axis: int = -1,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
    masks_out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Carry out a `Plan` on a batch of RGB pictures and their masks, each in one pass over memory.

    The result depends on each sample and its row of the plan alone: the same on any split into batches, any number of
    threads and, within a rounding, on CPU and GPU. Masks are equal everywhere.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8, any strides.
    plan
        What to do, for B samples, on the device of `images`.
    masks
        ``(B, H, W)`` or ``(B, K, H, W)`` of any integer type or bool, moved by the same map, never blended.
    mean, std
        Three each, in 0..1: light becomes ``(light - mean) / std``; None leaves light in 0..1.
    dtype
        Type of the result: float32, bfloat16, float16, or uint8 (light times 255, rounded to even).
    channel_axis
        Where the channels of `images` are: -1 (last) or 1.
    memory_format
        ``torch.contiguous_format`` or ``torch.channels_last`` of the result.
    out
        ``(B, 3, *plan.size)`` of `dtype` to write to, dense with channels first or last; `memory_format` is then what
        it has. Reuse it: fresh memory costs more than the arithmetic.
    masks_out
        ``(B, *plan.size)`` or ``(B, K, *plan.size)`` of the type of `masks`, contiguous, to write to.

    Returns
    -------
    Tensor or tuple of Tensor
        ``(B, 3, *plan.size)`` of `dtype`; with `masks` also ``(B, *plan.size)`` or ``(B, K, *plan.size)``.

    Raises
    ------
    BadShapeError
        If images, plan, masks and what to write to do not fit each other.
    BadValueError
        If the plan lies on another device than the images, or a type or a mean is not one of those above.
    """
    moved = _channels_first(images, channel_axis)
    _check(moved, plan, masks)
    if dtype not in TYPES or memory_format not in LAYOUTS:
        raise BadValueError(f"dtype {dtype}, {memory_format}; expected one of {TYPES} and one of {LAYOUTS}.")
    if mean is not None and dtype == torch.uint8:
        raise BadValueError("a uint8 result cannot be normalised; expected a float dtype, or mean and std of None.")
    ending = _ending(mean, std, images.device)
    shape = (len(images), 3, *plan.size)
    out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format) if out is None else out
    if out.shape != shape or out.dtype != dtype or out.device != images.device or not _is_dense(out):
        raise BadShapeError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, strides {out.stride()}; expected {shape} {dtype} "
            f"on {images.device}, dense with channels first or last."
        )
    if out.numel():
        OPERATOR(moved, *_arguments(plan), ending, out)
    if masks is None:
        return out
    shape = (*masks.shape[:-2], *plan.size)
    masks_out = torch.empty(shape, dtype=masks.dtype, device=masks.device) if masks_out is None else masks_out
    if masks_out.shape != shape or masks_out.dtype != masks.dtype or not masks_out.is_contiguous():
        raise BadShapeError(
            f"masks_out is {tuple(masks_out.shape)} {masks_out.dtype}; expected {shape} {masks.dtype}, contiguous."
        )
    if masks_out.numel():
        planes = (len(masks), -1)
        MASKS_OPERATOR(
            masks.reshape(*planes, *masks.shape[-2:]) if masks.ndim == 3 else masks,
            plan.pack(),
            plan.field,
            plan.border,
            plan.geometry or "projective",
            plan.mask_fill,
            masks_out.view(*planes, *plan.size),
        )
    return out, masks_out


def augment_reference(
    images: Tensor,
    plan: Plan,
    masks: Tensor | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channel_axis: int = -1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Say in plain PyTorch what `augment` does: the specification of every stage of a `Plan`.

    Positions, dropped cells and uniform numbers are float32 by definition; all else is computed in float64 where
    `dtype` is, else in float32.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8.
    plan
        What to do, for B samples.
    masks
        ``(B, H, W)`` or ``(B, K, H, W)`` of any integer type or bool.
    mean, std
        Three each, in 0..1; None leaves light in 0..1.
    dtype
        Type of the result: any float or uint8.
    channel_axis
        Where the channels of `images` are: -1 or 1.

    Returns
    -------
    Tensor or tuple of Tensor
        ``(B, 3, *plan.size)`` of `dtype`; with `masks` also those, moved.
    """
    moved = _channels_first(images, channel_axis)
    _check(moved, plan, masks)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    light = _change_light(_sample(moved, plan, kind) / 255, plan)
    light = _blur(light, plan)
    if dtype == torch.uint8:
        result = (light * 255).round().to(torch.uint8)
    else:
        scale, shift = _ending(mean, std, images.device, kind).view(2, 3, 1, 1)
        result = (light * scale + shift).to(dtype)
    if masks is None:
        return result
    planes = masks.unsqueeze(1) if masks.ndim == 3 else masks
    return result, _move_masks(planes, plan).reshape(*masks.shape[:-2], *plan.size)


def _channels_first(images: Tensor, channel_axis: int) -> Tensor:
    if images.ndim != 4 or channel_axis not in (1, -1, 3) or images.shape[channel_axis] != 3:
        raise BadShapeError(
            f"images {tuple(images.shape)} with channels on axis {channel_axis}; expected (B, H, W, 3), or "
            "(B, 3, H, W) with channel_axis=1."
        )
    return images.movedim(channel_axis, 1)


def _check(images: Tensor, plan: Plan, masks: Tensor | None) -> None:
    batch, _, height, width = images.shape
    if (
        images.dtype != torch.uint8
        or len(plan) != batch
        or not 1 <= min(height, width) <= max(height, width) < FARTHEST
    ):
        raise BadShapeError(
            f"{batch} images of {height} × {width} {images.dtype}, a plan for {len(plan)}; expected uint8 images of at "
            f"least 1 × 1 and as many samples in the plan."
        )
    if plan.device != images.device:
        raise BadValueError(f"the plan is on {plan.device}, the images are on {images.device}; use plan.to(device).")
    if masks is None:
        return
    if masks.ndim not in (3, 4) or len(masks) != batch or masks.shape[-2:] != (height, width):
        raise BadShapeError(
            f"masks {tuple(masks.shape)} beside images of {height} × {width}; expected ({batch}, {height}, {width}) or "
            f"({batch}, K, {height}, {width})."
        )
    if masks.dtype not in MASK_TYPES or masks.device != images.device:
        raise BadShapeError(f"masks are {masks.dtype} on {masks.device}; expected integers on {images.device}.")


def _ending(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ``(6,)``: three factors and three offsets that make the result of light."""
    if mean is None and std is None:
        return torch.tensor((1.0, 1.0, 1.0, 0.0, 0.0, 0.0), device=device, dtype=dtype)
    if mean is None or std is None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise BadValueError(f"mean {mean}, std {std}; expected three numbers each, std above 0, or neither.")
    factors = [*(1 / s for s in std), *(-m / s for m, s in zip(mean, std, strict=True))]
    return torch.tensor(factors, device=device, dtype=dtype)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def _arguments(plan: Plan) -> tuple[object, ...]:
    """Return what the operator takes of a plan, in its order."""
    stain = plan.stain
    return (
        plan.pack(),
        plan.keys,
        plan.field,
        plan.table,
        plan.cutouts,
        None if plan.poisson is None else plan.poisson_table(),
        [name for name in STAGES if getattr(plan, name) is not None],
        plan.interpolation,
        plan.border,
        plan.geometry or "projective",
        plan.supersample,
        [plan.noise_per_channel, plan.dropout_per_channel, stain is not None and stain.before is not None],
        [stain.offset, stain.least] if stain is not None else [0.0, 1.0],
    )


def _run(
    images: Tensor,
    block: Tensor,
    keys: Tensor,
    field: Tensor | None,
    table: Tensor | None,
    cutouts: Tensor | None,
    counts: Tensor | None,
    stages: list[str],
    interpolation: str,
    border: str,
    geometry: str,
    supersample: int,
    switches: list[bool],
    logarithm: list[float],
    ending: Tensor,
    out: Tensor,
) -> None:
    """Write augmented `images`, ``(B, 3, H, W)``, to `out` in the form that `choose` names."""
    form = choose(images)
    if form != "torch":
        large = {"field": field, "table": table, "cutouts": cutouts, "counts": counts}
        common: dict[str, Any] = {
            "keys": keys,
            "large": large,
            "stages": stages,
            "interpolation": interpolation,
            "border": border,
        }
        common |= {"supersample": supersample, "switches": switches, "logarithm": logarithm, "ending": ending}
        if form == "triton":
            from dhlab.kernels._triton.augment import augment_triton

            augment_triton(images, block, geometry=geometry, out=out, **common)
        else:
            augment_cpu(images, block, out=out, **common)
        return
    parts = unpack(block)
    stain = None
    if "stain" in stages:
        around = {name: parts[name] for name in ("before", "after")} if switches[2] else {}
        matrices = {name: parts[name] for name in ("unmix", "mix", "floor")}
        stain = StainMap(**matrices, **around, offset=logarithm[0], least=logarithm[1])
    own = {"table": table, "cutouts": cutouts, "stain": stain}
    plan = Plan(
        (out.shape[2], out.shape[3]),
        parts["matrix"],
        keys,
        interpolation=interpolation,
        border=border,
        supersample=supersample,
        field=field,
        fill=parts["fill"],
        noise_per_channel=switches[0],
        dropout_per_channel=switches[1],
        geometry=geometry,
        **{name: own.get(name, parts.get(name)) for name in stages},  # type: ignore[arg-type] # names of fields
    )
    light = _blur(_change_light(_sample(images, plan, torch.float32) / 255, plan), plan)
    if out.dtype == torch.uint8:
        out.copy_((light * 255).round())
    else:
        scale, shift = ending.view(2, 3, 1, 1)
        out.copy_(light * scale + shift)


OPERATOR = register(
    "augment(Tensor images, Tensor block, Tensor keys, Tensor? field, Tensor? table, Tensor? cutouts, Tensor? counts, "
    "str[] stages, str interpolation, str border, str geometry, int supersample, bool[] switches, float[] logarithm, "
    "Tensor ending, Tensor(a!) out) -> ()",
    _run,
)


def _run_masks(
    masks: Tensor, block: Tensor, field: Tensor | None, border: str, geometry: str, fill: int, out: Tensor
) -> None:
    """Write moved `masks`, ``(B, K, H, W)``, to `out` in the form that `choose` names."""
    form = choose(masks)
    if form == "triton":
        from dhlab.kernels._triton.augment import augment_masks_triton

        augment_masks_triton(masks, block, field=field, border=border, geometry=geometry, fill=fill, out=out)
        return
    if form == "cpu":
        augment_masks_cpu(masks, block, field=field, border=border, fill=fill, out=out)
        return
    matrix = unpack(block)["matrix"]
    size = (out.shape[2], out.shape[3])
    keys = torch.zeros(len(matrix), dtype=torch.int64, device=matrix.device)
    out.copy_(
        _move_masks(masks, Plan(size, matrix, keys, border=border, field=field, mask_fill=fill, geometry=geometry))
    )


MASKS_OPERATOR = register(
    "augment_masks(Tensor masks, Tensor block, Tensor? field, str border, str geometry, int fill, "
    "Tensor(a!) out) -> ()",
    _run_masks,
)


def _positions(plan: Plan, dy: float = 0.0, dx: float = 0.0) -> Tensor:
    """Return ``(B, 2, *size)`` float32: where each output pixel, moved by ``(dy, dx)``, lies in the source."""
    matrix = plan.matrix[..., None, None]  # (B, 3, 3, 1, 1)
    y, x = (torch.arange(n, device=plan.device, dtype=torch.float32) for n in plan.size)
    y, x = y.add(dy).unsqueeze(1), x.add(dx)
    rows = matrix[:, :, 0] * y + matrix[:, :, 2]  # (B, 3, H, 1)
    position = matrix[:, :, 1] * x + rows  # (B, 3, H, W)
    position = position[:, :2] / position[:, 2:]
    if plan.field is not None:
        position = position + _displacement(plan.field, y, x, plan.size)
    return position.nan_to_num(nan=-FARTHEST).clamp(-FARTHEST, FARTHEST)


def _displacement(field: Tensor, y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate the nodes of ``(B, 2, gh, gw)`` at ``(H, 1)`` rows and ``(W,)`` columns."""
    near, far, share = [], [], []
    for place, nodes, n in ((y, field.shape[2], size[0]), (x, field.shape[3], size[1])):
        step = torch.tensor((nodes - 1) / max(n - 1, 1), dtype=torch.float32, device=field.device)
        at = (place * step).clamp(0, nodes - 1)
        low = at.floor().clamp_max(nodes - 2)
        near.append(low.long())
        far.append(low.long() + 1)
        share.append(at - low)
    top, bottom = (
        (left := field[:, :, row, near[1]]) + (field[:, :, row, far[1]] - left) * share[1] for row in (near[0], far[0])
    )  # (B, 2, H, W)
    return top + (bottom - top) * share[0]


def _fold(index: Tensor, length: int, border: str) -> Tensor:
    """Bring indices of any size into 0..length-1."""
    if border in ("constant", "replicate"):
        return index.clamp(0, length - 1)
    if border == "wrap":
        return index.remainder(length)
    if border == "reflect":
        index = index.remainder(2 * length)
        return torch.minimum(index, 2 * length - 1 - index)
    index = index.remainder(max(2 * length - 2, 1))
    return torch.minimum(index, (2 * length - 2 - index).clamp_min(0))


def _pixels(source: Tensor, y: Tensor, x: Tensor, *, border: str, fill: Tensor) -> Tensor:
    """Return the pixels of ``(B, K, H, W)`` at whole positions ``(B, *size)``; `fill` is ``(B, K)``."""
    height, width = source.shape[2:]
    rows, columns = y.long(), x.long()
    index = _fold(rows, height, border) * width + _fold(columns, width, border)
    index = index.flatten(1).unsqueeze(1).expand(-1, source.shape[1], -1)
    found = source.flatten(2).gather(2, index).view(*source.shape[:2], *y.shape[1:])
    if border != "constant":
        return found
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside.unsqueeze(1), found, fill[..., None, None])


def _weights(share: Tensor, interpolation: str) -> list[tuple[int, Tensor]]:
    """Return offsets from the pixel below a position, and the weight of the pixel there."""
    if interpolation == "bilinear":
        return [(0, 1 - share), (1, share)]
    weights = []
    for offset in (-1, 0, 1, 2):
        t = (share - offset).abs()
        inner = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
        outer = ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC
        weights.append((offset, inner if offset in (0, 1) else outer))
    return weights


def _sample(source: Tensor, plan: Plan, kind: torch.dtype) -> Tensor:
    """Return grey levels ``(B, 3, *size)`` of type `kind`."""
    fill = torch.zeros_like(plan.matrix[:, 0]) if plan.fill is None else plan.fill
    source, fill, border = source.to(kind), fill.to(kind), plan.border
    total = source.new_zeros(len(plan), 3, *plan.size)
    offsets = [(2 * step + 1 - plan.supersample) / (2 * plan.supersample) for step in range(plan.supersample)]
    for dy in offsets:
        for dx in offsets:
            y, x = _positions(plan, dy, dx).unbind(1)
            if plan.interpolation == "nearest":
                total += _pixels(source, (y + 0.5).floor(), (x + 0.5).floor(), border=border, fill=fill)
                continue
            below_y, below_x = y.floor(), x.floor()
            for j, weight_y in _weights((y - below_y).to(kind), plan.interpolation):
                for i, weight_x in _weights((x - below_x).to(kind), plan.interpolation):
                    pixels = _pixels(source, below_y + j, below_x + i, border=border, fill=fill)
                    total += pixels * (weight_y * weight_x).unsqueeze(1)
    return (total / plan.supersample**2).clamp(0, 255)


def _move_masks(masks: Tensor, plan: Plan) -> Tensor:
    """Return ``(B, K, *size)`` of ``(B, K, H, W)``, each pixel the nearest of the source."""
    y, x = _positions(plan).unbind(1)
    fill = torch.full(masks.shape[:2], plan.mask_fill, dtype=masks.dtype, device=masks.device)
    return _pixels(masks, (y + 0.5).floor(), (x + 0.5).floor(), border=plan.border, fill=fill)


def _change_light(light: Tensor, plan: Plan) -> Tensor:
    """Run all stages that look at one pixel alone on ``(B, 3, H, W)``."""
    kind = light.dtype
    if plan.table is not None:
        level = (light * 255).round().long().flatten(2)
        light = plan.table.to(kind).gather(2, level).view_as(light) / 255
    if plan.stain is not None:
        light = through_density_reference(light, plan.stain).clamp(0, 1)
    if plan.colour is not None:
        matrix = plan.colour.to(kind)
        light = (matrix[..., :3] @ light.flatten(2) + matrix[..., 3:]).clamp(0, 1).view_as(light)
    if plan.gamma is not None:
        light = light ** _spread(plan.gamma, light)
    noise = _noise(light, plan)
    light = light if noise is None else (light + noise).clamp(0, 1)
    for name, value in (("salt", 1.0), ("pepper", 0.0)):
        if (chance := getattr(plan, name)) is not None:
            words = _words(plan, Stream[name.upper()], per_channel=plan.noise_per_channel)
            light = light.masked_fill(uniform(words) < chance.double()[:, None, None, None], value)
    return _fill_in(light, plan)


def _noise(light: Tensor, plan: Plan) -> Tensor | None:
    """Return what noise adds to ``(B, 3, H, W)``, in light; None where there is none."""
    noise = None
    for name in ("gaussian", "laplace", "poisson"):
        if (strength := getattr(plan, name)) is None:
            continue
        words = _words(plan, Stream[name.upper()], per_channel=plan.noise_per_channel)
        u = uniform(words)
        if name == "gaussian":
            part = torch.special.ndtri(u).to(light.dtype) * _spread(strength, light)
        elif name == "laplace":
            part = (2 * torch.minimum(u, 1 - u)).log() * (0.5 - u).sign() / 2**0.5
            part = part.to(light.dtype) * _spread(strength, light)
        else:
            counts = torch.searchsorted(plan.poisson_table(), u.float().flatten(1), right=True).view_as(u)
            part = torch.where(words % 2 == 0, counts, -counts).to(light.dtype) / 255
        noise = part if noise is None else noise + part
    return noise


def _fill_in(light: Tensor, plan: Plan) -> Tensor:
    """Cover dropped cells and boxes of ``(B, 3, H, W)``."""
    fill = torch.zeros_like(plan.matrix[:, 0]) if plan.fill is None else plan.fill
    fill = fill.to(light.dtype)[..., None, None] / 255  # (B, 3, 1, 1)
    y, x = (torch.arange(n, device=light.device, dtype=torch.float32) for n in plan.size)
    if plan.dropout is not None:
        inverse = 1 / plan.dropout[:, 1:].clamp_min(1)  # (B, 2) float32
        cells = [((axis + 0.5) * inverse[:, i : i + 1]).floor().long() for i, axis in enumerate((y, x))]
        words = _words(plan, Stream.DROPOUT, per_channel=plan.dropout_per_channel, places=cells)
        light = torch.where(uniform(words) < plan.dropout[:, :1, None, None].double(), fill, light)
    if plan.cutouts is not None:
        top, left, bottom, right = plan.cutouts.unbind(2)  # (B, R) each
        rows = (y >= top.unsqueeze(2)) & (y < bottom.unsqueeze(2))
        columns = (x >= left.unsqueeze(2)) & (x < right.unsqueeze(2))
        inside = (rows.unsqueeze(3) & columns.unsqueeze(2)).any(1)  # (B, H, W)
        light = torch.where(inside.unsqueeze(1), fill, light)
    return light


def _words(plan: Plan, stream: Stream, *, per_channel: bool, places: Sequence[Tensor] | None = None) -> Tensor:
    """Return 32 random bits, ``(B, 3 or 1, H, W)``: the counter is column, row and stream, the word is the channel."""
    rows, columns = places or [torch.arange(n, device=plan.device).unsqueeze(0) for n in plan.size]  # (B or 1, n)
    words = philox((columns[:, None, :], rows[:, :, None], int(stream), 0), plan.keys[:, None, None])
    return torch.stack(words[: 3 if per_channel else 1], 1).expand(len(plan), -1, *plan.size)


def _spread(values: Tensor, light: Tensor) -> Tensor:
    return values.to(light.dtype)[:, None, None, None]


def _blur(light: Tensor, plan: Plan) -> Tensor:
    """Blur or sharpen ``(B, 3, H, W)``, each sample with its own Gaussian."""
    if plan.blur is None and plan.sharpen is None:
        return light
    zero = torch.zeros_like(plan.matrix[:, 0, 0])
    sharpen = zero if plan.sharpen is None else plan.sharpen
    sigma = (zero if plan.blur is None else plan.blur).to(light.dtype)
    sigma = torch.where((sharpen > 0) & (sigma == 0), torch.ones_like(sigma), sigma)
    reach = 3 * LARGE_BLUR
    offsets = torch.arange(-reach, reach + 1, device=light.device, dtype=light.dtype)
    weights = (-0.5 * (offsets / sigma.clamp_min(1e-6).unsqueeze(1)) ** 2).exp()  # (B, 49)
    weights = weights * (offsets.abs() <= (3 * sigma).ceil().unsqueeze(1))
    weights = weights / weights.sum(1, keepdim=True)
    blurred = light
    for axis in (3, 2):
        place = torch.arange(light.shape[axis], device=light.device)
        parts = (
            blurred.index_select(axis, _fold(place + offset, light.shape[axis], "reflect101"))
            * weights[:, offset + reach, None, None, None]
            for offset in range(-reach, reach + 1)
        )
        blurred = sum(parts, torch.zeros_like(light))
    share = _spread(sharpen, light)
    sharpened = (light + share * (light - blurred)).clamp(0, 1)
    return torch.where(share > 0, sharpened, torch.where(_spread(sigma, light) > 0, blurred, light))
