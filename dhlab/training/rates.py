"""`find_learning_rate`: try rising rates on some batches and say which the training can bear."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadValueError
from dhlab.progress import progress_bar
from dhlab.report import Figure, Report
from dhlab.training.settings import Settings
from dhlab.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dhlab.datasets import Dataset
    from dhlab.models import Model
    from dhlab.training.loading import Batch

__all__ = ["find_learning_rate"]

SMOOTHING = 0.9
DIVERGED = 4.0


def find_learning_rate(
    model: Model,
    train: Dataset,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    settings: Settings | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Report:
    """Train on a few batches with a rising learning rate and suggest one; the model stays as it is.

    Parameters
    ----------
    model
        Model to train later.
    train
        Samples to learn from.
    lowest, highest
        First and last rate to try.
    steps
        Batches to try, one rate each; it stops early where the loss explodes.
    settings
        As for the training.
    device
        ``"cpu"``, ``"cuda"`` …; None takes a GPU where there is one.
    progress
        Show a bar.

    Returns
    -------
    Report
        ``"suggested learning rate"``, a tenth of the rate at which the smoothed loss is least, the table and its
        picture.

    Raises
    ------
    BadValueError
        If a number is out of range, or the loss is not finite at the lowest rate.

    References
    ----------
    Smith, "Cyclical learning rates for training neural networks", WACV 2017.
    """
    if not (0 < lowest < highest < math.inf and steps >= 10):
        raise BadValueError(
            f"lowest {lowest}, highest {highest}, steps {steps}; expected rising rates, 10 steps or more."
        )
    chosen = replace(settings or Settings(), schedule="constant", warm_up=0.0, minutes=None)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    card = model.card
    tried: list[tuple[float, float]] = []
    mean = 0.0
    rates = np.geomspace(lowest, highest, steps)
    trainer = Trainer(model, train, chosen, device=device)
    try:
        with progress_bar(steps, "learning rate", shown=progress) as bar:
            for rate, batch in zip(rates.tolist(), _endless(trainer), strict=False):
                for group in trainer.optimizer.param_groups:
                    group["highest"] = rate
                try:
                    value = trainer.train_batch(batch, done=0.5)
                except BadValueError:
                    break
                mean = SMOOTHING * mean + (1 - SMOOTHING) * value
                tried.append((rate, mean / (1 - SMOOTHING ** (len(tried) + 1))))
                bar.update()
                if tried[-1][1] > DIVERGED * min(loss for _, loss in tried):
                    break
    finally:
        trainer.close()
        model.load_state_dict(before)
        model.card = card
    if len(tried) < 3:
        raise BadValueError(f"the loss is not finite at learning rate {lowest:g}; look for NaN in {train.name!r}.")
    # Where the loss is least it is about to explode: a tenth of it leaves room.
    suggested = min(tried, key=lambda pair: pair[1])[0] / 10
    return Report(
        title=f"Learning rates for {card.name}",
        summary=f"The loss falls steadily near {suggested:.2g}; check it by a short training.",
        values={"suggested learning rate": suggested},
        tables={"Loss by learning rate": [{"learning rate": rate, "loss": loss} for rate, loss in tried]},
        figures=(Figure(_draw(tried, suggested), "Smoothed loss while the learning rate rises."),),
    )


def _endless(trainer: Trainer) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from trainer.loader.batches(epoch)
        epoch += 1


def _draw(tried: Sequence[tuple[float, float]], suggested: float) -> bytes:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(6, 3), dpi=120, layout="constrained")
    axes: Any = figure.subplots()
    rates, losses = zip(*tried, strict=True)
    axes.plot(rates, losses)
    axes.axvline(suggested, color="tab:green", linestyle="--", label=f"suggested: {suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
