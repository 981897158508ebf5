"""The small perceptron that strokes teach: standardised features in, one hidden layer, classes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.networks import Perceptron

__all__ = ["teach"]

# Chosen by Dice on strokes simulated on EBHI-Seg and DSB2018, among linear models, widths of 8 to 64, ensembles, random
# forests and gradient boosting (tests/benchmarks/annotation/strokes.py).
STEPS, RATE, DECAY, DROPPED = 120, 0.02, 1e-2, 0.3
MOST_ROWS = 6144
SEED = 0


def teach(head: Perceptron, features: Tensor, targets: Tensor, *, weights: Tensor) -> None:
    """Train a perceptron and what it standardises by; the result depends on the arguments alone.

    Features are left out at random while learning, so that no single one is relied on.

    Parameters
    ----------
    head
        Changed in place.
    features
        ``(N, F)`` float32.
    targets
        ``(N, classes)`` float32, how much of each class a row is, summing to 1.
    weights
        ``(N,)`` float32, how much each row counts.
    """
    if len(features) > MOST_ROWS:
        chosen = torch.linspace(0, len(features) - 1, MOST_ROWS).long()
        features, targets, weights = features[chosen], targets[chosen], weights[chosen]
    each = weights / weights.sum()
    spread, mean = torch.var_mean(features, dim=0, correction=0)
    spread = spread.clamp_min(1e-8)
    standard = (features - mean) * spread.rsqrt()
    generator = torch.Generator().manual_seed(SEED)
    layers = (head.hidden, head.last)
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, (2 / layer.in_features) ** 0.5, generator=generator)
            layer.bias.zero_()
    groups = [
        {"params": [layer.weight for layer in layers], "weight_decay": DECAY},
        {"params": [layer.bias for layer in layers], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            kept = torch.rand(standard.shape[1], generator=generator) >= DROPPED
            logits = head.last(torch.relu(head.hidden(standard * (kept / (1 - DROPPED)))))
            loss = (functional.cross_entropy(logits, targets, reduction="none") * each).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    assert head.standardise.running_mean is not None
    assert head.standardise.running_var is not None
    head.standardise.running_mean.copy_(mean)
    head.standardise.running_var.copy_(spread)
    head.eval().requires_grad_(False)
