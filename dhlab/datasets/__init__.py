"""Datasets: labelled samples from files, tables, masks, annotations and bags; honest splits; leakage found."""

from __future__ import annotations

from dhlab.datasets.dataset import Dataset
from dhlab.datasets.drawing import draw_sample
from dhlab.datasets.leakage import check_apart, find_duplicates
from dhlab.datasets.samples import ArraySamples, JoinedSamples, PickedSamples, Samples
from dhlab.datasets.targets import check_targets
from dhlab.datasets.tutorial import tutorial_dataset

__all__ = [
    "ArraySamples",
    "Dataset",
    "JoinedSamples",
    "PickedSamples",
    "Samples",
    "check_apart",
    "check_targets",
    "draw_sample",
    "find_duplicates",
    "tutorial_dataset",
]
