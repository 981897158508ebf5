"""What `blend_windows` is compiled to; the loop over windows is counted once, so per output pixel and window."""

from __future__ import annotations

from compiling import Case

from dhlab.kernels._triton.blend import blend_fwd_kernel
from dhlab.kernels._windows import CELL_COLUMNS, CELL_ROWS

TABLES = dict.fromkeys(("offsets_ptr", "rows_ptr", "columns_ptr", "starts_ptr", "members_ptr"), "*i64")
SIZES = ("channels", "window_rows", "window_columns", "columns", "across", "x_channel", "x_row", "x_column")
SIZES = (*SIZES, "y_channel", "y_row")
# A launch sees that these are multiples of 16.
EVEN = ("window_rows", "window_columns", "columns", "x_channel", "x_row", "y_channel", "y_row")


def case(name: str, scores: str, result: str, activation: str):
    constants = {"RESULT": result, "ACTIVATION": activation, "CHANNELS": 8, "CELL_ROWS": CELL_ROWS}
    constants |= {"CELL_COLUMNS": CELL_COLUMNS, "BLOCK": CELL_COLUMNS}
    pointers = {"x_ptr": scores, **TABLES, "weights_ptr": "*fp32", "y_ptr": "*fp32" if result == "scores" else "*u8"}
    signature = {
        **pointers,
        **dict.fromkeys(SIZES, "i32"),
        "threshold": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    return Case(name, blend_fwd_kernel, signature, constants, items=CELL_COLUMNS, aligned=(*pointers, *EVEN))


CASES = [
    case("float32 scores, 6 of 8 channels", "*fp32", "scores", "none"),
    case("bfloat16, softmax, classes", "*bf16", "classes", "softmax"),
    case("float16, sigmoid, quantised", "*fp16", "quantised", "sigmoid"),
]
