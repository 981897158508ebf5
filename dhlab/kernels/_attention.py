"""Gated attention pooling chunk by chunk: the matrix products; the steps between them differ from form to form.

A chunk of instances is embedded, weighed and summed before the next is read, with a softmax that runs along. For the
backward pass what the first chunks came to is kept, up to a fixed size; the others are embedded again. Only the scores,
four bytes an instance and head, grow with the number of instances.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["SLACK", "Kept", "Parameters", "Steps", "TorchSteps", "Workspace", "differentiate", "kept_rows", "pool"]

# Instances at once: enough for the rate of a large matrix product, few enough for the caches.
CHUNK = {"cpu": 1024, "cuda": 8192}
# Elements behind a matrix that a form may read and ignores.
SLACK = 64
# Bytes kept for the backward pass: all of a bag of 16,000 instances in bfloat16 at the sizes of CLAM.
MOST_KEPT = 32 << 20


@dataclass(frozen=True, eq=False)
class Parameters:
    """Matrices in the type of the matrix products, everything else in float32.

    Parameters
    ----------
    embed_weight
        ``(width, channels)``, or None if the instances are embedded already.
    embed_bias
        ``(width,)``, or None.
    gate_weight
        ``(2 hidden, width)``: what makes values above what makes gates.
    gate_bias
        ``(2 hidden,)``.
    score_weight
        ``(heads, hidden)``.
    score_bias
        ``(heads,)``.
    """

    embed_weight: Tensor | None
    embed_bias: Tensor | None
    gate_weight: Tensor
    gate_bias: Tensor
    score_weight: Tensor
    score_bias: Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """What the forward pass leaves for the backward pass, in the type of the products.

    Parameters
    ----------
    embedded
        ``(K, width)`` of the first instances; none if they came embedded.
    gates
        ``(K, 2 hidden)`` of the first instances, without bias.
    """

    embedded: Tensor
    gates: Tensor


class Workspace:
    """Matrices that are overwritten chunk by chunk: fresh memory for each would cost more than filling it."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """Return memory for ``(rows, columns)``, with `SLACK` elements behind it."""
        size = rows * columns
        if name not in self.memory or self.memory[name].numel() < size + SLACK:
            self.memory[name] = self.like.new_empty(size + SLACK)
        return self.memory[name][:size].view(rows, columns)


class Steps(Protocol):
    """What a form does between the matrix products; it is made for one pass over the instances."""

    workspace: Workspace

    def rectify(self, embedded: Tensor) -> None:
        """Add the bias to ``(n, width)`` and take the positive part, in place."""

    def pool(self, embedded: Tensor, begin: int, scores: Tensor, *, gates: Tensor | None) -> None:
        """Write the scores ``(n, heads)`` of the instances from `begin` on, and take them into the running sums.

        `gates` is memory for the products ``(n, 2 hidden)``, if these are to be kept.
        """

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return the pooled instances ``(bags, heads, width)`` and the log of each softmax's sum ``(bags, heads)``."""

    def start_back(self, log_sums: Tensor, grad_pooled: Tensor, grad_shift: Tensor) -> None:
        """Prepare for gradients; `grad_shift` is what a bag adds to the gradient of each of its scores."""

    def differentiate(
        self, embedded: Tensor, begin: int, scores: Tensor, *, grad_scores: Tensor, gates: Tensor | None
    ) -> Tensor:
        """Return the gradient of the gates ``(n, 2 hidden)``, in the type of the products, from `gates` if kept."""

    def spread(self, gradient: Tensor, embedded: Tensor, begin: int) -> None:
        """Complete the gradient of what was embedded, ``(n, width)``, and pass the positive part; in place."""

    def finish_back(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of score weight, gate bias and embed bias."""


def kept_rows(rows: int, *, embeds: bool, width: int, hidden: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return of how many instances the forward pass keeps embedding and gates: whole chunks, `MOST_KEPT` bytes."""
    if device.type == "cuda":
        return 0
    most = MOST_KEPT // ((width * embeds + 2 * hidden) * dtype.itemsize)
    return rows if rows <= most else most - most % CHUNK["cpu"]


def pool(instances: Tensor, parameters: Parameters, *, steps: Steps, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled instances ``(bags, heads, width)``, scores ``(N, heads)`` and log-sums ``(bags, heads)``."""
    scores = torch.empty(len(instances), len(parameters.score_bias), device=instances.device)
    with torch.autocast(instances.device.type, enabled=False):
        for rows, chunk in _chunks(instances, parameters, steps):
            gates = kept.gates[rows] if rows.stop <= len(kept.gates) else None
            embedded = _embed(
                chunk, parameters, steps, kept.embedded[rows] if rows.stop <= len(kept.embedded) else None
            )
            steps.pool(embedded, rows.start, scores[rows], gates=gates)
        pooled, log_sums = steps.finish()
    return pooled, scores, log_sums


def differentiate(
    instances: Tensor,
    parameters: Parameters,
    *,
    results: tuple[Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
    wants_instances: bool,
    steps: Steps,
    kept: Kept,
) -> tuple[Tensor, ...]:
    """Return the gradients of the instances and the six parameters, empty where there is none.

    Parameters
    ----------
    instances
        ``(N, channels)``.
    parameters
        As for `pool`.
    results
        What `pool` returned.
    gradients
        Of these, float32.
    wants_instances
        Whether the instances need a gradient.
    steps
        Fresh ones.
    kept
        What `pool` left; it is only read.
    """
    (pooled, scores, log_sums), (grad_pooled, grad_scores, grad_log_sums) = results, gradients
    steps.start_back(log_sums, grad_pooled, grad_log_sums - (grad_pooled * pooled).sum(dim=2))
    embed, gate, workspace = parameters.embed_weight, parameters.gate_weight, steps.workspace
    grad_instances = torch.empty_like(instances) if wants_instances else instances.new_empty(0)
    grad_gate = torch.zeros_like(gate, dtype=torch.float32)
    grad_embed = grad_gate.new_empty(0) if embed is None else torch.zeros_like(embed, dtype=torch.float32)
    with torch.autocast(instances.device.type, enabled=False):
        for rows, chunk in _chunks(instances, parameters, steps):
            if rows.stop <= len(kept.embedded):
                embedded = kept.embedded[rows]
            else:
                embedded = _embed(chunk, parameters, steps, None)
            gates = kept.gates[rows] if rows.stop <= len(kept.gates) else None
            grad_gates = steps.differentiate(
                embedded, rows.start, scores[rows], grad_scores=grad_scores[rows], gates=gates
            )
            _add_product(grad_gate, grad_gates.T, embedded, workspace)
            if embed is None and not wants_instances:
                continue
            gradient = torch.mm(grad_gates, gate, out=workspace.matrix("gradient", *embedded.shape))
            steps.spread(gradient, embedded, rows.start)
            if embed is not None:
                _add_product(grad_embed, gradient.T, chunk, workspace)
                gradient = torch.mm(gradient, embed) if wants_instances else gradient
            if wants_instances:
                grad_instances[rows] = gradient
        grad_score, grad_gate_bias, grad_embed_bias = steps.finish_back()
    # A softmax's weights sum to 1: what a score bias moves is the log of the sum, of bags that are not empty.
    grad_score_bias = grad_log_sums.where(log_sums > -torch.inf, 0.0).sum(dim=0) + grad_scores.sum(dim=0)
    if embed is None:
        grad_embed_bias = grad_gate.new_empty(0)
    return grad_instances, grad_embed, grad_embed_bias, grad_gate, grad_gate_bias, grad_score, grad_score_bias


def _chunks(instances: Tensor, parameters: Parameters, steps: Steps) -> Iterator[tuple[slice, Tensor]]:
    """Yield which instances are a chunk, and these in the type of the products."""
    embeds, dtype = parameters.embed_weight is not None, parameters.gate_weight.dtype
    size = CHUNK["cuda" if instances.is_cuda else "cpu"]
    for begin in range(0, len(instances), size):
        rows = slice(begin, min(begin + size, len(instances)))
        chunk = instances[rows]
        if chunk.dtype != dtype or not (embeds or (chunk.is_contiguous() and chunk.shape[1] % SLACK == 0)):
            chunk = steps.workspace.matrix("chunk", *chunk.shape).copy_(chunk)
        yield rows, chunk


def _embed(chunk: Tensor, parameters: Parameters, steps: Steps, out: Tensor | None) -> Tensor:
    embed = parameters.embed_weight
    if embed is None:
        return chunk
    if out is None:
        out = steps.workspace.matrix("embedded", len(chunk), len(embed))
    steps.rectify(torch.mm(chunk, embed.T, out=out))
    return out


def _add_product(total: Tensor, a: Tensor, b: Tensor, workspace: Workspace) -> None:
    """Add ``a @ b`` to a float32 sum; in bfloat16 each chunk's product is rounded once."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b, out=workspace.matrix("product", *total.shape)))


class TorchSteps:
    """The steps in PyTorch's own operations, on any device."""

    def __init__(self, parameters: Parameters, offsets: Tensor) -> None:
        self.parameters, self.workspace = parameters, Workspace(parameters.gate_weight)
        self.offsets = offsets.tolist()
        bags, heads = len(self.offsets) - 1, len(parameters.score_bias)
        fresh = parameters.score_bias
        self.most = fresh.new_full((bags, heads), -torch.inf)
        self.mass = fresh.new_zeros(bags, heads)
        self.pooled = fresh.new_zeros(bags, heads, parameters.gate_weight.shape[1])
        self.grad_score = torch.zeros_like(parameters.score_weight)
        self.grad_gate_bias = torch.zeros_like(parameters.gate_bias)
        self.grad_embed_bias = fresh.new_zeros(parameters.gate_weight.shape[1])

    def rectify(self, embedded: Tensor) -> None:
        assert self.parameters.embed_bias is not None
        embedded.add_(self.parameters.embed_bias).relu_()

    def pool(self, embedded: Tensor, begin: int, scores: Tensor, *, gates: Tensor | None) -> None:
        value, gate = self._squash(self._gates(embedded, gates))
        torch.addmm(self.parameters.score_bias, value * gate, self.parameters.score_weight.T, out=scores)
        for bag, rows in self._pieces(begin, len(embedded)):
            most = torch.maximum(self.most[bag], scores[rows].amax(dim=0))
            shares, kept = (scores[rows] - most).exp(), (self.most[bag] - most).exp()
            self.most[bag] = most
            self.mass[bag] = self.mass[bag] * kept + shares.sum(dim=0)
            self.pooled[bag] = self.pooled[bag] * kept[:, None] + shares.T @ embedded[rows].float()

    def finish(self) -> tuple[Tensor, Tensor]:
        mass = self.mass.where(self.mass != 0, 1.0)
        return self.pooled / mass[..., None], self.most + mass.log()

    def start_back(self, log_sums: Tensor, grad_pooled: Tensor, grad_shift: Tensor) -> None:
        self.log_sums, self.grad_pooled, self.grad_shift = log_sums, grad_pooled, grad_shift

    def differentiate(
        self, embedded: Tensor, begin: int, scores: Tensor, *, grad_scores: Tensor, gates: Tensor | None
    ) -> Tensor:
        value, gate = self._squash(self._gates(embedded, None) if gates is None else gates)
        self.shares, towards = torch.empty_like(scores), grad_scores.clone()
        for bag, rows in self._pieces(begin, len(embedded)):
            self.shares[rows] = (scores[rows] - self.log_sums[bag]).exp()
            pull = embedded[rows].float() @ self.grad_pooled[bag].T + self.grad_shift[bag]
            towards[rows] += self.shares[rows] * pull
        self.grad_score += towards.T @ (value * gate)
        pull = towards @ self.parameters.score_weight * gate
        gradient = torch.cat([pull * (1 - value * value), pull * value * (1 - gate)], dim=1)
        self.grad_gate_bias += gradient.sum(dim=0)
        return gradient.to(embedded.dtype)

    def spread(self, gradient: Tensor, embedded: Tensor, begin: int) -> None:
        total = gradient.float()
        for bag, rows in self._pieces(begin, len(embedded)):
            total[rows] += self.shares[rows] @ self.grad_pooled[bag]
        if self.parameters.embed_weight is not None:
            total.mul_(embedded > 0)
            self.grad_embed_bias += total.sum(dim=0)
        gradient.copy_(total)

    def finish_back(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.grad_score, self.grad_gate_bias, self.grad_embed_bias

    def _gates(self, embedded: Tensor, out: Tensor | None) -> Tensor:
        weight = self.parameters.gate_weight
        if out is None:
            out = self.workspace.matrix("gates", len(embedded), len(weight))
        return torch.mm(embedded, weight.T, out=out)

    def _squash(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = (gates.float() + self.parameters.gate_bias).chunk(2, dim=1)
        return value.tanh(), gate.sigmoid()

    def _pieces(self, begin: int, rows: int) -> Iterator[tuple[int, slice]]:
        """Yield the bags that have instances among `rows` from `begin` on, and which of the chunk's these are."""
        end, at = begin + rows, begin
        while at < end:
            bag = bisect_right(self.offsets, at) - 1
            stop = min(self.offsets[bag + 1], end)
            yield bag, slice(at - begin, stop - begin)
            at = stop
