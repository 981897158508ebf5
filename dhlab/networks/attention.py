"""Gated attention over the instances of a bag."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dhlab.kernels import GatedAttention, attention_pool
from dhlab.networks.base import Network

__all__ = ["AttentionMIL"]


class AttentionMIL(Network):
    """Multiple-instance learning: embed instances, weigh them by gated attention, classify their weighted mean.

    Columns of NaN are padding: they weigh nothing, so a bag's logits do not depend on what it is batched with.

    Instances stream through `dhlab.kernels.attention_pool`, so that a bag of 500,000 needs little memory beside its
    features, unless dropout or `torch.compile` asks for them all. Matrix products are float32, and under
    `torch.autocast` bfloat16 where the processor has it: training takes it by default, and what a package gives stays
    within its tolerance.

    Parameters
    ----------
    dimensions
        1: instances lie along one axis.
    channels
        Features of an instance.
    classes
        Number of logits.
    width
        Features of an embedded instance; the attention has half as many.
    dropout
        Chance that an embedded feature is left out while training.

    References
    ----------
    Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018.
    """

    task_parts = ("head",)

    def __init__(self, *, dimensions: int, channels: int, classes: int, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        if dimensions != 1:
            raise ValueError(f"instances along {dimensions} axes; expected 1")
        self.dropout = dropout
        hidden = max(1, width // 2)
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Dropout(dropout))
        self.value = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(width, hidden), nn.Sigmoid())
        self.score = nn.Linear(hidden, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` for bags ``(B, channels, N)``; NaN if a bag holds nothing but padding."""
        logits: Tensor = self.head(self.pooled_features(x))
        return logits

    def pooled_features(self, x: Tensor) -> Tensor:
        """Return the weighted mean of a bag's embedded instances, ``(B, F)``."""
        if torch.compiler.is_compiling() or x.is_meta:
            return self._pool_plainly(x)
        instances, counts, _ = _pack(x)
        pooled = self._attend(instances, counts)[0]
        return pooled.masked_fill(counts[:, None] == 0, torch.nan)

    def attention(self, x: Tensor) -> Tensor:
        """Return how much each instance of ``(B, channels, N)`` weighs, ``(B, N)``; a bag's weights sum to 1."""
        instances, counts, present = _pack(x)
        weights = self._attend(instances, counts)[1]
        spread = weights.new_zeros(present.shape).masked_scatter(present, weights)
        return spread.masked_fill(counts[:, None] == 0, torch.nan)

    def _attend(self, instances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features ``(B, F)`` and weights ``(M,)`` of instances ``(M, channels)``, `counts` a bag."""
        embeds = not (self.training and self.dropout > 0)
        if not embeds:
            instances = self.embed(instances)
        tensors = dict(self.named_parameters())
        weights = GatedAttention(
            value_weight=tensors["value.0.weight"],
            value_bias=tensors["value.0.bias"],
            gate_weight=tensors["gate.0.weight"],
            gate_bias=tensors["gate.0.bias"],
            score_weight=tensors["score.weight"],
            score_bias=tensors["score.bias"],
            embed_weight=tensors["embed.0.weight"] if embeds else None,
            embed_bias=tensors["embed.0.bias"] if embeds else None,
        )
        precision = "auto" if torch.is_autocast_enabled(instances.device.type) else "float32"
        offsets = torch.nn.functional.pad(counts.cumsum(dim=0), (1, 0))  # (B + 1,)
        pooled, shares = attention_pool(instances, offsets, attention=weights, precision=precision, need_weights=True)
        return pooled[:, 0], shares[:, 0]

    def _pool_plainly(self, x: Tensor) -> Tensor:
        """Say the same in operations whose shapes do not depend on numbers, for graphs to compile or to export."""
        instances = x.movedim(1, 2)
        padding = instances.isnan().all(dim=2, keepdim=True)
        embedded = self.embed(torch.where(padding, 0.0, instances))
        scores = self.score(self.value(embedded) * self.gate(embedded)).masked_fill(padding, float("-inf"))
        return (scores.softmax(dim=1) * embedded).sum(dim=1)


def _pack(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the instances but for padding, ``(M, channels)``, how many a bag has, ``(B,)``, and which, ``(B, N)``."""
    instances = x.movedim(1, 2).flatten(0, 1)  # (B N, channels)
    # A damaged row begins with NaN at most; looking at all numbers of all rows would take a quarter of their memory.
    padding = instances[:, 0].isnan()
    if bool(padding.any()):
        padding[padding.clone()] = instances[padding].isnan().all(dim=1)
        instances = instances[~padding]
    present = ~padding.view(x.shape[0], x.shape[2])
    return instances, present.sum(dim=1), present
