"""Which weights move, how fast, and along which schedule; the running mean of the weights."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dhlab.errors import BadValueError, UnknownNameError, suggest
from dhlab.networks import split_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from dhlab.models import Model
    from dhlab.training.settings import Settings

__all__ = ["Averaged", "freeze_parts", "make_optimizer", "schedule"]

BODY = "body"
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def make_optimizer(model: Model, settings: Settings) -> torch.optim.Optimizer:
    """Make the optimiser: the body of the network may be slower than its head; norms and biases do not decay.

    Parameters
    ----------
    model
        Its parameters that take a gradient are optimised.
    settings
        `optimizer`, `learning_rate`, `weight_decay` and `body_rate`.

    Returns
    -------
    torch.optim.Optimizer
        Its groups carry their highest rate as ``"highest"``.

    Raises
    ------
    BadValueError
        If nothing is left to train.
    """
    body, _ = split_head(model.net)
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.net.named_parameters():
        slow = name in body and settings.body_rate != 1
        if parameter.requires_grad:
            groups.setdefault((slow, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise BadValueError(f"model {model.card.name!r} has nothing to train (an ONNX graph, or all layers frozen).")
    rows: list[dict[str, Any]] = [
        {
            "params": parameters,
            "highest": settings.learning_rate * (settings.body_rate if slow else 1),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (slow, decays), parameters in groups.items()
    ]
    # One pass over all weights: a third of the time of the usual loop on a CPU.
    fused = all(p.device.type in ("cpu", "cuda") for row in rows for p in row["params"])
    if settings.optimizer == "sgd":
        return torch.optim.SGD(rows, lr=settings.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(rows, lr=settings.learning_rate, fused=fused)


def schedule(kind: str, done: float, *, warm_up: float = 0.1) -> tuple[float, float]:
    """Return the share of the highest learning rate, and of the first momentum, after a share of the training.

    Parameters
    ----------
    kind
        ``"cosine"``: linear warm-up, then half a cosine down to 1/200. ``"one-cycle"``: a cosine up from 1/25 over
        30 % and down to 1/250,000, momentum the other way round. ``"constant"``: warm-up, then 1.
    done
        Share of the training, 0 to 1.
    warm_up
        Share of the training that the warm-up takes.

    Returns
    -------
    tuple of float
        Factor of the learning rate, and momentum (of AdamW its first beta).

    References
    ----------
    Loshchilov and Hutter, "SGDR", ICLR 2017. Smith and Topin, "Super-convergence", 2018.
    """
    if kind == "one-cycle":
        rising = min(1.0, done / 0.3)
        falling = max(0.0, (done - 0.3) / 0.7)
        if falling == 0:
            return _between(1 / 25, 1.0, rising), _between(0.95, 0.85, rising)
        return _between(1.0, 4e-6, falling), _between(0.85, 0.95, falling)
    if done < warm_up:
        return 0.05 + 0.95 * done / warm_up, 0.9
    if kind == "constant":
        return 1.0, 0.9
    return _between(1.0, 0.005, (done - warm_up) / (1 - warm_up)), 0.9


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))


def set_rate(optimizer: torch.optim.Optimizer, factor: float, momentum: float) -> None:
    """Set every group to a share of its highest rate, and the momentum."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * factor
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def freeze_parts(net: nn.Module, names: Sequence[str]) -> dict[str, bool]:
    """Stop parameters from learning and return what they were, for `thaw_parts`.

    Parameters
    ----------
    net
        The network.
    names
        ``"body"`` for all but the head, or the first words of parameter names, such as ``"layer1"``.

    Returns
    -------
    dict
        ``requires_grad`` of every parameter before, by name.

    Raises
    ------
    UnknownNameError
        If a name fits no parameter.
    """
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    body, _ = split_head(net)
    for wanted in names:
        fitting = body if wanted == BODY else [n for n in before if n == wanted or n.startswith(f"{wanted}.")]
        if not fitting:
            parts = dict.fromkeys(name.partition(".")[0] for name in before)
            raise UnknownNameError(f"freeze names {wanted!r}.{suggest(wanted, (BODY, *parts))}")
        for name in fitting:
            net.get_parameter(name).requires_grad_(False)
    return before


def thaw_parts(net: nn.Module, before: Mapping[str, bool]) -> None:
    """Give parameters back what `freeze_parts` returned."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(before[name])


def rest_frozen_norms(net: nn.Module) -> None:
    """Keep batch statistics of norms that do not learn as they are."""
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, NORMS) and own and not any(p.requires_grad for p in own):
            module.eval()


class Averaged:
    """A running mean of a model's weights, which generalises better than the last ones.

    Parameters
    ----------
    model
        Model that is trained.
    decay
        Share of the mean that stays at each step; smaller during the first steps.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean towards the model's weights."""
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        now = self.model.state_dict()
        moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in moving], [now[n] for n in moving], share)
        for name, tensor in now.items():
            if not tensor.is_floating_point():
                self.weights[name].copy_(tensor)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Put the mean into the model for a while."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)
