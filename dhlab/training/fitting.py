"""`fit`: one plain training loop, from seed to best weights, that a kill cannot hurt."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab import env
from dhlab.distributed import (
    allreduce,
    broadcast_value,
    is_elastic,
    is_main,
    is_shared,
    join,
    on_main,
    run_elastic,
    size,
)
from dhlab.errors import BadFileError, BadValueError, DHLabWarning
from dhlab.models import digest_weights
from dhlab.report import Figure, Report, software_versions
from dhlab.tasks import TASKS
from dhlab.timeline import stage
from dhlab.training.checkpoints import Progress
from dhlab.training.events import Event, JobReport, TensorBoardLog, draw_curve, make_display
from dhlab.training.run import Run, save_batch, signals_held
from dhlab.training.settings import Settings
from dhlab.training.trainer import Trainer, check_trainable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.augment import Transform
    from dhlab.datasets import Dataset
    from dhlab.models import Model
    from dhlab.training.events import Listener

__all__ = ["fit"]

# More samples than this are not looked through for pictures that are nearly the same.
MOST_COMPARED = 20_000
# What is lost when a worker that comes and goes is killed, in batches: so many, and those up to the next step.
COMMIT_STEPS = 10


def fit(
    model: Model,
    train: Dataset,
    val: Dataset | None = None,
    *,
    epochs: int = 20,
    minutes: float | None = None,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    warm_up: float = 0.1,
    accumulate: int = 1,
    clip: float | None = 5.0,
    augment: bool | float | str | os.PathLike[str] | Mapping[str, Any] | Transform = True,
    class_weights: str | Sequence[float] | Mapping[str, float] = "root",
    sample_weights: Sequence[float] | NDArray[np.floating[Any]] | None = None,
    label_smoothing: float = 0.0,
    loss: str | Callable[[Tensor, Tensor], Tensor] | None = None,
    averaging: float | None = None,
    patience: int | None = None,
    freeze: Sequence[str] = (),
    body_rate: float = 1.0,
    precision: str = "auto",
    activation_checkpointing: str | None = None,
    compile: bool = False,
    compression: str = "none",
    reduction: str = "sum",
    seed: int = 0,
    device: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    on_event: Listener | None = None,
    progress: bool = True,
    allow_leakage: bool = False,
) -> Report:
    """Train a model in place.

    With `val` the model ends with the weights of its best epoch, else with the last. With `folder` nothing is lost: a
    run that was killed, interrupted or stopped by an error continues when the same call is made again, and on one CPU
    process ends with bitwise the same weights; a finished one returns at once. `Trainer` offers the same steps for a
    loop of one's own.

    Parameters
    ----------
    model
        Model to train; changed in place.
    train
        Samples to learn from.
    val
        Samples to choose the best epoch by; never learned from.
    epochs
        Passes over `train`.
    minutes
        Time to spend instead of `epochs`: the schedule follows the clock, and the result depends on it.
    batch_size
        Samples per batch; None is 16, or fewer if there are fewer.
    learning_rate
        Highest learning rate (see `find_learning_rate`).
    weight_decay
        Decay of the weights, but not of biases and norms.
    optimizer
        ``"adamw"``, or ``"sgd"`` with Nesterov's momentum.
    schedule
        ``"cosine"``, ``"one-cycle"`` or ``"constant"``.
    warm_up
        Share of the training over which the rate rises, for cosine and constant.
    accumulate
        Batches whose gradients are averaged before the weights change.
    clip
        Largest norm of the gradient; None does not clip.
    augment
        Random variants of the samples. True flips and turns, and for RGB changes stain and brightness; a number scales
        that change of colour (True is 1, 0 only flips and turns). Or transforms of `dhlab.augment`, the text in which
        DeepHealth's ECVL writes augmentations, or the path of a file with either.
    class_weights
        ``"root"``: rare classes count more, by one over the root of their share; ``"balanced"``: by one over their
        share; ``"none"``; a number per class; or a dict of some classes by name, where the others count 1.
    sample_weights
        Weights of the samples in the loss, one per sample of `train`.
    label_smoothing
        Share of each target that is spread over all classes.
    loss
        For a segmentation ``"dice-ce"``, which None is too, or ``"focal-tversky"``, for small and rare classes. Or a
        loss of your own, from logits and targets on the model's device to a scalar.
    averaging
        Keep a running mean of the weights with this decay, such as 0.999, and judge and end with it.
    patience
        Stop after so many epochs without a better score.
    freeze
        What does not learn: ``"body"`` for all but the head, or the first words of parameter names.
    body_rate
        Learning rate of the body as a share of the head's; for fine-tuning.
    precision
        ``"auto"`` computes in bfloat16 where the device has it in hardware, on older GPUs in float16 with a scaled
        loss, else in float32. Or one of these by name.
    activation_checkpointing
        ``"low"``, ``"mid"`` or ``"full"``: how much is computed again in the backward pass instead of being kept, for
        large volumes (EDDL's ``full_mem`` is None, its ``low_mem`` is ``"full"``). The result is the same.
    compile
        Compile the network with `torch.compile`.
    compression
        How gradients travel between workers: ``"none"``, or ``"fp16"`` as halves.
    reduction
        How the gradients of workers become one: ``"sum"``, which gives the weights of one worker, or ``"adasum"``, for
        more workers than a large batch has use for; it needs a Horovod with MPI.
    seed
        Decides order, augmentation and dropout. The same seed, data, machine and threads give the same weights.
    device
        ``"cpu"``, ``"cuda"`` …; None takes a GPU where there is one.
    folder
        Where to keep ``metrics.jsonl`` (a line per epoch), ``best.safetensors``, ``last.safetensors`` (the state to
        continue from) and ``run.json``; made if it is not there.
    overwrite
        Begin anew, whatever is in `folder`.
    checkpoint_minutes
        Time between two states written within an epoch; one is written after each epoch too.
    tensorboard
        Also write TensorBoard's event files into `folder`.
    on_event
        Called with an `Event` after each batch and epoch, as the progress display is.
    progress
        Show a bar, in a notebook a picture that moves.
    allow_leakage
        Train although patients, files or near-duplicate pictures are in both `train` and `val` (pictures are compared
        up to 20,000 of them).

    Returns
    -------
    Report
        Loss and score, the learning curve as table and picture, what was done.

    Raises
    ------
    BadValueError
        If model and data do not fit, a class has no sample to learn from, a number is out of range, `train` and `val`
        share patients, or the loss stops being finite (the message names the batch and where it is saved).
    BadShapeError
        If the windows do not fit the model.
    BadFileError
        If a sample cannot be read, or the state to continue from.
    ConflictError
        If `folder` holds another training, or another process goes on with this one.
    StorageError
        If `folder` cannot be written; the last state that could be stays.
    """
    settings = Settings(
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=schedule,
        warm_up=warm_up,
        accumulate=accumulate,
        clip=clip,
        augment=augment,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        loss=loss,
        averaging=averaging,
        patience=patience,
        freeze=freeze,
        body_rate=body_rate,
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        compile=compile,
        compression=compression,
        reduction=reduction,
        seed=seed,
    )
    check_trainable(model, train)
    _check_validation(model, train, val, settings, allow_leakage=allow_leakage)
    if tensorboard and folder is None:
        raise BadValueError("tensorboard=True needs a folder=… to write to.")
    run = None
    if folder is not None:
        identity = _identity(model, train, val, settings)
        run = on_main(lambda: Run(folder, identity, overwrite=overwrite))
    listeners = [make_display()] if progress and is_main() else []
    if run is not None and tensorboard and is_main():
        listeners.append(TensorBoardLog(run.folder / "tensorboard"))
    # Elastic workers may become the first one later; of workers in groups the first group tells.
    if env.get("DHLAB_JOB") and (is_elastic() or env.get("HOROVOD_RANK") in ("", "0")):
        listeners.append(JobReport())
    if on_event is not None:
        listeners.append(on_event)
    digest = model.digest() if run is not None else ""
    trainer = Trainer(model, train, settings, device=device, sample_weights=sample_weights)
    try:
        with stage("trained", verb="fit", model=model.card.name, samples=len(train)) as facts:
            loop = _Loop(trainer, val, run, listeners, checkpoint_minutes)
            loop.begin(digest)
            loop.go()
            facts["epochs"] = loop.progress.epoch
    finally:
        trainer.close()
    return _report(trainer, val, loop.progress, run)


class _Loop:
    """Epochs over batches: learns, judges, keeps the best, writes states, tells listeners."""

    def __init__(
        self,
        trainer: Trainer,
        val: Dataset | None,
        run: Run | None,
        listeners: Sequence[Listener],
        checkpoint_minutes: float,
    ) -> None:
        self.trainer, self.val, self.run, self.listeners = trainer, val, run, listeners
        self.interval = 60 * checkpoint_minutes
        self.settings, self.score_name = trainer.settings, trainer.task.score
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.best_digest = ""
        self.began = self.written = time.perf_counter()
        self.committed = 0

    def begin(self, digest: str) -> None:
        """Continue where the run stopped, if it did."""
        run = self.run
        if run is None:
            return
        if not is_elastic() or is_main():
            self.progress, self.best = on_main(lambda: run.restore(self.trainer, digest))
        # Whoever becomes the first later must know it too.
        run.identity.setdefault("begun with", digest)
        if self.progress.step and not is_elastic():
            self.trainer.load_state(*broadcast_value(self.trainer.state()))
        self.best_digest = digest_weights(self.best) if self.best else ""

    def go(self) -> None:
        self.written = time.perf_counter()
        self.began = self.written - self.progress.seconds
        try:
            with signals_held(self.run is not None) as self.signals:
                run_elastic(self._learn, keep=self._state, take=self._take, on_change=self.trainer.take_place)
        except (BadFileError, BadValueError):
            if self.trainer.stepped or not is_shared():
                self._save()
            raise
        finally:
            self._tell("end", self.progress.losses[-1][0] if self.progress.losses else 0.0, 0)
        if self.best is not None:
            self.trainer.model.load_state_dict(self.best)
        elif self.trainer.averaged:
            self.trainer.model.load_state_dict(self.trainer.averaged.weights)

    def _learn(self, commit: Callable[[], None]) -> None:
        """Go through the epochs from where the training is; `commit` keeps its state in memory."""
        self.commit = commit
        if self.run is not None and not self.progress.finished:
            turn = broadcast_value(self.run.last_turn() + 1)
            if is_main():
                self.run.take_turn(turn)
                self.run.begin(self.trainer.model)
        if not self.progress.workers or self.progress.workers[-1][1] != size():
            self.progress.workers.append((self.progress.step, size()))
        while not self.progress.finished:
            self._epoch()

    def _state(self) -> tuple[Any, ...]:
        self.progress.seconds, self.committed = self._seconds(), self.progress.step
        return *self.trainer.state(), deepcopy(self.progress), self.best, self.best_digest

    def _take(self, state: tuple[Any, ...]) -> None:
        tensors, extra, progress, self.best, self.best_digest = state
        self.trainer.load_state(tensors, extra)
        self.progress = deepcopy(progress)
        # Who becomes the first later goes on with this clock.
        self.began, self.committed = time.perf_counter() - progress.seconds, progress.step

    def _epoch(self) -> None:
        progress = self.progress
        for batch in self.trainer.loader.batches(progress.epoch, first=progress.number):
            try:
                value = self.trainer.train_batch(batch, done=self._done())
            except BadValueError as error:
                self._go_back()
                place = save_batch(self.run.folder if self.run else None, batch)
                raise BadValueError(f"{error} The batch is saved in {place}.") from error
            progress.losses.append((value, batch.together))
            progress.number, progress.step = batch.number + 1, progress.step + 1
            self._tell("step", value, batch.together)
            self._look_up()
        self._close_epoch()
        if not progress.finished:
            self.commit()

    def _go_back(self) -> None:
        """Go back to the first batch of an accumulation whose gradient was not finite, and is thrown away."""
        progress, lost = self.progress, self.progress.number % self.settings.accumulate
        if lost and not self.trainer.has_gradient():
            del progress.losses[-lost:]
            progress.number, progress.step = progress.number - lost, progress.step - lost

    def _look_up(self) -> None:
        """Stop or write the state if it is time, all workers after the same batch."""
        due = time.perf_counter() - self.written >= self.interval and self.progress.number < self.trainer.steps
        signal = self.signals.signal or 0
        if is_shared():
            if not self.trainer.stepped:
                return
            signal, due = allreduce(np.array([signal, due], np.int64), operation="max").tolist()
        if signal or due:
            self._save()
        if signal:
            # The first that ends has the others ended, while worker 0 may still be writing.
            join()
            self.signals.act(signal)
        if self.progress.step - self.committed >= COMMIT_STEPS:
            self.commit()

    def _close_epoch(self) -> None:
        progress, settings = self.progress, self.settings
        counts = np.array([count for _, count in progress.losses])
        mean = float(np.average([value for value, _ in progress.losses], weights=counts))
        samples = int(counts.sum())
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "loss": mean}
        if self.val is not None:
            row |= self.trainer.score(self.val)
        row |= {"learning rate": self.trainer.rate, "seconds": round(self._seconds(), 3)}
        progress.epoch, progress.number, progress.losses = progress.epoch + 1, 0, []
        progress.curve.append(row)
        score = row.get(self.score_name, math.nan)
        if not math.isnan(score) and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_epoch = score, progress.epoch
            self.best = self.trainer.weights()
            if self.run is not None and is_main():
                self.best_digest = digest_weights(self.best)
                self.run.keep_best(self.trainer.model, self.best, progress.epoch)
        stale = settings.patience is not None and progress.epoch - progress.best_epoch >= settings.patience
        limit = None if settings.minutes is None else 60 * settings.minutes
        over = progress.epoch >= settings.epochs if limit is None else broadcast_value(self._seconds()) >= limit
        progress.finished = stale or over
        if self.run is not None and is_main():
            self.run.record(progress.curve)
            if progress.finished and self.best is None:
                last = self.trainer.weights()
                self.best_digest = digest_weights(last)
                self.run.keep_best(self.trainer.model, last, progress.epoch)
        self._save()
        self._tell("epoch", mean, samples)

    def _done(self) -> float | None:
        minutes = self.settings.minutes
        return None if minutes is None else min(1.0, broadcast_value(self._seconds()) / (60 * minutes))

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _save(self) -> None:
        self.progress.seconds = self._seconds()
        if self.run is not None and is_main():
            self.run.save(self.trainer, self.progress, best=self.best_digest)
        self.written = time.perf_counter()

    def _tell(self, kind: str, value: float, samples: int) -> None:
        if not self.listeners or not is_main():
            return
        progress, minutes = self.progress, self.settings.minutes
        if progress.finished:
            done = 1.0
        elif minutes is not None:
            done = min(1.0, self._seconds() / (60 * minutes))
        else:
            done = (progress.epoch + progress.number / self.trainer.steps) / self.settings.epochs
        event = Event(
            kind=kind,
            epoch=progress.epoch,
            done=done,
            loss=value,
            rate=self.trainer.rate,
            samples=samples,
            step=progress.step,
            curve=tuple(progress.curve),
            score_name=self.score_name,
            seconds=self._seconds(),
        )
        for listener in self.listeners:
            listener(event)


def _check_validation(
    model: Model, train: Dataset, val: Dataset | None, settings: Settings, *, allow_leakage: bool
) -> None:
    if val is None:
        if settings.patience is not None:
            raise BadValueError("patience needs validation samples to judge by; pass val=… or leave it out.")
        return
    val.check_fits(model.card)
    counts = val.class_counts
    if not counts.sum():
        raise BadValueError(f"dataset {val.name!r} has no label at all; it cannot choose the best epoch.")
    absent = [name for name, count in zip(val.classes, counts.tolist(), strict=True) if not count]
    if absent and TASKS[val.task].exclusive:
        warnings.warn(
            f"validation samples of {val.name!r} have no {TASKS[val.task].noun} of {', '.join(absent)}: the best epoch "
            "is chosen without regard to them. Split again with more patients.",
            DHLabWarning,
            stacklevel=3,
        )
    if not allow_leakage:
        from dhlab.datasets import check_apart

        check_apart(train, val, duplicates=len(train) + len(val) <= MOST_COMPARED)


def _identity(model: Model, train: Dataset, val: Dataset | None, settings: Settings) -> dict[str, Any]:
    """Return what tells this training from others, JSON-compatible."""
    card = model.card.to_dict()
    kept = (
        "architecture",
        "architecture_options",
        "task",
        "classes",
        "tile",
        "spacing",
        "axes",
        "dtype",
        "mean",
        "std",
    )
    data = {"training": _describe(train)} | ({} if val is None else {"validation": _describe(val)})
    return {"settings": settings.to_dict(), "model": {name: card[name] for name in kept}, "data": data}


def _describe(data: Dataset) -> list[Any]:
    groups = hashlib.sha256("\n".join(data.groups).encode()).hexdigest()[:16]
    return [len(data), data.task, data.axes, data.class_counts.tolist(), groups]


def _report(trainer: Trainer, val: Dataset | None, progress: Progress, run: Run | None) -> Report:
    model, train, score_name = trainer.model, trainer.data, trainer.task.score
    curve = progress.curve
    values: dict[str, float] = {"training loss": curve[-1]["loss"]}
    if val is not None and progress.best_score is not None:
        values[f"validation {score_name}"] = progress.best_score
        values["best epoch"] = progress.best_epoch
    values["seconds"] = curve[-1]["seconds"]
    values["samples per second"] = len(train) * len(curve) / max(curve[-1]["seconds"], 1e-9)
    counts = train.class_counts.tolist()
    noun = f"{trainer.task.noun}s"
    place = f" Kept in {run.folder.name}." if run is not None else ""
    return Report(
        title=f"Training of {model.card.name}",
        summary=f"{len(curve)} epochs over {len(train)} samples of {train.name} in {curve[-1]['seconds']:.0f} s"
        + (f", judged on {len(val)} samples after each." if val is not None else "; no validation samples.")
        + place,
        values=values,
        tables={
            "Learning curve": curve,
            **(
                {"Workers": [{"from batch": step, "workers": n} for step, n in progress.workers]} if is_shared() else {}
            ),
            "Labelled for training": [
                {"class": name, noun: count, "share": count / max(1, sum(counts))}
                for name, count in zip(train.classes, counts, strict=True)
            ],
        },
        figures=(Figure(draw_curve(curve, score_name), "Loss and score after each epoch."),),
        provenance={
            "data": repr(train),
            **({"validation": repr(val)} if val is not None else {}),
            "model": repr(model),
            "device": str(trainer.device),
            "computed in": str(trainer.precision).removeprefix("torch."),
            "threads": _threads(),
            **{name.replace("_", " "): value for name, value in trainer.settings.to_dict().items()},
            **software_versions(),
        },
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()
