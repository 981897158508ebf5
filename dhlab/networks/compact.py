"""Compact networks for signals, pictures and volumes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from dhlab.networks.base import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["ConvClassifier", "Join", "UNet", "climb", "convolve", "enlarge"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
LINEAR = ("linear", "bilinear", "trilinear")
GROWTH = (1, 2, 4, 6, 8)


class UNet(Network):
    """A small U-Net whose first convolution halves the size; its logits are enlarged back at the end.

    Batch normalisation, not group: a window's scores then do not depend on what else it sees, so overlapping windows
    agree and blend without seams.

    Parameters
    ----------
    dimensions
        Number of window axes: 1 signal, 2 picture, 3 volume.
    channels
        Input channels.
    classes
        Output channels.
    width
        Channels of the finest stage; deeper ones have 2, 4, 6 and 8 times as many.
    depth
        Number of stages, 1 to 5; each halves the size.
    dropout
        Chance that a channel is left out before the last layer while training.

    References
    ----------
    Ronneberger, Fischer and Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI 2015.
    """

    dense = True
    task_parts = ("up", "head")

    def __init__(
        self, *, dimensions: int, channels: int, classes: int, width: int = 16, depth: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [width * growth for growth in GROWTH[:depth]]
        self.down = nn.ModuleList(_stages(dimensions, channels, widths))
        self.up = nn.ModuleList(Join(*convolve(dimensions, fine + coarse, fine)) for fine, coarse in pairwise(widths))
        self.dropout = DROPOUTS[dimensions - 1](dropout)
        self.head = CONVOLUTIONS[dimensions - 1](width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes, *space)`` for ``(B, channels, *space)`` of any size."""
        finest = climb(self.up, self._descend(x))
        return enlarge(self.head(self.dropout(finest)), x.shape[2:])

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return the mean over space of the deepest stage, ``(B, F)``."""
        return self._descend(x)[-1].flatten(2).mean(dim=2)

    def _descend(self, x: Tensor) -> list[Tensor]:
        stages = []
        for stage in self.down:
            x = stage(x)
            stages.append(x)
        return stages


class Join(nn.Sequential):
    """Layers over a fine map and what comes from below, as one module: the joined map need not be kept."""

    def forward(self, fine: Tensor, below: Tensor) -> Tensor:  # type: ignore[override] # two inputs, not one
        """Return what the layers make of ``(B, C, *space)`` and an enlarged ``(B, K, *smaller)``."""
        coarse = nn.functional.interpolate(below, size=fine.shape[2:], mode="nearest")
        x = torch.cat([fine, coarse], dim=1)
        for layer in self:
            x = layer(x)
        return x


class ConvClassifier(Network):
    """A small convolutional classifier: stages that halve the size, the mean over space, one linear layer.

    Parameters
    ----------
    dimensions
        Number of window axes: 1 signal, 2 picture, 3 volume.
    channels
        Input channels.
    classes
        Output channels.
    width
        Channels of the finest stage; deeper ones have 2, 4, 6 and 8 times as many.
    depth
        Number of stages, 1 to 5; each halves the size.
    dropout
        Chance that a feature is left out before the last layer while training.
    """

    def __init__(
        self, *, dimensions: int, channels: int, classes: int, width: int = 16, depth: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [width * growth for growth in GROWTH[:depth]]
        self.stages = nn.Sequential(*_stages(dimensions, channels, widths))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` for ``(B, channels, *space)`` of any size."""
        logits: Tensor = self.head(self.dropout(self.pooled_features(x)))
        return logits

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return the mean over space of the deepest stage, ``(B, F)``."""
        features: Tensor = self.stages(x).flatten(2).mean(dim=2)
        return features


def climb(stages: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """Go up the other side of a U: join each finer map with what comes from below.

    Parameters
    ----------
    stages
        A `Join` per map but the coarsest, from fine to coarse.
    features
        Maps ``(B, C, *space)`` from fine to coarse, of any sizes.

    Returns
    -------
    Tensor
        What the finest stage makes, ``(B, C, *space)`` of the first map.
    """
    x = features[-1]
    for stage, fine in zip(reversed(stages), features[-2::-1], strict=True):
        x = stage(fine, x)
    return x


def enlarge(logits: Tensor, space: Sequence[int]) -> Tensor:
    """Resample logits ``(B, classes, *space)`` linearly to another size."""
    mode = LINEAR[logits.ndim - 3]
    return nn.functional.interpolate(logits, size=tuple(space), mode=mode, align_corners=False)


def convolve(dimensions: int, before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    """Return a 3-pixel convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        CONVOLUTIONS[dimensions - 1](before, after, 3, stride=stride, padding=1, bias=False),
        NORMS[dimensions - 1](after),
        nn.ReLU(inplace=True),
    )


def _stages(dimensions: int, channels: int, widths: Sequence[int]) -> list[nn.Sequential]:
    return [
        nn.Sequential(convolve(dimensions, before, after, stride=2), convolve(dimensions, after, after))
        for before, after in pairwise([channels, *widths])
    ]
