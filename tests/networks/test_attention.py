"""Gated attention: padding, order and number of instances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dhlab.errors import BadValueError
from dhlab.models import Model, create_model
from dhlab.networks import AttentionMIL

BAG = {"axes": "ic", "channels": 13, "dtype": "float32", "unit": "px", "tile": 7, "spacing": 1.0}


def mil(**arguments) -> Model:
    model = create_model("attention-mil", ["a", "b"], width=32, **(BAG | arguments))
    with torch.no_grad():
        model.net.score.weight.mul_(30)  # attention that prefers some instances clearly
    return model


def bag(instances: int, padding: int = 0, batch: int = 2) -> torch.Tensor:
    x = torch.randn(batch, instances, 13, generator=torch.Generator().manual_seed(4))
    return torch.cat([x, torch.full((batch, padding, 13), torch.nan)], dim=1)


def published(net: AttentionMIL, instances: torch.Tensor) -> torch.Tensor:
    """Return the logits of one bag ``(N, C)``, written as equation 9 of the paper."""
    h = instances.double() @ net.embed[0].weight.double().T + net.embed[0].bias.double()
    h = h.clamp_min(0)
    value = torch.tanh(h @ net.value[0].weight.double().T + net.value[0].bias.double())
    gate = torch.sigmoid(h @ net.gate[0].weight.double().T + net.gate[0].bias.double())
    scores = (value * gate) @ net.score.weight.double()[0]
    weights = scores.exp() / scores.exp().sum()
    return (weights @ h) @ net.head.weight.double().T + net.head.bias.double()


@pytest.mark.parametrize("instances", [1, 2, 63])
def test_follows_the_paper(instances: int) -> None:
    model, x = mil().eval(), bag(instances)
    with torch.no_grad():
        expected = torch.stack([published(model.net, one) for one in x])
        torch.testing.assert_close(model.logits(x).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("instances", [1, 2, 63])
@pytest.mark.parametrize("padding", [1, 61])
def test_padding_changes_nothing(instances: int, padding: int) -> None:
    model = mil(mean=[0.3] * 13, std=[2.0] * 13).eval()
    with torch.no_grad():
        alone, padded = model.logits(bag(instances)), model.logits(bag(instances, padding))
        # Only the order of float32 sums may differ.
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.features(bag(instances, padding)), model.features(bag(instances)))
        weights = model.net.attention(model.prepare(bag(instances, padding)))
    assert torch.all(weights[:, instances:] == 0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_order_changes_nothing() -> None:
    model, x = mil().eval(), bag(63, 3)
    order = torch.randperm(66, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x[:, order]), model.logits(x), rtol=1e-5, atol=1e-6)
        weights = model.net.attention(model.prepare(x))
        torch.testing.assert_close(model.net.attention(model.prepare(x[:, order])), weights[:, order])
    assert weights.max() > 5 * weights[weights > 0].min(), "the test needs attention that differs"


def test_gradients_are_finite_and_those_without_padding() -> None:
    gradients = []
    for padding in (0, 5):
        model = mil().train()
        x = bag(7, padding).requires_grad_()
        model.logits(x).square().sum().backward()
        assert torch.isfinite(x.grad[:, :7]).all()
        assert x.grad[:, 7:].abs().sum() == 0
        gradients.append([p.grad for p in model.parameters()])
    for alone, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-6)


def test_a_row_that_is_damaged_is_no_padding() -> None:
    x = bag(5)
    x[0, 2, 3] = torch.nan
    with torch.no_grad():
        scores = mil().eval()(x)
    assert scores[0].isnan().all()
    assert scores[1].isfinite().all()


def test_finds_the_instance_that_decides() -> None:
    """Bags are positive if one of their instances is marked; the attention learns which."""
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 9, 13)).astype(np.float32)
    y = np.arange(200) % 2
    places = random.integers(0, 9, 200)
    x[y == 1, places[y == 1], 2] += 6
    model = create_model("attention-mil", ["no", "yes"], width=32, dropout=0.1, **BAG).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(80):
            loss = nn.functional.cross_entropy(model.logits(torch.from_numpy(x[:150])), torch.from_numpy(y[:150]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        rest = torch.from_numpy(x[150:])
        assert (model(rest).argmax(1).numpy() == y[150:]).mean() > 0.9
        found = model.net.attention(model.prepare(rest)).argmax(1).numpy()
    assert (found == places[150:])[y[150:] == 1].mean() > 0.9


def test_bags_only() -> None:
    with pytest.raises(BadValueError, match="axes 'ic'"):
        create_model("attention-mil", ["a"], tile=8, spacing=1.0)
    with pytest.raises(BadValueError, match="expected options width, dropout"):
        mil(depth=2)


def test_nothing_but_padding_is_nan() -> None:
    x = bag(5)
    x[1] = torch.nan
    with torch.no_grad():
        model = mil().eval()
        assert model.logits(x)[1].isnan().all()
        torch.testing.assert_close(model.logits(x)[0], model.logits(x[:1])[0])
        assert model.net.attention(model.prepare(x))[1].isnan().all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_under_autocast_products_are_bfloat16(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    """What training does where the processor has it; the gradients are those of float32 within its rounding."""
    monkeypatch.setattr("dhlab.kernels.attention._multiplies_bfloat16", lambda device: True)
    model = create_model("attention-mil", ["a", "b"], width=64, dropout=dropout, **(BAG | {"channels": 64})).train()
    x, found = torch.randn(2, 63, 64, generator=torch.Generator().manual_seed(4)), []
    for enabled in (False, True):
        model.zero_grad()
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.manual_seed(0)
            model.logits(x).float().square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert not torch.equal(found[0][0], found[1][0])
    for exact, rounded in zip(*found, strict=True):
        # 2^-9 a product, and features near zero that fall on its other side.
        assert (exact - rounded).norm() <= 0.05 * exact.norm() + 1e-6


def test_compiles() -> None:
    model, x = mil().train(), bag(7, 2)
    compiled = torch.compile(model.logits, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.logits(x), rtol=1e-5, atol=1e-6)
