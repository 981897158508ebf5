"""One place that turns a name and options into a network with random weights."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadValueError
from dhlab.networks.attention import AttentionMIL
from dhlab.networks.catalogue import build_classifier, find_source
from dhlab.networks.compact import ConvClassifier, UNet
from dhlab.networks.pixels import EmbeddingNet, FilterBankNet
from dhlab.networks.unet import EncoderUNet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

__all__ = ["NETWORKS", "build_network"]

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "cnn": ConvClassifier,
    "attention-mil": AttentionMIL,
    "filter-bank": FilterBankNet,
    "embedding": EmbeddingNet,
}
LIMITS: dict[str, tuple[float, float]] = {"width": (1, 4096), "depth": (1, 5), "dropout": (0.0, 0.9)}
GIVEN = ("dimensions", "channels", "classes", "tile")


def build_network(
    architecture: str,
    options: Mapping[str, Any],
    *,
    channels: int,
    classes: int,
    tile: Sequence[int],
) -> nn.Module:
    """Build a network with random weights; nothing is downloaded.

    Parameters
    ----------
    architecture
        A name of `NETWORKS`, or of torchvision or timm as `find_source` takes it.
    options
        Keyword arguments of the network: ``width``, ``depth``, ``dropout``, ``encoder``.
    channels
        Input channels.
    classes
        Number of logits, per pixel or per window.
    tile
        Window size in pixels, per window axis.

    Returns
    -------
    nn.Module
        From normalised ``(B, channels, *space)`` to logits.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    BadValueError
        If an option or the number of window axes does not fit the network.
    MissingDependencyError
        If it needs a library that does not load.
    """
    compact = NETWORKS.get(architecture)
    if compact is not None and not (architecture == "unet" and "encoder" in options):
        accepted = [n for n in inspect.signature(compact).parameters if n not in GIVEN]
        _check_options(architecture, options, accepted)
        return compact(dimensions=len(tile), channels=channels, classes=classes, **options)
    _check_options(architecture, options, ("encoder", "width", "dropout") if compact else ("dropout",))
    if len(tile) != 2:
        raise BadValueError(
            f"{options.get('encoder', architecture)!r} takes windows along two axes; got {len(tile)}. "
            f"{', '.join(map(repr, NETWORKS))} take others."
        )
    if compact:
        return EncoderUNet(channels=channels, classes=classes, tile=tile, **options)
    return build_classifier(
        find_source(architecture, known=tuple(NETWORKS)), channels=channels, classes=classes, tile=tile, **options
    )


def _check_options(architecture: str, options: Mapping[str, Any], accepted: Iterable[str]) -> None:
    for option, value in options.items():
        if option not in accepted:
            raise BadValueError(
                f"{architecture} with {option}={value!r}; expected options {', '.join(accepted) or 'none'}."
            )
        if option not in LIMITS:
            if not isinstance(value, str):
                raise BadValueError(f"{architecture} with {option}={value!r}; expected the name of a network.")
            continue
        low, high = LIMITS[option]
        whole = isinstance(low, int)
        number = type(value) is int or (type(value) is float and not whole)
        if not (number and low <= value <= high):
            kind = "a whole number" if whole else "a number"
            raise BadValueError(f"{architecture} with {option}={value!r}; expected {kind} from {low} to {high}.")
