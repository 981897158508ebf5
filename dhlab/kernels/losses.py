"""Segmentation losses from logits: overlap (Dice, Tversky) and entropy (cross-entropy, focal), in two passes.

The first pass over memory sums, per sample and class, what overlap and entropy need; the second writes the gradient.
Nothing but the logits and a few sums is kept in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.losses import can_compute_loss, loss_cpu, loss_gradient_cpu
from dhlab.kernels._operators import register

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["LossTerms", "dice_ce_loss", "focal_tversky_loss", "loss_reference"]

TARGETS = (torch.uint8, torch.int16, torch.int32, torch.int64)
LOGITS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What 1 minus an index is at least where it is raised to a power, so that the slope stays finite.
LEAST_MISS = 1e-7
# What a sum is at least before something is divided by it.
LEAST = 1e-12


@dataclass(frozen=True)
class LossTerms:
    """What a segmentation loss is made of, apart from tensors.

    The loss is ``overlap * mean((1 - index) ** exponent) + entropy * mean(cross-entropy or focal loss)``; ``index`` is
    ``(both + smooth_above) / (both + alpha * false positives + beta * false negatives + smooth_below)``.

    Parameters
    ----------
    multilabel
        Sigmoid and targets 0 and 1 per class, instead of softmax and one class per pixel.
    ignore_index
        Target that does not count; None is none.
    label_smoothing
        Share of the target of the cross-entropy that is spread over all classes.
    gamma
        Focus of the focal loss; 0 is cross-entropy.
    alpha, beta
        Weights of false positives and of false negatives; 0.5 and 0.5 is Dice.
    exponent
        Power of one minus the index.
    smooth_above, smooth_below
        Added to numerator and denominator of the index.
    overlap, entropy
        Weights of the two parts.
    per_sample
        One index per sample and class, else one per class.
    present_only
        Take the mean over classes that occur in the targets only.
    first
        Class that the overlap begins with.
    """

    multilabel: bool = False
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    gamma: float = 0.0
    alpha: float = 0.5
    beta: float = 0.5
    exponent: float = 1.0
    smooth_above: float = 0.0
    smooth_below: float = 0.0
    overlap: float = 1.0
    entropy: float = 1.0
    per_sample: bool = True
    present_only: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise BadValueError(f"label_smoothing is {self.label_smoothing!r}; expected a share from 0 up to below 1.")
        if not self.exponent > 0:
            raise BadValueError(f"exponent is {self.exponent!r}; expected a positive number.")
        for name in ("gamma", "alpha", "beta", "smooth_above", "smooth_below"):
            if not getattr(self, name) >= 0:
                raise BadValueError(f"{name} is {getattr(self, name)!r}; expected a number of at least 0.")


def dice_ce_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    multilabel: bool = False,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    dice_class_weights: Tensor | None = None,
    per_sample: bool = True,
    include_background: bool = True,
    present_only: bool = False,
    smooth: tuple[float, float] = (1e-5, 1e-5),
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return one minus the mean soft Dice plus the mean cross-entropy.

    With its defaults it is MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True)``.

    Parameters
    ----------
    logits
        ``(B, C, *space)`` float32, bfloat16 or float16 (or float64, then in plain PyTorch), channels first or last in
        memory.
    targets
        ``(B, *space)`` classes 0..C-1, or with `multilabel` ``(B, C, *space)`` of 0 and 1; uint8, int16, int32, int64
        or bool.
    multilabel
        Classes are independent: sigmoid and binary cross-entropy instead of softmax and cross-entropy.
    ignore_index
        Target that does not count, anywhere.
    class_weights
        ``(C,)`` weights of the cross-entropy, as PyTorch's ``weight``; with `multilabel` of what is there against what
        is not, as its ``pos_weight``.
    sample_weights
        ``(B,)`` weight of each sample in all that is summed or averaged.
    label_smoothing
        Share of the target, in the cross-entropy, that is spread over all classes.
    dice_weight
        Factor of the Dice term.
    ce_weight
        Factor of the cross-entropy.
    dice_class_weights
        ``(C,)`` factor of each class's Dice before the mean (in MONAI the class weights are both).
    per_sample
        One Dice per sample and class (MONAI's ``batch=False``), else one per class over the batch.
    include_background
        Let class 0 count in the Dice.
    present_only
        Take the mean over the classes that occur in the targets, of the sample or of the batch.
    smooth
        Added to ``2 * overlap`` and to ``chances + targets``.
    total
        What the sums over the batch, ``(3 C + 2,)``, pass through with a gradient: to add those of other workers, in
        plain PyTorch and with ``per_sample=False`` only.

    Returns
    -------
    Tensor
        Scalar float32 (float64 of float64); 0 with a gradient of 0 if the batch is empty or nothing counts.

    Raises
    ------
    BadShapeError
        If shapes do not fit each other.
    BadValueError
        If a type or a number is none of the above, or on the CPU a target is no class.

    References
    ----------
    Milletari, Navab and Ahmadi, "V-Net: Fully convolutional neural networks for volumetric medical image
    segmentation", 3DV 2016. Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    terms = LossTerms(
        multilabel=multilabel,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        smooth_above=smooth[0] / 2,
        smooth_below=smooth[1] / 2,
        overlap=dice_weight,
        entropy=ce_weight,
        per_sample=per_sample,
        present_only=present_only,
        first=0 if include_background else 1,
    )
    return _evaluate(logits, targets, terms, (class_weights, sample_weights, dice_class_weights), total)


def focal_tversky_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    exponent: float = 0.75,
    gamma: float = 2.0,
    tversky_weight: float = 1.0,
    focal_weight: float = 0.0,
    multilabel: bool = False,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    tversky_class_weights: Tensor | None = None,
    per_sample: bool = True,
    include_background: bool = True,
    present_only: bool = False,
    smooth: tuple[float, float] = (1e-5, 1e-5),
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the mean of one minus the Tversky index, raised to a power, plus the mean focal loss.

    With ``exponent=1`` it is MONAI's ``TverskyLoss``; with ``alpha=beta=0.5`` besides, half of `smooth`, and
    ``focal_weight=1`` its ``DiceFocalLoss(sigmoid=True)`` for several labels. For exclusive classes the focal loss is
    that of the softmax and a mean over pixels, as cross-entropy is (in MONAI over pixels and classes).

    Parameters
    ----------
    logits
        ``(B, C, *space)``, as for `dice_ce_loss`.
    targets
        ``(B, *space)``, or with `multilabel` ``(B, C, *space)``, as for `dice_ce_loss`.
    alpha
        Weight of false positives in the index.
    beta
        Weight of false negatives.
    exponent
        Power of one minus the index; below 1 it keeps learning what is nearly right (Abraham's ``1 / gamma``).
    gamma
        Focus of the focal loss on what is wrong.
    tversky_weight
        Factor of the Tversky term.
    focal_weight
        Factor of the focal term.
    multilabel
        Classes are independent: sigmoid instead of softmax.
    ignore_index
        Target that does not count, anywhere.
    class_weights
        ``(C,)`` weights of the focal term, as for `dice_ce_loss`.
    sample_weights
        ``(B,)`` weight of each sample in all that is summed or averaged.
    tversky_class_weights
        ``(C,)`` factor of each class's term before the mean.
    per_sample
        One index per sample and class, else one per class over the batch.
    include_background
        Let class 0 count in the Tversky term.
    present_only
        Take the mean over the classes that occur in the targets, of the sample or of the batch.
    smooth
        Added to numerator and denominator of the index.
    total
        What the sums over the batch, ``(3 C + 2,)``, pass through with a gradient: to add those of other workers, in
        plain PyTorch and with ``per_sample=False`` only.

    Returns
    -------
    Tensor
        Scalar float32 (float64 of float64); 0 with a gradient of 0 if the batch is empty.

    Raises
    ------
    BadShapeError
        If shapes do not fit each other.
    BadValueError
        If a type or a number is none of the above, or on the CPU a target is no class.

    References
    ----------
    Salehi, Erdogmus and Gholipour, "Tversky loss function for image segmentation using 3D fully convolutional deep
    networks", MLMI 2017. Abraham and Khan, "A novel focal Tversky loss function with improved attention U-Net for
    lesion segmentation", ISBI 2019. Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """
    terms = LossTerms(
        multilabel=multilabel,
        ignore_index=ignore_index,
        gamma=gamma,
        alpha=alpha,
        beta=beta,
        exponent=exponent,
        smooth_above=smooth[0],
        smooth_below=smooth[1],
        overlap=tversky_weight,
        entropy=focal_weight,
        per_sample=per_sample,
        present_only=present_only,
        first=0 if include_background else 1,
    )
    return _evaluate(logits, targets, terms, (class_weights, sample_weights, tversky_class_weights), total)


def loss_reference(
    logits: Tensor,
    targets: Tensor,
    terms: LossTerms,
    *,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    overlap_weights: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Say in plain PyTorch what both losses are: the specification, and what export and float64 take.

    Parameters
    ----------
    logits
        ``(B, C, *space)``, any float.
    targets
        ``(B, *space)`` or ``(B, C, *space)`` of 0 and 1, any integer.
    terms
        What the loss is made of.
    class_weights
        ``(C,)`` in the entropy; None is 1.
    sample_weights
        ``(B,)``; None is 1.
    overlap_weights
        ``(C,)`` in the overlap; None is 1.
    total
        What the sums over the batch pass through, ``(3 C + 2,)``, unless each sample has its own.

    Returns
    -------
    Tensor
        Scalar float32 (float64 of float64).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    classes, per_class = logits.shape[1], (1, -1) + (1,) * (logits.ndim - 2)
    weights = logits.new_ones(classes) if class_weights is None else class_weights.to(logits)
    samples = logits.new_ones(len(logits)) if sample_weights is None else sample_weights.to(logits)
    counts = torch.ones_like(targets, dtype=torch.bool) if terms.ignore_index is None else targets != terms.ignore_index
    targets = targets.long() * counts
    if terms.multilabel:
        chance, truth = logits.sigmoid(), (targets * counts).to(logits)
        each, counted = _binary_entropy(logits, truth, terms, weights.view(per_class)), counts.to(logits)
        mask = counted
    else:
        chance, mask = logits.softmax(1), counts.unsqueeze(1).to(logits)
        indices = torch.arange(classes, device=logits.device).view(per_class)
        truth = (targets.unsqueeze(1) == indices) * mask
        each, counted = _entropy(logits, truth, terms, weights), weights[targets] * counts
    across = list(range(2, logits.ndim))
    both, chances, sizes = (t.sum(across) for t in (chance * truth, chance * mask, truth))  # (B, C)
    entropies, numbers = ((t * counts).flatten(1).sum(1, keepdim=True) for t in (each, counted))  # (B, 1)
    if terms.per_sample:
        members = samples[:, None].expand_as(sizes)
        entropy, number = samples @ entropies, samples @ numbers
    else:
        whole = samples @ torch.cat([both, chances, sizes, entropies, numbers], 1)  # (3 C + 2,)
        whole = whole if total is None else total(whole)
        both, chances, sizes, entropy, number = torch.split(whole, [classes, classes, classes, 1, 1])
        members = torch.ones_like(sizes)
    entropy = entropy.squeeze() / number.squeeze().clamp_min(LEAST)
    included = (torch.arange(classes, device=logits.device) >= terms.first) & ((sizes > 0) | (not terms.present_only))
    members = members * included
    mixed = (1 - terms.alpha - terms.beta) * both + terms.alpha * chances + terms.beta * sizes
    missed = 1 - (both + terms.smooth_above) / (mixed + terms.smooth_below).clamp_min(LEAST)
    if terms.exponent != 1:
        missed = missed.clamp_min(LEAST_MISS) ** terms.exponent
    if overlap_weights is not None:
        missed = missed * overlap_weights.to(missed)
    overlap = torch.where(included, missed, 0).mul(members).sum() / members.sum().clamp_min(LEAST)
    return terms.overlap * overlap + terms.entropy * entropy


def _entropy(logits: Tensor, truth: Tensor, terms: LossTerms, weights: Tensor) -> Tensor:
    """Return cross-entropy or focal loss per pixel, ``(B, *space)``, of exclusive classes."""
    per_class = (1, -1) + (1,) * (logits.ndim - 2)
    surprise = -logits.log_softmax(1)
    smoothed = truth * (1 - terms.label_smoothing) + terms.label_smoothing / logits.shape[1]
    each = (surprise * smoothed * weights.view(per_class)).sum(1)
    if terms.gamma == 0:
        return each
    right = torch.exp(-(surprise * truth).sum(1))
    return each * (1 - right).clamp_min(LEAST_MISS) ** terms.gamma


def _binary_entropy(logits: Tensor, truth: Tensor, terms: LossTerms, weights: Tensor) -> Tensor:
    """Return cross-entropy or focal loss per logit, ``(B, C, *space)``; `weights` are those of 1 against 0."""
    below, above = functional.softplus(-logits), functional.softplus(logits)
    smoothed = truth * (1 - terms.label_smoothing) + terms.label_smoothing / 2
    each = smoothed * weights * below + (1 - smoothed) * above
    if terms.gamma == 0:
        return each
    return each * torch.exp(-terms.gamma * torch.where(truth > 0, above, below))


def _evaluate(
    logits: Tensor,
    targets: Tensor,
    terms: LossTerms,
    weights: tuple[Tensor | None, Tensor | None, Tensor | None],
    total: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Check what comes in and compute the loss; `weights` are those of classes, samples and overlap."""
    targets = targets.to(torch.uint8) if targets.dtype == torch.bool else targets
    _check(logits, targets, terms, weights)
    if logits.numel() == 0:
        return logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32))
    if total is not None and terms.per_sample:
        raise BadValueError("total= with per_sample=True; expected sums over the batch: pass per_sample=False.")
    plain = logits.dtype == torch.float64 or torch.compiler.is_exporting() or total is not None
    if not plain and not torch.compiler.is_compiling():
        plain = choose(logits, covered=can_compute_loss(logits, targets)) == "torch"
    if plain:
        if logits.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            _check_targets(targets, terms, logits.shape[1])
        classes, samples, overlap = weights
        return loss_reference(
            logits, targets, terms, class_weights=classes, sample_weights=samples, overlap_weights=overlap, total=total
        )
    loss: Tensor = OPERATOR(logits, targets, *weights, *vars(terms).values())[0]
    return loss


def _check(
    logits: Tensor, targets: Tensor, terms: LossTerms, weights: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> None:
    if logits.ndim < 2 or logits.dtype not in LOGITS:
        raise BadValueError(
            f"logits are {tuple(logits.shape)} {logits.dtype}; expected (B, C, *space), float32, bfloat16 or float16."
        )
    expected = logits.shape if terms.multilabel else logits.shape[:1] + logits.shape[2:]
    if targets.shape != expected:
        raise BadShapeError(
            f"targets {tuple(targets.shape)} for logits {tuple(logits.shape)}; expected {tuple(expected)}."
        )
    if targets.dtype not in TARGETS or targets.device != logits.device:
        raise BadValueError(
            f"targets are {targets.dtype} on {targets.device}; expected uint8, int16, int32, int64 or bool on "
            f"{logits.device}."
        )
    for name, weight, size in zip(
        ("class_weights", "sample_weights", "weights of the overlap"),
        weights,
        (logits.shape[1], logits.shape[0], logits.shape[1]),
        strict=True,
    ):
        if weight is not None and weight.shape != (size,):
            raise BadShapeError(f"{name} are {tuple(weight.shape)}; expected {(size,)}.")


def _check_targets(targets: Tensor, terms: LossTerms, classes: int) -> None:
    wrong = (targets < 0) | (targets >= (2 if terms.multilabel else classes))
    if terms.ignore_index is not None:
        wrong &= targets != terms.ignore_index
    if wrong.any():
        raise stray_targets(int(wrong.sum()), terms, classes)


def stray_targets(count: int, terms: LossTerms, classes: int) -> BadValueError:
    """Return the error for targets that are no class."""
    known = "0 and 1" if terms.multilabel else f"0..{classes - 1}"
    return BadValueError(
        f"{count} targets are outside of {known}; expected a class, or ignore_index, which is {terms.ignore_index}."
    )


def _run(
    logits: Tensor,
    targets: Tensor,
    classes: Tensor | None,
    samples: Tensor | None,
    overlap: Tensor | None,
    *numbers: Any,
) -> tuple[Tensor, Tensor]:
    """Return the loss and its slopes by the sums of each sample, ``(B, 2 C + 1)`` float32."""
    terms = LossTerms(*numbers)
    form = choose(logits, covered=can_compute_loss(logits, targets))
    if form == "torch":
        loss = loss_reference(
            logits, targets, terms, class_weights=classes, sample_weights=samples, overlap_weights=overlap
        )
        return loss, _slopes_like(logits)
    compute = loss_cpu
    if form == "triton":
        from dhlab.kernels._triton.losses import loss_triton

        compute = loss_triton
    classes, samples, overlap = (_floats(weights, logits) for weights in (classes, samples, overlap))
    logits, targets = _arrange(logits, targets)
    return compute(logits, targets, terms, class_weights=classes, sample_weights=samples, overlap_weights=overlap)


def _run_backward(
    gradient: Tensor,
    slopes: Tensor,
    logits: Tensor,
    targets: Tensor,
    classes: Tensor | None,
    samples: Tensor | None,
    overlap: Tensor | None,
    *numbers: Any,
) -> Tensor:
    """Return the gradient, as the logits lie in memory."""
    terms = LossTerms(*numbers)
    form = choose(logits, covered=can_compute_loss(logits, targets))
    if form == "torch":
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = loss_reference(
                leaf, targets, terms, class_weights=classes, sample_weights=samples, overlap_weights=overlap
            )
            return torch.autograd.grad(loss, leaf, gradient)[0]
    compute = loss_gradient_cpu
    if form == "triton":
        from dhlab.kernels._triton.losses import loss_gradient_triton

        compute = loss_gradient_triton
    classes = _floats(classes, logits)
    logits, targets = _arrange(logits, targets)
    return compute(logits, targets, terms, class_weights=classes, slopes=slopes * gradient)


def _arrange(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both dense, the targets of several labels in the order of the logits."""
    if logits.is_contiguous():
        return logits, targets.contiguous()
    if not logits.movedim(1, -1).is_contiguous():
        return logits.contiguous(), targets.contiguous()
    if targets.ndim == logits.ndim:
        return logits, targets.movedim(1, -1).contiguous().movedim(-1, 1)
    return logits, targets.contiguous()


def _floats(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(logits.device, torch.float32).contiguous()


def _slopes_like(logits: Tensor) -> Tensor:
    return torch.zeros((logits.shape[0], 2 * logits.shape[1] + 1), device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs[:5])
    ctx.numbers = inputs[5:]


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (BACKWARD(gradient, *ctx.saved_tensors, *ctx.numbers), *(None,) * (4 + len(ctx.numbers)))


TENSORS = "Tensor logits, Tensor targets, Tensor? class_weights, Tensor? sample_weights, Tensor? overlap_weights"
NUMBERS = (
    "bool multilabel, int? ignore_index, float label_smoothing, float gamma, float alpha, float beta, float exponent, "
    "float smooth_above, float smooth_below, float overlap, float entropy, bool per_sample, bool present_only, "
    "int first"
)
OPERATOR = register(
    f"overlap_entropy_loss({TENSORS}, {NUMBERS}) -> (Tensor loss, Tensor slopes)",
    _run,
    fake=lambda logits, *_: (torch.empty((), device=logits.device), _slopes_like(logits)),
    backward=_backward,
    setup_context=_setup_context,
)
BACKWARD = register(
    f"overlap_entropy_loss_backward(Tensor gradient, Tensor slopes, {TENSORS}, {NUMBERS}) -> Tensor",
    _run_backward,
    fake=lambda _, __, logits, *___: torch.empty_like(logits),
)
