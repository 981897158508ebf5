"""Segmentation losses: sums per sample and class, then the gradient from the slopes of the loss by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dhlab.kernels._triton.arithmetic import ex2, lg2

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels.losses import LossTerms

__all__ = ["loss_gradient_triton", "loss_triton"]

BLOCK = 1024
# Samples, and parts of a sample, that are summed at once.
ROWS = 32
# Up to so many classes a loop over them is written out.
MOST_UNROLLED = 8
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEAST = tl.constexpr(6e-8)  # of 1 - p, half a unit in the last place of 1


@triton.jit
def read_target(targets_ptr, inside, offset, ignored, KNOWN, IGNORES: tl.constexpr):
    """Return a target, and whether it counts."""
    target = tl.load(targets_ptr + offset, mask=inside, other=0)
    if target.dtype != tl.int64:
        target = target.to(tl.int32)
    counts = inside & (target >= 0) & (target < KNOWN)
    if IGNORES:
        counts = counts & (target != ignored)
    return target.to(tl.int32), counts


@triton.jit
def read_logit(logits_ptr, inside, offset, c, step):
    return tl.load(logits_ptr + tl.cast(c, tl.int64) * step + offset, mask=inside, other=0).to(tl.float32)


@triton.jit
def largest(logits_ptr, inside, offset, step, CLASSES, UNROLL: tl.constexpr, BLOCK: tl.constexpr):
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    for c in tl.range(CLASSES, loop_unroll_factor=UNROLL):
        most = tl.maximum(most, read_logit(logits_ptr, inside, offset, c, step))
    return most


@triton.jit
def focus(right, gamma):
    """Return (1 - p)^gamma and its slope by log p, without the sign."""
    missed = lg2(tl.maximum(1 - right, LEAST))
    power = ex2(gamma * missed)
    return power, gamma * right * ex2((gamma - 1) * missed)


@triton.jit
def sigmoid_parts(x):
    """Return the chance of 1, that of 0, and the losses of a target of 1 and of 0."""
    e = ex2(-tl.abs(x) * LOG2E)
    share = 1 / (1 + e)
    above = tl.maximum(x, 0) + lg2(1 + e) * LN2
    return tl.where(x > 0, share, e * share), tl.where(x > 0, e * share, share), above - x, above


@triton.jit
def add_three(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def losses_fwd_kernel(
    logits_ptr,  # (B, C, P) or (B, P, C), float
    targets_ptr,  # (B, P) int; of several labels as the logits
    weights_ptr,  # (C,) float32
    sums_ptr,  # (B, parts, 3 C + 2) float32
    pixels,
    step_pixel,
    step_class,
    ignored,
    smoothing,
    gamma,
    MULTILABEL: tl.constexpr,
    IGNORES: tl.constexpr,
    PLAIN: tl.constexpr,  # neither weights nor smoothing nor focus
    FOCAL: tl.constexpr,
    CLASSES: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < pixels - part * BLOCK
    offset = lane * step_pixel
    logits_ptr += sample * CLASSES * pixels + part * BLOCK * step_pixel
    sums = sums_ptr + (sample * tl.num_programs(0) + part) * (3 * CLASSES + 2)
    entropy = tl.zeros([BLOCK], tl.float32)
    counted = tl.zeros([BLOCK], tl.float32)
    if MULTILABEL:
        targets_ptr += sample * CLASSES * pixels + part * BLOCK * step_pixel
        for c in range(CLASSES):
            labels_ptr = targets_ptr + tl.cast(c, tl.int64) * step_class
            target, counts = read_target(labels_ptr, inside, offset, ignored, 2, IGNORES)
            x = read_logit(logits_ptr, inside, offset, c, step_class)
            chance, _, below, above = sigmoid_parts(x)
            truth, weight = target.to(tl.float32), tl.load(weights_ptr + c)
            if FOCAL:
                power = ex2(tl.where(target > 0, above, below) * (-LOG2E) * gamma)
                loss = power * tl.where(target > 0, weight * below, above)
            else:
                smoothed = truth * (1 - smoothing) + smoothing / 2
                loss = smoothed * weight * below + (1 - smoothed) * above
            entropy += tl.where(counts, loss, 0)
            counted += counts.to(tl.float32)
            chance, truth = tl.where(counts, chance, 0), tl.where(counts, truth, 0)
            both, chances, size = tl.reduce((chance * truth, chance, truth), 0, add_three)
            tl.store(sums + c, both)
            tl.store(sums + CLASSES + c, chances)
            tl.store(sums + 2 * CLASSES + c, size)
    else:
        labels_ptr = targets_ptr + sample * pixels + part * BLOCK
        target, counts = read_target(labels_ptr, inside, lane, ignored, CLASSES, IGNORES)
        most = largest(logits_ptr, inside, offset, step_class, CLASSES, UNROLL, BLOCK)
        scaled = most * LOG2E
        total = tl.zeros([BLOCK], tl.float32)
        own = tl.zeros([BLOCK], tl.float32)
        for c in tl.range(CLASSES, loop_unroll_factor=UNROLL):
            x = read_logit(logits_ptr, inside, offset, c, step_class)
            total += ex2(x * LOG2E - scaled)
            own = tl.where(target == c, x, own)
        share = tl.where(counts, 1 / total, 0)
        normaliser = most + lg2(total) * LN2
        loss = normaliser - own
        if FOCAL:
            power, _ = focus(ex2(-loss * LOG2E), gamma)
            loss *= power
        if not PLAIN:
            loss *= tl.load(weights_ptr + target, mask=counts, other=0) * (1 - smoothing)
        for c in tl.range(CLASSES, loop_unroll_factor=UNROLL):
            x = read_logit(logits_ptr, inside, offset, c, step_class)
            chance = ex2(x * LOG2E - scaled) * share
            if not PLAIN:
                loss += smoothing / CLASSES * tl.load(weights_ptr + c) * (normaliser - x)
            truth = (counts & (target == c)).to(tl.float32)
            both, chances, size = tl.reduce((chance * truth, chance, truth), 0, add_three)
            tl.store(sums + c, both)
            tl.store(sums + CLASSES + c, chances)
            tl.store(sums + 2 * CLASSES + c, size)
        entropy = tl.where(counts, loss, 0)
        counted = counts.to(tl.float32)
    tl.store(sums + 3 * CLASSES, tl.sum(entropy))
    tl.store(sums + 3 * CLASSES + 1, tl.sum(counted))


@triton.jit
def losses_gather_kernel(partial_ptr, sums_ptr, parts, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum the parts of a sample, always in the same order: (B, parts, width) to (B, width)."""
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)[None, :]
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, parts, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < parts) & (column < width)
        sums += tl.load(partial_ptr + (sample * parts + row) * width + column, mask=inside, other=0)
    column = tl.arange(0, WIDTH)
    tl.store(sums_ptr + sample * width + column, tl.sum(sums, 0), mask=column < width)


@triton.jit
def losses_finish_kernel(
    sums_ptr,  # (B, 3 C + 2) float32
    weights_ptr,  # (C,) float32
    samples_ptr,  # (B,) float32
    factors_ptr,  # (C,) float32, of the overlap
    slopes_ptr,  # (B, 2 C + 1) float32
    loss_ptr,  # () float32
    samples,
    classes,
    first,
    alpha,
    beta,
    exponent,
    above,
    below,
    of_overlap,
    of_entropy,
    MULTILABEL: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    PRESENT_ONLY: tl.constexpr,
    PLAIN_EXPONENT: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Turn the sums into the loss and its slopes by them; one program."""
    c = tl.arange(0, CLASSES)[None, :]
    known = c < classes
    weight = tl.load(weights_ptr + c, mask=known, other=0)
    factor = tl.load(factors_ptr + c, mask=known & (c >= first), other=0)
    joint_both = tl.zeros([1, CLASSES], tl.float32)
    joint_chances = tl.zeros([1, CLASSES], tl.float32)
    joint_sizes = tl.zeros([1, CLASSES], tl.float32)
    entropy = 0.0
    counted = 0.0
    members = 0.0
    for begin in range(0, samples, ROWS):
        b = begin + tl.arange(0, ROWS)[:, None]
        row = sums_ptr + b * (3 * classes + 2)
        share = tl.load(samples_ptr + b, mask=b < samples, other=0)
        inside = (b < samples) & known
        sizes = tl.load(row + 2 * classes + c, mask=inside, other=0)
        joint_both += tl.sum(share * tl.load(row + c, mask=inside, other=0), 0, keep_dims=True)
        joint_chances += tl.sum(share * tl.load(row + classes + c, mask=inside, other=0), 0, keep_dims=True)
        joint_sizes += tl.sum(share * sizes, 0, keep_dims=True)
        entropy += tl.sum(share * tl.load(row + 3 * classes, mask=b < samples, other=0))
        if MULTILABEL:
            counted += tl.sum(share * tl.load(row + 3 * classes + 1, mask=b < samples, other=0))
        else:
            counted += tl.sum(share * sizes * weight)
        member = inside & (c >= first)
        if PRESENT_ONLY:
            member = member & (sizes > 0)
        members += tl.sum(tl.where(member, share, 0))
    if not PER_SAMPLE:
        member = known & (c >= first)
        if PRESENT_ONLY:
            member = member & (joint_sizes > 0)
        members = tl.sum(member.to(tl.float32))
    missed = 0.0
    for begin in range(0, samples, ROWS):
        b = begin + tl.arange(0, ROWS)[:, None]
        inside = (b < samples) & known
        share = tl.load(samples_ptr + b, mask=b < samples, other=0)
        if PER_SAMPLE:
            row = sums_ptr + b * (3 * classes + 2)
            both = tl.load(row + c, mask=inside, other=0)
            chances = tl.load(row + classes + c, mask=inside, other=0)
            sizes = tl.load(row + 2 * classes + c, mask=inside, other=0)
        else:
            both = joint_both + tl.zeros([ROWS, CLASSES], tl.float32)
            chances = joint_chances + tl.zeros([ROWS, CLASSES], tl.float32)
            sizes = joint_sizes + tl.zeros([ROWS, CLASSES], tl.float32)
        mixed = 1 - alpha - beta
        numerator = both + above
        denominator = tl.maximum(mixed * both + alpha * chances + beta * sizes + below, 1e-12)
        miss = 1 - numerator / denominator
        slope = tl.full([ROWS, CLASSES], -1.0, tl.float32)
        if not PLAIN_EXPONENT:
            logarithm = lg2(tl.maximum(miss, 1e-7))
            slope = tl.where(miss > 1e-7, -exponent * ex2((exponent - 1) * logarithm), 0)
            miss = ex2(exponent * logarithm)
        member = inside & (c >= first)
        if PRESENT_ONLY:
            member = member & (sizes > 0)
        scale = tl.where(member, of_overlap * factor * share / tl.maximum(members, 1e-12), 0)
        if PER_SAMPLE:
            missed += tl.sum(tl.where(member, scale * miss, 0))
        elif begin == 0:
            once = of_overlap * factor / tl.maximum(members, 1e-12)
            missed += tl.sum(tl.where(member & (b == 0), once * miss, 0))
        scale = tl.where(member, scale * slope / denominator, 0)
        to = slopes_ptr + b * (2 * classes + 1)
        tl.store(to + c, scale * (1 - numerator * mixed / denominator), mask=inside)
        tl.store(to + classes + c, -scale * alpha * numerator / denominator, mask=inside)
        tl.store(to + 2 * classes, of_entropy * share / tl.maximum(counted, 1e-12), mask=b < samples)
    tl.store(loss_ptr, missed + of_entropy * entropy / tl.maximum(counted, 1e-12))


@triton.jit
def losses_bwd_kernel(
    logits_ptr,  # (B, C, P) or (B, P, C), float
    targets_ptr,  # (B, P) int; of several labels as the logits
    weights_ptr,  # (C,) float32
    slopes_ptr,  # (B, 2 C + 1) float32
    gradient_ptr,  # as the logits
    pixels,
    step_pixel,
    step_class,
    ignored,
    smoothing,
    gamma,
    MULTILABEL: tl.constexpr,
    IGNORES: tl.constexpr,
    PLAIN: tl.constexpr,
    FOCAL: tl.constexpr,
    CLASSES: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < pixels - part * BLOCK
    offset = lane * step_pixel
    logits_ptr += sample * CLASSES * pixels + part * BLOCK * step_pixel
    gradient_ptr += sample * CLASSES * pixels + part * BLOCK * step_pixel
    slopes = slopes_ptr + sample * (2 * CLASSES + 1)
    of_entropy = tl.load(slopes + 2 * CLASSES)
    if MULTILABEL:
        targets_ptr += sample * CLASSES * pixels + part * BLOCK * step_pixel
        for c in range(CLASSES):
            labels_ptr = targets_ptr + tl.cast(c, tl.int64) * step_class
            target, counts = read_target(labels_ptr, inside, offset, ignored, 2, IGNORES)
            x = read_logit(logits_ptr, inside, offset, c, step_class)
            chance, rest, below, above = sigmoid_parts(x)
            weight = tl.load(weights_ptr + c)
            if FOCAL:
                wrong = tl.where(target > 0, rest, chance)
                loss = tl.where(target > 0, below, above)
                power = ex2(tl.where(target > 0, above, below) * (-LOG2E) * gamma)
                by_entropy = power * (gamma * (1 - wrong) * loss + wrong) * tl.where(target > 0, -weight, 1)
            else:
                smoothed = target.to(tl.float32) * (1 - smoothing) + smoothing / 2
                by_entropy = (1 - smoothed) * chance - smoothed * weight * rest
            by_overlap = tl.load(slopes + CLASSES + c) + tl.where(target > 0, tl.load(slopes + c), 0)
            value = tl.where(counts, chance * rest * by_overlap + of_entropy * by_entropy, 0)
            value = value.to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + tl.cast(c, tl.int64) * step_class + offset, value, mask=inside)
    else:
        labels_ptr = targets_ptr + sample * pixels + part * BLOCK
        target, counts = read_target(labels_ptr, inside, lane, ignored, CLASSES, IGNORES)
        most = largest(logits_ptr, inside, offset, step_class, CLASSES, UNROLL, BLOCK)
        scaled = most * LOG2E
        total = tl.zeros([BLOCK], tl.float32)
        inner = tl.zeros([BLOCK], tl.float32)
        own = tl.zeros([BLOCK], tl.float32)
        spread = 0.0
        for c in tl.range(CLASSES, loop_unroll_factor=UNROLL):
            x = read_logit(logits_ptr, inside, offset, c, step_class)
            chance = ex2(x * LOG2E - scaled)
            total += chance
            inner += chance * tl.load(slopes + CLASSES + c)
            own = tl.where(target == c, chance, own)
            if not PLAIN:
                spread += tl.load(weights_ptr + c)
        share = tl.where(counts, 1 / total, 0)
        towards = tl.where(counts, of_entropy, 0)
        inner = (inner + own * tl.load(slopes + target, mask=counts, other=0)) * share
        even = towards * (smoothing / CLASSES)
        if FOCAL:
            right = own * share
            power, slope = focus(right, gamma)
            towards *= power - slope * lg2(tl.maximum(right, 1e-37)) * LN2
        if not PLAIN:
            towards *= tl.load(weights_ptr + target, mask=counts, other=0) * (1 - smoothing)
            inner -= even * spread
        shift = towards - inner
        for c in tl.range(CLASSES, loop_unroll_factor=UNROLL):
            x = read_logit(logits_ptr, inside, offset, c, step_class)
            chance = ex2(x * LOG2E - scaled) * share
            by_overlap = tl.load(slopes + CLASSES + c) + shift
            value = chance * by_overlap
            value += tl.where(target == c, chance * tl.load(slopes + c) - towards, 0)
            if not PLAIN:
                value -= even * tl.load(weights_ptr + c)
            value = value.to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + tl.cast(c, tl.int64) * step_class + offset, value, mask=inside)


def loss_triton(
    logits: Tensor,
    targets: Tensor,
    terms: LossTerms,
    *,
    class_weights: Tensor | None,
    sample_weights: Tensor | None,
    overlap_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the loss, a scalar, and its slopes by the sums of each sample, ``(B, 2 C + 1)`` float32."""
    samples, classes = logits.shape[:2]
    parts, width = triton.cdiv(logits[0, 0].numel(), BLOCK), 3 * classes + 2
    shapes = ((samples, parts, width), (samples, width), (samples, 2 * classes + 1), ())
    partial, sums, slopes, loss = (torch.empty(shape, device=logits.device) for shape in shapes)
    weights = _ones_for(class_weights, classes, logits)
    numbers, options = _describe(logits, terms, class_weights)
    losses_fwd_kernel[parts, samples](logits, targets, weights, partial, *numbers, **options)
    losses_gather_kernel[(samples,)](
        partial, sums, parts, width, ROWS=ROWS, WIDTH=triton.next_power_of_2(width), num_warps=4
    )
    losses_finish_kernel[(1,)](
        sums,
        weights,
        _ones_for(sample_weights, samples, logits),
        _ones_for(overlap_weights, classes, logits),
        slopes,
        loss,
        samples,
        classes,
        terms.first,
        terms.alpha,
        terms.beta,
        terms.exponent,
        terms.smooth_above,
        terms.smooth_below,
        terms.overlap,
        terms.entropy,
        MULTILABEL=terms.multilabel,
        PER_SAMPLE=terms.per_sample,
        PRESENT_ONLY=terms.present_only,
        PLAIN_EXPONENT=terms.exponent == 1,
        ROWS=ROWS,
        CLASSES=triton.next_power_of_2(classes),
    )
    return loss, slopes


def loss_gradient_triton(
    logits: Tensor, targets: Tensor, terms: LossTerms, *, class_weights: Tensor | None, slopes: Tensor
) -> Tensor:
    """Return the gradient, as the logits; `slopes` as `loss_triton` returned them, times the gradient of the loss."""
    gradient = torch.empty_like(logits)
    samples, classes = logits.shape[:2]
    weights = _ones_for(class_weights, classes, logits)
    numbers, options = _describe(logits, terms, class_weights)
    grid = (triton.cdiv(logits[0, 0].numel(), BLOCK), samples)
    losses_bwd_kernel[grid](logits, targets, weights, slopes, gradient, *numbers, **options)
    return gradient


def _ones_for(weights: Tensor | None, size: int, logits: Tensor) -> Tensor:
    return torch.ones(size, device=logits.device) if weights is None else weights.to(logits.device, torch.float32)


def _describe(
    logits: Tensor, terms: LossTerms, class_weights: Tensor | None
) -> tuple[tuple[float, ...], dict[str, bool | int]]:
    classes, pixels = logits.shape[1], logits[0, 0].numel()
    steps = (1, pixels) if logits.is_contiguous() else (classes, 1)
    numbers = (pixels, *steps, terms.ignore_index or 0, terms.label_smoothing, terms.gamma)
    options = {
        "MULTILABEL": terms.multilabel,
        "IGNORES": terms.ignore_index is not None,
        "PLAIN": class_weights is None and terms.label_smoothing == 0,
        "FOCAL": terms.gamma > 0,
        "CLASSES": classes,
        "UNROLL": classes if classes <= MOST_UNROLLED else 1,
        "BLOCK": BLOCK,
    }
    return numbers, options
