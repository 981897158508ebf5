"""What every network of our own tells about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Network"]


class Network(nn.Module):
    """A network of dhlab: normalised float32 ``(B, C, *space)`` in, logits out; its last layer is `head`."""

    # Whether there are logits for every pixel.
    dense: ClassVar[bool] = False
    # Children that are made for the task; the others are the body, which serves other tasks too.
    task_parts: ClassVar[tuple[str, ...]] = ("head",)

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return what the body says of ``(B, C, *space)`` as a whole, ``(B, F)``."""
        raise NotImplementedError
