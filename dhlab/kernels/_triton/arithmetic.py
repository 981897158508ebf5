"""What several kernels compute: logarithm and power of two, each one instruction of the hardware."""

from __future__ import annotations

import triton
import triton.language as tl

from dhlab.kernels._triton import INTERPRETED

__all__ = ["ex2", "lg2", "round_product"]

if INTERPRETED:

    @triton.jit
    def lg2(x):
        return tl.log2(x)

    @triton.jit
    def ex2(x):
        return tl.exp2(x)

    @triton.jit
    def round_product(a, b):
        return a * b

else:
    # tl.log2 is a polynomial of some twenty instructions; the hardware's is one. By the PTX ISA the error of lg2.approx
    # is below 2^-22 (absolute from 0.5 to 2, relative elsewhere), that of ex2.approx below 2^-22.5 of the result.
    @triton.jit
    def lg2(x):
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def ex2(x):
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    # By the PTX ISA a product with an explicit rounding is not fused with a sum that follows.
    @triton.jit
    def round_product(a, b):
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
