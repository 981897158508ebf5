"""Ensembles: several trained models as one, which predicts, is judged and is packaged like any other."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from dhlab.cards import ModelCard
from dhlab.errors import BadValueError
from dhlab.models import Model, build_model
from dhlab.networks import OnnxNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["ENSEMBLE", "Ensemble", "build_ensemble", "combine"]

ENSEMBLE = "ensemble"
# What members must agree on, since they see one input and their scores are averaged.
SHARED = (
    *("task", "classes", "tile", "spacing", "unit", "axes", "dtype", "value_range", "mean", "std", "activation"),
    *("output_stride", "input_layout"),
)
TEXTS = ("licence", "intended_use", "limits", "data", "base_model", "authors", "citation")


class Ensemble(nn.Module):
    """A network whose logits are those of the mean score of several models.

    Parameters
    ----------
    members
        Models with the same input and the same meaning of scores; each keeps its own temperature and target scale.

    References
    ----------
    Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles", NeurIPS 2017.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.activation = members[0].card.activation

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes, *space)`` or ``(B, classes)`` for normalised windows ``(B, C, *space)``."""
        if self.activation == "none":
            return self.scores(x).mean(0)
        logits = torch.stack([member.net(x) / member.card.temperature for member in self._models()])
        # The mean of probabilities in logarithms, which keep what rounds to 0 or 1.
        count = math.log(len(logits))
        if self.activation == "softmax":
            return logits.log_softmax(2).logsumexp(0) - count
        yes, no = functional.logsigmoid(logits).logsumexp(0), functional.logsigmoid(-logits).logsumexp(0)
        return yes - no

    def scores(self, x: Tensor) -> Tensor:
        """Return the members' scores ``(members, B, classes, …)`` for normalised windows ``(B, C, *space)``."""
        return torch.stack([member.activate(member.net(x)) for member in self._models()])

    def _models(self) -> list[Model]:
        return [member for member in self.members if isinstance(member, Model)]


def combine(models: Sequence[Model], *, name: str = ENSEMBLE) -> Model:
    """Make one model of several: its scores are the mean of theirs.

    Parameters
    ----------
    models
        At least two, of the same task, classes, windows and normalisation; the ensemble shares their weights.
    name
        Name of the ensemble.

    Returns
    -------
    Model
        For `predict`, `evaluate` and `export`. Its card has no metrics: it was not judged yet.

    Raises
    ------
    BadValueError
        If there are fewer than two models, they differ in what they must share, or one is an ONNX graph.
    """
    if len(models) < 2:
        raise BadValueError(f"{len(models)} models; expected at least two to combine.")
    first = models[0].card
    for model in models:
        if isinstance(model.net, OnnxNet):
            raise BadValueError(f"{model.card.name!r} is an ONNX graph; combine models that bring their weights.")
        if isinstance(model.net, Ensemble):
            raise BadValueError(f"{model.card.name!r} is an ensemble already; combine its members instead.")
        for field in SHARED:
            mine, other = getattr(first, field), getattr(model.card, field)
            if mine != other:
                raise BadValueError(
                    f"{first.name!r} and {model.card.name!r} differ in {field}: {mine} and {other}; members of an "
                    "ensemble see the same input and give the same scores."
                )
    said = {field: dict.fromkeys(getattr(model.card, field) for model in models) for field in TEXTS}
    texts: dict[str, Any] = {field: " / ".join(filter(None, values)) for field, values in said.items()}
    card = replace(
        first,
        name=name,
        architecture=ENSEMBLE,
        architecture_options={"members": [model.card.to_dict() for model in models]},
        temperature=1.0,
        target_mean=(),
        target_std=(),
        metrics={},
        version="1",
        created="",
        **texts,
    )
    return Model(Ensemble(models), card)


def build_ensemble(card: ModelCard) -> Ensemble:
    """Make the network of an ensemble's card, without trained weights."""
    members = card.architecture_options.get("members")
    if not isinstance(members, list) or len(members) < 2:
        raise BadValueError(f"ensemble {card.name!r} lists no members; expected at least two model cards.")
    cards = [ModelCard.from_dict(member) for member in members]
    if any(member.architecture == ENSEMBLE for member in cards):
        raise BadValueError(f"ensemble {card.name!r} has an ensemble as member; expected models of one network.")
    return Ensemble([build_model(member) for member in cards])
