"""Uncertainty: dropout and ensembles vary the scores, and entropy says what that means."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import nn

from dhlab.ensembles import combine
from dhlab.errors import BadShapeError, BadValueError
from dhlab.inference import predict
from dhlab.io import save
from dhlab.models import Model, ModelCard, create_model
from dhlab.networks import OnnxNet
from dhlab.scan import Scan
from dhlab.uncertainty import Uncertainty, entropy, estimate, sample_scores, with_uncertainty
from dhlab.view.composite import compose


class Dropping(nn.Module):
    """Two convolutions with batch normalisation and dropout, then the mean over space or a score per pixel."""

    def __init__(self, classes: int, *, dense: bool, p: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(p),
            nn.Conv2d(8, classes, 3, padding=1),
            nn.Dropout(p),
        )
        self.dense = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x) * 3
        return x if self.dense else x.mean((2, 3))


def dropping(*, dense: bool = False, p: float = 0.4, seed: int = 0, **card) -> Model:
    name = "unet" if dense else "cnn"
    like = create_model(name, ["a", "b", "c"], tile=(16, 20), spacing=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Dropping(3, dense=dense, p=p)
    return Model(net, replace(like.card, architecture="dropping", architecture_options={}, **card))


def graph_of(card: ModelCard) -> Model:
    """Return a model that is an ONNX graph, of no use but valid."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    versions = {"ir_version": 10, "opset_imports": [onnx.helper.make_opsetid("", 20)]}
    return Model(OnnxNet(onnx.helper.make_model(body, **versions).SerializeToString()), card)


def windows(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 20, 3)).astype(np.uint8)


def test_entropy_and_mutual_information_are_known() -> None:
    """Two draws that are sure of opposite things know nothing together, all of it disagreement; against scipy."""
    scores = np.array([[[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]], [[0, 1, 0], [1 / 3] * 3, [0.1, 0.2, 0.7]]])
    got = Uncertainty.of(scores, activation="softmax")
    whole = scipy_entropy(scores.mean(0), axis=1) / math.log(3)
    part = scipy_entropy(scores, axis=2).mean(0) / math.log(3)
    np.testing.assert_allclose(got.entropy, whole, atol=1e-6)
    np.testing.assert_allclose(got.mutual_information, whole - part, atol=1e-6)
    np.testing.assert_allclose(got.entropy[:2], [math.log(2) / math.log(3), 1], atol=1e-6)
    np.testing.assert_allclose(got.mutual_information[:2], [math.log(2) / math.log(3), 0], atol=1e-6)
    np.testing.assert_allclose(got.deviation, scores.std(0, ddof=1), atol=1e-6)
    each = Uncertainty.of(scores, activation="sigmoid")
    pairs = np.stack([scores.mean(0), 1 - scores.mean(0)])
    np.testing.assert_allclose(each.entropy, scipy_entropy(pairs, base=2).mean(1), atol=1e-6)
    numbers = Uncertainty.of(scores, activation="none")
    assert np.isnan(numbers.entropy).all()
    np.testing.assert_allclose(numbers.mean, scores.mean(0), atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_dropout_varies_the_scores_and_nothing_else(dense: bool) -> None:
    model = dropping(dense=dense).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    got = sample_scores(model, windows(), passes=7)
    assert got.shape == (7, 4, 3, *((16, 20) if dense else ()))
    assert (got.std(0) > 1e-3).mean() > 0.9
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "batch statistics stay"
    np.testing.assert_array_equal(got, sample_scores(model, windows(), passes=7))
    assert not np.array_equal(got, sample_scores(model, windows(), passes=7, seed=1))


def test_windows_do_not_mix() -> None:
    """Batch normalisation is frozen: without dropout's share a window's scores do not depend on the others."""
    model = dropping(p=1e-9)
    together, alone = sample_scores(model, windows(4), passes=2), sample_scores(model, windows(4)[:1], passes=2)
    np.testing.assert_allclose(together[:, :1], alone, atol=1e-6)
    with torch.inference_mode():
        np.testing.assert_allclose(together[0], model.eval()(torch.from_numpy(windows(4))).numpy(), atol=1e-6)


def test_the_mean_of_a_linear_layer_under_dropout_is_known() -> None:
    """Dropout of half the inputs of a linear layer: mean w·x, variance Σ (w x)², over many draws."""
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(2 * 2 * 3, 1))
    card = create_model("cnn", ["amount"], tile=2, spacing=1.0).card
    model = Model(net, replace(card, task="regression", activation="none"))
    x = np.random.default_rng(3).integers(0, 256, (1, 2, 2, 3)).astype(np.uint8)
    got = estimate(model, x, passes=4000)
    inputs = model.prepare(torch.from_numpy(x)).flatten().numpy()
    terms = net[2].weight.detach().numpy()[0] * inputs
    deviation = math.sqrt((terms**2).sum())
    assert got.mean[0, 0] == pytest.approx(terms.sum() + net[2].bias.item(), abs=4 * deviation / math.sqrt(4000))
    assert got.deviation[0, 0] == pytest.approx(deviation, rel=0.05)


def test_members_of_an_ensemble_are_draws() -> None:
    models = [dropping(seed=seed).eval() for seed in range(3)]
    with torch.inference_mode():
        each = torch.stack([model(torch.from_numpy(windows())) for model in models]).numpy()
    np.testing.assert_allclose(sample_scores(combine(models), windows()), each, atol=1e-6)
    got = estimate(combine(models), windows())
    np.testing.assert_allclose(got.deviation, each.std(0, ddof=1), atol=1e-5)
    assert (got.mutual_information > 0).all()
    assert (got.mutual_information <= got.entropy).all()


@pytest.mark.parametrize("dense", [False, True])
def test_a_scan_gets_a_map_of_uncertainty(dense: bool) -> None:
    """`predict` maps scores, entropy and mutual information; in a window without overlap they are `estimate`'s."""
    model = with_uncertainty(dropping(dense=dense), passes=5)
    scan = Scan.from_array(windows(1)[0], "yxc", spacing=0.5, unit="µm", name="slide")
    heat = predict(model, scan, progress=False)
    assert heat.channels == ("a", "b", "c", "entropy", "mutual information")
    assert heat.parent == scan.as_parent()
    alone = estimate(dropping(dense=dense), windows(1), passes=5)
    expected = np.concatenate([alone.mean[0], alone.entropy, alone.mutual_information])
    got = np.asarray(heat.levels[0]).reshape(expected.shape) / 255
    np.testing.assert_allclose(got, expected, atol=0.003)
    large = Scan.from_array(np.tile(windows(1)[0], (3, 3, 1)), "yxc", spacing=0.5, unit="µm")
    first, again = (np.asarray(predict(model, large, progress=False).levels[0]) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("make", [sample_scores, estimate])
def test_refuses_nets_without_dropout(make) -> None:
    plain = create_model("cnn", ["a", "b"], tile=(16, 20), spacing=0.5, width=4)
    with pytest.raises(BadValueError, match="has no dropout"):
        make(plain, windows())
    with pytest.raises(BadValueError, match="has no dropout"):
        make(dropping(p=0.0), windows())
    with pytest.raises(BadValueError, match="at least 2"):
        make(dropping(), windows(), passes=1)
    with pytest.raises(BadShapeError, match="expects"):
        make(dropping(), windows().astype(np.float32))


def test_refuses_what_has_no_entropy() -> None:
    with pytest.raises(BadValueError, match="take estimate"):
        with_uncertainty(dropping(task="regression", activation="none"))
    with pytest.raises(BadShapeError, match="two draws"):
        Uncertainty.of(np.zeros((1, 4, 3)), activation="softmax")
    with pytest.raises(BadValueError, match="ONNX graph"):
        estimate(graph_of(dropping().card), windows())


def heatmap(array: np.ndarray, axes: str = "cyx") -> Scan:
    parent = Scan.from_array(np.zeros((8, 8, 3), np.uint8), "yxc", name="slide").as_parent()
    return Scan.from_array(array, axes, spacing=2.0, unit="µm", kind="heatmap").replace(
        origin=(3.0, 5.0), parent=parent
    )


def test_entropy_of_a_heat_map_is_known() -> None:
    scores = np.zeros((3, 2, 3), np.uint8)
    scores[:, 0, 0], scores[:, 0, 1], scores[:, 0, 2] = (255, 0, 0), (85, 85, 85), (128, 127, 0)
    scores[:, 1, 0] = (0, 0, 0)
    scores[:, 1, 1] = (179, 51, 25)
    scores[:, 1, 2] = (60, 60, 0)  # half of the blending weight: the rest lies outside the scan
    heat = heatmap(scores)
    got = entropy(heat)
    half = round(255 * math.log(2) / math.log(3))
    third = round(255 * scipy_entropy([0.7, 0.2, 0.1], base=3))
    np.testing.assert_allclose(np.asarray(got.levels[0][...])[0], [[0, 255, half], [0, third, half]], atol=1)
    assert (got.kind, got.channels, got.dtype) == ("heatmap", ("entropy",), np.uint8)
    assert (got.spacing, got.origin, got.parent) == (heat.spacing, heat.origin, heat.parent)
    alone = entropy(heatmap(np.uint8([[[0, 128, 255]]])))
    np.testing.assert_array_equal(np.asarray(alone.levels[0][...]), [[[0, 255, 0]]])
    each = entropy(heatmap(np.uint8([[[128]], [[255]]])), exclusive=False)
    np.testing.assert_allclose(np.asarray(each.levels[0][...]), 128, atol=1)


def test_entropy_is_read_in_parts(tmp_path: Path) -> None:
    """Like any scan: any part, any channel place, saved, and drawn."""
    random = np.random.default_rng(0)
    scores = random.dirichlet([1, 1, 1], (37, 61)).transpose(2, 0, 1)
    got = entropy(heatmap((scores * 255).round().astype(np.uint8)))
    whole = np.asarray(got.levels[0][...])
    assert whole.shape == (1, 37, 61)
    assert np.ptp(whole) > 200
    np.testing.assert_array_equal(got.read((4, 10), (5, 7)), whole[:, 4:9, 10:17])
    for key in ((0, 3), (slice(None), 5, slice(2, 9)), (..., -1), slice(None), (0, slice(None), slice(4, 50, 3))):
        np.testing.assert_array_equal(got.levels[0][key], whole[key])
    last = entropy(heatmap(np.moveaxis((scores * 255).round().astype(np.uint8), 0, -1), "yxc"))
    np.testing.assert_array_equal(np.asarray(last.levels[0][...])[..., 0], whole[0])
    save(got, tmp_path / "entropy.ome.zarr")
    assert compose(got, legend=False).shape == (37, 61, 3)
    floats = entropy(heatmap(scores.astype(np.float32)))
    np.testing.assert_allclose(floats.levels[0][...][0], 255 * scipy_entropy(scores, base=3), atol=1)


def test_only_heat_maps_have_entropy() -> None:
    with pytest.raises(BadValueError, match="expected a heat map"):
        entropy(Scan.from_array(np.zeros((3, 4, 4), np.uint8), "cyx"))
