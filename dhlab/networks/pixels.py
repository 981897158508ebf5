"""Networks that judge every pixel by features of its neighbourhood with a small head: what a few strokes can teach."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from dhlab.errors import BadValueError
from dhlab.kernels.filters import FEATURES, filter_bank, filter_reach
from dhlab.networks.base import Network
from dhlab.networks.catalogue import find_source
from dhlab.networks.encoders import build_encoder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EmbeddingNet", "FilterBankNet", "Perceptron", "PixelNetwork"]

SCALES = (0.7, 1.6, 3.5, 8.0, 16.0)
# Six of seven features are of texture and would outvote colour; wide filters mix classes after a few strokes. Chosen by
# Dice on EBHI-Seg, TNBC and BreCaHAD, on other pictures than those of tests/benchmarks/annotation/strokes.py.
TEXTURE_EMPHASIS, WIDE_EMPHASIS, WIDE = 0.35, 0.35, 8.0
# Pixels whose features and hidden units stay in a processor's cache; measured: half the time of all at once.
PART = 8192
# Context of an embedding in pixels, a multiple of what its maps are smaller by; and the usual size of a window.
REACH, TILE = 64, 256
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


class PixelNetwork(Network):
    """Features of every pixel, and a perceptron that tells classes by them: only the head is learned from strokes.

    Attributes
    ----------
    features
        How many each pixel has.
    head
        Tells classes by them.
    """

    dense = True
    # Whether pixels beyond `reach` never count, and the side of the windows that fit in memory.
    local: ClassVar[bool] = True
    largest_tile: ClassVar[int] = 768
    features: int
    head: Perceptron

    @property
    def emphasis(self) -> Tensor:
        """How much each feature, ``(F,)``, counts while the head learns; 1 is as much as any other."""
        return torch.ones(self.features)

    @property
    def reach(self) -> int:
        """How far from a pixel, in pixels, others count for it."""
        raise NotImplementedError

    def describe(self, x: Tensor) -> Tensor:
        """Return the features of ``(B, C, height, width)``, as ``(B, F, height, width)``."""
        raise NotImplementedError

    def describe_for_now(self, x: Tensor) -> Tensor:
        """Return what `describe` does, perhaps in memory that the next call of this thread overwrites."""
        return self.describe(x)

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


class FilterBankNet(PixelNetwork):
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

    def __init__(self, *, dimensions: int, channels: int, classes: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        if dimensions != 2:
            raise BadValueError(f"'filter-bank' takes windows along two axes; got {dimensions}.")
        self.sigmas = SCALES[:depth]
        self.features = channels * depth * sum(FEATURES.values())
        self.head = Perceptron(self.features, classes, width=width)

    @property
    def emphasis(self) -> Tensor:
        """How much each feature, ``(F,)``, counts while the head learns: colour and fine texture more than the rest."""
        kinds = [
            1.0 if name == "gaussian" else TEXTURE_EMPHASIS for name, count in FEATURES.items() for _ in range(count)
        ]
        scales = [WIDE_EMPHASIS if sigma >= WIDE else 1.0 for sigma in self.sigmas]
        of_channel = torch.outer(torch.tensor(scales), torch.tensor(kinds)).flatten()
        return of_channel.repeat(self.features // len(of_channel))

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


class EmbeddingNet(PixelNetwork):
    """The feature maps of an encoder, brought to the size of the picture, and a perceptron on those of each pixel.

    Logits depend a little on where a window is cut, as the maps are coarser than the picture.

    Parameters
    ----------
    dimensions
        Number of window axes, always 2.
    channels
        Input channels.
    classes
        Output channels.
    encoder
        A network of torchvision or timm, see `find_source`.
    width
        Hidden units.
    depth
        How many of its maps, the finest first: of a ResNet those of half, a quarter and an eighth of the size.

    Raises
    ------
    BadValueError
        If there are not two window axes, or the encoder gives no maps of falling size.
    UnknownNameError
        If there is no such network.
    """

    local = False
    largest_tile = 384

    def __init__(
        self,
        *,
        dimensions: int,
        channels: int,
        classes: int,
        encoder: str = "torchvision/resnet18",
        width: int = 32,
        depth: int = 3,
    ) -> None:
        super().__init__()
        if dimensions != 2:
            raise BadValueError(f"'embedding' takes windows along two axes; got {dimensions}.")
        self.encoder, sizes = build_encoder(find_source(encoder), channels=channels, tile=(TILE, TILE))
        self.depth, self.features = depth, sum(sizes[:depth])
        self.head = Perceptron(self.features, classes, width=width)

    @property
    def reach(self) -> int:
        """How far from a pixel, in pixels, others are given to the encoder; it may see farther."""
        return REACH

    def describe(self, x: Tensor) -> Tensor:
        """Return the features of ``(B, C, height, width)``, as ``(B, F, height, width)``."""
        maps = self.encoder(x)[: self.depth]
        return torch.cat(
            [functional.interpolate(one, size=x.shape[2:], mode="bilinear", align_corners=False) for one in maps], 1
        )
