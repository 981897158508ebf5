"""What the segmentation losses are compiled to, for six classes: instructions per logit.

The loop over several labels is not written out: its one turn is what a logit costs, with the start and the end of the
program.
"""

from __future__ import annotations

from compiling import Case

from dhlab.kernels._triton.losses import (
    BLOCK,
    ROWS,
    losses_bwd_kernel,
    losses_finish_kernel,
    losses_fwd_kernel,
    losses_gather_kernel,
)

SIZES = dict.fromkeys(("pixels", "step_pixel", "step_class", "ignored"), "i32")
NUMBERS = SIZES | {"smoothing": "fp32", "gamma": "fp32"}
FLAGS = ("MULTILABEL", "IGNORES", "PLAIN", "FOCAL", "CLASSES", "UNROLL", "BLOCK")
FORWARD = {"weights_ptr": "*fp32", "sums_ptr": "*fp32", **NUMBERS}
BACKWARD = {"weights_ptr": "*fp32", "slopes_ptr": "*fp32"}
CLASSES, WIDTH, COLUMNS = 6, 32, 8  # the last two: what sums and classes are padded to
TERMS = {
    "multi-class": {"MULTILABEL": False, "IGNORES": False, "PLAIN": True, "FOCAL": False},
    "multi-class, weighted focal": {"MULTILABEL": False, "IGNORES": True, "PLAIN": False, "FOCAL": True},
    "multi-label": {"MULTILABEL": True, "IGNORES": True, "PLAIN": False, "FOCAL": False},
    "multi-label, focal": {"MULTILABEL": True, "IGNORES": True, "PLAIN": False, "FOCAL": True},
}


def passes(terms: str, logits: str = "*fp32") -> list[Case]:
    """Return both passes over the pixels."""
    constants = TERMS[terms] | {"CLASSES": CLASSES, "UNROLL": CLASSES, "BLOCK": BLOCK}
    inputs, flags = {"logits_ptr": logits, "targets_ptr": "*u8"}, dict.fromkeys(FLAGS, "constexpr")
    backward = {**inputs, **BACKWARD, "gradient_ptr": logits, **NUMBERS, **flags}
    aligned = ("logits_ptr", "targets_ptr", "gradient_ptr", "pixels", "step_class")
    items = BLOCK if constants["MULTILABEL"] else CLASSES * BLOCK
    kind = f"{terms}, {logits[1:]}"
    return [
        Case(
            f"sums, {kind}",
            losses_fwd_kernel,
            {**inputs, **FORWARD, **flags},
            constants,
            items=items,
            aligned=(*aligned[:2], *aligned[3:]),
        ),
        Case(f"gradient, {kind}", losses_bwd_kernel, backward, constants, items=items, aligned=aligned),
    ]


FINISH = {
    **dict.fromkeys(("sums_ptr", "weights_ptr", "samples_ptr", "factors_ptr", "slopes_ptr", "loss_ptr"), "*fp32"),
    **dict.fromkeys(("samples", "classes", "first"), "i32"),
    **dict.fromkeys(("alpha", "beta", "exponent", "above", "below", "of_overlap", "of_entropy"), "fp32"),
}
FINISHED = {"MULTILABEL": False, "PER_SAMPLE": True, "PRESENT_ONLY": False, "PLAIN_EXPONENT": True}

CASES = [
    *passes("multi-class"),
    *passes("multi-class", "*bf16"),
    *passes("multi-class, weighted focal"),
    *passes("multi-label"),
    *passes("multi-label, focal"),
    Case(
        "gather the sums",
        losses_gather_kernel,
        {"partial_ptr": "*fp32", "sums_ptr": "*fp32", "parts": "i32", "width": "i32"}
        | dict.fromkeys(("ROWS", "WIDTH"), "constexpr"),
        {"ROWS": ROWS, "WIDTH": WIDTH},
        items=ROWS * WIDTH,
    ),
    Case(
        "finish",
        losses_finish_kernel,
        FINISH | dict.fromkeys((*FINISHED, "ROWS", "CLASSES"), "constexpr"),
        {**FINISHED, "ROWS": ROWS, "CLASSES": COLUMNS},
        items=ROWS * COLUMNS,
    ),
]
