"""Gated attention over the instances of a bag."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dhlab.networks.base import Network

__all__ = ["AttentionMIL"]


class AttentionMIL(Network):
    """Multiple-instance learning: embed instances, weigh them by gated attention, classify their weighted mean.

    Columns of NaN are padding: they weigh nothing, so a bag's logits do not depend on what it is batched with.

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
        embedded, attention = self._weigh(x)
        return (attention.unsqueeze(2) * embedded).sum(dim=1)

    def attention(self, x: Tensor) -> Tensor:
        """Return how much each instance of ``(B, channels, N)`` weighs, ``(B, N)``; a bag's weights sum to 1."""
        return self._weigh(x)[1]

    def _weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        instances = x.movedim(1, 2)
        padding = instances.isnan().all(dim=2, keepdim=True)
        embedded = self.embed(torch.where(padding, 0.0, instances))
        scores = self.score(self.value(embedded) * self.gate(embedded)).masked_fill(padding, float("-inf"))
        return embedded, scores.squeeze(2).softmax(dim=1)
