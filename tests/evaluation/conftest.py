"""Models whose scores are known: a table of logits, by the number that is written into each window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dhlab.datasets import Dataset
from dhlab.models import Model, ModelCard

SIDE = 8


class Lookup(nn.Module):
    """Gives the row of a table whose number a window holds in its first pixel."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x[:, 0, 0, 0].round().long()]


def make_model(table: np.ndarray, classes: tuple[str, ...], task: str, **changes: Any) -> Model:
    activation = {"multilabel": "sigmoid", "regression": "none"}.get(task, "softmax")
    card = ModelCard(
        **{
            "name": "lookup",
            "architecture": "cnn",
            "task": task,
            "classes": classes,
            "tile": (SIDE, SIDE),
            "spacing": (1.0, 1.0),
            "axes": "yx",
            "dtype": "float32",
            "value_range": (0.0, 1.0),
            "mean": (0.0,),
            "std": (1.0,),
            "activation": activation,
            **changes,
        }
    )
    return Model(Lookup(table), card)


def make_data(targets: np.ndarray, classes: tuple[str, ...], task: str, **changes: Any) -> Dataset:
    side = targets.shape[1:] if task == "segmentation" else (SIDE, SIDE)
    windows = np.zeros((len(targets), *side), np.float32)
    windows[:, 0, 0] = np.arange(len(targets))
    return Dataset.from_arrays(windows, targets, classes=classes, task=task, axes="yx", **changes)


@pytest.fixture
def lookup_model() -> Any:
    """Return the function that makes a model of a table of logits."""
    return make_model


@pytest.fixture
def numbered_data() -> Any:
    """Return the function that makes samples whose windows hold their number."""
    return make_data
