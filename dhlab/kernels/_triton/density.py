"""Light to light through optical density, see ``kernels/density.py``: the stage that augmentation and stain share."""

from __future__ import annotations

import triton
import triton.language as tl

from dhlab.kernels._triton.arithmetic import ex2, lg2

__all__ = ["multiply", "multiply_add", "through_density"]


@triton.jit
def multiply(matrix_ptr, r, g, b):  # (3, 3) float32
    x = tl.load(matrix_ptr) * r + (tl.load(matrix_ptr + 1) * g + tl.load(matrix_ptr + 2) * b)
    y = tl.load(matrix_ptr + 3) * r + (tl.load(matrix_ptr + 4) * g + tl.load(matrix_ptr + 5) * b)
    z = tl.load(matrix_ptr + 6) * r + (tl.load(matrix_ptr + 7) * g + tl.load(matrix_ptr + 8) * b)
    return x, y, z


@triton.jit
def multiply_add(matrix_ptr, r, g, b):  # (3, 4) float32
    x = tl.load(matrix_ptr) * r + (
        tl.load(matrix_ptr + 1) * g + (tl.load(matrix_ptr + 2) * b + tl.load(matrix_ptr + 3))
    )
    y = tl.load(matrix_ptr + 4) * r + (
        tl.load(matrix_ptr + 5) * g + (tl.load(matrix_ptr + 6) * b + tl.load(matrix_ptr + 7))
    )
    z = tl.load(matrix_ptr + 8) * r + (
        tl.load(matrix_ptr + 9) * g + (tl.load(matrix_ptr + 10) * b + tl.load(matrix_ptr + 11))
    )
    return x, y, z


@triton.jit
def through_density(
    stain_ptr,  # (45,) float32 of one sample, as StainMap.pack lays them out
    r,
    g,
    b,
    offset,
    least,
    AROUND: tl.constexpr,
    MOST: tl.constexpr = 127.0,  # greatest power of two; 0 where light above 1 is cut off anyway
):
    if AROUND:
        r, g, b = multiply(stain_ptr + 27, r, g, b)
    r, g, b = (
        lg2(tl.maximum(r + offset, least)),
        lg2(tl.maximum(g + offset, least)),
        lg2(tl.maximum(b + offset, least)),
    )
    r, g, b = multiply_add(stain_ptr, r, g, b)
    r = tl.maximum(r, tl.load(stain_ptr + 24))
    g = tl.maximum(g, tl.load(stain_ptr + 25))
    b = tl.maximum(b, tl.load(stain_ptr + 26))
    r, g, b = multiply_add(stain_ptr + 12, r, g, b)
    r, g, b = ex2(tl.minimum(r, MOST)), ex2(tl.minimum(g, MOST)), ex2(tl.minimum(b, MOST))
    if AROUND:
        r, g, b = multiply(stain_ptr + 36, r, g, b)
    return r, g, b
