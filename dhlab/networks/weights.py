"""Weights from elsewhere: read without pickles, and taken over by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dhlab.errors import BadFileError, BadValueError
from dhlab.networks.parts import final_layers, split_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["read_weights", "take_over"]

# What libraries and `Model` put before the names of the same network.
PREFIXES = ("", "encoder.", "encoder.model.")
MODEL_PREFIX = "net."
# Counts batches; networks saved by old versions of torch lack it.
COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from ``.safetensors``, or from a ``.pth`` that holds nothing but tensors.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Tensors by name, on the CPU.

    Raises
    ------
    BadFileError
        If the file is damaged, or a pickle that holds more than tensors.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise BadFileError(f"{path} cannot be read as weights: {str(error).strip()[:200]}") from error
    for key in ("state_dict", "model"):
        weights = weights.get(key, weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise BadFileError(f"{path} holds more than tensors by name; expected the weights of a network.")
    return weights


@torch.no_grad()
def take_over(net: nn.Module, weights: Mapping[str, Tensor], *, head: bool, origin: str) -> None:
    """Copy weights into a network by name: the whole body, and the head as far as it fits.

    An encoder takes the weights of the whole network of its name. Where the first convolution takes another number
    of channels, each gets the mean of the old ones, scaled so that grey gives what it gave.

    Parameters
    ----------
    net
        The network; changed in place.
    weights
        Tensors by name, of the network itself or of a `Model` around it.
    head
        Whether the last layer is wanted too; else it stays as it is.
    origin
        Where the weights come from, for messages.

    Raises
    ------
    BadValueError
        If the body lacks a weight, or one has another shape.
    """
    if weights and all(name.startswith(MODEL_PREFIX) for name in weights):
        weights = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in weights.items()}
    own = net.state_dict()
    sources = {name: source for name in own if (source := _named(weights, name)) is not None}
    stem = next((name for name in own if own[name].ndim > 2), "")
    fitted = {name: _fit(weights[source], own[name], stem=name == stem) for name, source in sources.items()}
    head_names = _names_under(net, split_head(net)[1])
    body = [name for name in own if name not in head_names]
    missing = [name for name in body if name not in sources and not name.endswith(COUNTER)]
    if missing:
        raise BadValueError(
            f"{origin} has no {missing[0]!r} (it lacks {len(missing)} of the body's {len(body)} tensors): it belongs "
            f"to another network. It holds {', '.join(list(weights)[:3]) or 'nothing'} …"
        )
    misfits = [name for name in body if name in fitted and fitted[name] is None]
    if misfits:
        got, expected = tuple(weights[sources[misfits[0]]].shape), tuple(own[misfits[0]].shape)
        raise BadValueError(f"{origin} has {misfits[0]!r} of shape {got}; expected {expected}.")
    last = _names_under(net, [name for name in own if name.rpartition(".")[0] in final_layers(net)])
    taken = set(body)
    for part, wanted in ((head_names - last, True), (last, head)):
        # A last layer makes sense only on the way up that it was trained with.
        if not wanted or any(fitted.get(name) is None for name in part):
            break
        taken |= part
    for name in taken & fitted.keys():
        tensor = fitted[name]
        assert tensor is not None
        own[name].copy_(tensor)


def _named(weights: Mapping[str, Tensor], name: str) -> str | None:
    return next((n for p in PREFIXES if name.startswith(p) and (n := name.removeprefix(p)) in weights), None)


def _names_under(net: nn.Module, parameters: Iterable[str]) -> set[str]:
    """Return the names of the parameters and of the buffers beside them."""
    modules = {name.rpartition(".")[0] for name in parameters}
    return {name for name in net.state_dict() if name.rpartition(".")[0] in modules}


def _fit(tensor: Tensor, own: Tensor, *, stem: bool) -> Tensor | None:
    """Return a tensor in the shape of `own`, the first convolution for other channels, or None if it does not fit."""
    if tensor.shape == own.shape:
        return tensor
    if not (stem and tensor.ndim == own.ndim and tensor[:, :1].shape == own[:, :1].shape):
        return None
    return tensor.mean(dim=1, keepdim=True).expand_as(own) * (tensor.shape[1] / own.shape[1])
