"""Computing activations again changes neither result, nor gradients, nor batch statistics."""

from __future__ import annotations

import pytest
import torch

from dhlab.models import create_model
from dhlab.networks import recompute


def step(model, level):
    model.train()
    undo = recompute(model.net, level) if level else None
    shape = (2, *model.card.window_shape)
    images = torch.randint(0, 255, shape, generator=torch.manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(1)
    logits = model.logits(images)
    (logits**2).mean().backward()
    if undo:
        undo()
    grads = [p.grad.clone() for p in model.parameters()]
    return [logits.detach(), *grads, *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("level", ["low", "mid", "full"])
@pytest.mark.parametrize(("name", "axes"), [("unet", "zyx"), ("unet", "yxc"), ("cnn", "ct"), ("cnn", "zyx")])
def test_everything_stays_bitwise(name, axes, level):
    options = {"tile": 21, "spacing": 1.0, "axes": axes, "width": 4, "depth": 3}
    if axes == "ct":
        options |= {"channels": 3}
    plain, again = (step(create_model(name, ("a", "b"), **options), chosen) for chosen in (None, level))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_undone_and_bound_no_more():
    model = create_model("unet", ("a", "b"), tile=16, spacing=1.0, width=4, depth=2)
    undo = recompute(model.net, "full")
    model.train()(torch.zeros((1, 16, 16, 3), dtype=torch.uint8))
    assert any("forward" in m.__dict__ for m in model.modules())
    undo()
    assert not any("forward" in m.__dict__ for m in model.modules())
