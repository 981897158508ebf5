"""The small perceptron that strokes teach: standardised features in, one hidden layer, classes out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.networks import Perceptron

__all__ = ["teach"]

# Chosen by Dice after simulated strokes, beside linear models, other widths, dropout, stains' densities instead of
# colours, and random forests.
MEMBERS, STEPS, RATE, DECAY = 4, 100, 0.04, 1e-2
SEED = 0


def teach(
    head: Perceptron, features: Tensor, targets: Tensor, *, weights: Tensor, emphasis: Tensor | None = None
) -> None:
    """Train a perceptron and what it standardises by; the result depends on the arguments alone.

    Groups of hidden units learn apart and are averaged at the end: an ensemble that costs no more than one perceptron.

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
    emphasis
        ``(F,)`` float32, how much each standardised feature counts; None takes all alike.

    References
    ----------
    Hansen and Salamon, "Neural network ensembles", 1990.
    """
    each = weights / weights.sum()
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    emphasis = torch.ones_like(mean) if emphasis is None else emphasis
    standard = (features - mean) * (variance + head.standardise.eps).rsqrt() * emphasis
    width, classes = head.hidden.out_features, head.last.out_features
    members = math.gcd(MEMBERS, width)
    shapes = {"hidden": (members, standard.shape[1], width // members), "last": (members, width // members, classes)}
    generator = torch.Generator().manual_seed(SEED)
    with torch.enable_grad():
        weight = {
            name: torch.randn(shape, generator=generator).mul_((2 / shape[1]) ** 0.5).requires_grad_()
            for name, shape in shapes.items()
        }
        bias = {name: torch.zeros(members, 1, shape[2], requires_grad=True) for name, shape in shapes.items()}
        groups = [
            {"params": list(weight.values()), "weight_decay": DECAY},
            {"params": list(bias.values()), "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=RATE)
        wanted = targets.expand(members, -1, -1).reshape(-1, classes)
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            first = weight["hidden"].movedim(0, 1).flatten(1)
            hidden = (standard @ first).reshape(len(standard), members, -1).movedim(1, 0) + bias["hidden"]
            logits = torch.baddbmm(bias["last"], torch.relu(hidden), weight["last"])
            losses = functional.cross_entropy(logits.reshape(-1, classes), wanted, reduction="none")
            loss = (losses.reshape(members, -1) * each).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch gives it no types
            optimiser.step()
    assert head.standardise.running_mean is not None
    assert head.standardise.running_var is not None
    with torch.no_grad():
        head.standardise.running_mean.copy_(mean)
        head.standardise.running_var.copy_(variance)
        head.hidden.weight.copy_(weight["hidden"].movedim(2, 1).flatten(0, 1) * emphasis)
        head.hidden.bias.copy_(bias["hidden"].flatten())
        head.last.weight.copy_(weight["last"].flatten(0, 1).T / members)
        head.last.bias.copy_(bias["last"].mean(0)[0])
    head.eval().requires_grad_(False)
