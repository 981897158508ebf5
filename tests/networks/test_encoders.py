"""U-Nets on encoders of torchvision and timm: any size, any channels, the library's own features."""

from __future__ import annotations

import pytest
import torch

from dhlab.errors import BadValueError
from dhlab.models import build_model, create_model
from dhlab.networks.catalogue import build_classifier, find_source
from dhlab.networks.encoders import build_encoder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unet", {"encoder": "resnet18", "tile": (63, 33)}),
        ("resnet18", {"task": "segmentation", "tile": 33, "channels": 4}),
        ("unet", {"encoder": "mobilenet_v3_small", "tile": (45, 47), "width": 8, "dropout": 0.1}),
        ("unet", {"encoder": "timm/resnet10t", "tile": 47, "axes": "yx"}),
        ("timm/convnext_atto", {"task": "segmentation", "tile": 63, "axes": "cyx"}),
        ("unet", {"encoder": "timm/swin_tiny_patch4_window7_224", "tile": 64, "width": 8}),
        ("unet", {"encoder": "timm/vit_tiny_patch16_224", "tile": (48, 32)}),
    ],
)
def test_any_encoder_at_full_size(name: str, arguments: dict) -> None:
    model = create_model(name, ["a", "b"], spacing=0.5, **arguments)
    card = model.card
    assert (card.architecture, card.task, card.output_stride) == ("unet", "segmentation", 1)
    x = torch.randint(0, 256, (2, *card.window_shape), dtype=torch.uint8)
    logits = model.logits(x)
    assert logits.shape == (2, 2, *card.tile)
    logits.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    again = build_model(card)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", (2, 4, 8, 16, 32)),
        ("efficientnet_b0", (2, 4, 8, 16, 32)),
        ("mobilenet_v2", (2, 4, 8, 16, 32)),
        ("regnet_y_400mf", (2, 4, 8, 16, 32)),
        ("convnext_tiny", (4, 8, 16, 32)),
        ("densenet121", (2, 4, 8, 16, 32)),
    ],
)
def test_stages_are_those_of_torchvision(name: str, strides: tuple[int, ...]) -> None:
    """The deepest map is what torchvision's own feature extractor gives for the last stage; all strides are there."""
    from torchvision.models.feature_extraction import create_feature_extractor

    source = find_source(name)
    torch.manual_seed(0)
    encoder, channels = build_encoder(source, channels=3, tile=(64, 64))
    net = build_classifier(source, channels=3, classes=1, tile=(64, 64))
    net.load_state_dict(encoder.state_dict(), strict=False)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = encoder.eval()(x)
        theirs = create_feature_extractor(net.eval(), [encoder.steps[-1]])(x)[encoder.steps[-1]]
    assert tuple(64 // m.shape[2] for m in maps) == strides
    assert tuple(m.shape[1] for m in maps) == channels
    torch.testing.assert_close(maps[-1], theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["swin_t", "vit_b_32"])
def test_refuses_what_gives_no_maps(name: str) -> None:
    with pytest.raises(BadValueError, match="cannot be an encoder"):
        create_model("unet", ["a"], tile=64, spacing=1.0, encoder=name)
