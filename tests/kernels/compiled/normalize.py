"""What `normalize` is compiled to."""

from __future__ import annotations

from compiling import Case

from dhlab.kernels._triton.normalize import BLOCK, normalize_fwd_kernel

POINTERS = {"y_ptr": "*fp32", "scale_ptr": "*fp32", "shift_ptr": "*fp32"}
SIZES = dict.fromkeys(("pixels", "channels", "chunks", "x_pixel", "x_channel", "y_pixel", "y_channel"), "i32")

CASES = [
    Case(
        "uint8 to float32",
        normalize_fwd_kernel,
        {"x_ptr": "*u8", **POINTERS, **SIZES, "BLOCK": "constexpr"},
        {"BLOCK": BLOCK},
        items=BLOCK,
        aligned=("x_ptr", *POINTERS),
    )
]
