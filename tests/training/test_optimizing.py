"""Schedules and groups of parameters."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dhlab.models import create_model
from dhlab.training import Settings
from dhlab.training.optimizing import make_optimizer, schedule


def test_cosine_warms_up_and_decays():
    rates = [schedule("cosine", i / 100)[0] for i in range(101)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates.index(max(rates)) == 10
    assert rates[100] < 0.01
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert schedule("cosine", 0.0, warm_up=0.0)[0] == 1


def test_one_cycle_is_torchs():
    """The same rates and momenta as `torch.optim.lr_scheduler.OneCycleLR` gives."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101)
    for step in range(101):
        rate, momentum = schedule("one-cycle", step / 100)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.04)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0], abs=0.01)
        optimizer.step()
        if step < 100:
            theirs.step()
    assert schedule("one-cycle", 1.0)[0] == pytest.approx(4e-6)


def test_constant_stays():
    assert schedule("constant", 0.05)[0] == pytest.approx(0.525)
    assert {schedule("constant", d)[0] for d in (0.1, 0.5, 1.0)} == {1.0}


def test_norms_and_biases_do_not_decay():
    model = create_model("cnn", ("a", "b"), tile=16, spacing=1.0, width=4, depth=2)
    groups = make_optimizer(model, Settings(weight_decay=0.1, body_rate=0.5)).param_groups
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    assert {group["highest"] for group in groups} == {3e-3, 1.5e-3}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
