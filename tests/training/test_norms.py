"""Batch normalisation that adds up over workers is, alone, the usual one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dhlab.training.norms import SharedBatchNorm, share_norms


@pytest.mark.parametrize(
    ("kind", "space"), [(nn.BatchNorm1d, (63,)), (nn.BatchNorm2d, (7, 1)), (nn.BatchNorm3d, (2, 3, 5))]
)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_is_the_usual_one(kind, space, options):
    torch.manual_seed(3)
    net = nn.Sequential(kind(5, **options))
    usual = nn.Sequential(kind(5, **options))
    usual.load_state_dict(net.state_dict())
    layers, undo = share_norms(net)
    assert isinstance(net[0], SharedBatchNorm)
    assert layers == [net[0]]
    for _ in range(3):
        images = 3 * torch.randn(6, 5, *space) + 1
        slope = torch.randn_like(images)
        found = []
        for one in (net, usual):
            x = images.clone().requires_grad_()
            y = one(x)
            one.zero_grad()
            (y * slope).sum().backward()
            found.append([y, x.grad, *(p.grad for p in one.parameters())])
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    undo()
    assert type(net[0]) is kind
    for a, b in zip(net.state_dict().values(), usual.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(net.eval()(images), usual.eval()(images), atol=1e-5)


def test_samples_lent_for_want_of_others_do_not_count():
    net = nn.Sequential(nn.BatchNorm2d(2))
    layers, _ = share_norms(net)
    layers[0].counts = False
    with torch.no_grad():
        net(torch.full((1, 2, 3, 3), 7.0))
    # Nobody else has samples here, so there is no statistic at all.
    assert torch.isnan(net[0].running_mean).all()
