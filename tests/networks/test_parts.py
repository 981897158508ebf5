"""Body, head and pooled features of every kind of network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dhlab.ensembles import combine
from dhlab.errors import BadValueError
from dhlab.models import create_model, load_model
from dhlab.networks import pool_features, split_head
from dhlab.packaging import export

BAG = {"axes": "ic", "channels": 5, "dtype": "float32", "unit": "px", "tile": 7}


@pytest.mark.parametrize(
    ("name", "arguments", "head", "features"),
    [
        ("unet", {"width": 4}, ("up.", "head."), 24),
        ("unet", {"width": 4, "axes": "zyx"}, ("up.", "head."), 24),
        ("unet", {"encoder": "resnet18"}, ("up.", "head."), 512),
        ("cnn", {"width": 4}, ("head.",), 24),
        ("resnet18", {}, ("fc.",), 512),
        ("mobilenet_v3_small", {}, ("classifier.3.",), 1024),
        ("squeezenet1_1", {}, ("classifier.1.",), 512),
        ("timm/convnext_atto", {}, ("head.fc.",), 320),
        ("timm/mobilenetv3_small_050", {}, ("classifier.",), 1024),
        ("timm/deit_tiny_distilled_patch16_224", {"tile": 48}, ("head.", "head_dist."), 192),
        ("attention-mil", BAG, ("head.",), 256),
    ],
)
def test_head_and_features(name: str, arguments: dict, head: tuple[str, ...], features: int) -> None:
    model = create_model(name, ["a", "b"], spacing=1.0, **{"tile": 33} | arguments).eval()
    body, top = split_head(model.net)
    assert [*body, *top] == sorted(dict(model.net.named_parameters()), key=[*body, *top].index)
    assert all(n.startswith(head) for n in top)
    assert top
    assert not any(n.startswith(head) for n in body)
    x = torch.rand(2, *model.card.window_shape).mul(255).to(getattr(torch, model.card.dtype))
    with torch.no_grad():
        got = model.features(x)
    assert got.shape == (2, features)
    assert got.isfinite().all()


def test_the_head_of_a_classifier_makes_its_logits_of_the_features() -> None:
    x = torch.randint(0, 256, (2, 33, 33, 3), dtype=torch.uint8)
    for name, last in (("cnn", "head"), ("resnet18", "fc"), ("timm/convnext_atto", "head.fc")):
        model = create_model(name, ["a", "b"], tile=33, spacing=1.0).eval()
        with torch.no_grad():
            torch.testing.assert_close(model.net.get_submodule(last)(model.features(x)), model.logits(x))


def test_features_leave_no_hook() -> None:
    model = create_model("resnet18", ["a"], tile=33, spacing=1.0)
    model.features(torch.zeros(2, 33, 33, 3, dtype=torch.uint8))
    assert not model.net.fc._forward_pre_hooks


def test_networks_of_others() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    assert split_head(net) == (("0.weight", "0.bias"), ("2.weight", "2.bias"))
    assert pool_features(net, torch.rand(4, 3)).shape == (4, 5)


def test_a_graph_shows_no_features(tmp_path: Path) -> None:
    folder = export(create_model("cnn", ["a"], tile=16, spacing=1.0, width=4), tmp_path / "p")
    graph = load_model(folder / "model.onnx", card=folder / "config.json")
    with pytest.raises(BadValueError, match="scores only"):
        graph.features(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_an_ensemble_has_features_of_many() -> None:
    several = combine([create_model("cnn", ["a"], tile=16, spacing=1.0, width=4, seed=seed) for seed in (0, 1)])
    with pytest.raises(BadValueError, match="ensemble"):
        several.features(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
