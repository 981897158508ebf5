"""`fit` learns, is deterministic, keeps the best weights, and stops with a reason."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from dhlab import phantoms
from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError, DHLabError, StorageError
from dhlab.models import create_model
from dhlab.timeline import Timeline
from dhlab.training import _schedule, fit, segmentation_loss


@pytest.fixture(autouse=True)
def one_thread():
    """Small convolutions on cores that other tests use are quickest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slides() -> Dataset:
    """24 phantom fields of 12 patients with their label maps."""
    pairs = [phantoms.paint_slide((96, 96), rng=i, spacing=2.0, whole=True) for i in range(24)]
    return Dataset.from_arrays(
        np.stack([p[0] for p in pairs]),
        np.stack([p[1] for p in pairs]).astype(np.int64) - 1,
        classes=phantoms.CLASSES,
        task="segmentation",
        groups=[f"P{i // 2}" for i in range(24)],
        spacing=2.0,
        unit="µm",
    )


def small_unet(seed: int = 0, **options):
    options = {"width": 8, "depth": 3, "tile": 96, "spacing": 2.0} | options
    return create_model("unet", phantoms.CLASSES, seed=seed, **options)


def weights(model) -> torch.Tensor:
    return torch.cat([v.detach().float().flatten() for v in model.state_dict().values()])


def test_learns_phantoms_and_chooses_by_validation(slides, tmp_path):
    train, val = slides.subset(range(16)), slides.subset(range(16, 24))
    model = small_unet(width=12)
    report = fit(model, train, val, epochs=10, batch_size=4, folder=tmp_path / "run", progress=False)
    assert report.values["validation mean Dice"] > 0.75
    curve = report.tables["Learning curve"]
    assert [row["epoch"] for row in curve] == list(range(1, 11))
    assert curve[-1]["loss"] < 0.75 * curve[0]["loss"]
    assert report.values["validation mean Dice"] == max(row["mean Dice"] for row in curve)
    assert report.figures[0].image.startswith(b"\x89PNG")
    assert not model.training
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [dict(row) for row in curve]
    from safetensors.torch import load_file

    best = load_file(tmp_path / "run" / "best.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(best[name], value), name
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["best.safetensors", "metrics.jsonl"]


def test_learns_to_classify():
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    images = rng.integers(90, 160, (60, 32, 32, 3))
    images[np.arange(60), :, :, targets] += 50
    data = Dataset.from_arrays(images.astype(np.uint8), targets, classes=("r", "g", "b"), task="classification")
    model = create_model("cnn", data.classes, tile=32, spacing=1.0, width=8, depth=2)
    report = fit(model, data.subset(range(45)), data.subset(range(45, 60)), epochs=6, augment=0.0, progress=False)
    assert report.values["validation balanced accuracy"] > 0.9


def test_same_seed_same_weights(slides):
    train = slides.subset(range(8))
    runs = []
    for seed in (0, 0, 1):
        model = small_unet()
        fit(model, train, epochs=2, batch_size=3, seed=seed, progress=False)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_leaves_the_global_random_state_alone(slides):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(small_unet(), slides.subset(range(4)), epochs=1, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_unlabelled_pixels_teach_nothing(slides):
    """Where the target is -1, the pixels of another class must not matter."""
    images, targets = slides.batch(range(8))
    hidden = targets.copy()
    hidden[:, :, 48:] = -1
    data = Dataset.from_arrays(images, hidden, classes=slides.classes, task="segmentation", spacing=2.0, unit="µm")
    model = small_unet()
    model.eval()
    x = torch.from_numpy(images)
    logits = model.logits(x).detach().requires_grad_()
    segmentation_loss(logits, torch.from_numpy(data.batch(range(8))[1]), torch.ones(4)).backward()
    assert logits.grad[:, :, :, 48:].abs().max() == 0
    assert logits.grad[:, :, :, :48].abs().max() > 0


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


def test_schedule_warms_up_and_decays():
    rates = [_schedule(i / 100) for i in range(101)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates.index(max(rates)) == 10
    assert rates[100] < 0.01
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_nan_stops_with_epoch_and_batch():
    images = np.random.default_rng(0).normal(size=(12, 1, 64)).astype(np.float32)
    images[5, 0, 3] = math.nan
    data = Dataset.from_arrays(images, np.arange(12) % 2, classes=("a", "b"), task="classification", axes="ct")
    model = create_model(
        "cnn", ("a", "b"), tile=64, spacing=1.0, axes="ct", channels=1, dtype="float32", width=4, depth=2
    )
    with pytest.raises(BadValueError, match=r"loss became nan in epoch 1, batch \d+ \(samples .*learning_rate"):
        fit(model, data, epochs=2, batch_size=4, progress=False)


def test_refuses_what_it_cannot_learn(slides):
    images, targets = slides.batch(range(4))

    def data(aims=targets, pixels=images, classes=slides.classes, **changes):
        return Dataset.from_arrays(pixels, aims, classes=classes, **({"task": "segmentation"} | changes))

    absent = np.where(targets == 3, -1, targets)
    with pytest.raises(BadValueError, match=r"class 'adipose' has no pixel"):
        fit(small_unet(), data(absent), progress=False)
    with pytest.raises(BadValueError, match="no label at all"):
        fit(small_unet(), data(np.full_like(targets, -1)), progress=False)
    with pytest.raises(BadValueError, match="classes of dataset"):
        fit(small_unet(), data(classes=("a", "b", "c", "d")), progress=False)
    with pytest.raises(BadValueError, match="task of dataset"):
        fit(small_unet(), data([0, 1, 2, 3], task="classification"), progress=False)
    with pytest.raises(BadShapeError, match="float32"):
        fit(small_unet(), data(pixels=images.astype(np.float32)), progress=False)
    with pytest.raises(BadValueError, match="wants"):
        fit(small_unet(), data(spacing=0.5, unit="µm"), progress=False)
    with pytest.raises(BadValueError, match="epochs 0"):
        fit(small_unet(), slides, epochs=0, progress=False)
    with pytest.raises(BadValueError, match="learning_rate nan"):
        fit(small_unet(), slides, learning_rate=math.nan, progress=False)
    with pytest.raises(BadValueError, match="minutes"):
        fit(small_unet(), slides, minutes=0, progress=False)
    frozen = small_unet()
    frozen.requires_grad_(False)
    with pytest.raises(BadValueError, match="nothing to train"):
        fit(frozen, slides, progress=False)


def test_folder_that_cannot_be_written_is_told_before_work(slides, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, DHLabError, OSError)):
        fit(small_unet(), slides.subset(range(4)), folder=tmp_path / "file", epochs=1, progress=False)


def test_time_budget_ends_the_training(slides):
    report = fit(small_unet(), slides.subset(range(4)), minutes=0.02, epochs=10**6, progress=False)
    assert 1 <= len(report.tables["Learning curve"]) < 10**4


@pytest.mark.parametrize("count", [1, 5])
def test_odd_sample_counts(slides, count):
    """A last batch of one sample would break batch normalisation of a classifier."""
    picked = slides.subset(np.argsort([-len(np.unique(slides[i][1])) for i in range(24)])[:count])
    if (picked.class_counts == 0).any():
        picked = Dataset.concat([picked, slides.subset(range(24))]).subset([*range(count), *range(count, count + 24)])
    report = fit(small_unet(), picked, epochs=1, batch_size=4, progress=False)
    assert math.isfinite(report.values["training loss"])


def test_marks_its_stage(slides, tmp_path):
    with Timeline(tmp_path / "ledger") as timeline:
        fit(small_unet(), slides.subset(range(8)), epochs=1, progress=False)
    assert any(row["stage"] == "trained" for row in timeline.table())
