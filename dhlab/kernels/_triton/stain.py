"""Fits of stains and their application on a GPU: a fixed series of launches, nothing that waits for the host.

A percentile is found without sorting. A sample brackets it; a pass counts what lies below the bracket and in its bins;
 the bin that holds it is the next bracket. A bracket that misses is moved to the side where the value is, so three
rounds end every search; rounds that are not needed return at once. Counts are whole numbers, so their order is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dhlab.kernels._triton import INTERPRETED
from dhlab.kernels._triton.arithmetic import ex2, lg2
from dhlab.kernels._triton.density import multiply, multiply_add, through_density

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["convert_triton", "fit_triton", "map_triton"]

BLOCK = 8192 if INTERPRETED else 512
STEPS = 2 if INTERPRETED else 16  # blocks of one program where it sums or counts
CHANGE_BLOCK = 8192 if INTERPRETED else 1024
SAMPLE, BINS, ROUNDS = 2048, 2048, 3
SEARCH = 5  # low, high, least, most, whether it has ended
SWEEPS = 30
# A search ends when the value is known to this, in pseudo-angles and in amounts of log2 density.
ANGLE, AMOUNT = 2e-5, 2e-4
WIDEST = 8.1  # more than any density in log2
LEAST_PIXELS = 16
LEAST_SPREAD = 1e-3
LEAST_SQUARED_SINE, LEAST_AMOUNT = tl.constexpr(1e-4), tl.constexpr(0.01)
LEAST_LIGHT = tl.constexpr(2.0**-11)
LN2, LG10 = tl.constexpr(0.6931471805599453), tl.constexpr(0.3010299956639812)


@triton.jit
def load_levels(x_ptr, at, channel, mask):
    r = tl.load(x_ptr + at, mask=mask, other=255).to(tl.float32)
    g = tl.load(x_ptr + at + channel, mask=mask, other=255).to(tl.float32)
    b = tl.load(x_ptr + at + 2 * channel, mask=mask, other=255).to(tl.float32)
    return r, g, b


@triton.jit
def is_tissue(r, g, b, limit):
    return tl.maximum(tl.maximum(r, g), b) <= limit


@triton.jit
def to_densities(r, g, b, white):
    return white - lg2(r + 1.0), white - lg2(g + 1.0), white - lg2(b + 1.0)


@triton.jit
def project(axes_ptr, r, g, b):  # (2, 3)
    x = tl.load(axes_ptr) * r + (tl.load(axes_ptr + 1) * g + tl.load(axes_ptr + 2) * b)
    y = tl.load(axes_ptr + 3) * r + (tl.load(axes_ptr + 4) * g + tl.load(axes_ptr + 5) * b)
    return x, y


@triton.jit
def angle_key(x, y):
    """Grow with atan2(y, x) from -pi to pi, from -2 to 2, without a transcendental function."""
    part = x / tl.maximum(tl.abs(x) + tl.abs(y), 1e-30)
    return tl.where(y < 0, part - 1.0, 1.0 - part)


@triton.jit
def join_moments(n, r, g, b, rr, rg, rb, gg, gb, bb):  # (BLOCK,) each to (BLOCK, 16): one reduction for all
    zero = tl.zeros_like(n)
    even = tl.join(tl.join(tl.join(n, gb), tl.join(rr, zero)), tl.join(tl.join(g, zero), tl.join(rb, zero)))
    odd = tl.join(tl.join(tl.join(r, bb), tl.join(rg, zero)), tl.join(tl.join(b, zero), tl.join(gg, zero)))
    return tl.reshape(tl.join(even, odd), (n.shape[0], 16))


@triton.jit
def moments_fwd_kernel(
    x_ptr,  # (B, 3, P) uint8
    partial_ptr,  # (B, chunks, 16) float32
    cones_ptr,  # (2, 3, 3) float32: to cone responses, and of their logarithms to opponent colours
    pixels,
    x_sample,
    x_pixel,
    x_channel,
    white,
    limit,
    COLOURS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    sample, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    x_ptr += sample * x_sample
    zero = tl.zeros((BLOCK,), tl.float32)
    n, r1, g1, b1 = zero, zero, zero, zero
    rr, rg, rb, gg, gb, bb = zero, zero, zero, zero, zero, zero
    for step in range(STEPS):
        at = (chunk * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = at < pixels
        r, g, b = load_levels(x_ptr, at * x_pixel, x_channel, inside)
        counts = inside & is_tissue(r, g, b, limit)
        if COLOURS:
            r, g, b = multiply(cones_ptr, r / 255.0, g / 255.0, b / 255.0)
            r, g, b = (
                lg2(tl.maximum(r, LEAST_LIGHT)),
                lg2(tl.maximum(g, LEAST_LIGHT)),
                lg2(tl.maximum(b, LEAST_LIGHT)),
            )
            r, g, b = multiply(cones_ptr + 9, r, g, b)
        else:
            r, g, b = to_densities(r, g, b, white - 1.0)
        r, g, b = tl.where(counts, r, 0.0), tl.where(counts, g, 0.0), tl.where(counts, b, 0.0)
        n += counts.to(tl.float32)
        r1 += r
        g1 += g
        b1 += b
        rr += r * r
        rg += r * g
        rb += r * b
        gg += g * g
        gb += g * b
        bb += b * b
    sums = tl.sum(join_moments(n, r1, g1, b1, rr, rg, rb, gg, gb, bb), 0)
    tl.store(partial_ptr + (sample * tl.num_programs(1) + chunk) * 16 + tl.arange(0, 16), sums)


@triton.jit
def rotate(app, aqq, apq, arp, arq, vp, vq):
    """Turn rows and columns p and q so that their product vanishes (Jacobi); r is the third, v holds eigenvectors."""
    small = tl.abs(apq) < 1e-30
    theta = (aqq - app) / tl.where(small, 1.0, 2.0 * apq)
    t = tl.where(theta >= 0, 1.0, -1.0) / (tl.abs(theta) + tl.sqrt(theta * theta + 1.0))
    t = tl.where(small, 0.0, t)
    c = 1.0 / tl.sqrt(t * t + 1.0)
    s = t * c
    return (
        app - t * apq,
        aqq + t * apq,
        apq * 0.0,
        c * arp - s * arq,
        s * arp + c * arq,
        c * vp - s * vq,
        s * vp + c * vq,
    )


@triton.jit
def plane_fwd_kernel(
    total_ptr,  # (G, 16) float64
    axes_ptr,  # (G, 2, 3) float32: across and along
    rank_ptr,  # (G, 2) int64
    share,
):
    """Find the main plane of the densities, and the ranks of the angles."""
    group = tl.program_id(0).to(tl.int64)
    total_ptr += group * 16
    n = tl.maximum(tl.load(total_ptr), 1.0)
    mr, mg, mb = tl.load(total_ptr + 1) / n, tl.load(total_ptr + 2) / n, tl.load(total_ptr + 3) / n
    a, b, c = (
        tl.load(total_ptr + 4) / n - mr * mr,
        tl.load(total_ptr + 7) / n - mg * mg,
        tl.load(total_ptr + 9) / n - mb * mb,
    )
    ab, ac = tl.load(total_ptr + 5) / n - mr * mg, tl.load(total_ptr + 6) / n - mr * mb
    bc = tl.load(total_ptr + 8) / n - mg * mb
    axis = tl.arange(0, 4)
    u = tl.where(axis == 0, 1.0, 0.0).to(tl.float64)  # eigenvectors
    v = tl.where(axis == 1, 1.0, 0.0).to(tl.float64)
    w = tl.where(axis == 2, 1.0, 0.0).to(tl.float64)
    for _ in range(10):
        a, b, ab, ac, bc, u, v = rotate(a, b, ab, ac, bc, u, v)
        a, c, ac, ab, bc, u, w = rotate(a, c, ac, ab, bc, u, w)
        b, c, bc, ab, ac, v, w = rotate(b, c, bc, ab, ac, v, w)
    a_most, b_most = (a >= b) & (a >= c), (b > a) & (b >= c)
    along = tl.where(a_most, u, tl.where(b_most, v, w))
    p, q = tl.where(a_most, b, a), tl.where(a_most | b_most, c, b)  # the values of the other two
    across_p, across_q = tl.where(a_most, v, u), tl.where(a_most | b_most, w, v)
    across = tl.where(p >= q, across_p, across_q)
    mean = tl.where(axis == 0, mr, tl.where(axis == 1, mg, mb)) + 1.0
    towards = tl.sum(tl.where(axis < 3, along * mean, 0.0))
    along = tl.where(towards < 0, -along, along)
    tl.store(axes_ptr + group * 6 + axis, across.to(tl.float32), mask=axis < 3)
    tl.store(axes_ptr + group * 6 + 3 + axis, along.to(tl.float32), mask=axis < 3)
    tl.store(rank_ptr + group * 2, tl.floor(share * (n - 1.0) + 0.5).to(tl.int64))
    tl.store(rank_ptr + group * 2 + 1, tl.floor((1.0 - share) * (n - 1.0) + 0.5).to(tl.int64))


@triton.jit
def open_fwd_kernel(
    x_ptr,  # (B, 3, P) uint8
    axes_ptr,  # (G, 2, 3) float32
    rank_ptr,  # (G, 2) int64
    total_ptr,  # (G, 16) float64
    search_ptr,  # (G, 2, 5) float32
    pixels,
    group_pixels,
    x_sample,
    x_pixel,
    x_channel,
    white,
    limit,
    widest,
    BY_ANGLE: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """Open the two searches of a group: bracket the values of their ranks by a sample."""
    group = tl.program_id(0).to(tl.int64)
    step = tl.maximum(group_pixels // SAMPLE, 1) | 1
    at = tl.arange(0, SAMPLE).to(tl.int64) * step + step // 2
    inside = at < group_pixels
    at = tl.where(inside, at, 0) + group * group_pixels
    r, g, b = load_levels(x_ptr, at // pixels * x_sample + at % pixels * x_pixel, x_channel, inside)
    if BY_ANGLE:
        inside = inside & is_tissue(r, g, b, limit)
        of = tl.load(total_ptr + group * 16)
    else:
        of = group_pixels.to(tl.float64)
    r, g, b = to_densities(r, g, b, white)
    x, y = project(axes_ptr + group * 6, r, g, b)
    if BY_ANGLE:
        x = angle_key(x, y)
        y = x
    end = tl.arange(0, 4)  # lower and upper of the first search, then of the second
    search = end // 2
    keys = tl.where(search[:, None] == 0, x[None, :], y[None, :])
    most = tl.full((4,), 2.001, tl.float32)
    if not BY_ANGLE:
        weights = axes_ptr + group * 6 + 3 * search
        most = widest * (tl.abs(tl.load(weights)) + tl.abs(tl.load(weights + 1)) + tl.abs(tl.load(weights + 2)))
    n = tl.sum(inside.to(tl.float32))
    ranks = tl.load(rank_ptr + group * 2 + search).to(tl.float64)
    share = (ranks / tl.maximum(of - 1.0, 1.0)).to(tl.float32)
    # Four standard deviations to either side.
    wanted = share * n + (2 * (end % 2) - 1) * 4.0 * tl.sqrt(share * n * (1.0 - share) + 1.0)
    left, right = -most, most
    for _ in range(22):
        middle = 0.5 * (left + right)
        enough = tl.sum((inside[None, :] & (keys < middle[:, None])).to(tl.float32), 1) > wanted
        right, left = tl.where(enough, middle, right), tl.where(enough, left, middle)
    place = search_ptr + (group * 2 + search) * 5
    bound = tl.where(end % 2 == 0, tl.where(wanted < 0, -most, left), tl.where(wanted >= n, most, right))
    tl.store(place + end % 2, bound)
    tl.store(place + 2 + end % 2, tl.where(end % 2 == 0, -most, most))
    tl.store(place + 4, tl.zeros((4,), tl.float32))


@triton.jit
def count_one(keys, counts, search_ptr, below_ptr, bins_ptr, BINS: tl.constexpr):
    low, high = tl.load(search_ptr), tl.load(search_ptr + 1)
    scale = BINS / tl.maximum(high - low, 1e-30)
    less = counts & (keys < low)
    inside = counts & (keys >= low) & (keys < high)
    bins = tl.minimum(tl.maximum((keys - low) * scale, 0.0), BINS - 1.0).to(tl.int32)
    tl.atomic_add(bins_ptr + tl.where(inside, bins, 0), 1, mask=inside, sem="relaxed")
    tl.atomic_add(below_ptr, tl.sum(less.to(tl.int64)), sem="relaxed")


@triton.jit
def count_fwd_kernel(
    x_ptr,  # (B, 3, P) uint8
    axes_ptr,  # (G, 2, 3) float32
    search_ptr,  # (G, 2, 5) float32
    below_ptr,  # (G, 2) int64
    bins_ptr,  # (G, 2, BINS) int32
    pixels,
    per_group,
    x_sample,
    x_pixel,
    x_channel,
    white,
    limit,
    BY_ANGLE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Count keys below each bracket and in its bins, unless both searches have ended."""
    sample, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group = sample // per_group
    x_ptr += sample * x_sample
    axes_ptr += group * 6
    search_ptr += group * 10
    below_ptr += group * 2
    bins_ptr += group * 2 * BINS
    if tl.load(search_ptr + 4) + tl.load(search_ptr + 9) < 2.0:
        for step in range(STEPS):
            at = (chunk * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
            counts = at < pixels
            r, g, b = load_levels(x_ptr, at * x_pixel, x_channel, counts)
            if BY_ANGLE:
                counts = counts & is_tissue(r, g, b, limit)
            r, g, b = to_densities(r, g, b, white)
            x, y = project(axes_ptr, r, g, b)
            if BY_ANGLE:
                x = angle_key(x, y)
                y = x
            count_one(x, counts, search_ptr, below_ptr, bins_ptr, BINS)
            count_one(y, counts, search_ptr + 5, below_ptr + 1, bins_ptr + BINS, BINS)


@triton.jit
def narrow_fwd_kernel(
    search_ptr,  # (G, 2, 5) float32
    rank_ptr,  # (G, 2) int64
    below_ptr,  # (G, 2) int64
    bins_ptr,  # (G, 2, BINS) int32
    tolerance,
    BINS: tl.constexpr,
):
    """Take the bin that holds the value for the next bracket, or the side on which it lies; empty the bins."""
    place = tl.program_id(0).to(tl.int64) * 2 + tl.program_id(1)
    search_ptr += place * 5
    bins_ptr += place * BINS + tl.arange(0, BINS)
    if tl.load(search_ptr + 4) < 0.5:
        low, high = tl.load(search_ptr), tl.load(search_ptr + 1)
        least, most = tl.load(search_ptr + 2), tl.load(search_ptr + 3)
        rank = tl.load(rank_ptr + place) - tl.load(below_ptr + place)
        upto = tl.cumsum(tl.load(bins_ptr).to(tl.int64), 0)
        found = tl.sum((upto <= rank).to(tl.int32))
        width = (high - low) / BINS
        hit = (rank >= 0) & (found < BINS)
        new_low = tl.where(hit, low + found * width, tl.where(rank < 0, least, high))
        new_high = tl.where(hit, low + (found + 1) * width, tl.where(rank < 0, low, most))
        ended = hit & (width <= tolerance)
        middle = 0.5 * (new_low + new_high)
        tl.store(search_ptr, tl.where(ended, middle, new_low))
        tl.store(search_ptr + 1, tl.where(ended, middle, new_high))
        tl.store(search_ptr + 2, tl.where(hit, new_low, tl.where(rank < 0, least, high)))
        tl.store(search_ptr + 3, tl.where(hit, new_high, tl.where(rank < 0, low, most)))
        tl.store(search_ptr + 4, tl.where(ended, 1.0, 0.0))
        tl.store(below_ptr + place, tl.zeros((), tl.int64))
        tl.store(bins_ptr, tl.zeros((BINS,), tl.int32))


@triton.jit
def unmix_fwd_kernel(
    stains_ptr,  # (G, 2, 3) float32, written if BY_ANGLE
    axes_ptr,  # (G, 2, 3) float32
    search_ptr,  # (G, 2, 5) float32
    weights_ptr,  # (G, 2, 3) float32, written
    fits_ptr,  # (G, 9) float32, written: stains, and whether they can be told apart
    total_ptr,  # (G, 16) float64
    least_pixels,
    BY_ANGLE: tl.constexpr,
):
    """Turn angles to stains, haematoxylin first, and stains to weights that give amounts from densities."""
    group = tl.program_id(0).to(tl.int64)
    axis = tl.arange(0, 4)
    real = axis < 3
    if BY_ANGLE:
        across = tl.load(axes_ptr + group * 6 + axis, mask=real, other=0.0)
        along = tl.load(axes_ptr + group * 6 + 3 + axis, mask=real, other=0.0)
        low = 0.5 * (tl.load(search_ptr + group * 10) + tl.load(search_ptr + group * 10 + 1))
        high = 0.5 * (tl.load(search_ptr + group * 10 + 5) + tl.load(search_ptr + group * 10 + 6))
        x = tl.where(low < 0, 1.0 + low, 1.0 - low)
        one = across * x + along * (1.0 - tl.abs(x)) * tl.where(low < 0, -1.0, 1.0)
        x = tl.where(high < 0, 1.0 + high, 1.0 - high)
        two = across * x + along * (1.0 - tl.abs(x)) * tl.where(high < 0, -1.0, 1.0)
        one = one / tl.sqrt(tl.sum(one * one))
        two = two / tl.sqrt(tl.sum(two * two))
    else:
        one = tl.load(stains_ptr + group * 6 + axis, mask=real, other=0.0)
        two = tl.load(stains_ptr + group * 6 + 3 + axis, mask=real, other=0.0)
    swaps = tl.sum(tl.where(axis == 0, one, 0.0)) <= tl.sum(tl.where(axis == 0, two, 0.0))
    h, e = tl.where(swaps, two, one).to(tl.float64), tl.where(swaps, one, two).to(tl.float64)
    hh, he, ee = tl.sum(h * h), tl.sum(h * e), tl.sum(e * e)
    determinant = hh * ee - he * he
    apart = (determinant > hh * ee * LEAST_SQUARED_SINE) & (tl.load(total_ptr + group * 16) >= least_pixels)
    safe = tl.where(apart, determinant, 1.0)
    tl.store(weights_ptr + group * 6 + axis, ((ee * h - he * e) / safe).to(tl.float32), mask=real)
    tl.store(weights_ptr + group * 6 + 3 + axis, ((hh * e - he * h) / safe).to(tl.float32), mask=real)
    tl.store(fits_ptr + group * 9 + axis, h.to(tl.float32), mask=real)
    tl.store(fits_ptr + group * 9 + 3 + axis, e.to(tl.float32), mask=real)
    tl.store(fits_ptr + group * 9 + 8, tl.where(apart, 1.0, 0.0))


@triton.jit
def finish_fwd_kernel(
    search_ptr,  # (G, 2, 5) float32
    fallback_ptr,  # (9,) float32
    fits_ptr,  # (G, 9) float32: stains and whether they are apart in, a whole fit out
):
    """Write the largest amounts, or the values of what cannot be fitted."""
    group = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, 16)
    one = 0.5 * (tl.load(search_ptr + group * 10) + tl.load(search_ptr + group * 10 + 1)) * LN2
    two = 0.5 * (tl.load(search_ptr + group * 10 + 5) + tl.load(search_ptr + group * 10 + 6)) * LN2
    apart = tl.load(fits_ptr + group * 9 + 8) > 0.5
    fitted = apart & (one > LEAST_AMOUNT) & (two > LEAST_AMOUNT)
    fit = tl.load(fits_ptr + group * 9 + at, mask=at < 6, other=1.0)
    fit = tl.where(at == 6, one, tl.where(at == 7, two, fit))
    fallback = tl.load(fallback_ptr + at, mask=at < 9, other=0.0)
    tl.store(fits_ptr + group * 9 + at, tl.where(fitted, fit, fallback), mask=at < 9)


@triton.jit
def regimes_fwd_kernel(
    x_ptr,  # (B, 3, P) uint8
    stains_ptr,  # (G, 2, 3) float32
    moved_ptr,  # (G,) float32: how far the last update went
    partial_ptr,  # (B, chunks, 3, 16) float32
    pixels,
    per_group,
    x_sample,
    x_pixel,
    x_channel,
    white,
    limit,
    sparsity,
    tolerance,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Moments of natural densities, apart for pixels with both stains, only the first and only the second."""
    sample, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group = sample // per_group
    x_ptr += sample * x_sample
    partial_ptr += (sample * tl.num_programs(1) + chunk) * 48
    stains_ptr += group * 6
    if tl.load(moved_ptr + group) > tolerance:
        cosine = (
            tl.load(stains_ptr) * tl.load(stains_ptr + 3)
            + tl.load(stains_ptr + 1) * tl.load(stains_ptr + 4)
            + tl.load(stains_ptr + 2) * tl.load(stains_ptr + 5)
        )
        both = tl.zeros((BLOCK, 16), tl.float32)
        first = tl.zeros((BLOCK, 16), tl.float32)
        second = tl.zeros((BLOCK, 16), tl.float32)
        for step in range(STEPS):
            at = (chunk * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
            counts = at < pixels
            r, g, b = load_levels(x_ptr, at * x_pixel, x_channel, counts)
            counts = counts & is_tissue(r, g, b, limit)
            r, g, b = to_densities(r, g, b, white)
            r, g, b = r * LN2, g * LN2, b * LN2
            one, two = project(stains_ptr, r, g, b)
            one, two = one - sparsity, two - sparsity
            lacks_first, lacks_second = one < cosine * two, two < cosine * one
            moments = join_moments(
                tl.full((BLOCK,), 1.0, tl.float32), r, g, b, r * r, r * g, r * b, g * g, g * b, b * b
            )
            both += tl.where((counts & (lacks_first == 0) & (lacks_second == 0))[:, None], moments, 0.0)
            first += tl.where((counts & lacks_second & (lacks_first == 0) & (one > 0))[:, None], moments, 0.0)
            second += tl.where((counts & lacks_first & (two > 0))[:, None], moments, 0.0)
        tl.store(partial_ptr + tl.arange(0, 16), tl.sum(both, 0))
        tl.store(partial_ptr + 16 + tl.arange(0, 16), tl.sum(first, 0))
        tl.store(partial_ptr + 32 + tl.arange(0, 16), tl.sum(second, 0))


@triton.jit
def amounts_of(moments, own, other):
    """Return the sums over pixels of two amounts (linear in 1 and the densities) with 1 and the densities."""
    return tl.sum(moments * own[None, :], 1), tl.sum(moments * other[None, :], 1)


@triton.jit
def dictionary_fwd_kernel(
    total_ptr,  # (G, 3, 16) float64
    stains_ptr,  # (G, 2, 3) float32, moved
    moved_ptr,  # (G,) float32: how far the last update went; written
    sparsity,
    steps,
    tolerance,
):
    """Move the dictionary with the pixels' regimes held: amounts and stains in turn, a few times."""
    group = tl.program_id(0).to(tl.int64)
    total_ptr += group * 48
    stains_ptr += group * 6
    if tl.load(moved_ptr + group) > tolerance:
        at = tl.arange(0, 4)
        row, column = tl.minimum(at[:, None], at[None, :]), tl.maximum(at[:, None], at[None, :])
        place = column + tl.where(row == 1, 3, tl.where(row == 2, 5, tl.where(row == 3, 6, 0)))
        both, first, second = (
            tl.load(total_ptr + place),
            tl.load(total_ptr + 16 + place),
            tl.load(total_ptr + 32 + place),
        )
        real = at > 0
        one = tl.load(stains_ptr + at - 1, mask=real, other=0.0).to(tl.float64)
        two = tl.load(stains_ptr + at + 2, mask=real, other=0.0).to(tl.float64)
        before_one, before_two = one, two
        for _ in range(steps):
            cosine = tl.sum(one * two)
            scale = 1.0 / tl.maximum(1.0 - cosine * cosine, 1e-12)
            h, e = tl.where(real, one, -sparsity), tl.where(real, two, -sparsity)
            mixed_h, mixed_e = scale * (h - cosine * e), scale * (e - cosine * h)
            both_h, both_e = amounts_of(both, mixed_h, mixed_e)
            only_h, only_e = tl.sum(first * h[None, :], 1), tl.sum(second * e[None, :], 1)
            hh = tl.sum(mixed_h * both_h) + tl.sum(h * only_h)
            ee = tl.sum(mixed_e * both_e) + tl.sum(e * only_e)
            he = tl.sum(mixed_h * both_e)
            updated = tl.where(real, (both_h + only_h - he * two) / tl.maximum(hh, 1e-30), 0.0)
            updated = tl.maximum(updated, 0.0)
            length = tl.sqrt(tl.sum(updated * updated))
            one = tl.where(length > 1e-10, updated / tl.maximum(length, 1e-10), one)
            updated = tl.where(real, (both_e + only_e - he * one) / tl.maximum(ee, 1e-30), 0.0)
            updated = tl.maximum(updated, 0.0)
            length = tl.sqrt(tl.sum(updated * updated))
            two = tl.where(length > 1e-10, updated / tl.maximum(length, 1e-10), two)
        moved = tl.maximum(tl.max(tl.abs(one - before_one)), tl.max(tl.abs(two - before_two)))
        tl.store(moved_ptr + group, moved.to(tl.float32))
        tl.store(stains_ptr + at - 1, one.to(tl.float32), mask=real)
        tl.store(stains_ptr + at + 2, two.to(tl.float32), mask=real)


@triton.jit
def colours_fwd_kernel(
    total_ptr,  # (G, 16) float64
    fallback_ptr,  # (9,) float32
    fits_ptr,  # (G, 9) float32
    least_pixels,
    least_spread,
):
    """Turn moments of l, alpha and beta in log2 to their mean and spread."""
    group = tl.program_id(0).to(tl.int64)
    total_ptr += group * 16
    n = tl.load(total_ptr)
    enough = n >= least_pixels
    n = tl.maximum(n, 1.0)
    row = tl.arange(0, 4)
    real = row < 3
    mean = tl.load(total_ptr + 1 + row, mask=real, other=0.0) / n
    square = tl.load(total_ptr + tl.where(row == 0, 4, tl.where(row == 1, 7, 9))) / n
    spread = tl.sqrt(tl.maximum(square - mean * mean, 0.0)) * LG10
    fitted = tl.min(tl.where(real, spread, 1.0)) > tl.where(enough, least_spread, 1e30)
    mean = tl.where(fitted, (mean * LG10).to(tl.float32), tl.load(fallback_ptr + row))
    spread = tl.where(fitted, spread.to(tl.float32), tl.load(fallback_ptr + 3 + row))
    tl.store(fits_ptr + group * 9 + row, mean, mask=real)
    tl.store(fits_ptr + group * 9 + 3 + row, spread, mask=real)
    tl.store(fits_ptr + group * 9 + 6 + row, tl.where(row == 2, tl.where(fitted, 1.0, 0.0), 0.0), mask=real)


@triton.jit
def map_fwd_kernel(
    x_ptr,  # (B, 3, P) uint8
    y_ptr,  # (B, 3, P) uint8
    maps_ptr,  # (B, 45) float32
    fitted_ptr,  # (B,) bool
    pixels,
    x_sample,
    x_pixel,
    x_channel,
    y_sample,
    y_pixel,
    y_channel,
    offset,
    least,
    shift,
    AROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    fitted = tl.load(fitted_ptr + sample).to(tl.int1)
    r, g, b = load_levels(x_ptr + sample * x_sample, at * x_pixel, x_channel, inside)
    x, y, z = through_density(
        maps_ptr + sample * 45, r * (1.0 / 255), g * (1.0 / 255), b * (1.0 / 255), offset, least, AROUND
    )
    x = tl.where(fitted, tl.minimum(tl.maximum(x * 255.0 + shift, 0.0), 255.0), r)
    y = tl.where(fitted, tl.minimum(tl.maximum(y * 255.0 + shift, 0.0), 255.0), g)
    z = tl.where(fitted, tl.minimum(tl.maximum(z * 255.0 + shift, 0.0), 255.0), b)
    y_ptr += sample * y_sample + at * y_pixel
    tl.store(y_ptr, x.to(tl.uint8), mask=inside)
    tl.store(y_ptr + y_channel, y.to(tl.uint8), mask=inside)
    tl.store(y_ptr + 2 * y_channel, z.to(tl.uint8), mask=inside)


@triton.jit
def convert_fwd_kernel(
    x_ptr,  # (B, inputs, P), uint8 or float
    y_ptr,  # (B, outputs, P) float32
    matrices_ptr,  # (B, 15) float32: affine (3, 4), floors
    pixels,
    x_sample,
    x_pixel,
    x_channel,
    y_sample,
    y_pixel,
    y_channel,
    scale,
    offset,
    least,
    SEPARATES: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    x_ptr += sample * x_sample + at * x_pixel
    matrices_ptr += sample * 15
    r = tl.load(x_ptr, mask=inside, other=0).to(tl.float32) * scale
    g = tl.load(x_ptr + x_channel, mask=inside, other=0).to(tl.float32) * scale
    b = g
    if INPUTS == 3:
        b = tl.load(x_ptr + 2 * x_channel, mask=inside, other=0).to(tl.float32) * scale
    if SEPARATES:
        r, g, b = (
            lg2(tl.maximum(r + offset, least)),
            lg2(tl.maximum(g + offset, least)),
            lg2(tl.maximum(b + offset, least)),
        )
    r, g, b = multiply_add(matrices_ptr, r, g, b)
    if SEPARATES:
        r = tl.maximum(r, tl.load(matrices_ptr + 12))
        g = tl.maximum(g, tl.load(matrices_ptr + 13))
        b = tl.maximum(b, tl.load(matrices_ptr + 14))
    else:
        r = tl.minimum(tl.maximum(ex2(tl.minimum(r, 127.0)) - offset, 0.0), 1.0)
        g = tl.minimum(tl.maximum(ex2(tl.minimum(g, 127.0)) - offset, 0.0), 1.0)
        b = tl.minimum(tl.maximum(ex2(tl.minimum(b, 127.0)) - offset, 0.0), 1.0)
    y_ptr += sample * y_sample + at * y_pixel
    tl.store(y_ptr, r, mask=inside)
    tl.store(y_ptr + y_channel, g, mask=inside)
    if OUTPUTS == 3:
        tl.store(y_ptr + 2 * y_channel, b, mask=inside)


def fit_triton(
    images: Tensor, *, method: str, parameters: Sequence[float], group: int, fallback: Tensor, fits: Tensor
) -> None:
    """Fit each `group` of samples of ``(B, 3, H, W)`` bytes and write its ``(9,)`` floats."""
    white, beta, alpha, sparsity = parameters[:4]
    images = _in_rows(images)
    samples, groups, device = len(images), len(fits), images.device
    pixels = images.shape[2] * images.shape[3]
    chunks = triton.cdiv(pixels, BLOCK * STEPS)
    grid, step = (samples, chunks), _steps(images)
    levels = torch.tensor([white], dtype=torch.float64)
    limit = float((levels * torch.tensor(-beta, dtype=torch.float64).exp() - 1).floor())
    densities = (float(levels.log2()), limit)
    kept = torch.empty((samples, chunks, 48), dtype=torch.float32, device=device)
    partial = kept.view(-1)[: samples * chunks * 16].view(samples, chunks, 16)
    cones = _cones(device)
    moments_fwd_kernel[grid](
        images, partial, cones, pixels, *step, *densities, method == "reinhard", BLOCK=BLOCK, STEPS=STEPS
    )
    total = partial.view(groups, -1, 16).sum(1, dtype=torch.float64)
    if method == "reinhard":
        colours_fwd_kernel[(groups,)](total, fallback, fits, LEAST_PIXELS, LEAST_SPREAD, num_warps=1)
        return
    axes, weights, stains = (torch.empty((groups, 6), dtype=torch.float32, device=device) for _ in range(3))
    search = torch.empty((groups, 2, SEARCH), dtype=torch.float32, device=device)
    rank, below = (torch.zeros((groups, 2), dtype=torch.int64, device=device) for _ in range(2))
    bins = torch.zeros((groups, 2, BINS), dtype=torch.int32, device=device)

    def find(on: Tensor, *, by_angle: bool) -> None:
        open_fwd_kernel[(groups,)](
            images,
            on,
            rank,
            total,
            search,
            pixels,
            pixels * group,
            *step,
            *densities,
            WIDEST,
            BY_ANGLE=by_angle,
            SAMPLE=SAMPLE,
        )
        for _ in range(ROUNDS):
            count_fwd_kernel[grid](
                images,
                on,
                search,
                below,
                bins,
                pixels,
                group,
                *step,
                *densities,
                BY_ANGLE=by_angle,
                BLOCK=BLOCK,
                STEPS=STEPS,
                BINS=BINS,
            )
            narrow_fwd_kernel[(groups, 2)](search, rank, below, bins, ANGLE if by_angle else AMOUNT, BINS=BINS)

    if method == "macenko":
        plane_fwd_kernel[(groups,)](total, axes, rank, alpha / 100, num_warps=1)
        find(axes, by_angle=True)
    else:
        stains.copy_(fallback[:6].expand(groups, 6))
        moved = torch.ones(groups, dtype=torch.float32, device=device)
        for sweep in range(SWEEPS):
            steps = min(1 << sweep, 16)
            regimes_fwd_kernel[grid](
                images,
                stains,
                moved,
                kept,
                pixels,
                group,
                *step,
                *densities,
                sparsity,
                1e-5,
                BLOCK=BLOCK,
                STEPS=STEPS,
            )
            sums = kept.view(groups, -1, 48).sum(1, dtype=torch.float64)
            dictionary_fwd_kernel[(groups,)](sums, stains, moved, sparsity, steps, 1e-5, num_warps=1)
    unmix_fwd_kernel[(groups,)](
        stains, axes, search, weights, fits, total, LEAST_PIXELS, BY_ANGLE=method == "macenko", num_warps=1
    )
    rank.fill_(round(0.01 * 99 * (pixels * group - 1)))
    find(weights, by_angle=False)
    finish_fwd_kernel[(groups,)](search, fallback, fits, num_warps=1)


def map_triton(
    images: Tensor, *, maps: Tensor, fitted: Tensor, around: bool, constants: Sequence[float], out: Tensor
) -> None:
    """Send ``(B, 3, H, W)`` bytes through packed maps; samples that were not `fitted` are copied."""
    if images.numel() == 0:
        return
    rows, target, pixels = _in_rows(images), _rows_for(out), images.shape[2] * images.shape[3]
    map_fwd_kernel[(len(images), triton.cdiv(pixels, CHANGE_BLOCK))](
        rows,
        target,
        maps,
        fitted,
        pixels,
        *_steps(rows),
        *_steps(target),
        *constants,
        AROUND=around,
        BLOCK=CHANGE_BLOCK,
    )
    if target is not out:
        out.copy_(target)


def convert_triton(
    images: Tensor, *, matrices: Tensor, separates: bool, constants: Sequence[float], out: Tensor
) -> None:
    """Write amounts of light, or light of amounts, ``(B, C, H, W)`` both."""
    if images.numel() == 0:
        return
    rows, target, pixels = _in_rows(images), _rows_for(out), images.shape[2] * images.shape[3]
    convert_fwd_kernel[(len(images), triton.cdiv(pixels, CHANGE_BLOCK))](
        rows,
        target,
        matrices,
        pixels,
        *_steps(rows),
        *_steps(target),
        1 / 255 if images.dtype == torch.uint8 else 1.0,
        *constants,
        SEPARATES=separates,
        INPUTS=images.shape[1],
        OUTPUTS=out.shape[1],
        BLOCK=CHANGE_BLOCK,
    )
    if target is not out:
        out.copy_(target)


def _has_rows(images: Tensor) -> bool:
    """Return whether rows follow one another, so that one step leads from each pixel to the next."""
    return images.shape[2] == 1 or images.stride(2) == images.shape[3] * images.stride(3)


def _in_rows(images: Tensor) -> Tensor:
    return images if _has_rows(images) else images.contiguous()


def _rows_for(out: Tensor) -> Tensor:
    """Return memory to write to: `out`, or what is copied to it afterwards."""
    return out if _has_rows(out) else torch.empty(out.shape, dtype=out.dtype, device=out.device)


def _steps(rows: Tensor) -> tuple[int, int, int]:
    """Return elements from one sample, pixel and channel to the next."""
    return rows.stride(0), rows.stride(3), rows.stride(1)


def _cones(device: torch.device) -> Tensor:
    """Return ``(2, 3, 3)``: light to cone responses, their logarithms to opponent colours."""
    cones = (0.3811, 0.5783, 0.0402, 0.1967, 0.7244, 0.0782, 0.0241, 0.1288, 0.8444)
    opponent = (*(3**-0.5,) * 3, 6**-0.5, 6**-0.5, -2 * 6**-0.5, 2**-0.5, -(2**-0.5), 0.0)
    return torch.tensor((*cones, *opponent), device=device).view(2, 3, 3)
