"""How sure a model is: scores that vary over dropout or the members of an ensemble, and entropy as a map."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dhlab.ensembles import Ensemble
from dhlab.errors import BadShapeError, BadValueError
from dhlab.inference import lend_model
from dhlab.models import Model
from dhlab.networks import OnnxNet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from dhlab.scan import Scan

__all__ = ["Uncertainty", "entropy", "estimate", "sample_scores", "with_uncertainty"]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What varied scores say together.

    Parameters
    ----------
    mean
        Mean scores, ``(B, classes, *space)`` float32.
    deviation
        Standard deviation of the scores, ``(B, classes, *space)`` float32, in their unit.
    entropy
        Entropy of the mean scores, all that is not known, ``(B, *space)`` float32; 0 to 1, the largest possible. NaN
        for numbers.
    mutual_information
        The part of it on which draws disagree and that more data could take away, ``(B, *space)`` float32; 0 to
        `entropy`. NaN for numbers.

    References
    ----------
    Houlsby et al., "Bayesian active learning for classification and preference learning", 2011; Gal and Ghahramani,
    "Dropout as a Bayesian approximation", ICML 2016.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    entropy: NDArray[np.float32]
    mutual_information: NDArray[np.float32]

    @classmethod
    def of(cls, scores: ArrayLike, *, activation: str) -> Uncertainty:
        """Sum up draws.

        Parameters
        ----------
        scores
            ``(draws, B, classes, *space)``, at least two draws.
        activation
            What made the scores: ``"softmax"``, ``"sigmoid"`` (the mean over classes counts) or ``"none"``.

        Returns
        -------
        Uncertainty
            Mean, deviation and, of probabilities, entropy and mutual information.

        Raises
        ------
        BadShapeError
            If there are fewer than two draws or axes are missing.
        """
        draws = torch.from_numpy(np.asarray(scores, np.float32))
        if draws.ndim < 3 or len(draws) < 2:
            raise BadShapeError(f"scores {tuple(draws.shape)}; expected (draws, B, classes, …), two draws or more.")
        parts = (draws.mean(0), draws.std(0), *_entropies(draws, activation))
        return cls(*(part.numpy() for part in parts))


def sample_scores(model: Model, windows: ArrayLike, *, passes: int = 20, seed: int = 0) -> NDArray[np.float32]:
    """Score windows several times: with dropout at work, or by each member of an ensemble.

    Only dropout layers are active; batch normalisation stays as trained, so that windows do not mix.

    Parameters
    ----------
    model
        A network with dropout layers, or an ensemble (see `dhlab.ensembles.combine`).
    windows
        ``(B, *window)`` as stored, in the card's axes and type.
    passes
        Draws of dropout; an ensemble gives one per member.
    seed
        Seed of the draws; torch's own random state stays as it is.

    Returns
    -------
    ndarray
        ``(draws, B, classes, *space)`` float32.

    Raises
    ------
    BadValueError
        If the network has no dropout, or `passes` is less than 2.
    BadShapeError
        If the windows do not fit the card.
    """
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    sampler = _Sampler(model, passes=passes, seed=seed)
    with lend_model(model, home), torch.inference_mode():
        x = model.prepare(torch.from_numpy(np.ascontiguousarray(windows)).to(home))
        scores: NDArray[np.float32] = sampler.draw(x).float().cpu().numpy()
    return scores


def estimate(model: Model, windows: ArrayLike, *, passes: int = 20, seed: int = 0) -> Uncertainty:
    """Return how sure a model is of windows, by dropout (Monte Carlo) or the members of an ensemble.

    Parameters
    ----------
    model
        A network with dropout layers, or an ensemble.
    windows
        ``(B, *window)`` as stored, in the card's axes and type.
    passes
        Draws of dropout; an ensemble gives one per member.
    seed
        Seed of the draws.

    Returns
    -------
    Uncertainty
        Mean and deviation of the scores, entropy and mutual information.

    Raises
    ------
    BadValueError
        If the network has no dropout, or `passes` is less than 2.
    BadShapeError
        If the windows do not fit the card.
    """
    scores = sample_scores(model, windows, passes=passes, seed=seed)
    return Uncertainty.of(scores, activation=model.card.activation)


def with_uncertainty(model: Model, *, passes: int = 20, seed: int = 0) -> Model:
    """Make a model that also gives its uncertainty, so that `predict` maps it over a scan.

    The heat map has the classes' mean scores and two channels more, ``entropy`` and ``mutual information``, both
    from 0 to 1 as in `Uncertainty`.

    Parameters
    ----------
    model
        A network with dropout layers, or an ensemble; its weights are shared.
    passes
        Draws of dropout; an ensemble gives one per member.
    seed
        Seed of the draws, the same for every batch.

    Returns
    -------
    Model
        For `predict`; it cannot be trained or exported.

    Raises
    ------
    BadValueError
        If the network has no dropout, `passes` is less than 2, or the model gives numbers, for which `estimate` is.
    """
    card = model.card
    if card.activation == "none":
        raise BadValueError(f"{card.name!r} gives no probabilities; take estimate, which has the deviation of scores.")
    about = replace(
        card,
        name=f"{card.name} uncertainty",
        architecture="uncertainty",
        architecture_options={"of": card.to_dict(), "passes": passes, "seed": seed},
        classes=(*card.classes, "entropy", "mutual information"),
        activation="none",
        temperature=1.0,
    )
    return Model(_Sampler(model, passes=passes, seed=seed), about)


def entropy(heat: Scan, *, exclusive: bool = True) -> Scan:
    """Show where a heat map is undecided.

    Parameters
    ----------
    heat
        Heat map of scores, one channel per class (one alone counts as itself against the rest), as `predict` makes
        it. It is read when the result is.
    exclusive
        Whether exactly one class is right (softmax); False takes the mean over classes that are judged each alone.

    Returns
    -------
    Scan
        Heat map in the same frame, one channel ``entropy``, uint8: 0 where one class has all, or nothing was
        computed, 255 where all are equally likely.

    Raises
    ------
    BadValueError
        If `heat` is no heat map with channels.
    """
    if heat.kind != "heatmap" or "c" not in heat.axes:
        raise BadValueError(f"{heat.name!r} is {heat.kind} with axes {heat.axes!r}; expected a heat map with axis 'c'.")
    axis = heat.axes.index("c")
    levels = tuple(_EntropyLevel(level, axis, exclusive) for level in heat.levels)
    return heat.replace(levels=levels, channels=("entropy",), name=f"{heat.name} entropy")


class _Sampler(nn.Module):
    """Draws of a model's scores, and as a network their mean with entropy and mutual information."""

    def __init__(self, model: Model, *, passes: int, seed: int) -> None:
        super().__init__()
        self.model, self.passes, self.seed = model, passes, seed
        if passes < 2:
            raise BadValueError(f"passes {passes}; expected at least 2.")
        card = model.card
        if isinstance(model.net, OnnxNet):
            raise BadValueError(f"{card.name!r} is an ONNX graph, whose dropout is gone; load its package instead.")
        if not isinstance(model.net, Ensemble) and not any(layer.p > 0 for layer in self._dropouts()):
            raise BadValueError(
                f"{card.name!r} has no dropout, so its scores never vary; combine several models into an ensemble."
            )

    def draw(self, x: Tensor) -> Tensor:
        """Return scores ``(draws, B, classes, *space)`` of normalised windows."""
        if isinstance(self.model.net, Ensemble):
            return self.model.net.scores(x)
        cards = [x.device.index or 0] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards), self._dropping():
            torch.manual_seed(self.seed)
            return torch.stack([self.model.activate(self.model.net(x)) for _ in range(self.passes)])

    def forward(self, x: Tensor) -> Tensor:
        """Return mean scores, entropy and mutual information ``(B, classes + 2, *space)``."""
        draws = self.draw(x)
        unsure, disagreed = _entropies(draws, self.model.card.activation)
        return torch.cat([draws.mean(0), unsure.unsqueeze(1), disagreed.unsqueeze(1)], dim=1)

    def _dropouts(self) -> list[Any]:
        return [module for module in self.model.modules() if isinstance(module, DROPOUTS)]

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Switch dropout on, and nothing else."""
        before = [(layer, layer.training) for layer in self._dropouts()]
        try:
            for layer, _ in before:
                layer.training = True
            yield
        finally:
            for layer, training in before:
                layer.training = training


@dataclass(frozen=True, eq=False)
class _EntropyLevel:
    """One resolution of a heat map, as entropy of what is read."""

    level: Any
    axis: int
    exclusive: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with one channel."""
        return tuple(1 if i == self.axis else int(n) for i, n in enumerate(self.level.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the entropy."""
        return np.dtype(np.uint8)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            place = key.index(Ellipsis)
            key = (*key[:place], *(slice(None),) * (len(self.shape) - len(key) + 1), *key[place + 1 :])
        key = (*key, *(slice(None),) * (len(self.shape) - len(key)))
        # An axis asked for by number stays until the end, so that channels keep their place.
        kept = tuple(k if isinstance(k, slice) else slice(int(k), int(k) + 1 or None) for k in key)
        stored = np.asarray(self.level[(*kept[: self.axis], slice(None), *kept[self.axis + 1 :])])
        scores = torch.from_numpy(np.moveaxis(stored, self.axis, 0)[None].astype(np.float32))
        scores = scores / 255 if stored.dtype == np.uint8 else scores
        total = scores.sum(1, keepdim=True)
        exclusive = self.exclusive and scores.shape[1] > 1
        if exclusive:
            # Rounded scores do not add up to 1, and where nothing was computed they are all 0.
            scores = torch.where(total > 0, scores / total.clamp_min(1e-6), 0)
        unsure = _entropy_of(scores, "softmax" if exclusive else "sigmoid")[0]
        found = np.expand_dims((unsure * 255).round().clamp(0, 255).to(torch.uint8).numpy(), self.axis)
        last = [0 if not isinstance(k, slice) else slice(None) for k in key]
        last[self.axis] = key[self.axis]
        return found[tuple(last)]


def _entropy_of(scores: Tensor, activation: str) -> Tensor:
    """Return the entropy over axis 1 as a share of the largest possible; over classes judged alone the mean."""
    if activation == "softmax" and scores.shape[1] > 1:
        return torch.special.entr(scores).sum(1) / math.log(scores.shape[1])
    if activation == "sigmoid":
        return (torch.special.entr(scores) + torch.special.entr(1 - scores)).mean(1) / math.log(2)
    return torch.full_like(scores[:, 0], math.nan)


def _entropies(draws: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return entropy and mutual information ``(B, *space)`` of draws ``(draws, B, classes, *space)``."""
    unsure = _entropy_of(draws.mean(0), activation)
    alone = torch.stack([_entropy_of(draw, activation) for draw in draws]).mean(0)
    return unsure, (unsure - alone).clamp_min(0) if activation != "none" else unsure
