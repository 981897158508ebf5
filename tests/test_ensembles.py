"""Ensembles: the mean of the members' scores, as one model like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dhlab.datasets import ArraySamples, Dataset
from dhlab.ensembles import combine
from dhlab.errors import BadValueError
from dhlab.evaluation import evaluate
from dhlab.inference import predict
from dhlab.models import Model, ModelCard, create_model, load_model
from dhlab.networks import OnnxNet
from dhlab.packaging import export
from dhlab.scan import Scan


def members(name: str = "cnn", count: int = 3, **arguments) -> list[Model]:
    """Return models of one kind that disagree."""
    settings = {"tile": (17, 24), "spacing": 0.5, "width": 4, "depth": 2} | arguments
    models = [create_model(name, ["a", "b", "c"], seed=seed, **settings).eval() for seed in range(count)]
    with torch.no_grad():
        for model in models:
            model.net.head.weight.mul_(20)
    return models


def graph_of(card: ModelCard) -> Model:
    """Return a model that is an ONNX graph, of no use but valid."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    versions = {"ir_version": 10, "opset_imports": [onnx.helper.make_opsetid("", 20)]}
    return Model(OnnxNet(onnx.helper.make_model(body, **versions).SerializeToString()), card)


def windows(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 17, 24, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", ["cnn", "unet"])
@pytest.mark.parametrize(
    "card",
    [
        {"activation": "softmax"},
        {"activation": "sigmoid", "task": "multilabel"},
        {"activation": "none", "task": "regression"},
    ],
)
def test_gives_the_mean_score(name: str, card: dict) -> None:
    """Each member with its own temperature and scale."""
    if name == "unet":
        card = {k: v for k, v in card.items() if k != "task"}
    models = members(name)
    own = [{"temperature": 0.5}, {"temperature": 3.0}, {}]
    if card.get("task") == "regression":
        own = [{"target_mean": (m, 1.0, 2.0), "target_std": (1.0, m + 1, 3.0)} for m in (0.0, 5.0, 9.0)]
    models = [Model(m.net, replace(m.card, **card, **o)) for m, o in zip(models, own, strict=True)]
    x = windows()
    with torch.no_grad():
        each = torch.stack([model(x) for model in models])
        assert each.std(0).mean() > 0.01, "members disagree"
        torch.testing.assert_close(combine(models)(x), each.mean(0), atol=1e-5, rtol=1e-5)


def test_keeps_what_rounds_to_nought() -> None:
    """One member is sure beyond float32: the ensemble is half sure, and finite."""
    models = members(count=2)
    with torch.no_grad():
        models[0].net.head.bias.copy_(torch.tensor([500.0, 0.0, -500.0]))
        models[1].net.head.bias.copy_(torch.tensor([-500.0, 500.0, 0.0]))
        scores = combine(models)(windows())
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.5, 0.0]]).expand(5, 3), atol=1e-5, rtol=0)


def test_predicts_and_is_judged_like_any_model() -> None:
    ensemble = combine(members(), name="three")
    scan = Scan.from_array(np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8), "yxc")
    scan = scan.replace(unit="µm", spacing=(0.5, 0.5))
    heat = predict(ensemble, scan, progress=False)
    assert heat.channels == ("a", "b", "c")
    with torch.no_grad():
        choices = ensemble(windows(12)).argmax(1).numpy()
    samples = ArraySamples(windows(12).numpy(), choices.astype(np.int64))
    data = Dataset(samples, ("a", "b", "c"), "classification", spacing=(0.5, 0.5), unit="µm")
    assert evaluate(ensemble, data, resamples=10, progress=False).values["accuracy"] == 1


def test_is_packaged_and_returns(tmp_path: Path) -> None:
    models = members()
    models[1].card = replace(models[1].card, temperature=2.0, licence="MIT", base_model="published")
    ensemble = combine([models[1], *members("cnn", 1, width=5)])
    assert (ensemble.card.licence, ensemble.card.base_model) == ("MIT / unknown", "published")
    folder = export(ensemble, tmp_path / "p")
    again = load_model(folder)
    with torch.no_grad():
        assert torch.equal(again(windows()), ensemble.eval()(windows()))
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"members"', '"member"'), encoding="utf-8")
    with pytest.raises(BadValueError, match="lists no members"):
        load_model(folder)


def test_shares_the_weights_of_its_members() -> None:
    models = members(count=2)
    ensemble = combine(models)
    with torch.no_grad():
        before = ensemble(windows())
        models[0].net.head.bias[0] += 3
        assert not torch.allclose(ensemble(windows()), before)


def test_refuses_members_that_do_not_fit() -> None:
    models = members(count=2)
    with pytest.raises(BadValueError, match="at least two"):
        combine(models[:1])
    with pytest.raises(BadValueError, match="differ in mean"):
        combine([models[0], Model(models[1].net, replace(models[1].card, mean=(0.1, 0.2, 0.3)))])
    with pytest.raises(BadValueError, match="differ in classes"):
        combine([models[0], create_model("cnn", ["x", "b", "c"], tile=(17, 24), spacing=0.5)])
    with pytest.raises(BadValueError, match="ensemble already"):
        combine([models[0], combine(models)])
    with pytest.raises(BadValueError, match="ONNX graph"):
        combine([models[0], graph_of(models[0].card)])
