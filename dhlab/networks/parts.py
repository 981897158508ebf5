"""The parts of a network: the body, which serves other tasks too, and the head, which is made for the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dhlab.networks.base import Network

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["final_layers", "pool_features", "split_head"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def split_head(net: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sort a network's parameters into body and head.

    The head is what a new task has to learn anew: the last layer, and the way up of a U-Net.

    Parameters
    ----------
    net
        A network of dhlab, torchvision or timm, or any whose last linear layer or convolution gives the logits.

    Returns
    -------
    tuple
        Names of the body's parameters and of the head's, each in the network's order.
    """
    parts = net.task_parts if isinstance(net, Network) else final_layers(net)
    names = [name for name, _ in net.named_parameters()]
    head = [name for name in names if any(name.startswith(f"{part}.") for part in parts)]
    return tuple(name for name in names if name not in head), tuple(head)


def final_layers(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that give the logits; distilled networks of timm have two."""
    if isinstance(net, Network):
        return ("head",)
    named = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    modules = dict(net.named_modules())
    names = tuple(n for n in ([named] if isinstance(named, str) else named) if isinstance(modules.get(n), LAYERS))
    return names or tuple(n for n, module in modules.items() if isinstance(module, LAYERS))[-1:]


def pool_features(net: nn.Module, x: Tensor) -> Tensor:
    """Return what the body says of ``(B, C, *space)`` as a whole: the last layer's input, or a U-Net's deepest map.

    Parameters
    ----------
    net
        As for `split_head`.
    x
        Normalised windows ``(B, C, *space)``.

    Returns
    -------
    Tensor
        ``(B, F)``, the mean over space where there is any.
    """
    if isinstance(net, Network):
        return net.pooled_features(x)
    seen: list[Tensor] = []
    last = net.get_submodule(final_layers(net)[0])
    handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        net(x)
    finally:
        handle.remove()
    features = seen[0]
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features
