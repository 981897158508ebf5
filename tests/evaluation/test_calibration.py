"""`calibrate` finds the temperature, makes scores as sure as they are right, and changes nothing else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from dhlab.datasets import Dataset
from dhlab.errors import BadValueError, DHLabWarning
from dhlab.evaluation import calibrate, evaluate

CLASSES = ("a", "b", "c")


def over_confident(count: int = 1200, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return classes drawn from a softmax, and its logits made too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, 3)) * 1.5
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (chance.cumsum(1) < rng.random((count, 1))).sum(1)
    return truth, logits * factor


def test_finds_the_temperature_and_leaves_the_rest(lookup_model, numbered_data):
    truth, table = over_confident()
    data = numbered_data(truth, CLASSES, "classification")
    validation, test = data.subset(range(600)), data.subset(range(600, 1200))
    model = lookup_model(table, CLASSES, "classification")
    model.train()
    calibrated = calibrate(model, validation, batch_size=64, progress=False)
    assert model.card.temperature == 1
    assert calibrated.card.temperature == pytest.approx(3, rel=0.15)
    assert calibrated.net is model.net
    assert calibrated.training
    assert model.training
    before, after = (
        evaluate(m, test, resamples=10, pictures=False, progress=False).values for m in (model, calibrated)
    )
    assert after["calibration error"] < before["calibration error"] / 3
    assert after["Brier score"] < before["Brier score"]
    for name in ("accuracy", "balanced accuracy", "macro F1"):
        assert after[name] == before[name]
    again = calibrate(calibrated, validation, batch_size=64, progress=False)
    assert again.card.temperature == pytest.approx(calibrated.card.temperature, rel=1e-3)
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    expected = (logits / calibrated.card.temperature).softmax(1)
    assert torch.allclose(calibrated.activate(logits), expected)


def test_is_the_temperature_of_the_greatest_likelihood(lookup_model, numbered_data):
    truth, table = over_confident(200)
    data = numbered_data(truth, CLASSES, "classification")
    best = calibrate(lookup_model(table, CLASSES, "classification"), data, progress=False).card.temperature

    def loss(temperature: float) -> float:
        scaled = torch.from_numpy(table) / temperature
        return torch.nn.functional.cross_entropy(scaled, torch.from_numpy(truth)).item()

    assert loss(best) <= min(loss(best * 0.99), loss(best * 1.01))


def test_labels_and_masks(lookup_model, numbered_data):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(400, 2)) * 1.5
    truth = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    truth[::5, 0] = -1
    labels = calibrate(
        lookup_model(logits * 2, ("x", "y"), "multilabel"),
        numbered_data(truth, ("x", "y"), "multilabel"),
        progress=False,
    )
    assert labels.card.temperature == pytest.approx(2, rel=0.2)
    classes, table = over_confident(5 * 63 * 61, factor=0.5)
    classes[::7] = -1
    pixels = calibrate(
        lookup_model(table.reshape(5, 63, 61, 3).transpose(0, 3, 1, 2), CLASSES, "segmentation", tile=(63, 61)),
        numbered_data(classes.reshape(5, 63, 61), CLASSES, "segmentation"),
        progress=False,
    )
    assert pixels.card.temperature == pytest.approx(0.5, rel=0.1)


def test_a_package_keeps_the_temperature(tmp_path):
    from dhlab.models import create_model, load_model
    from dhlab.packaging import export

    model = create_model("cnn", CLASSES, tile=16, spacing=1.0, width=4)
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 255, (60, 16, 16, 3)).astype(np.uint8)
    data = Dataset.from_arrays(windows, rng.integers(0, 3, 60), classes=CLASSES, task="classification")
    model.net.requires_grad_(False)
    for parameter in model.net.parameters():
        parameter.mul_(1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DHLabWarning)
        calibrated = calibrate(model, data, progress=False)
    assert abs(np.log(calibrated.card.temperature)) > 0.05
    package = export(calibrated, tmp_path / "package")
    inputs = torch.from_numpy(windows[:3])
    expected = calibrated.eval()(inputs)
    assert not torch.allclose(expected, model.eval()(inputs), atol=1e-4)
    for path in (package, package / "model.onnx"):
        loaded = load_model(path) if path.is_dir() else load_model(path, card=calibrated.card)
        assert torch.allclose(loaded(inputs), expected, atol=1e-5)


def test_says_when_there_is_nothing_to_learn(lookup_model, numbered_data):
    truth, _ = over_confident(30)
    data = numbered_data(truth, CLASSES, "classification")
    with pytest.warns(DHLabWarning, match="limit"):
        model = calibrate(lookup_model(np.eye(3)[truth], CLASSES, "classification"), data, progress=False)
    assert model.card.temperature == pytest.approx(0.05, rel=0.01)


def test_refuses_what_has_no_temperature(lookup_model, numbered_data):
    numbers = numbered_data(np.ones((3, 1), np.float32), ("age",), "regression")
    with pytest.raises(BadValueError, match="no activation"):
        calibrate(lookup_model(np.ones((3, 1)), ("age",), "regression"), numbers, progress=False)
    nothing = numbered_data(np.full(3, -1), CLASSES, "classification")
    with pytest.raises(BadValueError, match="no label"):
        calibrate(lookup_model(np.ones((3, 3)), CLASSES, "classification"), nothing, progress=False)
    other = numbered_data(np.zeros(3, int), ("x", "y", "z"), "classification")
    with pytest.raises(BadValueError, match="classes of dataset"):
        calibrate(lookup_model(np.ones((3, 3)), CLASSES, "classification"), other, progress=False)
