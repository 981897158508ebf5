"""Networks by name: torchvision's and timm's, for every task, any channels, odd sizes, and again from their cards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dhlab.errors import BadValueError, UnknownNameError
from dhlab.models import build_model, create_model
from dhlab.networks import find_source


def windows(card) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, *card.window_shape), generator=generator).to(getattr(torch, card.dtype))


@pytest.mark.parametrize(
    ("name", "architecture", "tile", "task", "arguments"),
    [
        ("resnet18", "torchvision/resnet18", 63, None, {}),
        ("torchvision/mobilenet_v3_small", "torchvision/mobilenet_v3_small", (33, 41), "multilabel", {"channels": 5}),
        ("timm/resnet10t", "timm/resnet10t", 33, "regression", {"axes": "yx"}),
        ("convnext_atto", "timm/convnext_atto", 63, "classification", {"axes": "cyx", "dropout": 0.2}),
        ("squeezenet1_1", "torchvision/squeezenet1_1", 33, None, {}),
        ("vit_b_32", "torchvision/vit_b_32", 32, None, {"channels": 1}),
        ("timm/deit_tiny_distilled_patch16_224", "timm/deit_tiny_distilled_patch16_224", 48, None, {}),
    ],
)
def test_networks_by_name(name: str, architecture: str, tile, task: str | None, arguments: dict) -> None:
    model = create_model(name, ["a", "b", "c"], tile=tile, spacing=0.5, task=task, **arguments)
    card = model.card
    assert (card.name, card.architecture, card.task) == (name, architecture, task or "classification")
    assert card.activation == {"multilabel": "sigmoid", "regression": "none"}.get(card.task, "softmax")
    x = windows(card)
    logits = model.logits(x)
    assert logits.shape == (2, 3)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    again = build_model(card)
    again.load_state_dict(model.state_dict())
    model.eval(), again.eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_seed_decides_and_torchs_own_state_stays() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (create_model("resnet18", ["a"], tile=33, spacing=1.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.digest() == again.digest() != other.digest()


def test_where_a_name_is_looked_up() -> None:
    assert str(find_source("resnet18")) == "torchvision/resnet18"
    assert str(find_source("timm/resnet18")) == "timm/resnet18"
    assert str(find_source("resnet18.a1_in1k")) == "timm/resnet18", "only timm has weights of this name"
    assert find_source("resnet50.IMAGENET1K_V2").tag == "IMAGENET1K_V2"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet81", "'resnet18'"),
        ("timm/convnext_tinny", "'convnext_tiny'"),
        ("torchvision/convnext_atto", "Did you mean"),
        ("elsewhere/resnet18", "'resnet18'"),
        ("resnet18.a1_in2k", "resnet18.a1_in1k"),
        ("", "no network ''"),
        ("../resnet18", "no network"),
    ],
)
def test_names_close_ones(name: str, match: str) -> None:
    with pytest.raises(UnknownNameError, match=match):
        create_model(name, ["a"], tile=33, spacing=1.0)


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("resnet18", {"tile": (9, 33, 33), "axes": "zyx", "channels": 1}, "two axes; got 3"),
        ("resnet18", {"tile": 33, "axes": "ct"}, "two axes; got 1"),
        ("resnet18", {"tile": 33, "dropout": 0.5}, "dropout"),
        ("resnet18", {"tile": 33, "pretrained_cfg": "x"}, "expected options dropout"),
        ("timm/resnet18", {"tile": 33, "checkpoint_path": "/etc/passwd"}, "expected options dropout"),
        ("efficientnet_b0", {"tile": 33, "dropout": 1}, "from 0.0 to 0.9"),
        ("vit_b_32", {"tile": 33}, "indivisible"),
        ("vit_b_32", {"tile": (32, 64)}, "square"),
        ("inception_v3", {"tile": 33}, "cannot take a window of 33 × 33 px"),
        ("resnet18", {"tile": 33, "encoder": "resnet18"}, "for 'unet'"),
        ("cnn", {"tile": 33, "task": "segmentation"}, "'cnn' does classification, multilabel, regression"),
        ("cnn", {"tile": 3, "axes": "ic", "channels": 4, "dtype": "float32"}, "attention-mil"),
    ],
)
def test_refuses_what_does_not_fit(name: str, arguments: dict, match: str) -> None:
    with pytest.raises(BadValueError, match=match):
        create_model(name, ["a", "b"], spacing=1.0, **arguments)


def test_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match="'segmentation'"):
        create_model("resnet18", ["a"], tile=33, spacing=1.0, task="segmentations")


PROGRAM = """
import sys
import dhlab
model = dhlab.create_model("unet", ["a"], tile=32, spacing=1.0)
assert not {"torchvision", "timm"} & set(sys.modules), "compact networks need neither"
for name, encoder in (("resnet18", None), ("timm/resnet18", None), ("unet", "resnet18")):
    try:
        dhlab.create_model(name, ["a"], tile=32, spacing=1.0, encoder=encoder)
    except dhlab.DHLabError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("fault", ["ImportError('none here')", "RuntimeError('operator torchvision::nms')"])
def test_says_what_to_do_where_torchvision_does_not_load(tmp_path: Path, fault: str) -> None:
    """A real interpreter with a torchvision that fails as one made for another torch does."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise {fault}")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("MissingDependencyError")
        assert "pip install 'dhlab[models]'" in line
        assert f"torch {torch.__version__}" in line
