"""Dropout that is the same for a sample whichever worker has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SharedDropout"]

DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
)


class SharedDropout(TorchFunctionMode):
    """Within this, what drops draws for the samples of all workers and takes this worker's.

    All workers seed alike, so that together they drop what one process would: dropout, and the stochastic depth of
    torchvision and timm. Dropout inside `scaled_dot_product_attention` is left as it is.

    Parameters
    ----------
    rows
        Which of the samples of all workers are this worker's.
    count
        Number of samples of all workers.
    """

    def __init__(self, rows: slice, count: int) -> None:
        super().__init__()
        self.rows, self.count = rows, count
        self.mine = len(range(*rows.indices(count)))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Draw for all where something is dropped, and let everything else pass."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim and len(args[0]) == self.mine:
            first, *rest = args
            if function in DROPOUTS:
                kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
                return first * function(self._for_all(first).fill_(1), *rest, **kwargs)[self.rows]
            if function is torch.Tensor.bernoulli_:
                return first.copy_(function(self._for_all(first), *rest, **kwargs)[self.rows])
        return function(*args, **kwargs)

    def _for_all(self, mine: Tensor) -> Tensor:
        """Return room for all workers' samples, in the memory order in which one process would have them."""
        shape = (self.count, *mine.shape[1:])
        interleaved = mine.ndim == 4 and mine.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if interleaved else torch.contiguous_format
        return torch.empty(shape, dtype=mine.dtype, device=mine.device, memory_format=order)
