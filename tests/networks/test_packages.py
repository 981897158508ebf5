"""Networks of libraries as packages: rebuilt from their card without a network, and the same scores as a graph."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from dhlab.models import create_model, load_model
from dhlab.packaging import export


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"tile": (33, 41), "task": "multilabel"}),
        ("timm/convnext_atto", {"tile": 63, "axes": "cyx", "channels": 2, "task": "regression"}),
        ("unet", {"tile": (33, 47), "encoder": "mobilenet_v3_small", "width": 8}),
        ("unet", {"tile": 33, "encoder": "timm/resnet10t", "width": 8, "axes": "yx"}),
    ],
)
def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict) -> None:
    model = create_model(name, ["a", "b"], spacing=0.5, seed=1, **arguments)
    x = torch.randint(0, 256, (3, *model.card.window_shape), dtype=torch.uint8)
    model.train()
    with torch.no_grad():
        model(x)  # statistics that differ from their start
    model.eval()
    folder = export(model, tmp_path / "p")

    def refuse(*_):
        raise AssertionError("something tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    again, graph = load_model(folder), load_model(folder / "model.onnx", card=folder / "config.json")
    assert again.card.architecture_options == model.card.architecture_options
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        torch.testing.assert_close(graph(x), model(x), rtol=1e-3, atol=1e-4)
        assert torch.equal(again.features(x), model.features(x))
