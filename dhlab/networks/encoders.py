"""Encoders: networks of torchvision and timm as pyramids of feature maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dhlab.errors import BadValueError
from dhlab.networks.catalogue import REFUSALS, Source, build_classifier, load_library, timm_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = ["SequentialEncoder", "build_encoder"]

# Children of torchvision's networks that hold a row of stages, and those with which the classifier begins.
ROWS = ("features", "layers", "trunk_output")
ENDS = ("avgpool", "classifier", "dropout", "fc")
PROBE_PX = 96


class SequentialEncoder(nn.Module):
    """The body of a network of torchvision that runs its stages one after the other, under its own names.

    The last map of each size is given, so a stage stays one module: it can be frozen, looked at or recomputed as such.
    torchvision's own feature extractor would take it apart into single operations.

    Parameters
    ----------
    net
        ResNet, ResNeXt, RegNet, EfficientNet, MobileNet, ConvNeXt, DenseNet, VGG, MNASNet, ShuffleNet, SqueezeNet or
        the like.
    channels
        Input channels.
    name
        Its name, for messages.

    Raises
    ------
    BadValueError
        If the network is not a row of stages that give ``(B, C, height, width)``.
    """

    def __init__(self, net: nn.Module, *, channels: int, name: str) -> None:
        super().__init__()
        for child, module in net.named_children():
            if child in ENDS:
                break
            self.add_module(child, module)
        self.steps = tuple(_steps(self))
        self.taps, self.channels = self._probe(channels, name)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return feature maps ``(B, C, height, width)`` from fine to coarse."""
        maps = []
        for number, step in enumerate(self.steps):
            x = self.get_submodule(step)(x)
            if number in self.taps:
                maps.append(x)
        return maps

    @torch.no_grad()
    def _probe(self, channels: int, name: str) -> tuple[frozenset[int], tuple[int, ...]]:
        """Return the steps after which the size falls, and how many channels their maps have."""
        self.eval()
        x, shapes = torch.zeros(1, channels, PROBE_PX, PROBE_PX), []
        try:
            for step in self.steps:
                x = self.get_submodule(step)(x)
                shapes.append(tuple(x.shape))
        except REFUSALS as error:
            raise _no_pyramid(name) from error
        self.train()
        sizes = [shape[2:] for shape in shapes]
        taps = [i for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] < size]
        # The probe is square: maps that are not have their channels last.
        maps = all(len(size) == 2 and len(set(size)) == 1 for size in sizes)
        if not maps or len(taps) < 2 or sorted(sizes, reverse=True) != sizes:
            raise _no_pyramid(name)
        return frozenset(taps), tuple(shapes[i][1] for i in taps)


def build_encoder(source: Source, *, channels: int, tile: Sequence[int]) -> tuple[nn.Module, tuple[int, ...]]:
    """Build a network of a library as a pyramid of feature maps, with random weights; nothing is downloaded.

    Parameters
    ----------
    source
        Which.
    channels
        Input channels.
    tile
        Height and width of a window in pixels, for networks that are built for one size.

    Returns
    -------
    tuple
        A module from ``(B, channels, height, width)`` to a list of maps from fine to coarse, and their channels.

    Raises
    ------
    BadValueError
        If the network gives no such maps.
    """
    if source.library == "torchvision":
        net = build_classifier(source, channels=channels, classes=1, tile=tile)
        encoder = SequentialEncoder(net, channels=channels, name=str(source))
        return encoder, encoder.channels
    options = {"in_chans": channels, "features_only": True, **timm_size(source, tile)}
    try:
        # The getter keeps the network's own names of weights; timm's other wrappers rename them.
        net = load_library("timm").create_model(source.name, feature_cls="getter", **options)
    except REFUSALS as error:
        raise BadValueError(f"{source} cannot be an encoder for tile {tuple(tile)}: {error}") from error
    return net, tuple(net.feature_info.channels())


def _steps(net: nn.Module) -> Iterator[str]:
    for name, module in net.named_children():
        if name in ROWS:
            yield from (f"{name}.{child}" for child, _ in module.named_children())
        else:
            yield name


def _no_pyramid(name: str) -> BadValueError:
    return BadValueError(
        f"{name} gives no feature maps of falling size, so it cannot be an encoder. Take a ResNet, EfficientNet, "
        "MobileNet or ConvNeXt, or a network of timm ('timm/…')."
    )
