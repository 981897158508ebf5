"""`Trainer`: everything between a batch and better weights, one call a step, for loops of one's own."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from dhlab.augment import Compose
from dhlab.augment.windows import check_applies
from dhlab.distributed import (
    allreduce,
    broadcast,
    drop_pending,
    gather,
    is_elastic,
    is_shared,
    local_rank,
    rank,
    set_passes,
    size,
    sum_over_workers,
    synchronize,
    unwrap,
    wrap,
)
from dhlab.errors import BadShapeError, BadValueError
from dhlab.metrics import (
    balanced_accuracy,
    confusion_matrix,
    dice,
    mean_auc,
    mean_defined,
    r_squared,
)
from dhlab.networks import recompute
from dhlab.tasks import TASKS
from dhlab.training.dropout import SharedDropout
from dhlab.training.loading import Loader
from dhlab.training.losses import check_loss, class_weights_of, task_loss
from dhlab.training.norms import share_norms
from dhlab.training.optimizing import (
    Averaged,
    freeze_parts,
    make_optimizer,
    rest_frozen_norms,
    schedule,
    set_rate,
    thaw_parts,
)
from dhlab.training.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.cards import ModelCard
    from dhlab.datasets import Dataset
    from dhlab.models import Model
    from dhlab.training.loading import Batch

__all__ = ["Trainer"]


class Trainer:
    """Loss, backward pass, clipping, optimiser, schedule and averaging for one model and its training data.

    `dhlab.fit` is a loop over it; a loop of one's own reads::

        trainer = Trainer(model, train, Settings(epochs=5))
        for epoch in range(5):
            for batch in trainer.loader.batches(epoch):
                loss = trainer.train_batch(batch)
            print(epoch, loss, trainer.score(validation))
        trainer.close()

    In a process that Horovod launched it learns together with the others: each takes its share of every batch, and all
    end with the weights that one process would have reached.

    Parameters
    ----------
    model
        Model to train; changed in place.
    train
        Samples to learn from.
    settings
        What else decides the training.
    device
        ``"cpu"``, ``"cuda"`` …; None takes a GPU where there is one.
    sample_weights
        Weight of each sample in the loss, ``(len(train),)``; None counts all alike.

    Raises
    ------
    BadValueError
        If model and data do not fit, a class has nothing to learn from, or nothing is left to train.
    BadShapeError
        If the windows do not fit the model, or there is not a weight per sample or class.
    UnknownNameError
        If a part to freeze is unknown.

    Attributes
    ----------
    stepped
        Whether worker 0 holds the whole state: the last batch changed the weights, or none came since a state was
        taken. Between two steps, workers hold different parts of the gradient.
    """

    def __init__(
        self,
        model: Model,
        train: Dataset,
        settings: Settings | None = None,
        *,
        device: str | None = None,
        sample_weights: Sequence[float] | NDArray[np.floating[Any]] | None = None,
    ) -> None:
        self.model, self.data, self.settings = model, train, settings or Settings()
        check_trainable(model, train)
        self.task = TASKS[model.card.task]
        if isinstance(self.settings.loss, str):
            check_loss(self.settings.loss, self.task.name, self.settings.label_smoothing)
        self.device = torch.device(device or _own_device())
        self.sample_weights = _check_weights(sample_weights, len(train))
        if self.task.name == "regression" and not model.card.target_std:
            mean, std = _spread(train)
            model.card = replace(model.card, target_mean=mean, target_std=std)
        self.loader = Loader(
            train,
            _batch_size(self.settings, train),
            seed=self.settings.seed,
            augment=_augmentation(self.settings, model.card),
            rank=rank(),
            world=size(),
        )
        # Where workers come and go, there may be many for a while.
        if self.loader.batch_size < size() and not is_elastic():
            raise BadValueError(
                f"batch_size {self.loader.batch_size} of {size()} workers; expected a sample for every worker."
            )
        self.steps = len(self.loader)
        weights = class_weights_of(
            self.settings.class_weights,
            train.class_counts,
            classes=train.classes,
            samples=len(train),
            task=self.task.name,
        )
        self.class_weights = weights.to(self.device)
        model.to(self.device)
        if len(model.card.window_axes) == 2:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch types it for tensors alone
        still = () if self.settings.body_rate else ("body",)
        self.learned_before = freeze_parts(model.net, (*self.settings.freeze, *still))
        self.norms, self.undo_sharing = share_norms(model.net) if is_shared() else ([], lambda: None)
        if not is_elastic():
            broadcast(model)
        self.optimizer = make_optimizer(model, self.settings)
        wrap(self.optimizer, model, compression=self.settings.compression, reduction=self.settings.reduction)
        self.averaged = Averaged(model, self.settings.averaging) if self.settings.averaging is not None else None
        self.precision = _choose_precision(self.settings.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        level = self.settings.activation_checkpointing
        self.undo_recomputing = recompute(model.net, level) if level else None
        self.buffers = list(model.buffers())
        self.buffers_before, self.buffers_first = ([buffer.clone() for buffer in self.buffers] for _ in range(2))
        self.logits_of: Any = torch.compile(model.logits) if self.settings.compile else model.logits
        self.rate = self.settings.learning_rate
        self.stepped = True
        model.train()
        rest_frozen_norms(model.net)

    def train_batch(self, batch: Batch, *, done: float | None = None) -> float:
        """Learn from one batch; the weights change after every `accumulate`-th batch and the last of an epoch.

        Random draws, such as dropout's, depend on seed, epoch and number of the batch alone.

        Parameters
        ----------
        batch
            What the loader gives.
        done
            Share of the training that is done, for the schedule; None follows from epoch and number.

        Returns
        -------
        float
            Loss of the batch.

        Raises
        ------
        BadValueError
            If the loss or its gradient is not finite; the weights stay as they are.
        """
        settings = self.settings
        share = (batch.epoch + batch.number / self.steps) / settings.epochs if done is None else done
        factor, momentum = schedule(settings.schedule, min(1.0, share), warm_up=settings.warm_up)
        set_rate(self.optimizer, factor, momentum)
        self.rate = settings.learning_rate * factor
        first = batch.number - batch.number % settings.accumulate
        together = min(settings.accumulate, self.steps - first)
        self._copy_buffers(self.buffers, self.buffers_before)
        if self.stepped or batch.number == first:
            self._copy_buffers(self.buffers, self.buffers_first)
            set_passes(self.optimizer, first + together - batch.number)
        with self._seeded(batch):
            loss = self._loss(batch)
            value = loss.item()
            if not math.isfinite(value):
                self._copy_buffers(self.buffers_before, self.buffers)
                raise BadValueError(f"the loss became {value} in {_place(batch)}. {CURE}")
            if self.settings.reduction == "adasum":
                # Not this worker's part of the whole gradient, but its own: Adasum is an average where they agree.
                loss = loss * self.loader.world
            self.scaler.scale(loss / together).backward()  # type: ignore[no-untyped-call] # torch gives it no types
        self.stepped = batch.number - first + 1 == together
        if self.stepped:
            self._step(batch)
        return value

    def eval_batch(self, batch: Batch) -> Tensor:
        """Return logits of a batch on the pixels of its targets, float32, without learning from it.

        Parameters
        ----------
        batch
            Some samples.
        """
        with self.judging(), torch.inference_mode():
            return self._logits(batch)

    def score(self, data: Dataset) -> dict[str, float]:
        """Return loss and score on samples that are not learned from, with the averaged weights if there are any.

        Parameters
        ----------
        data
            Samples of the same task.

        Returns
        -------
        dict
            ``"validation loss"`` and the task's score.
        """
        count = len(data.classes)
        confusion = np.zeros((count, count), np.int64)
        truths, scores, total = [], [], 0.0
        loader = Loader(data, self.loader.batch_size, shuffle=False, rank=self.loader.rank, world=self.loader.world)
        with self.averaged.lent() if self.averaged else nullcontext(), self.judging(), torch.inference_mode():
            for batch in loader.batches():
                logits = self._logits(batch)
                total += batch.together * self._task_loss(logits, batch, None).item()
                mine = slice(len(batch) if batch.counts else 0)
                if self.task.exclusive:
                    confusion += confusion_matrix(batch.targets[mine], logits[mine].argmax(1).cpu().numpy(), count)
                else:
                    truths.append(batch.targets[mine])
                    scores.append(self.model.activate(logits[mine]).cpu().numpy())
        figure = self._figure(allreduce(confusion), truths, scores)
        return {"validation loss": total / len(data), self.task.score: figure}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that decides what comes next: tensors by name, copies on the CPU, and JSON-compatible values."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{key}"] = value
            if parameter.grad is not None:
                tensors[f"gradient.{index}"] = parameter.grad
        if self.averaged:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.weights.items()}
        return _copy(tensors), {
            "learning rate": self.rate,
            "scaler": self.scaler.state_dict(),
            "averaged steps": self.averaged.steps if self.averaged else 0,
        }

    def load_state(self, tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
        """Take back what `state` returned.

        Parameters
        ----------
        tensors
            Tensors by name.
        extra
            Further values.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimizer": {}, "gradient": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        parameters = self._parameters()
        home = self.device if self.optimizer.defaults["fused"] else torch.device("cpu")
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)]
            alike = tensor.shape == parameter.shape and tensor.ndim > 0
            # The memory order of the parameter, so that the optimiser runs the same code as before.
            place = torch.empty_like(parameter, dtype=tensor.dtype) if alike else torch.empty_like(tensor, device=home)
            self.optimizer.state[parameter][key] = place.copy_(tensor)
        self.optimizer.zero_grad()
        # The gradients of all workers are summed: one of them has what was there already.
        if self.loader.rank == 0:
            for index, tensor in parts["gradient"].items():
                parameters[int(index)].grad = torch.empty_like(parameters[int(index)]).copy_(tensor)
        drop_pending(self.optimizer)
        self.stepped = True
        self.rate = extra.get("learning rate", self.rate)
        if self.averaged:
            for name, tensor in parts["averaged"].items():
                self.averaged.weights[name].copy_(tensor)
            self.averaged.steps = extra["averaged steps"]
        if extra["scaler"]:
            self.scaler.load_state_dict(extra["scaler"])

    def has_gradient(self) -> bool:
        """Return whether there is a gradient of batches that no step has used yet."""
        return any(parameter.grad is not None for parameter in self._parameters())

    def take_place(self) -> None:
        """Learn from now on as the worker that this process has become among those that there are."""
        self.loader.rank, self.loader.world = rank(), size()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to keep, copies on the CPU: the averaged ones if there are any."""
        return _copy(self.averaged.weights if self.averaged else self.model.state_dict())

    def close(self) -> None:
        """Take out what training put into the model: frozen parts learn again, and it is ready to predict."""
        if self.undo_recomputing:
            self.undo_recomputing()
            self.undo_recomputing = None
        self.undo_sharing()
        unwrap(self.optimizer)
        thaw_parts(self.model.net, self.learned_before)
        self.optimizer.zero_grad()
        self.model.eval()

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Put the model into evaluation mode for a while."""
        was = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was)
            if was:
                rest_frozen_norms(self.model.net)

    def _step(self, batch: Batch) -> None:
        synchronize(self.optimizer)
        self.scaler.unscale_(self.optimizer)
        parameters = self._parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf)
        # Half precision overflows now and then: its scaler skips such a step.
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            # With the gradient all batches since the last step count as never seen.
            self._copy_buffers(self.buffers_first, self.buffers)
            self.optimizer.zero_grad()
            raise BadValueError(f"the gradient became {norm:g} in {_place(batch)}. {CURE}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.averaged:
            self.averaged.update()

    @staticmethod
    @torch.no_grad()
    def _copy_buffers(source: list[Tensor], target: list[Tensor]) -> None:
        """Copy batch statistics, which a forward pass changes before anyone can see that its loss is not finite."""
        if source:
            torch._foreach_copy_(target, source)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _loss(self, batch: Batch) -> Tensor:
        weights = None
        if self.sample_weights is not None:
            weights = torch.from_numpy(self.sample_weights[batch.indices]).to(self.device)
        for norm in self.norms:
            norm.counts = batch.counts
        return self._task_loss(self._logits(batch), batch, weights)

    def _task_loss(self, logits: Tensor, batch: Batch, weights: Tensor | None) -> Tensor:
        aims = torch.from_numpy(batch.targets).to(self.device)
        if self.task.name == "regression":
            card = self.model.card
            aims = (aims - aims.new_tensor(card.target_mean)) / aims.new_tensor(card.target_std)
        loss = self.settings.loss
        if loss is not None and not isinstance(loss, str):
            return sum_over_workers(loss(logits, aims) * (len(batch) * batch.counts / batch.together))
        if not batch.counts:
            weights = logits.new_zeros(len(batch))
        return task_loss(
            logits,
            aims,
            self.task.name,
            class_weights=self.class_weights,
            sample_weights=weights,
            label_smoothing=self.settings.label_smoothing,
            name=loss,
            total=sum_over_workers if self.loader.world > 1 else None,
        )

    def _logits(self, batch: Batch) -> Tensor:
        """Return float32 logits on the pixels of the targets."""
        images = torch.from_numpy(batch.images).to(self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits: Tensor = self.logits_of(images).float()
        if self.task.dense and logits.shape[2:] != batch.targets.shape[1:]:
            logits = functional.interpolate(logits, batch.targets.shape[1:])
        return logits

    def _figure(self, confusion: NDArray[np.int64], truths: list[NDArray[Any]], scores: list[NDArray[Any]]) -> float:
        if self.task.dense:
            return mean_defined(dice(confusion))
        if self.task.exclusive:
            return balanced_accuracy(confusion)
        truth, score = (gather(np.concatenate(part)) for part in (truths, scores))
        if self.task.name == "multilabel":
            return mean_auc(truth, score)
        return mean_defined([r_squared(truth[:, k], score[:, k]) for k in range(truth.shape[1])])

    @contextmanager
    def _seeded(self, batch: Batch) -> Iterator[None]:
        """Seed torch for one batch and leave its random state as it was."""
        words = np.random.SeedSequence([self.settings.seed, batch.epoch, batch.number]).generate_state(1, np.uint64)
        devices = [self.device] if self.device.type == "cuda" else []
        shared = SharedDropout(batch.rows, batch.together) if batch.workers > 1 else nullcontext()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(words[0]))
            with shared:
                yield


CURE = "Look for NaN or extreme values in these samples, or lower learning_rate."


def check_trainable(model: Model, train: Dataset) -> None:
    """Raise if a model cannot learn from these samples.

    Parameters
    ----------
    model
        The model.
    train
        The samples.

    Raises
    ------
    BadValueError
        If nothing is to be trained or learned.
    BadShapeError
        If the windows do not fit.
    """
    task = TASKS[train.task]
    if not any(p.requires_grad for p in model.parameters()):
        raise BadValueError(f"model {model.card.name!r} has nothing to train (an ONNX graph, or all layers frozen).")
    train.check_fits(model.card)
    if task.exclusive and len(train.classes) == 1:
        raise BadValueError(
            f"dataset {train.name!r} has one class only, {train.classes[0]!r}: there is nothing to tell it from. "
            "Name what else there is as a class of its own, such as 'background'."
        )
    counts = train.class_counts
    if counts.sum() == 0:
        raise BadValueError(f"dataset {train.name!r} has no label at all; every target is unknown.")
    for name, count in zip(train.classes, counts.tolist(), strict=True):
        if not count:
            raise BadValueError(
                f"class {name!r} has no {task.noun} in {train.name!r}, so it cannot be learned. "
                "Label some, or leave the class out of dataset and model."
            )


def _augmentation(settings: Settings, card: ModelCard) -> Compose | float | None:
    """Return what the loader takes; raise if it cannot be used on the model's windows."""
    chosen = settings.augment
    if isinstance(chosen, Compose):
        check_applies(chosen, axes=card.axes, shape=card.window_shape, dtype=card.dtype)
        return chosen
    assert isinstance(chosen, bool | int | float)
    return None if chosen is False else float(chosen)


def _check_weights(
    weights: Sequence[float] | NDArray[np.floating[Any]] | None, count: int
) -> NDArray[np.float32] | None:
    if weights is None:
        return None
    values = np.asarray(weights, np.float32)
    if values.shape != (count,):
        raise BadShapeError(f"sample_weights has shape {values.shape}; expected ({count},), one per sample.")
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise BadValueError("sample_weights holds negative or infinite numbers, or only 0; expected positive ones.")
    return values


def _batch_size(settings: Settings, train: Dataset) -> int:
    if settings.batch_size is None:
        return min(16, len(train))
    if settings.batch_size > len(train):
        raise BadValueError(
            f"batch_size {settings.batch_size} is larger than the {len(train)} samples of {train.name!r}; "
            "give at most that, or leave it out."
        )
    return settings.batch_size


def _spread(train: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    targets = train.samples.targets(np.arange(len(train), dtype=np.int64)).astype(np.float64)
    std = np.nanstd(targets, axis=0)
    return tuple(np.nanmean(targets, axis=0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _own_device() -> str:
    """Return a GPU where there is one: with several workers on a machine, each takes another."""
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        chosen: torch.dtype = getattr(torch, wanted)
        return chosen
    if device.type == "cuda":
        modern = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
        return torch.bfloat16 if modern else torch.float16
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else torch.float32


def _place(batch: Batch) -> str:
    some = ", ".join(map(str, batch.indices[:8].tolist()))
    more = " …" if len(batch) > 8 else ""
    return f"epoch {batch.epoch + 1}, batch {batch.number + 1} (samples {some}{more})"
