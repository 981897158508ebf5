"""What `augment` is compiled to."""

from __future__ import annotations

from typing import Any

from compiling import Case

from dhlab.kernels._triton.augment import (
    BLUR_ROW,
    HALF,
    ROW,
    SQUARE,
    augment_fwd_kernel,
    augment_masks_fwd_kernel,
    blur_columns_fwd_kernel,
    blur_rows_fwd_kernel,
)
from dhlab.kernels.plan import STAGES

POINTERS = {
    "x_ptr": "*u8",
    "y_ptr": "*fp32",
    "block_ptr": "*fp32",
    "keys_ptr": "*i64",
    "field_ptr": "*fp32",
    "table_ptr": "*fp32",
    "cutouts_ptr": "*i32",
    "poisson_ptr": "*fp32",
    "light_ptr": "*fp32",
    "ending_ptr": "*fp32",
}
FLOATS = ("step_down", "step_right", "offset", "least")
COMMON = {
    "GEOMETRY": "affine",
    "INTERPOLATION": "bilinear",
    "BORDER": "constant",
    "SUPERSAMPLED": False,
    "HAS_FIELD": False,
    "AROUND": False,
    "NOISE_PER_CHANNEL": True,
    "DROPOUT_PER_CHANNEL": False,
    "EVEN": True,
    "FAR": False,
    "SHARPEN": True,
    "BLOCK": BLUR_ROW,
    **dict(zip(("ROWS", "COLUMNS"), SQUARE, strict=True)),
}


def case(name: str, kernel: Any, stages: str = "", x: str = "*u8", y: str = "*fp32", **constants: Any) -> Case:
    """Return a case of a kernel with the stages named and all else as in `COMMON`."""
    known = {**COMMON, **{stage.upper(): stage in stages.split() for stage in STAGES[:-2]}, **constants}
    names = kernel.arg_names
    kinds = {**POINTERS, "x_ptr": x, "y_ptr": y, **dict.fromkeys(FLOATS, "fp32"), **dict.fromkeys(known, "constexpr")}
    steps = {"column_step": 3, "channel_step": 1, "pixel_step": 1}
    signature = {n: "constexpr" if n in steps else kinds.get(n, "i32") for n in names}
    aligned = ("width", "height", "sample_step", "row_step", "plane_step", *POINTERS)
    return Case(
        name,
        kernel,
        signature,
        {n: v for n, v in {**known, **steps}.items() if n in names},
        items=known["ROWS"] * known["COLUMNS"] if "ROWS" in names else BLUR_ROW,
        aligned=tuple(n for n in aligned if n in names),
    )


SMALL = dict(zip(("ROWS", "COLUMNS"), HALF, strict=True))
IN_PLACE = {"GEOMETRY": "identity", "INTERPOLATION": "nearest", "ROWS": ROW[0], "COLUMNS": ROW[1]}
FULL = "stain colour"
EVERYTHING = " ".join(STAGES)

CASES = [
    case("stain to float32, pixels in place", augment_fwd_kernel, "stain", **IN_PLACE),
    case("stain to bfloat16, pixels in place", augment_fwd_kernel, "stain", y="*bf16", **IN_PLACE),
    case("affine, stain, colour to float32", augment_fwd_kernel, FULL),
    case("affine, stain, colour to bfloat16", augment_fwd_kernel, FULL, y="*bf16"),
    case(
        "projective with field, reflected, every stage",
        augment_fwd_kernel,
        EVERYTHING,
        GEOMETRY="projective",
        BORDER="reflect",
        HAS_FIELD=True,
        SUPERSAMPLED=True,
        **SMALL,
    ),
    case("bicubic", augment_fwd_kernel, INTERPOLATION="bicubic", **SMALL),
    case("masks of uint8", augment_masks_fwd_kernel, x="*u8", y="*u8", column_step=1),
    case("masks of int64", augment_masks_fwd_kernel, x="*i64", y="*i64", column_step=1),
    case("blur down the columns", blur_rows_fwd_kernel, x="*fp32"),
    case("blur along the rows", blur_columns_fwd_kernel, x="*fp32"),
]
