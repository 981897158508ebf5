"""`fit` learns, is deterministic, keeps the best weights, and stops with a reason."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dhlab import phantoms
from dhlab.datasets import Dataset
from dhlab.errors import (
    BadFileError,
    BadShapeError,
    BadValueError,
    ConflictError,
    DHLabError,
    DHLabWarning,
    StorageError,
)
from dhlab.models import create_model
from dhlab.timeline import Timeline
from dhlab.training import fit


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
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "run.json",
        "turn",
    ]


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
    with pytest.raises(BadValueError, match="epochs is 0"):
        fit(small_unet(), slides, epochs=0, progress=False)
    with pytest.raises(BadValueError, match="learning_rate is nan"):
        fit(small_unet(), slides, learning_rate=math.nan, progress=False)
    with pytest.raises(BadValueError, match="minutes is 0"):
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
    report = fit(small_unet(), picked, epochs=1, batch_size=min(4, len(picked)), progress=False)
    assert math.isfinite(report.values["training loss"])


def test_marks_its_stage(slides, tmp_path):
    with Timeline(tmp_path / "ledger") as timeline:
        fit(small_unet(), slides.subset(range(8)), epochs=1, progress=False)
    assert any(row["stage"] == "trained" for row in timeline.table())


def tiny_classes(count: int = 24, side: int = 16, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    images = rng.integers(60, 120, (count, side, side, 3))
    images[:, :, :, 0] += 40 * targets[:, None, None]
    return Dataset.from_arrays(
        images.astype(np.uint8),
        targets,
        classes=("no", "yes"),
        task="classification",
        groups=[f"{seed}-{i // 2}" for i in range(count)],
    )


def small_cnn(classes=("no", "yes"), **options):
    options = {"width": 4, "depth": 2, "tile": 16, "spacing": 1.0} | options
    return create_model("cnn", classes, **options)


def test_learns_several_labels():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (60, 2))
    images = rng.integers(60, 120, (60, 16, 16, 3))
    images[..., :2] += 60 * targets[:, None, None]
    targets[3, 0] = -1
    data = Dataset.from_arrays(images.astype(np.uint8), targets, classes=("red", "green"), task="multilabel")
    model = small_cnn(("red", "green"), task="multilabel", width=8)
    report = fit(model, data.subset(range(40)), data.subset(range(40, 60)), epochs=8, augment=0.0, progress=False)
    assert report.values["validation mean AUC"] > 0.95
    assert model.card.activation == "sigmoid"


def test_learns_numbers_in_their_own_unit():
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 90, (80, 1))
    images = np.broadcast_to(ages[:, :, None, None] * 2, (80, 16, 16, 3)) + rng.normal(0, 3, (80, 16, 16, 3))
    ages[2] = np.nan
    data = Dataset.from_arrays(images.astype(np.uint8), ages, classes=("age",), task="regression")
    model = small_cnn(("age",), task="regression", width=8)
    report = fit(model, data.subset(range(60)), data.subset(range(60, 80)), epochs=15, augment=False, progress=False)
    assert report.values["validation R²"] > 0.8
    assert model.card.target_mean[0] == pytest.approx(np.nanmean(ages[:60]), rel=1e-4)
    with torch.inference_mode():
        said = model(torch.from_numpy(data.batch(range(60, 80))[0])).numpy()
    assert np.abs(said - ages[60:]).mean() < 10


def test_refuses_one_class_and_a_batch_larger_than_the_set():
    data = tiny_classes()
    alone = Dataset.from_arrays(data.batch(range(4))[0], np.zeros(4, int), classes=("no",), task="classification")
    with pytest.raises(BadValueError, match=r"one class only, 'no'.*background"):
        fit(small_cnn(("no",)), alone, progress=False)
    with pytest.raises(BadValueError, match="batch_size 25 is larger than the 24 samples"):
        fit(small_cnn(), data, batch_size=25, progress=False)


def test_class_missing_from_validation_is_told():
    data, other = tiny_classes(), tiny_classes(seed=1)
    with pytest.warns(DHLabWarning, match="have no sample of yes"):
        fit(small_cnn(), data, other.subset(range(0, 8, 2)), epochs=1, progress=False)
    nothing = Dataset.from_arrays(other.batch(range(4))[0], [-1] * 4, classes=("no", "yes"), task="classification")
    with pytest.raises(BadValueError, match="no label at all"):
        fit(small_cnn(), data, nothing, epochs=1, progress=False)


def test_patient_in_both_parts_is_refused_unless_told():
    data = tiny_classes()
    with pytest.raises(BadValueError, match="0-0"):
        fit(small_cnn(), data.subset(range(12)), data.subset([0, 1, 14, 15]), epochs=1, progress=False)
    fit(small_cnn(), data.subset(range(12)), data.subset([0, 1, 14, 15]), epochs=1, progress=False, allow_leakage=True)


def test_nan_is_kept_and_the_model_stays_sound(tmp_path):
    images = np.random.default_rng(0).normal(size=(12, 1, 64)).astype(np.float32)
    images[5, 0, 3] = math.nan
    data = Dataset.from_arrays(images, np.arange(12) % 2, classes=("a", "b"), task="classification", axes="ct")
    model = create_model(
        "cnn", ("a", "b"), tile=64, spacing=1.0, axes="ct", channels=1, dtype="float32", width=4, depth=2
    )
    with pytest.raises(BadValueError, match=r"batch is saved in .*failed-batch\.npz"):
        fit(model, data, epochs=2, batch_size=4, folder=tmp_path / "run", progress=False)
    with np.load(tmp_path / "run" / "failed-batch.npz") as kept:
        assert 5 in kept["indices"]
        assert np.isnan(kept["images"]).sum() == 1
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert not model.training


def test_stops_early_and_keeps_the_best(tmp_path):
    data, other = tiny_classes(), tiny_classes(seed=1)
    report = fit(small_cnn(), data, other, epochs=60, patience=3, augment=False, batch_size=8, progress=False)
    assert report.values["best epoch"] == len(report.tables["Learning curve"]) - 3
    with pytest.raises(BadValueError, match="patience needs validation"):
        fit(small_cnn(), data, patience=3, progress=False)


def test_folder_of_another_training(tmp_path):
    data = tiny_classes()
    options = {"batch_size": 8, "progress": False, "folder": tmp_path}
    model = small_cnn()
    report = fit(model, data, epochs=2, **options)
    with pytest.raises(ConflictError, match="epochs: 2 there, 3 now"):
        fit(small_cnn(), data, epochs=3, **options)
    with pytest.raises(ConflictError, match="architecture_options"):
        fit(small_cnn(width=6), data, epochs=2, **options)
    with pytest.raises(ConflictError, match="other weights"):
        fit(small_cnn(seed=4), data, epochs=2, **options)
    again = fit(model, data, epochs=2, **options)
    assert again.tables["Learning curve"] == report.tables["Learning curve"]
    fresh = small_cnn()
    fit(fresh, data, epochs=2, **options)
    assert torch.equal(weights(fresh), weights(model))
    longer = fit(small_cnn(), data, epochs=3, overwrite=True, **options)
    assert len(longer.tables["Learning curve"]) == 3


def test_the_same_call_returns_at_once_with_averaged_weights_and_without_validation(tmp_path):
    data, model = tiny_classes(), small_cnn()
    options = {"epochs": 2, "batch_size": 8, "averaging": 0.5, "progress": False, "folder": tmp_path}
    report = fit(model, data, **options)
    ended = model.digest()
    heard = []
    again = fit(model, data, on_event=heard.append, **options)
    assert [event.kind for event in heard] == ["end"]
    assert model.digest() == ended
    assert again.tables["Learning curve"] == report.tables["Learning curve"]


def test_damaged_checkpoint_is_told(tmp_path):
    data = tiny_classes()
    fit(small_cnn(), data, epochs=1, batch_size=8, progress=False, folder=tmp_path)
    content = (tmp_path / "last.safetensors").read_bytes()
    for damaged in (b"", content[:100], b"nonsense" * 20):
        (tmp_path / "last.safetensors").write_bytes(damaged)
        with pytest.raises(BadFileError, match="no checkpoint of a training, or a damaged one"):
            fit(small_cnn(), data, epochs=1, batch_size=8, progress=False, folder=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "learning_rate": 0.02},
        {"schedule": "one-cycle"},
        {"schedule": "constant", "clip": None},
        {"averaging": 0.9, "accumulate": 2},
        {"label_smoothing": 0.1, "class_weights": [1.0, 2.0]},
        {"precision": "float32", "class_weights": "balanced"},
        {"precision": "float16"},
        # The compiler's own insides are deprecated in torch.
        pytest.param(
            {"compile": True}, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
        ),
        {"loss": torch.nn.functional.cross_entropy},
        {"activation_checkpointing": "full"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_training_learns(options):
    data, other = tiny_classes(40), tiny_classes(seed=1)
    report = fit(small_cnn(), data, other, epochs=12, batch_size=8, augment=False, progress=False, **options)
    assert report.values["validation balanced accuracy"] >= 0.9


def test_a_loss_by_name_trains_and_is_recorded(slides, tmp_path):
    options = {"batch_size": 4, "folder": tmp_path / "run", "progress": False, "loss": "focal-tversky"}
    curve = fit(small_unet(), slides, epochs=3, **options).tables["Learning curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    with pytest.raises(ConflictError, match="loss"):
        fit(small_unet(), slides, epochs=3, **(options | {"loss": None}))


def test_a_loss_of_segmentations_is_refused_before_training():
    with pytest.raises(BadValueError, match="which is for segmentation"):
        fit(small_cnn(), tiny_classes(), loss="dice-ce", progress=False)


def test_frozen_body_stays_and_learns_again_later():
    data, model = tiny_classes(), small_cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, data, epochs=1, batch_size=8, freeze="body", progress=False)
    after = model.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (not name.startswith("net.head")), name
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(KeyError, match="freeze names 'stagez'"):
        fit(model, data, epochs=1, freeze="stagez", progress=False)


def test_slower_body_moves_less():
    data = tiny_classes()
    moved = []
    for rate in (1.0, 0.1, 0.0):
        model = small_cnn()
        before = model.net.stages[0][0][0].weight.detach().clone()
        fit(model, data, epochs=1, batch_size=8, body_rate=rate, weight_decay=0, progress=False)
        moved.append((model.net.stages[0][0][0].weight.detach() - before).abs().mean().item())
    assert moved[0] > 3 * moved[1] > 0
    assert moved[2] == 0
