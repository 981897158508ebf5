"""What happens during a training, and those who listen: a bar, a picture in the notebook, TensorBoard."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import MissingDependencyError
from dhlab.progress import progress_bar, report_progress
from dhlab.report import format_number

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

__all__ = [
    "Event",
    "JobReport",
    "Listener",
    "NotebookPlot",
    "TensorBoardLog",
    "TerminalBar",
    "draw_curve",
    "make_display",
]

RECENT = 20  # steps that the shown loss is the mean of
REDRAW_S = 1.0
MOST_STEPS = 4000  # losses of single batches that a picture keeps


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Parameters
    ----------
    kind
        ``"step"`` after each batch, ``"epoch"`` after each epoch, ``"end"`` once, also after an error.
    epoch
        Epochs finished.
    done
        Share of the training that is done, 0 to 1.
    loss
        Loss of the batch, or mean loss of the epoch.
    rate
        Learning rate.
    samples
        Samples in the batch or epoch.
    step
        Batches since the beginning.
    curve
        A row per epoch so far.
    score_name
        What chooses the best epoch.
    seconds
        Time since the beginning.
    """

    kind: str
    epoch: int
    done: float
    loss: float
    rate: float
    samples: int
    step: int
    curve: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    score_name: str = ""
    seconds: float = 0.0

    @property
    def current(self) -> int:
        """Number of the epoch in which it happened, from 1."""
        return self.epoch + (self.kind == "step")


Listener = Callable[[Event], None]


class TerminalBar:
    """A bar with the recent loss and the last score."""

    def __init__(self) -> None:
        self.bar = progress_bar(1000, "fit", unit="‰", reported=False)
        self.bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
        self.recent: list[float] = []
        self.score = ""

    def __call__(self, event: Event) -> None:
        """Move the bar."""
        if event.kind == "end":
            self.bar.close()
            return
        if event.kind == "epoch":
            row = event.curve[-1]
            self.score = f", {event.score_name} {row[event.score_name]:.3f}" if event.score_name in row else ""
        else:
            self.recent = [*self.recent, event.loss][-RECENT:]
        loss = np.mean(self.recent) if self.recent else event.loss
        self.bar.set_postfix_str(f"epoch {event.current}, loss {loss:.3f}{self.score}", refresh=False)
        self.bar.update(round(1000 * event.done) - self.bar.n)


class JobReport:
    """Tells the table of jobs how far the training is: share, time left, samples per second, loss."""

    def __init__(self) -> None:
        self.first: Event | None = None
        self.seen = 0
        self.recent: list[float] = []

    def __call__(self, event: Event) -> None:
        """Report if it is time."""
        if event.kind == "end":
            return
        if event.kind == "step":
            # What a run that continues, or another worker, did before is no part of the pace.
            self.seen += event.samples if self.first else 0
            self.recent = [*self.recent, event.loss][-RECENT:]
        self.first = self.first or event
        spent = event.seconds - self.first.seconds
        pace = (event.done - self.first.done) / spent if spent > 0 else 0.0
        score = event.curve[-1].get(event.score_name) if event.curve else None
        report_progress(
            event.done,
            rate=self.seen / spent if spent > 0 else None,
            seconds_left=(1 - event.done) / pace if pace > 0 else None,
            loss=float(np.mean(self.recent)) if self.recent else event.loss,
            text=f"epoch {event.current}" + ("" if score is None else f", {event.score_name} {score:.3f}"),
        )


class NotebookPlot:
    """A bar and the learning curve in one output of the cell, drawn again at most once a second."""

    def __init__(self) -> None:
        from IPython import display

        self.display: Any = display
        self.handle = self.display.display(self.display.HTML("<i>training begins …</i>"), display_id=True)
        self.drawn = 0.0
        self.losses: list[tuple[float, float]] = []
        self.seen = 0
        self.recent: list[float] = []

    def __call__(self, event: Event) -> None:
        """Draw again if it is time."""
        now = time.perf_counter()
        if event.kind == "step":
            self.seen += event.samples
            self.recent = [*self.recent, event.loss][-RECENT:]
            self.losses.append((event.step, event.loss))
            if len(self.losses) > MOST_STEPS:
                self.losses = self.losses[::2]
        if event.kind == "step" and now - self.drawn < REDRAW_S:
            return
        picture = draw_curve(event.curve, event.score_name, steps=self.losses, wide=event.done)
        self.handle.update(self.display.HTML(self._page(event, picture)))
        # Drawing never takes more than a twentieth of the time.
        self.drawn = now + 20 * max(0.0, time.perf_counter() - now - REDRAW_S / 20)

    def _page(self, event: Event, picture: bytes) -> str:
        import base64

        left = event.seconds / event.done * (1 - event.done) if event.done > 0 else 0.0
        texts = [f"epoch {event.current}", f"loss {np.mean(self.recent) if self.recent else event.loss:.3f}"]
        if event.curve and event.score_name in event.curve[-1]:
            texts.append(f"{event.score_name} {event.curve[-1][event.score_name]:.3f}")
        texts.append(f"{format_number(self.seen / max(event.seconds, 1e-9))} samples/s")
        state = {"end": "done" if event.done >= 1 else "stopped"}.get(event.kind, f"{left:,.0f} s left")
        texts.append(f"{event.seconds:,.0f} s, {state}")
        data = base64.b64encode(picture).decode()
        return (
            f"<div role='status'><progress value='{event.done:.4f}' max='1' style='width:20em'></progress> "
            f"{html.escape(' · '.join(texts))}<br><img alt='learning curve' style='max-width:100%' "
            f"src='data:image/png;base64,{data}'></div>"
        )


class TensorBoardLog:
    """Loss, rate and scores as TensorBoard reads them.

    Parameters
    ----------
    folder
        Where the event files go.

    Raises
    ------
    MissingDependencyError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "tensorboard=True needs TensorBoard, which is not installed: pip install 'dhlab[tensorboard]'."
            ) from error
        self.writer: Any = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Write the numbers of a step or of an epoch."""
        if event.kind == "step":
            self.writer.add_scalar("step/loss", event.loss, event.step)
            self.writer.add_scalar("step/learning rate", event.rate, event.step)
        elif event.kind == "epoch":
            for name, value in event.curve[-1].items():
                if name != "epoch":
                    self.writer.add_scalar(f"epoch/{name}", value, event.epoch)
        else:
            self.writer.close()


def make_display() -> Listener:
    """Return what shows a training here: a picture in a notebook, a bar elsewhere."""
    return NotebookPlot() if _in_notebook() else TerminalBar()


def draw_curve(
    curve: Sequence[Mapping[str, Any]],
    score_name: str,
    *,
    steps: Sequence[tuple[float, float]] = (),
    wide: float = 1.0,
) -> bytes:
    """Draw loss and score over the epochs.

    Parameters
    ----------
    curve
        A row per epoch: ``epoch``, ``loss``, and with validation ``validation loss`` and the score.
    score_name
        Name of the score.
    steps
        ``(batch, loss)`` of single batches, drawn faintly behind.
    wide
        Share of the training that is done, which the steps fill.

    Returns
    -------
    bytes
        PNG.
    """
    import io

    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    figure = Canvas(figsize=(6.4, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in curve]
    dots = "." if len(curve) < 40 else None
    lines = []
    if steps:
        last = max(1, steps[-1][0])
        reached = max([*epochs, 0]) or max(wide, 1e-9)
        thin = max(1, len(steps) // 500)
        places, losses = [s / last * reached for s, _ in steps[::thin]], [v for _, v in steps[::thin]]
        lines += axes.plot(places, losses, color="0.8", label="batch loss")
    for name, colour in (("loss", "tab:blue"), ("validation loss", "tab:orange")):
        if curve and name in curve[0]:
            label = "training loss" if name == "loss" else name
            lines += axes.plot(epochs, [row[name] for row in curve], color=colour, label=label, marker=dots)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if curve and score_name in curve[0]:
        other = axes.twinx()
        scores = [row[score_name] for row in curve]
        lines += other.plot(epochs, scores, color="tab:green", label=score_name, marker=dots)
        other.set(ylabel=f"validation {score_name}", ylim=(min([0.0, *(s for s in scores if s == s)]), 1))
    figure.legend(handles=lines, loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _in_notebook() -> bool:
    import sys

    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
