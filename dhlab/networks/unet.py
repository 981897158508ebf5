"""A U-Net on any encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dhlab.networks.base import Network
from dhlab.networks.catalogue import find_source
from dhlab.networks.compact import Join, climb, convolve, enlarge
from dhlab.networks.encoders import build_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["EncoderUNet"]

MOST_GROWTH = 8


class EncoderUNet(Network):
    """A U-Net whose way down is a network of torchvision or timm; its logits are enlarged to full size at the end.

    Parameters
    ----------
    channels
        Input channels.
    classes
        Output channels.
    encoder
        Name of the network, as `find_source` takes it.
    tile
        Height and width of a window in pixels, for encoders that are built for one size.
    width
        Channels of the finest stage on the way up; deeper ones have 2, 4 and 8 times as many.
    dropout
        Chance that a channel is left out before the last layer while training.

    References
    ----------
    Ronneberger, Fischer and Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI 2015.
    """

    dense = True
    task_parts = ("up", "head")

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        encoder: str,
        tile: Sequence[int],
        width: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, maps = build_encoder(find_source(encoder), channels=channels, tile=tile)
        widths = [width * min(2**level, MOST_GROWTH) for level in range(len(maps) - 1)]
        below = [*widths[1:], maps[-1]]
        self.up = nn.ModuleList(
            Join(convolve(2, fine + coarse, after), convolve(2, after, after))
            for fine, coarse, after in zip(maps[:-1], below, widths, strict=True)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes, height, width)`` for ``(B, channels, height, width)``."""
        finest = climb(self.up, self.encoder(x))
        return enlarge(self.head(self.dropout(finest)), x.shape[2:])

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return the mean over space of the encoder's deepest map, ``(B, F)``."""
        deepest: Tensor = self.encoder(x)[-1]
        return deepest.flatten(2).mean(dim=2)
