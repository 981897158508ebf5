"""A network that judges every pixel by Gaussian features of its neighbourhood: what a few strokes can teach."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import torch
from torch import nn

from dhlab.errors import BadValueError
from dhlab.kernels.filters import FEATURES, filter_bank, filter_reach
from dhlab.networks.base import Network

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FilterBankNet", "Perceptron"]

SCALES = (0.7, 1.6, 3.5, 8.0, 16.0)
# Pixels whose features and hidden units stay in a processor's cache; measured: half the time of all at once.
PART = 8192
_scratch = threading.local()


class Perceptron(nn.Module):
    """Standardises features and tells classes by them, with one hidden layer.

    Parameters
    ----------
    features
        How many there are.
    classes
        Number of logits.
    width
        Hidden units.
    """

    def __init__(self, features: int, classes: int, *, width: int = 32) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(features, affine=False)
        self.hidden = nn.Linear(features, width)
        self.last = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, classes, N)`` of features ``(B, F, N)``."""
        weight: Tensor = self.hidden.weight
        bias: Tensor = self.hidden.bias
        if self.training:
            features = self.standardise(features)
        else:
            # Standardising is linear: in the weights it costs nothing per pixel.
            mean, variance = self.standardise.running_mean, self.standardise.running_var
            assert mean is not None
            assert variance is not None
            weight = weight * (variance + self.standardise.eps).rsqrt()
            bias = bias - weight @ mean
        hidden = torch.relu(torch.matmul(weight, features) + bias[:, None])
        return torch.matmul(self.last.weight, hidden) + self.last.bias[:, None]

    def part_by_part(self, features: Tensor) -> Tensor:
        """Return logits ``(classes, N)`` of features ``(F, N)`` of any float type, in less time and memory."""
        return torch.cat([self(part.float()) for part in torch.split(features, PART, dim=1)], dim=1)


class FilterBankNet(Network):
    """The features of `dhlab.kernels.filter_bank`, and a small perceptron on those of each pixel.

    Only pixels within `reach` of a pixel count for its logits: away from the rim of a window they do not depend on
    where the window was cut.

    Parameters
    ----------
    dimensions
        Number of window axes, always 2.
    channels
        Input channels.
    classes
        Output channels.
    width
        Hidden units.
    depth
        Number of scales, 1 to 5, of standard deviations 0.7, 1.6, 3.5, 8 and 16 pixels.

    Raises
    ------
    BadValueError
        If there are not two window axes.
    """

    dense = True

    def __init__(self, *, dimensions: int, channels: int, classes: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        if dimensions != 2:
            raise BadValueError(f"'filter-bank' takes windows along two axes; got {dimensions}.")
        self.sigmas = SCALES[:depth]
        self.features = channels * depth * sum(FEATURES.values())
        self.head = Perceptron(self.features, classes, width=width)

    @property
    def reach(self) -> int:
        """How far from a pixel, in pixels, others still count for it."""
        return filter_reach(max(self.sigmas))

    def describe(self, x: Tensor) -> Tensor:
        """Return the features of ``(B, C, height, width)``, as ``(B, F, height, width)``."""
        return filter_bank(x, sigmas=self.sigmas, channel_axis=1)

    def describe_for_now(self, x: Tensor) -> Tensor:
        """Return what `describe` does, in memory that the next call of this thread overwrites: fresh memory is slow."""
        shape = (len(x), self.features, *x.shape[2:])
        size = math.prod(shape)
        memory = getattr(_scratch, "memory", None)
        if memory is None or memory.numel() < size or memory.device != x.device:
            memory = _scratch.memory = torch.empty(size, device=x.device)
        return filter_bank(x, sigmas=self.sigmas, channel_axis=1, out=memory[:size].view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes, height, width)`` for ``(B, channels, height, width)`` of any size."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            logits: Tensor = self.head(self.describe(x).flatten(2))
            return logits.reshape(x.shape[0], -1, *x.shape[2:])
        parts = [self.head.part_by_part(self.describe_for_now(one[None])[0].flatten(1)) for one in x]
        return torch.stack(parts).reshape(len(x), -1, *x.shape[2:])

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return the mean over space of the features, ``(B, F)``."""
        return self.describe(x).mean(dim=(2, 3))
