"""`evaluate` counts every labelled pixel once, gives intervals over groups, and shows the baseline beside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from torch import nn

from dhlab.annotations import Annotations
from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError
from dhlab.evaluation import evaluate
from dhlab.models import Model, ModelCard
from dhlab.scan import Scan


class Brightest(nn.Module):
    """Scores are the channels: predicts which of three is largest, per pixel or on average."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * (x if self.task == "segmentation" else x.mean((2, 3)))


CLASSES = ("red", "green", "blue")


def oracle(task: str = "segmentation", **changes) -> Model:
    card = ModelCard(
        name="oracle", architecture="unet", task=task, classes=CLASSES, tile=(20, 20), spacing=(1.0, 1.0), **changes
    )
    return Model(Brightest(task), card)


def paint(truth: np.ndarray) -> np.ndarray:
    """Paint pixels so that the oracle sees class `truth`."""
    return np.eye(3, dtype=np.uint8)[truth] * 200


def test_figures_are_those_of_the_confusion():
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 3, (10, 20, 20))
    truth = np.where(rng.random(seen.shape) < 0.2, rng.integers(0, 3, seen.shape), seen)
    truth[rng.random(seen.shape) < 0.3] = -1
    data = Dataset.from_arrays(
        paint(seen), truth, classes=CLASSES, task="segmentation", groups=[f"P{i // 2}" for i in range(10)]
    )
    report = evaluate(oracle(), data, batch_size=3, progress=False)
    labelled = truth >= 0
    assert report.values["accuracy"] == pytest.approx((seen == truth)[labelled].mean())
    for index, name in enumerate(CLASSES):
        a, b = (seen == index) & labelled, truth == index
        assert report.values[f"Dice {name}"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert report.values["mean Dice"] == pytest.approx(np.mean([report.values[f"Dice {n}"] for n in CLASSES]))
    assert set(report.n.values()) == {5}
    for name, (low, high) in report.intervals.items():
        assert low <= report.values[name] <= high
        assert high - low < 0.1
    counts = np.bincount(truth[labelled])
    assert report.baseline["accuracy"] == pytest.approx(counts.max() / counts.sum())
    assert report.baseline["balanced accuracy"] == pytest.approx(1 / 3)
    assert [figure.caption.split()[0] for figure in report.figures] == ["Confusion", "Reliability:", "Worst"]
    assert all(figure.image.startswith(b"\x89PNG") for figure in report.figures)


def test_batch_size_and_order_do_not_matter():
    rng = np.random.default_rng(1)
    seen = rng.integers(0, 3, (7, 20, 20))
    truth = np.where(rng.random(seen.shape) < 0.4, 0, seen)
    data = Dataset.from_arrays(paint(seen), truth, classes=CLASSES, task="segmentation")
    reports = [evaluate(oracle(), data, batch_size=size, progress=False) for size in (1, 4, 100)]
    assert reports[0].values == reports[1].values == reports[2].values
    assert reports[0].intervals == reports[1].intervals
    turned = evaluate(oracle(), data.subset(range(6, -1, -1)), progress=False)
    assert turned.values == reports[0].values


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_overlapping_windows_count_a_pixel_once(overlap):
    """The model is right on the left half and wrong on the right: overlap must not shift the balance."""
    image = paint(np.zeros((83, 71), np.int64))
    image[:, 40:] = paint(np.ones((83, 31), np.int64))
    scan = Scan.from_array(image, "yxc", spacing=1.0, unit="µm")
    drawn = Annotations.from_geometries(
        [shapely.box(0, 0, 71, 60), shapely.box(0, 60, 71, 70), shapely.box(0, 70, 71, 83)], list(CLASSES), parent=scan
    )
    data = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=20, overlap=overlap, min_labelled=0)
    report = evaluate(oracle(), data, progress=False)
    assert report.provenance["labelled"] == 83 * 71
    assert report.values["accuracy"] == pytest.approx((60 * 40 + 10 * 31) / (83 * 71))
    assert "block" in " ".join(report.notes)


def test_classification_figures():
    rng = np.random.default_rng(2)
    truth = np.arange(30) % 3
    seen = np.where(rng.random(30) < 0.2, (truth + 1) % 3, truth)
    images = np.broadcast_to(paint(seen)[:, None, None], (30, 20, 20, 3)).copy()
    data = Dataset.from_arrays(images, truth, classes=CLASSES, task="classification", groups=np.arange(30) // 3)
    report = evaluate(oracle("classification"), data, progress=False)
    assert report.values["accuracy"] == pytest.approx((seen == truth).mean())
    assert 0.5 < report.values["AUC"] < 1
    assert report.baseline["AUC"] == 0.5
    assert 0 <= report.values["calibration error"] <= 1
    assert report.tables["Per class"][0]["samples"] == 10
    captions = [figure.caption.split()[0] for figure in report.figures]
    assert captions == ["Confusion", "Reliability:", "ROC", "Worst"]
    perfect = evaluate(oracle("classification"), data.subset(np.flatnonzero(seen == truth)), progress=False)
    assert perfect.values["AUC"] == 1
    assert not any("Worst" in figure.caption for figure in perfect.figures)


def test_says_what_the_intervals_do_not():
    seen = np.random.default_rng(0).integers(0, 3, (4, 20, 20))
    data = Dataset.from_arrays(paint(seen), seen, classes=CLASSES, task="segmentation")
    assert "independent" in " ".join(evaluate(oracle(), data, progress=False).notes)
    one = evaluate(oracle(), data, groups=["P1"] * 4, progress=False)
    assert not one.intervals
    assert "no interval" in " ".join(one.notes)


def test_absent_class_is_named_and_not_averaged():
    seen = np.zeros((3, 20, 20), np.int64)
    seen[:, :5] = 1
    data = Dataset.from_arrays(paint(seen), seen, classes=CLASSES, task="segmentation")
    report = evaluate(oracle(), data, progress=False)
    assert report.values["mean Dice"] == 1
    assert "Dice blue" not in report.values
    assert "blue" in " ".join(report.notes)


def test_model_is_left_as_it_was():
    seen = np.zeros((2, 20, 20), np.int64)
    data = Dataset.from_arrays(paint(seen), seen, classes=CLASSES, task="segmentation")
    model = oracle()
    model.train()
    evaluate(model, data, progress=False)
    assert model.training


def test_refuses_what_it_cannot_judge():
    seen = np.zeros((2, 20, 20), np.int64)
    data = Dataset.from_arrays(paint(seen), seen, classes=CLASSES, task="segmentation")
    nothing = Dataset.from_arrays(paint(seen), seen - 1, classes=CLASSES, task="segmentation")
    with pytest.raises(BadValueError, match="no label at all"):
        evaluate(oracle(), nothing, progress=False)
    with pytest.raises(BadValueError, match="task of dataset"):
        evaluate(oracle("classification"), data, progress=False)
    with pytest.raises(BadShapeError, match="3 groups"):
        evaluate(oracle(), data, groups=["a", "b", "c"], progress=False)
    with pytest.raises(BadValueError, match="batch_size"):
        evaluate(oracle(), data, batch_size=0, progress=False)
    broken = oracle()
    broken.net = nn.Sequential(Brightest("segmentation"), nn.Threshold(math.inf, math.nan))
    with pytest.raises(BadValueError, match="not finite for samples 0 to 1"):
        evaluate(broken, data, progress=False)
