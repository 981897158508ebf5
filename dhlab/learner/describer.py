"""What describes a pixel to the classifier: Gaussian features, or the feature maps of an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dhlab.errors import BadShapeError, BadValueError
from dhlab.networks import NETWORKS, EmbeddingNet, FilterBankNet

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.models import Model
    from dhlab.networks import PixelNetwork

__all__ = ["Describer", "describe_by_encoder", "describe_by_filters"]


@dataclass(frozen=True, eq=False)
class Describer:
    """A network whose features are learned from, and what it wants to be given.

    Parameters
    ----------
    net
        Its head is not used.
    architecture, options
        How a model card names it.
    mean, std
        Of each channel, in 0 to 1, as in a model card.
    name
        Of the encoder; empty for filters.
    """

    net: PixelNetwork
    architecture: str
    options: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = ""

    def describe(self, window: Tensor) -> Tensor:
        """Return features ``(F, height, width)`` of pixels ``(C, height, width)`` from 0 to 255, for now."""
        with torch.inference_mode():
            return self.net.describe_for_now(self._normalise(window)[None])[0]

    def _normalise(self, window: Tensor) -> Tensor:
        if not any(self.mean) and all(std == 1 / 255 for std in self.std):
            return window
        mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (self.mean, self.std))
        return (window - mean) / std


def describe_by_filters(channels: int, *, depth: int = 4) -> Describer:
    """Return what describes pixels by Gaussian features.

    Parameters
    ----------
    channels
        Of the scan.
    depth
        Number of scales.
    """
    net = FilterBankNet(dimensions=2, channels=channels, classes=2, depth=depth).eval()
    return Describer(net, "filter-bank", {"depth": depth}, (0.0,) * channels, (1 / 255,) * channels)


def describe_by_encoder(encoder: Model, channels: int) -> Describer:
    """Return what describes pixels by the feature maps of an encoder, with its weights.

    Parameters
    ----------
    encoder
        A network of torchvision or timm, or a U-Net with one.
    channels
        Of the scan.

    Raises
    ------
    BadValueError
        If the model has no such encoder.
    BadShapeError
        If it takes another number of channels.
    """
    card = encoder.card
    if card.channels != channels:
        raise BadShapeError(f"{card.name!r} takes {card.channels} channels; the scan has {channels}.")
    inside = "encoder" in card.architecture_options
    if not inside and (card.architecture in NETWORKS or card.architecture in ("onnx", "ensemble")):
        raise BadValueError(
            f"{card.name!r} ({card.architecture}) as encoder; expected a network of torchvision or timm, or a U-Net "
            "with one: create_model('resnet18', …)."
        )
    name = str(card.architecture_options["encoder"]) if inside else card.architecture
    with torch.random.fork_rng(devices=[]):
        net = EmbeddingNet(dimensions=2, channels=channels, classes=2, encoder=name)
    weights = encoder.net.state_dict()
    kept = {key.removeprefix("encoder."): w for key, w in weights.items() if not inside or key.startswith("encoder.")}
    missing = net.encoder.load_state_dict(kept, strict=False).missing_keys
    if missing:
        raise BadValueError(f"{card.name!r} lacks weights of {name}: {', '.join(missing[:3])}.")
    return Describer(net.eval(), "embedding", {"encoder": name}, tuple(card.mean), tuple(card.std), name=card.name)
