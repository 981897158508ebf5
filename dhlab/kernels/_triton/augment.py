"""`augment` in one launch per tensor: a tile of pixels goes through every stage of the plan in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from dhlab.kernels._triton.arithmetic import ex2, lg2, round_product
from dhlab.kernels._triton.density import multiply_add, through_density
from dhlab.kernels.plan import STAGES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["augment_masks_triton", "augment_triton"]

# A square keeps what a turned tile reads in the first cache; a row of the same size is for pixels that stay in place.
# Half of it where many values are alive at once, else registers spill.
SQUARE, HALF, ROW, BLUR_ROW = (32, 32), (16, 32), (1, 2048), 1024
IN_PLACE = {"gaussian", "laplace", "poisson", "salt", "pepper", "dropout", "cutouts"}
# where a row of Plan.pack holds what
STAIN_AT, COLOUR_AT, GAMMA_AT, GAUSSIAN_AT, LAPLACE_AT = (tl.constexpr(at) for at in (12, 57, 69, 70, 71))
SALT_AT, PEPPER_AT, DROPOUT_AT, BLUR_AT, SHARPEN_AT = (tl.constexpr(at) for at in (73, 74, 75, 78, 79))
BLOCK_FLOATS = tl.constexpr(80)


@triton.jit
def clamp(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def round_to_even(value):  # |value| below 2^22
    return (value + 12582912.0) - 12582912.0


# Where an output pixel lies in the source. No product is fused with a sum: all forms round alike.


@triton.jit
def mix_nodes(a, b, share):
    return a + round_product(b - a, share)


@triton.jit
def displacement(nodes_ptr, near_row, near_column, share_down, share_right, nodes_right):
    upper = nodes_ptr + near_row * nodes_right + near_column
    lower = upper + nodes_right
    above = mix_nodes(tl.load(upper), tl.load(upper + 1), share_right)
    below = mix_nodes(tl.load(lower), tl.load(lower + 1), share_right)
    return mix_nodes(above, below, share_down)


@triton.jit
def find_positions(
    matrix_ptr,  # (9,) float32 of one sample
    field_ptr,  # (2, nodes_down, nodes_right) float32 of one sample
    row,  # (ROWS, 1) float32
    column,  # (1, COLUMNS) float32
    nodes_down,
    nodes_right,
    step_down,
    step_right,
    GEOMETRY: tl.constexpr,
    HAS_FIELD: tl.constexpr,
):
    down = round_product(tl.load(matrix_ptr + 1), column) + (
        round_product(tl.load(matrix_ptr), row) + tl.load(matrix_ptr + 2)
    )
    right = round_product(tl.load(matrix_ptr + 4), column) + (
        round_product(tl.load(matrix_ptr + 3), row) + tl.load(matrix_ptr + 5)
    )
    if GEOMETRY == "projective":
        depth = round_product(tl.load(matrix_ptr + 7), column) + (
            round_product(tl.load(matrix_ptr + 6), row) + tl.load(matrix_ptr + 8)
        )
        down, right = tl.div_rn(down, depth), tl.div_rn(right, depth)
        down, right = tl.where(down == down, down, -4194304.0), tl.where(right == right, right, -4194304.0)  # 0 / 0
    if HAS_FIELD:
        at_row = clamp(round_product(row, step_down), 0.0, nodes_down - 1.0)
        at_column = clamp(round_product(column, step_right), 0.0, nodes_right - 1.0)
        near_row = tl.minimum(tl.floor(at_row), nodes_down - 2.0)
        near_column = tl.minimum(tl.floor(at_column), nodes_right - 2.0)
        share_down, share_right = at_row - near_row, at_column - near_column
        near_row, near_column = near_row.to(tl.int32), near_column.to(tl.int32)
        down += displacement(field_ptr, near_row, near_column, share_down, share_right, nodes_right)
        field_ptr += nodes_down * nodes_right
        right += displacement(field_ptr, near_row, near_column, share_down, share_right, nodes_right)
    return clamp(down, -4194304.0, 4194304.0), clamp(right, -4194304.0, 4194304.0)


@triton.jit
def modulo(index, period):
    rest = index % period
    return tl.where(rest < 0, rest + period, rest)


@triton.jit
def fold(index, length, BORDER: tl.constexpr):
    if BORDER == "wrap":
        return modulo(index, length)
    if BORDER == "reflect":
        index = modulo(index, 2 * length)
        return tl.minimum(index, 2 * length - 1 - index)
    if BORDER == "reflect101":
        index = modulo(index, tl.maximum(2 * length - 2, 1))
        return tl.minimum(index, tl.maximum(2 * length - 2 - index, 0))
    return tl.minimum(tl.maximum(index, 0), length - 1)


@triton.jit
def fetch(
    x_ptr,  # one sample, uint8
    row,
    column,
    inside,
    fill_r,
    fill_g,
    fill_b,
    height,
    width,
    channel_step,
    row_step,
    column_step,
    BORDER: tl.constexpr,
    FAR: tl.constexpr,
):
    folded_row, folded_column = fold(row, height, BORDER), fold(column, width, BORDER)
    if FAR:
        folded_row, folded_column = folded_row.to(tl.int64), folded_column.to(tl.int64)
    pixel = x_ptr + folded_row * row_step + folded_column * column_step
    r = tl.load(pixel, mask=inside, other=0).to(tl.float32)
    g = tl.load(pixel + channel_step, mask=inside, other=0).to(tl.float32)
    b = tl.load(pixel + 2 * channel_step, mask=inside, other=0).to(tl.float32)
    if BORDER == "constant":
        within = (folded_row == row) & (folded_column == column)
        r, g, b = tl.where(within, r, fill_r), tl.where(within, g, fill_g), tl.where(within, b, fill_b)
    return r, g, b


@triton.jit
def cubic_weight(share, k):
    t = tl.abs(share - (k - 1.0))
    inner = (1.25 * t - 2.25) * t * t + 1.0
    outer = ((-0.75 * t + 3.75) * t - 6.0) * t + 3.0
    return tl.where((k == 1) | (k == 2), inner, outer)


@triton.jit
def sample(
    x_ptr,
    down,
    right,
    inside,
    fill_r,
    fill_g,
    fill_b,
    height,
    width,
    channel_step,
    row_step,
    column_step,
    INTERPOLATION: tl.constexpr,
    BORDER: tl.constexpr,
    FAR: tl.constexpr,
):
    if INTERPOLATION == "nearest":
        row, column = tl.floor(down + 0.5).to(tl.int32), tl.floor(right + 0.5).to(tl.int32)
        return fetch(
            x_ptr,
            row,
            column,
            inside,
            fill_r,
            fill_g,
            fill_b,
            height,
            width,
            channel_step,
            row_step,
            column_step,
            BORDER,
            FAR,
        )
    low, left = tl.floor(down), tl.floor(right)
    share_down, share_right = down - low, right - left
    first_row, first_column = low.to(tl.int32), left.to(tl.int32)
    r, g, b = tl.zeros_like(down), tl.zeros_like(down), tl.zeros_like(down)
    if INTERPOLATION == "bilinear":
        for k in tl.static_range(4):
            tap_r, tap_g, tap_b = fetch(
                x_ptr,
                first_row + k // 2,
                first_column + k % 2,
                inside,
                fill_r,
                fill_g,
                fill_b,
                height,
                width,
                channel_step,
                row_step,
                column_step,
                BORDER,
                FAR,
            )
            weight_down = share_down if k // 2 == 1 else 1.0 - share_down
            weight_right = share_right if k % 2 == 1 else 1.0 - share_right
            weight = weight_down * weight_right
            r, g, b = r + tap_r * weight, g + tap_g * weight, b + tap_b * weight
    else:
        for k in range(16):
            tap_r, tap_g, tap_b = fetch(
                x_ptr,
                first_row + (k // 4 - 1),
                first_column + (k % 4 - 1),
                inside,
                fill_r,
                fill_g,
                fill_b,
                height,
                width,
                channel_step,
                row_step,
                column_step,
                BORDER,
                FAR,
            )
            weight = cubic_weight(share_down, k // 4) * cubic_weight(share_right, k % 4)
            r, g, b = r + tap_r * weight, g + tap_g * weight, b + tap_b * weight
    return r, g, b


# Noise, see kernels/philox.py.


@triton.jit
def uniform(word):
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def draw(key, row, column, STREAM: tl.constexpr, PER_CHANNEL: tl.constexpr):
    zero = (row + column) * 0
    a, b, c, _ = tl.philox(key, zero + column, zero + row, zero + STREAM, zero)
    if not PER_CHANNEL:
        b = a
        c = a
    return a, b, c


@triton.jit
def horner(t, far, inner, outer, p):
    return p * t + tl.where(far, outer, inner)


@triton.jit
def gaussian_of(word):  # M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2012
    u = uniform(word)
    w = lg2(u * (1.0 - u) * 4.0) * -0.693147180559945
    far = w >= 5.0
    t = tl.where(far, tl.sqrt(tl.maximum(w, 0.0)) - 3.0, w - 2.5)
    p = tl.where(far, -0.000200214257, 2.81022636e-08)
    p = horner(t, far, 3.43273939e-07, 0.000100950558, p)
    p = horner(t, far, -3.5233877e-06, 0.00134934322, p)
    p = horner(t, far, -4.39150654e-06, -0.00367342844, p)
    p = horner(t, far, 0.00021858087, 0.00573950773, p)
    p = horner(t, far, -0.00125372503, -0.0076224613, p)
    p = horner(t, far, -0.00417768164, 0.00943887047, p)
    p = horner(t, far, 0.246640727, 1.00167406, p)
    p = horner(t, far, 1.50140941, 2.83297682, p)
    return p * (u * 2.0 - 1.0) * 1.4142135623730951


@triton.jit
def laplace_of(word):  # of standard deviation 1
    u = uniform(word)
    size = (lg2(tl.minimum(u, 1.0 - u)) + 1.0) * 0.4901290717342736  # ln 2 / sqrt 2
    return tl.where(u < 0.5, size, -size)


@triton.jit
def poisson_of(table_ptr, word):
    u = uniform(word)
    found = (word * 0).to(tl.int32)
    for k in tl.static_range(7):
        step = 64 >> k
        chance = tl.load(table_ptr + found + (step - 1))
        found = tl.where(chance <= u, found + step, found)
    count = found.to(tl.float32) / 255.0
    return tl.where(word % 2 == 0, count, -count)


@triton.jit
def add_noise(
    block_ptr,
    poisson_ptr,
    key,
    row,
    column,
    r,
    g,
    b,
    GAUSSIAN: tl.constexpr,
    LAPLACE: tl.constexpr,
    POISSON: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
):
    if GAUSSIAN:
        strength = tl.load(block_ptr + GAUSSIAN_AT)
        a, c, d = draw(key, row, column, 1, PER_CHANNEL)
        r, g, b = r + gaussian_of(a) * strength, g + gaussian_of(c) * strength, b + gaussian_of(d) * strength
    if LAPLACE:
        strength = tl.load(block_ptr + LAPLACE_AT)
        a, c, d = draw(key, row, column, 2, PER_CHANNEL)
        r, g, b = r + laplace_of(a) * strength, g + laplace_of(c) * strength, b + laplace_of(d) * strength
    if POISSON:
        a, c, d = draw(key, row, column, 3, PER_CHANNEL)
        r, g, b = r + poisson_of(poisson_ptr, a), g + poisson_of(poisson_ptr, c), b + poisson_of(poisson_ptr, d)
    return clamp(r, 0.0, 1.0), clamp(g, 0.0, 1.0), clamp(b, 0.0, 1.0)


@triton.jit
def strew(key, row, column, chance, value, r, g, b, STREAM: tl.constexpr, PER_CHANNEL: tl.constexpr):
    a, c, d = draw(key, row, column, STREAM, PER_CHANNEL)
    r = tl.where(uniform(a) < chance, value, r)
    g = tl.where(uniform(c) < chance, value, g)
    return r, g, tl.where(uniform(d) < chance, value, b)


@triton.jit
def put(y_ptr, at, plane_step, ending_ptr, inside, r, g, b):
    kind: tl.constexpr = y_ptr.dtype.element_ty
    if kind == tl.uint8:
        r = round_to_even(round_product(clamp(r, 0.0, 1.0), 255.0)).to(tl.int32).to(kind)
        g = round_to_even(round_product(clamp(g, 0.0, 1.0), 255.0)).to(tl.int32).to(kind)
        b = round_to_even(round_product(clamp(b, 0.0, 1.0), 255.0)).to(tl.int32).to(kind)
    else:
        r = (r * tl.load(ending_ptr) + tl.load(ending_ptr + 3)).to(kind)
        g = (g * tl.load(ending_ptr + 1) + tl.load(ending_ptr + 4)).to(kind)
        b = (b * tl.load(ending_ptr + 2) + tl.load(ending_ptr + 5)).to(kind)
    tl.store(y_ptr + at, r, mask=inside)
    tl.store(y_ptr + at + plane_step, g, mask=inside)
    tl.store(y_ptr + at + 2 * plane_step, b, mask=inside)


@triton.jit
def augment_fwd_kernel(
    x_ptr,  # (B, 3, source_height, source_width) uint8, any strides
    y_ptr,  # (B, 3, height, width), channels first or last
    block_ptr,  # (B, 80) float32, see Plan.pack
    keys_ptr,  # (B,) int64
    field_ptr,  # (B, 2, nodes_down, nodes_right) float32
    table_ptr,  # (B, 3, 256) float32
    cutouts_ptr,  # (B, boxes, 4) int32
    poisson_ptr,  # (B, 128) float32
    ending_ptr,  # (6,) float32
    source_height,
    source_width,
    sample_step,
    channel_step,
    row_step,
    column_step,
    height,
    width,
    plane_step,
    pixel_step,
    nodes_down,
    nodes_right,
    step_down,
    step_right,
    boxes,
    supersample,
    offset,
    least,
    TABLE: tl.constexpr,
    STAIN: tl.constexpr,
    COLOUR: tl.constexpr,
    GAMMA: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    LAPLACE: tl.constexpr,
    POISSON: tl.constexpr,
    SALT: tl.constexpr,
    PEPPER: tl.constexpr,
    DROPOUT: tl.constexpr,
    CUTOUTS: tl.constexpr,
    GEOMETRY: tl.constexpr,
    INTERPOLATION: tl.constexpr,
    BORDER: tl.constexpr,
    SUPERSAMPLED: tl.constexpr,
    HAS_FIELD: tl.constexpr,
    AROUND: tl.constexpr,
    NOISE_PER_CHANNEL: tl.constexpr,
    DROPOUT_PER_CHANNEL: tl.constexpr,
    EVEN: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    across = tl.cdiv(width, COLUMNS)
    tiles = across * tl.cdiv(height, ROWS)
    program = tl.program_id(0)
    index = (program // tiles).to(tl.int64)
    tile = program % tiles
    row = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < height) & (column < width)
    if EVEN:
        inside = tl.full((ROWS, COLUMNS), True, tl.int1)
    wide_row, wide_column = row, column
    if FAR:
        wide_row, wide_column = row.to(tl.int64), column.to(tl.int64)
    x_ptr += index * sample_step
    block_ptr += index * BLOCK_FLOATS
    fill_r, fill_g, fill_b = tl.load(block_ptr + 9), tl.load(block_ptr + 10), tl.load(block_ptr + 11)

    if GEOMETRY == "identity":
        pixel = x_ptr + wide_row * row_step + wide_column * column_step
        r = tl.load(pixel, mask=inside, other=0).to(tl.float32)
        g = tl.load(pixel + channel_step, mask=inside, other=0).to(tl.float32)
        b = tl.load(pixel + 2 * channel_step, mask=inside, other=0).to(tl.float32)
    else:
        field_ptr += index * (2 * nodes_down * nodes_right)
        y, x = row.to(tl.float32), column.to(tl.float32)
        if SUPERSAMPLED:
            r = tl.zeros((ROWS, COLUMNS), tl.float32)
            g, b = r, r
            for k in range(supersample * supersample):
                dy = tl.div_rn((2 * (k // supersample) + 1 - supersample).to(tl.float32), 2.0 * supersample)
                dx = tl.div_rn((2 * (k % supersample) + 1 - supersample).to(tl.float32), 2.0 * supersample)
                down, right = find_positions(
                    block_ptr,
                    field_ptr,
                    y + dy,
                    x + dx,
                    nodes_down,
                    nodes_right,
                    step_down,
                    step_right,
                    GEOMETRY,
                    HAS_FIELD,
                )
                part_r, part_g, part_b = sample(
                    x_ptr,
                    down,
                    right,
                    inside,
                    fill_r,
                    fill_g,
                    fill_b,
                    source_height,
                    source_width,
                    channel_step,
                    row_step,
                    column_step,
                    INTERPOLATION,
                    BORDER,
                    FAR,
                )
                r, g, b = r + part_r, g + part_g, b + part_b
            share = 1.0 / (supersample * supersample)
            r, g, b = r * share, g * share, b * share
        else:
            down, right = find_positions(
                block_ptr,
                field_ptr,
                y,
                x,
                nodes_down,
                nodes_right,
                step_down,
                step_right,
                GEOMETRY,
                HAS_FIELD,
            )
            r, g, b = sample(
                x_ptr,
                down,
                right,
                inside,
                fill_r,
                fill_g,
                fill_b,
                source_height,
                source_width,
                channel_step,
                row_step,
                column_step,
                INTERPOLATION,
                BORDER,
                FAR,
            )
        if INTERPOLATION == "bicubic":
            r, g, b = clamp(r, 0.0, 255.0), clamp(g, 0.0, 255.0), clamp(b, 0.0, 255.0)

    if TABLE:
        levels = table_ptr + index * 768
        r = tl.load(levels + round_to_even(r).to(tl.int32))
        g = tl.load(levels + 256 + round_to_even(g).to(tl.int32))
        b = tl.load(levels + 512 + round_to_even(b).to(tl.int32))
    r, g, b = r * 0.00392156862745098, g * 0.00392156862745098, b * 0.00392156862745098
    if STAIN:
        if AROUND:
            r, g, b = through_density(block_ptr + STAIN_AT, r, g, b, offset, least, True)
            r, g, b = clamp(r, 0.0, 1.0), clamp(g, 0.0, 1.0), clamp(b, 0.0, 1.0)
        else:
            r, g, b = through_density(block_ptr + STAIN_AT, r, g, b, offset, least, False, 0.0)
    if COLOUR:
        r, g, b = multiply_add(block_ptr + COLOUR_AT, r, g, b)
        r, g, b = clamp(r, 0.0, 1.0), clamp(g, 0.0, 1.0), clamp(b, 0.0, 1.0)
    if GAMMA:
        gamma = tl.load(block_ptr + GAMMA_AT)
        r = tl.where(gamma == 1.0, r, tl.where(r > 1e-37, ex2(lg2(tl.maximum(r, 1e-37)) * gamma), 0.0))
        g = tl.where(gamma == 1.0, g, tl.where(g > 1e-37, ex2(lg2(tl.maximum(g, 1e-37)) * gamma), 0.0))
        b = tl.where(gamma == 1.0, b, tl.where(b > 1e-37, ex2(lg2(tl.maximum(b, 1e-37)) * gamma), 0.0))
    if GAUSSIAN or LAPLACE or POISSON or SALT or PEPPER or DROPOUT:
        key = tl.load(keys_ptr + index)
        if GAUSSIAN or LAPLACE or POISSON:
            r, g, b = add_noise(
                block_ptr,
                poisson_ptr + index * 128,
                key,
                row,
                column,
                r,
                g,
                b,
                GAUSSIAN,
                LAPLACE,
                POISSON,
                NOISE_PER_CHANNEL,
            )
        if SALT:
            chance = tl.load(block_ptr + SALT_AT)
            r, g, b = strew(key, row, column, chance, 1.0, r, g, b, 4, NOISE_PER_CHANNEL)
        if PEPPER:
            chance = tl.load(block_ptr + PEPPER_AT)
            r, g, b = strew(key, row, column, chance, 0.0, r, g, b, 5, NOISE_PER_CHANNEL)
        if DROPOUT:
            chance = tl.load(block_ptr + DROPOUT_AT)
            per_row = tl.div_rn(1.0, tl.maximum(tl.load(block_ptr + DROPOUT_AT + 1), 1.0))
            per_column = tl.div_rn(1.0, tl.maximum(tl.load(block_ptr + DROPOUT_AT + 2), 1.0))
            cell_row = ((row.to(tl.float32) + 0.5) * per_row).to(tl.int32)
            cell_column = ((column.to(tl.float32) + 0.5) * per_column).to(tl.int32)
            a, c, d = draw(key, cell_row, cell_column, 6, DROPOUT_PER_CHANNEL)
            r = tl.where(uniform(a) < chance, fill_r * 0.00392156862745098, r)
            g = tl.where(uniform(c) < chance, fill_g * 0.00392156862745098, g)
            b = tl.where(uniform(d) < chance, fill_b * 0.00392156862745098, b)
    if CUTOUTS:
        covered = (row < 0) & (column < 0)
        edges = cutouts_ptr + index * boxes * 4
        for _ in range(boxes):
            rows = (row >= tl.load(edges)) & (row < tl.load(edges + 2))
            covered |= rows & (column >= tl.load(edges + 1)) & (column < tl.load(edges + 3))
            edges += 4
        r = tl.where(covered, fill_r * 0.00392156862745098, r)
        g = tl.where(covered, fill_g * 0.00392156862745098, g)
        b = tl.where(covered, fill_b * 0.00392156862745098, b)

    y_ptr += index * 3 * height * width
    put(y_ptr, (wide_row * width + wide_column) * pixel_step, plane_step, ending_ptr, inside, r, g, b)


@triton.jit
def gaussian_weights(block_ptr, SHARPEN: tl.constexpr):
    """Return reach, the factor of k² in the exponent, and the sum of weights."""
    sigma = tl.load(block_ptr + BLUR_AT)
    if SHARPEN:
        sigma = tl.where((tl.load(block_ptr + SHARPEN_AT) > 0) & (sigma == 0), 1.0, sigma)
    falling = -0.7213475204444817 / tl.maximum(sigma * sigma, 1e-12)  # -log2(e) / 2
    reach = tl.ceil(3.0 * sigma).to(tl.int32)
    total = falling * 0 + 1.0
    for k in range(1, reach + 1):
        total += 2.0 * ex2(falling * (k * k))
    return reach, falling, total


@triton.jit
def blur_along(x_ptr, place, start, step, length, inside, reach, falling):
    """Sum weighted neighbours along one axis, reflected at both ends."""
    total = tl.load(x_ptr + start + place * step, mask=inside, other=0.0)
    for k in range(1, reach + 1):
        before, after = fold(place - k, length, "reflect101"), fold(place + k, length, "reflect101")
        two = tl.load(x_ptr + start + before * step, mask=inside, other=0.0)
        two += tl.load(x_ptr + start + after * step, mask=inside, other=0.0)
        total += two * ex2(falling * (k * k))
    return total


@triton.jit
def blur_rows_fwd_kernel(
    x_ptr,  # (B, 3, height, width) float32, light
    y_ptr,  # the same, blurred down the columns
    block_ptr,  # (B, 80) float32
    height,
    width,
    SHARPEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    plane = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width.to(tl.int64)
    reach, falling, total = gaussian_weights(block_ptr + plane // 3 * BLOCK_FLOATS, SHARPEN)
    x_ptr += plane * height * width
    value = blur_along(x_ptr, pixel // width, pixel % width, width, height, inside, reach, falling)
    tl.store(y_ptr + plane * height * width + pixel, value / total, mask=inside)


@triton.jit
def blur_columns_fwd_kernel(
    x_ptr,  # (B, 3, height, width) float32, light that was blurred down the columns
    light_ptr,  # the same before that
    y_ptr,  # (B, 3, height, width), channels first or last
    block_ptr,  # (B, 80) float32
    ending_ptr,  # (6,) float32
    height,
    width,
    plane_step,
    pixel_step,
    SHARPEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pixels = height * width.to(tl.int64)
    inside = pixel < pixels
    block_ptr += index * BLOCK_FLOATS
    reach, falling, total = gaussian_weights(block_ptr, SHARPEN)
    start, place = pixel // width * width, pixel % width
    x_ptr += index * 3 * pixels
    light_ptr += index * 3 * pixels
    r = blur_along(x_ptr, place, start, 1, width, inside, reach, falling) / total
    g = blur_along(x_ptr + pixels, place, start, 1, width, inside, reach, falling) / total
    b = blur_along(x_ptr + 2 * pixels, place, start, 1, width, inside, reach, falling) / total
    if SHARPEN:
        share = tl.load(block_ptr + SHARPEN_AT)
        light = tl.load(light_ptr + pixel, mask=inside, other=0.0)
        r = tl.where(share > 0, clamp(light + share * (light - r), 0.0, 1.0), r)
        light = tl.load(light_ptr + pixels + pixel, mask=inside, other=0.0)
        g = tl.where(share > 0, clamp(light + share * (light - g), 0.0, 1.0), g)
        light = tl.load(light_ptr + 2 * pixels + pixel, mask=inside, other=0.0)
        b = tl.where(share > 0, clamp(light + share * (light - b), 0.0, 1.0), b)
    put(y_ptr + index * 3 * pixels, pixel * pixel_step, plane_step, ending_ptr, inside, r, g, b)


@triton.jit
def augment_masks_fwd_kernel(
    x_ptr,  # (B, K, source_height, source_width) of any integer, any strides
    y_ptr,  # (B, K, height, width)
    block_ptr,  # (B, 80) float32
    field_ptr,  # (B, 2, nodes_down, nodes_right) float32
    planes,
    source_height,
    source_width,
    sample_step,
    plane_step,
    row_step,
    column_step,
    height,
    width,
    nodes_down,
    nodes_right,
    step_down,
    step_right,
    fill,
    GEOMETRY: tl.constexpr,
    BORDER: tl.constexpr,
    HAS_FIELD: tl.constexpr,
    EVEN: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    across = tl.cdiv(width, COLUMNS)
    tiles = across * tl.cdiv(height, ROWS)
    program = tl.program_id(0)
    plane = (program // tiles).to(tl.int64)
    tile = program % tiles
    index = plane // planes
    row = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < height) & (column < width)
    if EVEN:
        inside = tl.full((ROWS, COLUMNS), True, tl.int1)
    x_ptr += index * sample_step + plane % planes * plane_step
    wide_row, wide_column = row, column
    from_row, from_column = row, column
    if GEOMETRY != "identity":
        down, right = find_positions(
            block_ptr + index * BLOCK_FLOATS,
            field_ptr + index * (2 * nodes_down * nodes_right),
            row.to(tl.float32),
            column.to(tl.float32),
            nodes_down,
            nodes_right,
            step_down,
            step_right,
            GEOMETRY,
            HAS_FIELD,
        )
        from_row, from_column = tl.floor(down + 0.5).to(tl.int32), tl.floor(right + 0.5).to(tl.int32)
    folded_row, folded_column = fold(from_row, source_height, BORDER), fold(from_column, source_width, BORDER)
    within = (folded_row == from_row) & (folded_column == from_column)
    if FAR:
        wide_row, wide_column = row.to(tl.int64), column.to(tl.int64)
        folded_row, folded_column = folded_row.to(tl.int64), folded_column.to(tl.int64)
    value = tl.load(x_ptr + folded_row * row_step + folded_column * column_step, mask=inside, other=0)
    if BORDER == "constant":
        value = tl.where(within, value, fill).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + plane * height * width + (wide_row * width + wide_column), value, mask=inside)


def augment_triton(
    images: Tensor,
    block: Tensor,
    *,
    keys: Tensor,
    large: dict[str, Tensor | None],
    stages: list[str],
    interpolation: str,
    border: str,
    geometry: str,
    supersample: int,
    switches: list[bool],
    logarithm: list[float],
    ending: Tensor,
    out: Tensor,
) -> Tensor:
    """Write ``(B, 3, H, W)`` uint8 of any strides to `out`, dense with channels first or last; arguments as in C."""
    parts = {name: block if value is None else value.contiguous() for name, value in large.items()}
    field, cutouts = large["field"], large["cutouts"]
    blurs = "blur" in stages or "sharpen" in stages
    batch, _, height, width = out.shape
    pixels = height * width
    source_height, source_width = images.shape[2:]
    steps = list(images.stride())
    simple = field is None and supersample == 1
    if geometry != "projective" and not simple:
        geometry = "affine"
    if geometry == "identity" and (height, width) != (source_height, source_width):
        geometry = "whole"
    in_place = IN_PLACE.intersection(stages)
    shape, tile = (height, width), HALF if in_place or not simple or interpolation == "bicubic" else SQUARE
    if geometry == "identity" and steps[2] == width * steps[3] and not in_place:
        shape, tile = (1, pixels), ROW
    light = torch.empty(out.shape, device=out.device) if blurs else out
    planar = light.is_contiguous()
    even = shape[0] % tile[0] == 0 and shape[1] % tile[1] == 0
    farthest = max(3 * pixels, sum((n - 1) * step for n, step in zip(images.shape[1:], steps[1:], strict=True)))
    grid = (batch * triton.cdiv(shape[0], tile[0]) * triton.cdiv(shape[1], tile[1]),)
    augment_fwd_kernel[grid](
        images,
        light,
        block,
        keys,
        parts["field"],
        parts["table"],
        parts["cutouts"],
        parts["counts"],
        torch.tensor((1.0, 1.0, 1.0, 0.0, 0.0, 0.0), device=out.device) if blurs else ending,
        source_height,
        source_width,
        *steps,
        *shape,
        pixels if planar else 1,
        1 if planar else 3,
        *_nodes(field, height, width),
        0 if cutouts is None else cutouts.shape[1],
        supersample,
        *logarithm,
        **{name.upper(): name in stages for name in STAGES if name not in ("blur", "sharpen")},
        GEOMETRY=geometry,
        INTERPOLATION="nearest" if geometry in ("identity", "whole") else interpolation,
        BORDER=border,
        SUPERSAMPLED=supersample > 1,
        HAS_FIELD=field is not None,
        AROUND=switches[2],
        NOISE_PER_CHANNEL=switches[0],
        DROPOUT_PER_CHANNEL=switches[1],
        EVEN=even,
        FAR=farthest >= 2**31 - 2**16,
        ROWS=tile[0],
        COLUMNS=tile[1],
    )
    if blurs:
        _blur(light, block, sharpen="sharpen" in stages, ending=ending, out=out)
    return out


def _blur(light: Tensor, block: Tensor, *, sharpen: bool, ending: Tensor, out: Tensor) -> None:
    batch, _, height, width = out.shape
    planar, between = out.is_contiguous(), torch.empty_like(light)
    blocks = triton.cdiv(height * width, BLUR_ROW)
    common = {"SHARPEN": sharpen, "BLOCK": BLUR_ROW}
    blur_rows_fwd_kernel[blocks, batch * 3](light, between, block, height, width, **common)
    steps = (height * width, 1) if planar else (1, 3)
    blur_columns_fwd_kernel[blocks, batch](between, light, out, block, ending, height, width, *steps, **common)


def augment_masks_triton(
    masks: Tensor, block: Tensor, *, field: Tensor | None, border: str, geometry: str, fill: int, out: Tensor
) -> Tensor:
    """Write ``(B, K, H, W)`` of any integer type and strides to `out`, dense."""
    if masks.dtype == torch.bool:
        masks, out, fill = masks.view(torch.uint8), out.view(torch.uint8), int(bool(fill))
    batch, planes, height, width = out.shape
    if geometry == "identity" and (field is not None or masks.shape[2:] != out.shape[2:]):
        geometry = "affine"
    steps = masks.stride()
    farthest = max(height * width, sum((n - 1) * step for n, step in zip(masks.shape[2:], steps[2:], strict=True)))
    grid = (batch * planes * triton.cdiv(height, SQUARE[0]) * triton.cdiv(width, SQUARE[1]),)
    augment_masks_fwd_kernel[grid](
        masks,
        out,
        block,
        block if field is None else field.contiguous(),
        planes,
        *masks.shape[2:],
        *steps,
        height,
        width,
        *_nodes(field, height, width),
        fill,
        GEOMETRY=geometry,
        BORDER=border,
        HAS_FIELD=field is not None,
        EVEN=height % SQUARE[0] == 0 and width % SQUARE[1] == 0,
        FAR=farthest >= 2**31 - 2**16,
        ROWS=SQUARE[0],
        COLUMNS=SQUARE[1],
    )
    return out


def _nodes(field: Tensor | None, height: int, width: int) -> tuple[Any, ...]:
    """Return nodes down and right, and how many of them lie between two pixels."""
    if field is None:
        return 2, 2, 0.0, 0.0
    down, right = field.shape[2:]
    return down, right, (down - 1) / max(height - 1, 1), (right - 1) / max(width - 1, 1)
