"""What `filter_bank` is compiled to; instructions are counted once per loop, so per pixel and pair of weights."""

from __future__ import annotations

from compiling import Case

from dhlab.kernels._triton.filters import (
    BLOCK,
    filter_columns_fwd_kernel,
    filter_rows_fwd_kernel,
    structure_columns_fwd_kernel,
    structure_rows_fwd_kernel,
)

PLACES = {"GAUSSIAN": 0, "GRADIENT": 1, "LAPLACIAN": 2, "STRUCTURE": 3, "HESSIAN": 5}
FROM = dict.fromkeys(("x_sample", "x_channel", "x_row", "x_column"), "i32")
TO = dict.fromkeys(("y_sample", "y_plane", "y_feature", "y_row", "y_column"), "i32")


def sizes(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def case(name, kernel, pointers, size, *, constants=None):
    constants = {**(constants or {}), "BLOCK": BLOCK, "WIDE": False}
    signature = {**pointers, **size, **dict.fromkeys(constants, "constexpr")}
    return Case(name, kernel, signature, constants, items=BLOCK, aligned=(*pointers, "pixels", "width", "between"))


CASES = [
    case(
        "uint8, along columns",
        filter_columns_fwd_kernel,
        {"x_ptr": "*u8", "v_ptr": "*fp32", "weights_ptr": "*fp32"},
        sizes("first", "channels", "blocks", "pixels", "width", "height", "radius", "between") | FROM,
    ),
    case(
        "all features, along rows",
        filter_rows_fwd_kernel,
        {"v_ptr": "*fp32", "g_ptr": "*fp32", "y_ptr": "*fp32", "weights_ptr": "*fp32"},
        sizes("first", "channels", "blocks", "pixels", "width", "radius", "between") | TO,
        constants=PLACES,
    ),
    case(
        "structure, along columns",
        structure_columns_fwd_kernel,
        {"g_ptr": "*fp32", "v_ptr": "*fp32", "weights_ptr": "*fp32"},
        sizes("blocks", "pixels", "width", "height", "reach", "between"),
    ),
    case(
        "structure, along rows",
        structure_rows_fwd_kernel,
        {"v_ptr": "*fp32", "y_ptr": "*fp32", "weights_ptr": "*fp32"},
        sizes("first", "channels", "blocks", "pixels", "width", "reach", "between") | TO,
    ),
]
