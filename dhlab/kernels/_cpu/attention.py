"""The steps of attention pooling between its matrix products on the CPU, see ``attention.c``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from dhlab.kernels._attention import SLACK, Workspace
from dhlab.kernels._cpu import bind, pointer, threads_for
from dhlab.kernels._cpu.floats import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

    from dhlab.kernels._attention import Parameters

__all__ = ["CpuSteps", "can_pool"]

MOST_HIDDEN, MOST_HEADS, ROWS = 4096, 64, 64


def can_pool(score_weight: Tensor) -> bool:
    """Return whether the C form covers scores by ``(heads, hidden)``."""
    heads, hidden = score_weight.shape
    return heads <= MOST_HEADS and hidden <= MOST_HIDDEN


class CpuSteps:
    """The steps in C; see `dhlab.kernels._attention.Steps`."""

    def __init__(self, parameters: Parameters, offsets: Tensor) -> None:
        self.parameters, self.offsets = parameters, offsets.contiguous()
        self.workspace = Workspace(parameters.gate_weight)
        self.heads, self.hidden = parameters.score_weight.shape
        self.bags, self.width = len(offsets) - 1, parameters.gate_weight.shape[1]
        self.type = FLOATS[parameters.gate_weight.dtype]
        self.score_weight = _padded(parameters.score_weight)
        self.score_bias = parameters.score_bias.contiguous()
        self.gate_bias = _padded(parameters.gate_bias.view(2, self.hidden))
        self.embed_bias = None if parameters.embed_bias is None else _padded(parameters.embed_bias)
        padded_width = -(-self.width // SLACK) * SLACK
        self.most = torch.full((self.bags, self.heads), -torch.inf)
        self.mass = torch.zeros(self.bags, self.heads)
        self.pooled = torch.zeros(self.bags, self.heads, padded_width)
        self.sums = torch.zeros(self.heads + 2, self.score_weight.shape[1])
        self.grad_embed_bias = torch.zeros(padded_width)

    def rectify(self, embedded: Tensor) -> None:
        arguments = (pointer(embedded), pointer(self.embed_bias), len(embedded), self.width, self.type)
        bind("attention_rectify", "ppllii")(*arguments, self._threads(embedded))

    def pool(self, embedded: Tensor, begin: int, scores: Tensor, *, gates: Tensor | None) -> None:
        gates, shares = self._gates(embedded, gates), torch.empty_like(scores)
        tensors = (gates, embedded, self.gate_bias, self.score_weight, self.score_bias, self.offsets, scores, shares)
        sums = (self.most, self.mass, self.pooled)
        numbers = (begin, len(embedded), self.bags, self.hidden, self.width, self.heads, self.type)
        arguments = [pointer(tensor) for tensor in tensors + sums]
        bind("attention_pool", "p" * 11 + "llllllii")(*arguments, *numbers, self._threads(gates))

    def finish(self) -> tuple[Tensor, Tensor]:
        mass = self.mass.where(self.mass != 0, 1.0)
        return self.pooled[..., : self.width] / mass[..., None], self.most + mass.log()

    def start_back(self, log_sums: Tensor, grad_pooled: Tensor, grad_shift: Tensor) -> None:
        self.log_sums, self.grad_shift = log_sums.contiguous(), grad_shift.contiguous()
        self.grad_pooled = _padded(grad_pooled)

    def differentiate(
        self, embedded: Tensor, begin: int, scores: Tensor, *, grad_scores: Tensor, gates: Tensor | None
    ) -> Tensor:
        memory = self.workspace.matrix("gates", len(embedded), 2 * self.hidden)
        gates = self._gates(embedded, memory) if gates is None else memory.copy_(gates)
        self.shares = torch.empty_like(scores)
        partial = torch.empty(-(-len(embedded) // ROWS), *self.sums.shape)
        tensors = (gates, embedded, self.gate_bias, self.score_weight, self.offsets, scores, grad_scores.contiguous())
        more = (self.log_sums, self.grad_shift, self.grad_pooled, self.shares, partial, self.sums)
        numbers = (begin, len(embedded), self.bags, self.hidden, self.width, self.heads, self.type)
        arguments = [pointer(tensor) for tensor in tensors + more]
        bind("attention_differentiate", "p" * 13 + "llllllii")(*arguments, *numbers, self._threads(gates))
        return gates

    def spread(self, gradient: Tensor, embedded: Tensor, begin: int) -> None:
        tensors = (gradient, embedded, self.shares, self.grad_pooled, self.offsets, self.grad_embed_bias)
        rectified = self.parameters.embed_weight is not None
        numbers = (begin, len(embedded), self.bags, self.width, self.heads, rectified, self.type)
        arguments = [pointer(tensor) for tensor in tensors]
        bind("attention_spread", "p" * 6 + "lllllii" + "i")(*arguments, *numbers, self._threads(gradient))

    def finish_back(self) -> tuple[Tensor, Tensor, Tensor]:
        sums = self.sums[:, : self.hidden]
        return sums[: self.heads], sums[self.heads :].flatten(), self.grad_embed_bias[: self.width]

    def _gates(self, embedded: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            out = self.workspace.matrix("gates", len(embedded), 2 * self.hidden)
        return torch.mm(embedded, self.parameters.gate_weight.T, out=out)

    def _threads(self, matrix: Tensor) -> int:
        return threads_for(matrix.numel() * matrix.element_size())


def _padded(tensor: Tensor) -> Tensor:
    """Return a copy whose last axis is a multiple of `SLACK`, zeros at the end."""
    return pad(tensor, (0, -tensor.shape[-1] % SLACK)).contiguous()
