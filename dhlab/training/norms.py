"""Batch normalisation over the batch of all workers, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dhlab.distributed import sum_over_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["SharedBatchNorm", "share_norms"]


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all workers' samples together.

    Parameters
    ----------
    own
        The layer that it stands in for, whose weights and running statistics it uses.

    Attributes
    ----------
    counts
        Whether this worker's samples count; a worker that got a stand-in for want of samples has none.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """

    def __init__(self, own: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats, device="meta")
        self._parameters, self._buffers = own._parameters, own._buffers
        self.train(own.training)
        self.counts = True

    def _check_input_dim(self, input: Tensor) -> None:
        """Take windows of any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, *space)``."""
        if not self.training:
            return super().forward(input)
        axes = [i for i in range(input.ndim) if i != 1]
        values = input.float()
        mine = float(self.counts)
        number = values.new_tensor([mine * values.numel() / values.shape[1]])
        sums = torch.cat([number, mine * values.sum(axes), mine * (values * values).sum(axes)])
        channels = values.shape[1]
        count, first, second = torch.split(sum_over_workers(sums.double(), spread=True), [1, channels, channels])
        mean = first / count
        variance = (second / count - mean * mean).clamp_min(0)
        if self.track_running_stats:
            self._follow(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach())
        per_channel = (1, -1) + (1,) * (input.ndim - 2)
        scale = (variance + self.eps).rsqrt()
        offset = -mean * scale
        if self.affine:
            scale, offset = scale * self.weight, offset * self.weight + self.bias
        return (values * scale.float().view(per_channel) + offset.float().view(per_channel)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def share_norms(net: nn.Module) -> tuple[list[SharedBatchNorm], Callable[[], None]]:
    """Let a network's batch normalisation use the statistics of all workers.

    Parameters
    ----------
    net
        Changed in place; weights and statistics stay the same tensors.

    Returns
    -------
    tuple
        The layers that were put in, and what takes them out again.
    """
    swapped: list[tuple[nn.Module, str, Any, SharedBatchNorm]] = []
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                shared = SharedBatchNorm(child)
                setattr(parent, name, shared)
                swapped.append((parent, name, child, shared))

    def undo() -> None:
        for parent, name, child, shared in swapped:
            child.train(shared.training)
            setattr(parent, name, child)

    return [shared for *_, shared in swapped], undo
