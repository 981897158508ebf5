"""Segmentation losses: every form against float64, gradients against gradcheck's, values against MONAI and PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels import dice_ce_loss, focal_tversky_loss
from dhlab.kernels.losses import LossTerms, loss_reference

# float32 sums over at most 8192 values in vectors, exponentials with an error of 3e-7: relative to the largest slope.
# Half precision rounds the gradient once to the type's 8 or 11 bits; its logits are exact inputs to both sides.
VALUE, SLOPE = 2e-6, {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
SPACES = [(1,), (63,), (1, 1), (37, 1), (17, 61), (5, 7, 11)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"class_weights": True, "label_smoothing": 0.1, "ignore_index": 1, "per_sample": False},
    "present": {"present_only": True, "smooth": (0, 0), "sample_weights": True, "include_background": False},
    "batch": {"per_sample": False, "sample_weights": True, "dice_class_weights": True, "present_only": True},
    "parts": {"dice_weight": 0.3, "ce_weight": 2.0, "ignore_index": 0},
    "focal Tversky": {"loss": focal_tversky_loss, "focal_weight": 0.7, "class_weights": True, "ignore_index": 1},
    "Tversky": {"loss": focal_tversky_loss, "alpha": 0.4, "exponent": 1.5, "per_sample": False},
    "squared focus": {"loss": focal_tversky_loss, "focal_weight": 1.0, "alpha": 0.5, "beta": 0.5, "exponent": 1.0},
    "focal": {"loss": focal_tversky_loss, "tversky_weight": 0.0, "focal_weight": 1.0, "gamma": 0.5},
}


def draw(shape: tuple[int, ...], device: str, *, multilabel: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    high, size = (2, shape) if multilabel else (shape[1], shape[:1] + shape[2:])
    return logits.to(device), torch.randint(0, high, size, generator=generator).to(device)


def compute(logits: Tensor, targets: Tensor, options: dict[str, Any]) -> Tensor:
    """Return a loss; weights that are only named are drawn."""
    generator, options = torch.Generator().manual_seed(1), dict(options)
    for name in ("class_weights", "sample_weights", "dice_class_weights"):
        if options.get(name):
            size = logits.shape[0 if name == "sample_weights" else 1]
            options[name] = torch.rand(size, generator=generator).to(logits.device) + 0.1
    return options.pop("loss", dice_ce_loss)(logits, targets, **options)


def agrees(logits: Tensor, targets: Tensor, options: dict[str, Any]) -> None:
    """Check value and gradient against those of float64."""
    exact = logits.double().requires_grad_()
    logits = logits.requires_grad_()
    loss, truth = compute(logits, targets, options), compute(exact, targets, options)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - truth.item()) <= VALUE * max(1, abs(truth.item()))
    (slope,) = torch.autograd.grad(loss, logits)
    (true_slope,) = torch.autograd.grad(truth, exact)
    assert slope.dtype == logits.dtype
    error = (slope.double() - true_slope).abs().max() / true_slope.abs().max().clamp_min(1 / logits.numel())
    assert error <= SLOPE[logits.dtype]


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_float64(form: str, device: str, options: dict[str, Any], multilabel: bool) -> None:
    shapes = ((1, (5, 7)), (2, (37, 1)), (5, (17, 61)), (9, (3, 5, 7)))
    for classes, space in ((3, (5, 7)),) if form == "triton" and device == "cpu" else shapes:
        if classes > options.get("ignore_index", 0) and not (classes == 1 and "include_background" in options):
            logits, targets = draw((3, classes, *space), device, multilabel=multilabel)
            agrees(logits, targets, options | {"multilabel": multilabel})


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_shapes_and_layouts(form: str, device: str, space: tuple[int, ...], interleaved: bool) -> None:
    interpreted = form == "triton" and device == "cpu"
    samples, space = (1, space[:1] + tuple(min(side, 7) for side in space[1:])) if interpreted else (2, space)
    for classes in (3,) if interpreted else (2, 3, 4, 5, 6, 7):
        logits, targets = draw((samples, classes, *space), device)
        if interleaved:
            logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
        agrees(logits, targets, {})
    logits, targets = draw((samples, 3, *space), device, multilabel=True)
    if interleaved:
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    agrees(logits, targets, {"multilabel": True, "ignore_index": 1})


@pytest.mark.parametrize("logits_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("targets_type", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_types(form: str, device: str, logits_type: torch.dtype, targets_type: torch.dtype) -> None:
    if form == "triton" and device == "cpu" and logits_type == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16")
    interpreted = form == "triton" and device == "cpu"
    shape, layouts = ((1, 3, 5, 7), (targets_type == torch.uint8,)) if interpreted else ((2, 4, 13, 29), (False, True))
    for interleaved in layouts:
        logits, targets = draw(shape, device)
        targets[0, 3:5] = 200
        if interleaved:
            logits = logits.contiguous(memory_format=torch.channels_last)
        agrees(logits.to(logits_type), targets.to(targets_type), {"ignore_index": 200})


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_gradient_lies_as_the_logits_do(form: str, device: str, multilabel: bool) -> None:
    logits, targets = draw((2, 3, 4, 5), device, multilabel=multilabel)
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    (slope,) = torch.autograd.grad(dice_ce_loss(logits, targets, multilabel=multilabel), logits)
    assert form == "torch" or slope.stride() == logits.stride()


def test_several_chunks_and_strides(form: str, device: str) -> None:
    """More pixels than one task or program takes, and a view that is neither kind of dense."""
    logits, targets = draw((1 if form == "triton" and device == "cpu" else 2, 3, 101, 197), device)
    agrees(logits[..., ::2, 1:], targets[..., ::2, 1:], {})


@pytest.mark.parametrize("name", ["plain", "weighted", "squared focus"])
def test_streams_beyond_the_caches(form: str, device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of loss that has functions of its own, in every number of classes that has, with a row not in full."""
    if not form.startswith("cpu"):
        pytest.skip("only the C form has these functions")
    from dhlab.kernels._cpu import losses

    monkeypatch.setattr(losses, "STREAMED_BYTES", 0)
    for classes in range(2, 8):
        for space in ((32, 264), (5, 7)):
            agrees(*draw((2, classes, *space), device), OPTIONS[name])


def test_sixty_five_classes_take_the_reference(device: str) -> None:
    agrees(*draw((1, 65, 4, 5), device), {})


@pytest.mark.parametrize("multilabel", [False, True])
def test_extreme_logits(form: str, device: str, multilabel: bool) -> None:
    logits, targets = draw((1, 3, 8, 9), device, multilabel=multilabel)
    agrees(logits * 30, targets, {"multilabel": multilabel})
    agrees(logits * 1e-6, targets, {"multilabel": multilabel})
    sure = functional.one_hot(targets, 3).movedim(-1, 1) if not multilabel else targets
    assert compute(200.0 * sure - 100, targets, {"multilabel": multilabel}).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(form: str, device: str, value: float) -> None:
    for place in range(3 if form != "triton" else 1):
        logits, targets = draw((1, 3, 4, 40), device)
        logits[0, place, 2, 17] = value
        assert not dice_ce_loss(logits, targets).isfinite()


def test_nothing_that_counts_is_no_loss(form: str, device: str) -> None:
    logits, targets = draw((2, 3, 4, 5), device)
    logits.requires_grad_()
    loss = dice_ce_loss(logits, torch.full_like(targets, -1), ignore_index=-1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5)):
        empty = torch.zeros(shape, device=device, requires_grad=True)
        loss = dice_ce_loss(empty, torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8, device=device))
        loss.backward()
        assert loss.item() == 0


def test_ignored_pixels_teach_nothing(form: str, device: str) -> None:
    logits, targets = draw((2, 3, 8, 33), device)
    targets[..., 20:] = 255
    logits.requires_grad_()
    dice_ce_loss(logits, targets, ignore_index=255, label_smoothing=0.2).backward()
    assert logits.grad is not None
    assert logits.grad[..., 20:].abs().max() == 0
    assert (logits.grad[..., :20].abs().amax(1) > 0).all()


def test_used_twice_and_scaled(form: str, device: str) -> None:
    logits, targets = draw((2, 4, 9, 11), device)
    logits.requires_grad_()
    loss = dice_ce_loss(logits, targets)
    once = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    scaled = torch.autograd.grad(loss * 64, logits)[0]
    torch.testing.assert_close(scaled, once * 64, rtol=1e-5, atol=1e-7)


def test_the_same_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from dhlab.kernels._cpu import losses

    logits, targets = draw((3, 4, 101, 211), "cpu")
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(losses, "threads_for", lambda _, threads=threads: threads)
        leaf = logits.clone().requires_grad_()
        loss = dice_ce_loss(leaf, targets)
        found.append((loss.item(), torch.autograd.grad(loss, leaf)[0]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_samples_may_be_permuted(form: str, device: str) -> None:
    logits, targets = draw((3, 4, 9, 11), device)
    flipped = dice_ce_loss(logits.flip(0, 2), targets.flip(0, 1))
    assert flipped.item() == pytest.approx(dice_ce_loss(logits, targets).item(), rel=1e-6)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck_of_the_specification(options: dict[str, Any], multilabel: bool) -> None:
    logits, targets = draw((2, 3, 2, 3), "cpu", multilabel=multilabel)
    assert torch.autograd.gradcheck(
        lambda x: compute(x, targets, options | {"multilabel": multilabel}), logits.double().requires_grad_()
    )


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_is_monais_dice_ce(form: str, device: str, batch: bool, background: bool, weighted: bool) -> None:
    losses = pytest.importorskip("monai.losses")
    logits, targets = draw((2, 4, 11, 13), device)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1], device=device) if weighted else None
    options = {"batch": batch, "include_background": background, "weight": weight, "label_smoothing": 0.1}
    with warnings.catch_warnings(action="ignore"):
        theirs = losses.DiceCELoss(softmax=True, to_onehot_y=True, **options).to(device)
        leaf = logits.clone().requires_grad_()
        expected = theirs(leaf, targets[:, None])
    (slope,) = torch.autograd.grad(expected, leaf)
    logits.requires_grad_()
    ours = dice_ce_loss(
        logits,
        targets,
        per_sample=not batch,
        include_background=background,
        class_weights=weight,
        dice_class_weights=weight,
        label_smoothing=0.1,
    )
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("batch", [False, True])
def test_is_monais_tversky(form: str, device: str, batch: bool) -> None:
    losses = pytest.importorskip("monai.losses")
    logits, targets = draw((2, 4, 11, 13), device)
    theirs = losses.TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.3, beta=0.7, batch=batch)
    ours = focal_tversky_loss(logits, targets, exponent=1, per_sample=not batch)
    assert ours.item() == pytest.approx(theirs(logits, targets[:, None]).item(), abs=1e-5)


def test_is_monais_dice_focal(form: str, device: str) -> None:
    losses = pytest.importorskip("monai.losses")
    options = {"alpha": 0.5, "beta": 0.5, "exponent": 1, "smooth": (0.5e-5, 0.5e-5), "focal_weight": 1}
    logits, targets = draw((2, 4, 11, 13), device, multilabel=True)
    ours = focal_tversky_loss(logits, targets, multilabel=True, **options)
    theirs = losses.DiceFocalLoss(sigmoid=True)(logits, targets)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    # Of exclusive classes MONAI takes the mean over pixels and classes.
    logits, targets = draw((2, 4, 11, 13), device)
    ours = focal_tversky_loss(logits, targets, **options | {"tversky_weight": 0})
    theirs = losses.FocalLoss(use_softmax=True, to_onehot_y=True)(logits, targets[:, None])
    assert ours.item() == pytest.approx(4 * theirs.item(), abs=1e-5)


def test_is_pytorchs_binary_cross_entropy(form: str, device: str) -> None:
    logits, targets = draw((2, 4, 11, 13), device, multilabel=True)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1], device=device)
    ours = dice_ce_loss(logits, targets, multilabel=True, class_weights=weight, dice_weight=0)
    theirs = functional.binary_cross_entropy_with_logits(logits, targets.float(), pos_weight=weight.view(-1, 1, 1))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_torch_sees_one_operator(form: str, device: str, multilabel: bool) -> None:
    from dataclasses import astuple

    logits, targets = draw((2, 3, 4, 5), device, multilabel=multilabel)
    numbers = astuple(LossTerms(multilabel=multilabel))
    weights = (torch.ones(3, device=device), None, None)
    torch.library.opcheck(
        torch.ops.dhlab.overlap_entropy_loss.default,
        (logits.requires_grad_(), targets, *weights, *numbers),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_compiled_graphs_do_not_break_on_it(form: str, device: str) -> None:
    logits, targets = draw((2, 3, 8, 9), device)
    compiled = torch.compile(lambda x, y: dice_ce_loss(x * 2, y), fullgraph=True, backend="aot_eager")
    slopes = [
        torch.autograd.grad(loss(leaf := logits.clone().requires_grad_(), targets), leaf)[0]
        for loss in (compiled, lambda x, y: dice_ce_loss(x * 2, y))
    ]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-8)


def test_export_takes_the_reference() -> None:
    class Net(torch.nn.Module):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return dice_ce_loss(logits, targets)

    logits, targets = draw((2, 3, 8, 9), "cpu")
    graph = torch.export.export(Net(), (logits, targets))
    terms = LossTerms(smooth_above=5e-6, smooth_below=5e-6)
    torch.testing.assert_close(graph.module()(logits, targets), loss_reference(logits, targets, terms))


@pytest.mark.parametrize("multilabel", [False, True])
def test_refuses_targets_that_are_no_class(multilabel: bool) -> None:
    for strange in (-1, 3, 300):
        logits, targets = draw((1, 3, 4, 5), "cpu", multilabel=multilabel)
        targets[0, 0, 0] = strange
        for values in (logits, logits.double()):
            with pytest.raises(BadValueError, match="expected a class, or ignore_index"):
                dice_ce_loss(values, targets, multilabel=multilabel)


def test_refuses_what_does_not_fit() -> None:
    logits, targets = draw((2, 3, 4, 5), "cpu")
    for wrong in (targets[:, None], targets[..., :3], targets[:1]):
        with pytest.raises(BadShapeError, match="expected"):
            dice_ce_loss(logits, wrong)
    with pytest.raises(BadShapeError, match="class_weights"):
        dice_ce_loss(logits, targets, class_weights=torch.ones(4))
    with pytest.raises(BadShapeError, match="sample_weights"):
        dice_ce_loss(logits, targets, sample_weights=torch.ones(3))
    with pytest.raises(BadValueError, match="uint8"):
        dice_ce_loss(logits, targets.float())
    with pytest.raises(BadValueError, match="float32"):
        dice_ce_loss(logits.long(), targets)
    with pytest.raises(BadValueError, match="label_smoothing"):
        dice_ce_loss(logits, targets, label_smoothing=1.0)
    with pytest.raises(BadValueError, match="gamma"):
        focal_tversky_loss(logits, targets, gamma=-1)


@pytest.mark.gpu
def test_more_than_two_thousand_million_logits() -> None:
    """Offsets beyond int32: an image of zeros costs log 2 per pixel, and its last pixel learns."""
    logits = torch.zeros((1, 2, 33_000, 33_000), dtype=torch.float16, device="cuda", requires_grad=True)
    targets = torch.zeros((1, 33_000, 33_000), dtype=torch.uint8, device="cuda")
    loss = dice_ce_loss(logits, targets, dice_weight=0.0)
    assert loss.item() == pytest.approx(0.693147, rel=1e-4)
    (slope,) = torch.autograd.grad(loss * 2**30, logits)
    assert slope[0, 0, -1, -1] < 0 < slope[0, 1, -1, -1]
