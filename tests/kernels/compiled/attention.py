"""What the steps of attention pooling are compiled to, at the sizes of CLAM: 512 features, 256 hidden, one head."""

from __future__ import annotations

from compiling import Case

from dhlab.kernels._triton.attention import (
    BACKWARD_COLUMNS,
    COLUMNS,
    DEPTH,
    ROWS,
    attention_bwd_kernel,
    attention_combine_kernel,
    attention_fwd_kernel,
    attention_rectify_kernel,
    attention_spread_kernel,
)

BLOCKS = {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH}
OPTIONS = {**BLOCKS, "HEADS": 1, "UPCAST": False}
PRODUCTS = {"embedded_ptr": "*bf16", "weight_ptr": "*bf16", "bias_ptr": "*fp32", "score_weight_ptr": "*fp32"}
BAGS = {"offsets_ptr": "*i64", "first_ptr": "*i64"}
SIZES = dict.fromkeys(("begin", "rows", "bags", "width", "hidden", "heads"), "i32")
# A launch sees that these are multiples of 16; heads is not.
EVEN = ("begin", "rows", "width", "hidden")


def floats(*names: str) -> dict[str, str]:
    return {f"{name}_ptr": "*fp32" for name in names}


def case(name: str, kernel, signature: dict[str, str], constants: dict[str, int], items: int):
    aligned = tuple(argument for argument in signature if argument.endswith("_ptr") or argument in EVEN)
    return Case(name, kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, items, aligned=aligned)


CASES = [
    case(
        "forward bfloat16",
        attention_fwd_kernel,
        {**PRODUCTS, **floats("score_bias"), **BAGS, **floats("scores", "most", "mass", "pooled"), **SIZES},
        OPTIONS,
        ROWS,
    ),
    case(
        "backward bfloat16",
        attention_bwd_kernel,
        {
            **PRODUCTS,
            **BAGS,
            **floats("scores", "grad_scores", "log_sums", "grad_shift", "grad_pooled", "shares"),
            "gradient_ptr": "*bf16",
            **floats("partial"),
            **SIZES,
        },
        OPTIONS | {"COLUMNS": BACKWARD_COLUMNS},
        ROWS,
    ),
    case(
        "spread bfloat16",
        attention_spread_kernel,
        {
            "gradient_ptr": "*bf16",
            "embedded_ptr": "*bf16",
            **floats("shares", "grad_pooled"),
            **BAGS,
            **floats("partial"),
            **{name: kind for name, kind in SIZES.items() if name != "hidden"},
        },
        {"ROWS": ROWS, "COLUMNS": COLUMNS, "RECTIFIED": True},
        ROWS * COLUMNS,
    ),
    case(
        "rectify bfloat16",
        attention_rectify_kernel,
        {"embedded_ptr": "*bf16", "bias_ptr": "*fp32", "rows": "i32", "width": "i32"},
        {"ROWS": ROWS, "COLUMNS": COLUMNS},
        ROWS * COLUMNS,
    ),
    case(
        "combine",
        attention_combine_kernel,
        {
            "offsets_ptr": "*i64",
            **floats("most", "mass", "pooled", "result", "log_sums"),
            "width": "i32",
            "heads": "i32",
        },
        {"ROWS": ROWS, "DEPTH": DEPTH},
        DEPTH,
    ),
]
