"""Losses: worked examples, weights, targets that do not count, and the same as the libraries that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels.losses import LossTerms, loss_reference
from dhlab.training import segmentation_loss, task_loss
from dhlab.training.losses import class_weights_of

ONES = torch.ones(3)


def test_loss_of_a_worked_example():
    logits = torch.tensor([[[[2.0, -1.0, 0.3]], [[0.0, 1.0, 5.0]]]], requires_grad=True)
    targets = torch.tensor([[[0, 1, -1]]])
    weight = torch.tensor([1.0, 3.0])
    p = torch.softmax(logits[0, :, 0, :2], 0)
    entropy = -(p[0, 0].log() + 3 * p[1, 1].log()) / 4
    overlap = 1 - (2 * p[0, 0] / (p[0].sum() + 1) + 2 * p[1, 1] / (p[1].sum() + 1)) / 2
    assert segmentation_loss(logits, targets, weight).item() == pytest.approx((entropy + overlap).item(), abs=1e-6)
    empty = segmentation_loss(logits, torch.full((1, 1, 3), -1), weight)
    empty.backward()
    assert empty.item() == 0
    assert logits.grad.abs().max() == 0


def test_perfect_prediction_has_no_loss():
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 9, 11)))
    logits = functional.one_hot(targets, 3).movedim(-1, 1).float() * 60
    assert segmentation_loss(logits, targets, torch.ones(3)).item() == pytest.approx(0, abs=1e-5)


def test_unlabelled_pixels_teach_nothing():
    """Where the target is -1, what the network says must not matter."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, 3, 7, 63)).astype(np.float32)).requires_grad_()
    targets = torch.from_numpy(rng.integers(0, 3, (3, 7, 63)))
    targets[:, :, 31:] = -1
    segmentation_loss(logits, targets, ONES).backward()
    assert logits.grad[..., 31:].abs().max() == 0
    assert logits.grad[..., :31].abs().max() > 0


def test_soft_dice_is_monais():
    """The Dice part equals MONAI's DiceLoss over a batch when every class is present."""
    losses = pytest.importorskip("monai.losses")
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 11, 13)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(0, 3, (2, 11, 13)))
    theirs = losses.DiceLoss(softmax=True, to_onehot_y=True, batch=True, smooth_nr=0, smooth_dr=0)(
        logits, targets[:, None]
    )
    ours = segmentation_loss(logits, targets, ONES) - functional.cross_entropy(logits, targets)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("task", ["classification", "segmentation", "multilabel", "regression"])
def test_a_sample_of_weight_zero_is_as_if_absent(task):
    rng = np.random.default_rng(2)
    space = (5, 7) if task == "segmentation" else ()
    logits = torch.from_numpy(rng.normal(size=(4, 3, *space)).astype(np.float32))
    targets = {
        "classification": torch.tensor([0, 2, 1, 1]),
        "segmentation": torch.from_numpy(rng.integers(0, 3, (4, 5, 7))),
        "multilabel": torch.tensor([[0, 1, -1], [1, 1, 0], [0, 0, 1], [-1, 1, 0]]),
        "regression": torch.tensor([[0.1, 2, torch.nan], [1, -1, 0], [0, 0, 5], [1, 1, 1.0]]),
    }[task]
    options = {"task": task, "class_weights": torch.tensor([1.0, 2, 0.5]), "label_smoothing": 0.1}
    weighted = task_loss(logits, targets, sample_weights=torch.tensor([1.0, 1, 1, 0]), **options)
    without = task_loss(logits[:3], targets[:3], **options)
    assert weighted.item() == pytest.approx(without.item(), rel=1e-6)
    alike = task_loss(logits, targets, sample_weights=torch.full((4,), 0.3), **options)
    assert alike.item() == pytest.approx(task_loss(logits, targets, **options).item(), rel=1e-6)


def test_classification_is_torchs_cross_entropy():
    logits, targets = torch.randn(9, 3, generator=torch.manual_seed(0)), torch.tensor([0, 1, 2, -1, 0, 0, 1, 2, -1])
    weights = torch.tensor([1.0, 3.0, 0.2])
    theirs = functional.cross_entropy(logits, targets, weights, ignore_index=-1)
    assert task_loss(logits, targets, "classification", class_weights=weights).item() == pytest.approx(theirs.item())


def test_nothing_labelled_is_no_loss():
    logits = torch.randn(2, 3, requires_grad=True)
    for task, targets in (
        ("classification", torch.tensor([-1, -1])),
        ("multilabel", torch.full((2, 3), -1)),
        ("regression", torch.full((2, 3), torch.nan)),
    ):
        loss = task_loss(logits, targets, task, class_weights=ONES)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.abs().max() == 0


def test_class_weights():
    counts = np.array([100, 25, 0])
    options = {"classes": ("skin", "nail", "hair"), "samples": 125, "task": "classification"}
    root = class_weights_of("root", counts, **options)
    assert root[1] / root[0] == pytest.approx(2, rel=1e-5)
    assert root.mean() == pytest.approx(1, rel=1e-5)
    balanced = class_weights_of("balanced", counts, **options)
    assert balanced[1] / balanced[0] == pytest.approx(4, rel=1e-5)
    assert class_weights_of("none", counts, **options).tolist() == [1, 1, 1]
    labels = class_weights_of("balanced", np.array([20, 100]), classes=("a", "b"), samples=100, task="multilabel")
    assert labels.tolist() == pytest.approx([4, 0.01])
    assert class_weights_of([1, 2, 3], counts, **options).tolist() == [1, 2, 3]
    assert class_weights_of({"nail": 2}, counts, **options).tolist() == [1, 2, 1]
    with pytest.raises(UnknownNameError, match="no class 'nails'. Did you mean 'nail'"):
        class_weights_of({"nails": 2}, counts, **options)
    with pytest.raises(BadShapeError, match="one per class"):
        class_weights_of([1, 2], counts, **options)
    with pytest.raises(BadValueError, match="at least 0"):
        class_weights_of([1, -2, 1], counts, **options)


def test_losses_by_name():
    """Dice + cross-entropy is the default; focal Tversky is the kernel's, over the classes in the batch."""
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 11, 13)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(-1, 2, (2, 11, 13)))
    options = {"class_weights": torch.tensor([1.0, 2, 3]), "sample_weights": torch.tensor([1.0, 0.5])}
    default = task_loss(logits, targets, "segmentation", **options)
    assert task_loss(logits, targets, "segmentation", name="dice-ce", **options) == default
    found = task_loss(logits, targets, "segmentation", name="focal-tversky", **options)
    terms = LossTerms(gamma=2, alpha=0.3, beta=0.7, exponent=0.75, ignore_index=-1, per_sample=False, present_only=True)
    expected = loss_reference(logits.double(), targets, terms, **options)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "name", "smoothing", "message"),
    [
        ("classification", "dice-ce", 0.0, "which is for segmentation; expected None for classification"),
        ("segmentation", "focal-tversky", 0.1, "label_smoothing is 0.1; expected 0 with loss='focal-tversky'"),
    ],
)
def test_a_loss_that_does_not_suit(task, name, smoothing, message):
    with pytest.raises(BadValueError, match=message):
        task_loss(ONES[None], ONES[None].long(), task, class_weights=ONES, label_smoothing=smoothing, name=name)
