"""What several workers run in `test_workers.py`: one training, whose weights are written by the first of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import dhlab as dh
from dhlab import distributed
from dhlab.tasks import TASKS
from dhlab.training import Settings, Trainer


def some_data(task: str, count: int) -> dh.Dataset:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    if task == "segmentation":
        return dh.Dataset.from_arrays(images, (images[..., 0] > 128).astype(np.int64), classes=("a", "b"), task=task)
    if task == "regression":
        targets = images.mean((1, 2, 3))[:, None].astype(np.float32)
        return dh.Dataset.from_arrays(images, targets, classes=("mean",), task=task)
    if task == "multilabel":
        return dh.Dataset.from_arrays(
            images, np.arange(2 * count).reshape(-1, 2) // 3 % 2, classes=("a", "b"), task=task
        )
    return dh.Dataset.from_arrays(images, np.arange(count) % 3, classes=("a", "b", "c"), task=task)


def own_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets)


def make_model(data: dh.Dataset) -> dh.Model:
    name = "unet" if data.task == "segmentation" else "cnn"
    return dh.create_model(name, data.classes, tile=16, spacing=1.0, task=data.task, seed=1, dropout=0.2)


CASES: dict[str, dict[str, Any]] = {
    "classification": {},
    "segmentation": {},
    "regression": {},
    "multilabel": {},
    "accumulate": {"accumulate": 4},
    "own loss": {"loss": own_loss},
}


def train(case: str, target: Path) -> None:
    task = case if case in TASKS else "classification"
    data = some_data(task, 43)  # the last batch has three samples: one fewer than four workers
    model = make_model(data)
    settings = Settings(epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.02, precision="float32", **CASES[case])
    trainer = Trainer(model, data, settings, device="cpu")
    losses = [trainer.train_batch(batch) for epoch in range(2) for batch in trainer.loader.batches(epoch)]
    scores = [*trainer.score(data).values(), *trainer.score(data.subset(range(3))).values()]
    trainer.close()
    if distributed.is_main():
        facts = {"losses": torch.tensor(losses), "scores": torch.tensor(scores)}
        save_file({k: v.contiguous() for k, v in (model.state_dict() | facts).items()}, target / f"{case}.safetensors")


class HurtAtBatch(nn.Module):
    """Cross-entropy that, once, sends a signal to its own process at some batch."""

    def __init__(self, folder: Path, *, batch: int, rank: int, number: int) -> None:
        super().__init__()
        self.mark, self.batch, self.rank, self.number, self.seen = folder / "hurt", batch, rank, number, 0

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.seen += torch.is_grad_enabled()
        if self.seen == self.batch and distributed.rank() == self.rank and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.number)
        return own_loss(logits, targets)


def fit(folder: Path, number: int) -> None:
    data = some_data("classification", 43)
    model = make_model(data)
    loss = HurtAtBatch(folder, batch=14, rank=distributed.size() - 1, number=number)
    report = dh.fit(
        model, data, epochs=4, batch_size=8, optimizer="sgd", learning_rate=0.002, precision="float32", loss=loss,
        device="cpu", folder=folder / "run", progress=False,
    )  # fmt: skip
    if distributed.is_main():
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "fit.safetensors")
        report.to_json(folder / "report.json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, place = sys.argv[1], Path(sys.argv[2])
    if verb == "fit":
        fit(place, int(sys.argv[3]))
    else:
        for case in CASES:
            train(case, place)
