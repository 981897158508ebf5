"""`fit`: one plain training loop, from seed to best weights."""

from __future__ import annotations

import io
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from dhlab.augment import augment_batch
from dhlab.errors import BadValueError
from dhlab.metrics import balanced_accuracy, confusion_matrix, dice, mean_defined
from dhlab.progress import progress_bar
from dhlab.report import Figure, Report, software_versions
from dhlab.tasks import IGNORE
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.datasets import Dataset
    from dhlab.models import Model

__all__ = ["fit", "segmentation_loss"]

WARM_UP = 0.1
METRICS, BEST = "metrics.jsonl", "best.safetensors"
SCORES = {"segmentation": "mean Dice", "classification": "balanced accuracy"}


def fit(
    model: Model,
    train: Dataset,
    val: Dataset | None = None,
    *,
    epochs: int = 20,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    augment: bool | float = True,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    amp: bool | None = None,
    progress: bool = True,
    minutes: float | None = None,
) -> Report:
    """Train a model in place.

    AdamW with a linear warm-up and a cosine decay; class-balanced cross-entropy, for segmentation together with soft
    Dice. Order and augmentation depend on seed, epoch and sample alone. With `val` the model ends with the weights of
    its best epoch, else with the last.

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
    batch_size
        Samples per step.
    learning_rate
        Highest learning rate.
    weight_decay
        AdamW's decay of the weights.
    augment
        Random variants of the samples; a number scales their change of colour (True is 1).
    folder
        Where to keep ``metrics.jsonl`` (a line per epoch) and ``best.safetensors``; made if it is not there.
    seed
        Decides order and augmentation. The same seed, data, machine and number of threads give the same weights.
    device
        ``"cpu"``, ``"cuda"`` …; None takes a GPU where there is one.
    amp
        Compute in bfloat16 where that is safe; None does so where the device has it in hardware.
    progress
        Show a bar.
    minutes
        Time to spend instead of `epochs`: the schedule follows the clock, and the result depends on it.

    Returns
    -------
    Report
        Loss and score, the learning curve as table and picture, what was done.

    Raises
    ------
    BadValueError
        If classes or task of model and data differ, a class has no sample to learn from, a number is out of range, or
        the loss stops being finite (the message names epoch and batch).
    BadShapeError
        If the windows do not fit the model.
    StorageError
        If `folder` cannot be written.
    """
    _check(model, train, val, epochs, batch_size, learning_rate, minutes)
    strength = float(augment)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    mixed = _has_fast_bfloat16(where) if amp is None else amp
    task, score_name = model.card.task, SCORES[model.card.task]
    weights = torch.from_numpy(_class_weights(train.class_counts)).to(where)
    model.to(where)
    if len(model.card.window_axes) == 2:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    run = _Run(Path(folder)) if folder is not None else None
    curve: list[dict[str, Any]] = []
    best, best_score = None, -math.inf
    begin = time.perf_counter()
    limit = None if minutes is None else 60 * minutes
    steps = len(_batches(len(train), batch_size, seed, 0))

    with (
        stage("trained", verb="fit", model=model.card.name, samples=len(train)) as facts,
        torch.random.fork_rng(devices=[]),
        progress_bar(epochs * steps if limit is None else round(60 * (minutes or 0)), "fit", shown=progress) as bar,
    ):
        torch.manual_seed(seed)
        epoch = 0
        while epoch < epochs if limit is None else time.perf_counter() - begin < limit:
            model.train()
            losses = []
            order = _batches(len(train), batch_size, seed, epoch)
            for step, (images, targets) in enumerate(_load(train, order, augment is not False, seed, epoch, strength)):
                spent = time.perf_counter() - begin
                done = (epoch * steps + step) / (epochs * steps) if limit is None else min(1.0, spent / limit)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * _schedule(done)
                logits = _logits(model, images, targets, where, mixed)
                loss = _loss(logits, torch.from_numpy(targets).to(where), weights, task)
                value = loss.item()
                if not math.isfinite(value):
                    first = ", ".join(map(str, order[step][:8].tolist()))
                    raise BadValueError(
                        f"the loss became {value} in epoch {epoch + 1}, batch {step + 1} (samples {first} …). "
                        "Look for NaN in these samples, or lower learning_rate."
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                losses.append(value)
                bar.update(1 if limit is None else max(0, round(time.perf_counter() - begin) - bar.n))
                bar.set_postfix_str(f"epoch {epoch + 1}, loss {np.mean(losses[-20:]):.3f}", refresh=False)
            epoch += 1
            seconds = time.perf_counter() - begin
            row: dict[str, Any] = {"epoch": epoch, "loss": float(np.mean(losses)), "seconds": round(seconds, 3)}
            if val is not None:
                row["validation loss"], row[score_name] = _score(model, val, batch_size, where, weights, mixed)
                bar.set_postfix_str(f"epoch {epoch}, loss {row['loss']:.3f}, {score_name} {row[score_name]:.3f}")
            curve.append(row)
            score = row.get(score_name, float(epoch))
            better = not math.isnan(score) and score > best_score
            if better:
                best_score = score
                best = {k: v.detach().clone() for k, v in model.state_dict().items()} if val is not None else None
            if run is not None:
                run.record(curve, model if better else None)
        if best is not None:
            model.load_state_dict(best)
        model.eval()
        facts["epochs"] = epoch
    return _report(model, train, val, curve, score_name, {
        "epochs": epoch, "batch size": batch_size, "learning rate": learning_rate, "weight decay": weight_decay,
        "augmentation": strength, "seed": seed, "device": str(where), "bfloat16": mixed,
        "threads": torch.get_num_threads(),
    })  # fmt: skip


def segmentation_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return weighted cross-entropy plus one minus the mean soft Dice of the classes in the batch.

    Parameters
    ----------
    logits
        ``(B, classes, *space)`` float32.
    targets
        ``(B, *space)`` int64; -1 does not count.
    weights
        ``(classes,)`` float32 weights of the cross-entropy.

    Returns
    -------
    Tensor
        Scalar; 0 with a gradient of 0 if no pixel is labelled.
    """
    chance = logits.softmax(1)
    labelled = (targets != IGNORE).unsqueeze(1)
    truth = functional.one_hot(targets.clamp_min(0), logits.shape[1]).movedim(-1, 1) * labelled
    across = [0, *range(2, logits.ndim)]
    size = truth.sum(across)
    present = size > 0
    overlap = 2 * (chance * truth).sum(across) / ((chance * labelled).sum(across) + size).clamp_min(1e-6)
    missed = (1 - overlap)[present].sum() / present.sum().clamp_min(1)
    return _entropy(logits, targets, weights) + missed


def _entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    total = functional.cross_entropy(logits, targets, weights, ignore_index=IGNORE, reduction="sum")
    return total / (weights[targets.clamp_min(0)] * (targets != IGNORE)).sum().clamp_min(1e-12)


def _loss(logits: Tensor, targets: Tensor, weights: Tensor, task: str) -> Tensor:
    return (segmentation_loss if task == "segmentation" else _entropy)(logits, targets, weights)


def _logits(model: Model, images: NDArray[Any], targets: NDArray[np.int64], where: torch.device, mixed: bool) -> Tensor:
    """Return float32 logits on the pixels of the targets."""
    with torch.autocast(where.type, torch.bfloat16, enabled=mixed):
        logits = model.logits(torch.from_numpy(images).to(where)).float()
    if logits.ndim > 2 and logits.shape[2:] != targets.shape[1:]:
        logits = functional.interpolate(logits, targets.shape[1:])
    return logits


def _schedule(done: float) -> float:
    """Return the share of the highest learning rate after a share of the training."""
    if done < WARM_UP:
        return 0.05 + 0.95 * done / WARM_UP
    return 0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Weigh classes by one over the root of their share: rare ones count more, without drowning the rest."""
    weights = 1 / np.sqrt(np.maximum(counts, 1) / max(1, counts.sum()))
    return np.asarray(weights / weights.mean(), np.float32)


def _batches(count: int, size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    order = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1])).permutation(count)
    batches = [order[i : i + size].astype(np.int64) for i in range(0, count, size)]
    # Batch normalisation cannot learn from a lone sample.
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def _load(
    data: Dataset, batches: Sequence[NDArray[np.int64]], augment: bool, seed: int, epoch: int, strength: float
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Read and augment one batch ahead in a second thread."""

    def load(indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        images, targets = data.batch(indices)
        if not augment:
            return images, targets
        return augment_batch(
            images, targets, axes=data.axes, seed=seed, epoch=epoch, indices=indices, strength=strength
        )

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load, batches[0])
        for following in [*batches[1:], None]:
            ready = ahead.result()
            if following is not None:
                ahead = pool.submit(load, following)
            yield ready


def _score(
    model: Model, data: Dataset, batch_size: int, where: torch.device, weights: Tensor, mixed: bool
) -> tuple[float, float]:
    """Return loss and score on validation samples."""
    count = len(data.classes)
    confusion = np.zeros((count, count), np.int64)
    total, seen = 0.0, 0
    batches = [np.arange(i, min(i + batch_size, len(data)), dtype=np.int64) for i in range(0, len(data), batch_size)]
    with _judging(model), torch.inference_mode():
        for images, targets in _load(data, batches, False, 0, 0, 0.0):
            logits = _logits(model, images, targets, where, mixed)
            total += len(images) * _loss(logits, torch.from_numpy(targets).to(where), weights, data.task).item()
            seen += len(images)
            confusion += confusion_matrix(targets, logits.argmax(1).cpu().numpy(), count)
    score = mean_defined(dice(confusion)) if data.task == "segmentation" else balanced_accuracy(confusion)
    return total / seen, score


@contextmanager
def _judging(model: Model) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _has_fast_bfloat16(where: torch.device) -> bool:
    """Tell whether the device computes in bfloat16 in hardware."""
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where) >= (8, 0) or torch.version.hip is not None
    return where.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _Run:
    """The folder of one training: its metrics so far and its best weights, each always whole."""

    def __init__(self, folder: Path) -> None:
        from dhlab.atomic import atomic_write_text, storage_error

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder) or error from error
        self.folder = folder
        # A folder that cannot be written should say so before hours of work.
        atomic_write_text(folder / METRICS, "")

    def record(self, curve: Sequence[dict[str, Any]], best: Model | None) -> None:
        from dhlab.atomic import atomic_write_bytes, atomic_write_text

        if best is not None:
            from safetensors.torch import save

            tensors = {k: v.detach().cpu().contiguous() for k, v in best.state_dict().items()}
            epoch = str(curve[-1]["epoch"])
            atomic_write_bytes(self.folder / BEST, save(tensors, {"model": best.card.name, "epoch": epoch}))
        lines = (json.dumps({k: None if v != v else v for k, v in row.items()}) for row in curve)
        atomic_write_text(self.folder / METRICS, "".join(line + "\n" for line in lines))


def _report(
    model: Model,
    train: Dataset,
    val: Dataset | None,
    curve: list[dict[str, Any]],
    score_name: str,
    settings: dict[str, Any],
) -> Report:
    values = {"training loss": curve[-1]["loss"], "seconds": curve[-1]["seconds"]}
    if val is not None:
        chosen = max(curve, key=lambda row: -math.inf if math.isnan(row[score_name]) else row[score_name])
        values[f"validation {score_name}"] = chosen[score_name]
        values["best epoch"] = chosen["epoch"]
    noun = "pixels" if train.task == "segmentation" else "samples"
    counts = train.class_counts.tolist()
    return Report(
        title=f"Training of {model.card.name}",
        summary=f"{len(curve)} epochs over {len(train)} samples of {train.name} in {curve[-1]['seconds']:.0f} s"
        + (f", judged on {len(val)} samples after each." if val is not None else "; no validation samples."),
        values=values,
        tables={
            "Learning curve": curve,
            "Labelled for training": [
                {"class": name, noun: count, "share": count / max(1, sum(counts))}
                for name, count in zip(train.classes, counts, strict=True)
            ],
        },
        figures=(Figure(_draw_curve(curve, score_name), "Loss and score after each epoch."),),
        provenance={
            "data": repr(train),
            **({"validation": repr(val)} if val is not None else {}),
            "model": repr(model),
            **settings,
            **software_versions(),
        },
    )


def _draw_curve(curve: Sequence[dict[str, Any]], score_name: str) -> bytes:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(6, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in curve]
    for name in ("loss", "validation loss"):
        if name in curve[0]:
            axes.plot(epochs, [row[name] for row in curve], label=name, marker="." if len(curve) < 40 else None)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    if score_name in curve[0]:
        other = axes.twinx()
        other.plot(epochs, [row[score_name] for row in curve], color="tab:green", label=score_name)
        other.set(ylabel=score_name, ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _check(
    model: Model,
    train: Dataset,
    val: Dataset | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    minutes: float | None,
) -> None:
    if epochs < 1 or batch_size < 1:
        raise BadValueError(f"epochs {epochs}, batch_size {batch_size}; expected at least 1.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise BadValueError(f"learning_rate {learning_rate}; expected a positive number.")
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise BadValueError(f"minutes {minutes}; expected a positive number.")
    if not any(p.requires_grad for p in model.parameters()):
        raise BadValueError(f"model {model.card.name!r} has nothing to train (an ONNX graph, or all layers frozen).")
    for data in (train,) if val is None else (train, val):
        data.check_fits(model.card)
    if train.class_counts.sum() == 0:
        raise BadValueError(f"dataset {train.name!r} has no label at all; every target is -1.")
    for name, count in zip(train.classes, train.class_counts.tolist(), strict=True):
        if not count:
            noun = "pixel" if train.task == "segmentation" else "sample"
            raise BadValueError(
                f"class {name!r} has no {noun} in {train.name!r}, so it cannot be learned. "
                "Label some, or leave the class out of dataset and model."
            )
