"""What the fits of stains, and their application, are compiled to; Macenko: moments, two counts and the map."""

from __future__ import annotations

from typing import Any

from compiling import Case

from dhlab.kernels._triton import stain
from dhlab.kernels._triton.stain import BINS, BLOCK, CHANGE_BLOCK, SAMPLE, STEPS

FLOATS = (
    *("white", "limit", "offset", "least", "shift", "scale", "share", "widest", "tolerance", "sparsity"),
    "least_spread",
)
TYPES = {"x_ptr": "*u8", "y_ptr": "*u8", "total_ptr": "*fp64", "rank_ptr": "*i64", "below_ptr": "*i64"}
TYPES |= {"bins_ptr": "*i32", "fitted_ptr": "*i1"} | dict.fromkeys(FLOATS, "fp32")


def case(name: str, kernel: Any, *, items: int, warps: int = 4, types: dict[str, str] | None = None, **constants: Any):
    """Return a case: pointers are to float32 and other arguments int32 unless `TYPES` or `types` says otherwise."""
    signature = {}
    for argument in kernel.arg_names:
        usual = "constexpr" if argument in constants else "*fp32" if argument.endswith("_ptr") else "i32"
        signature[argument] = (types or {}).get(argument, TYPES.get(argument, usual))
    aligned = tuple(a for a in ("x_ptr", "y_ptr") if a in signature)
    return Case(name, kernel, signature, constants, items=items, warps=warps, aligned=aligned)


# A loop over blocks is one body in machine code: counted per pixel of one block.
PASS = {"BLOCK": BLOCK, "STEPS": STEPS}
FLOAT = {"y_ptr": "*fp32"}

CASES = [
    case("moments", stain.moments_fwd_kernel, items=BLOCK, COLOURS=False, **PASS),
    case("moments of colours", stain.moments_fwd_kernel, items=BLOCK, COLOURS=True, **PASS),
    case("count angles", stain.count_fwd_kernel, items=BLOCK, BY_ANGLE=True, BINS=BINS, **PASS),
    case("count amounts", stain.count_fwd_kernel, items=BLOCK, BY_ANGLE=False, BINS=BINS, **PASS),
    case("regimes", stain.regimes_fwd_kernel, items=BLOCK, **PASS),
    case("map", stain.map_fwd_kernel, items=CHANGE_BLOCK, AROUND=False, BLOCK=CHANGE_BLOCK),
    case("map colours", stain.map_fwd_kernel, items=CHANGE_BLOCK, AROUND=True, BLOCK=CHANGE_BLOCK),
    case(
        "separate",
        stain.convert_fwd_kernel,
        items=CHANGE_BLOCK,
        types=FLOAT,
        SEPARATES=True,
        INPUTS=3,
        OUTPUTS=3,
        BLOCK=CHANGE_BLOCK,
    ),
    case(
        "combine",
        stain.convert_fwd_kernel,
        items=CHANGE_BLOCK,
        types=FLOAT | {"x_ptr": "*fp32"},
        SEPARATES=False,
        INPUTS=3,
        OUTPUTS=3,
        BLOCK=CHANGE_BLOCK,
    ),
    # Once per group of images.
    case("plane", stain.plane_fwd_kernel, items=1, warps=1),
    case("open by angle", stain.open_fwd_kernel, items=SAMPLE, BY_ANGLE=True, SAMPLE=SAMPLE),
    case("open by amount", stain.open_fwd_kernel, items=SAMPLE, BY_ANGLE=False, SAMPLE=SAMPLE),
    case("narrow", stain.narrow_fwd_kernel, items=BINS, BINS=BINS),
    case("unmix angles", stain.unmix_fwd_kernel, items=1, warps=1, BY_ANGLE=True),
    case("unmix dictionary", stain.unmix_fwd_kernel, items=1, warps=1, BY_ANGLE=False),
    case("finish", stain.finish_fwd_kernel, items=1, warps=1),
    case("dictionary", stain.dictionary_fwd_kernel, items=1, warps=1),
    case("colours", stain.colours_fwd_kernel, items=1, warps=1),
]
