"""What each kind of problem learns from and gives: one row per task, so that no other module asks which it is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IGNORE", "TASKS", "Task"]

# A class index that does not count; a regression target that does not count is NaN.
IGNORE = -1


@dataclass(frozen=True)
class Task:
    """One kind of problem.

    Parameters
    ----------
    name
        What people ask for.
    dense
        Whether there is a target for every pixel, ``(B, *space)``.
    exclusive
        Whether exactly one class is right: the target is its index. Else there is a number per class, ``(B, classes)``.
    dtype
        Type of targets: int64 with -1 where unlabelled, float32 with NaN where unlabelled.
    activation
        What turns several logits into scores, by default.
    score
        The figure that chooses the best epoch.
    noun
        What is counted per class.
    """

    name: str
    dense: bool
    exclusive: bool
    dtype: str
    activation: str
    score: str
    noun: str


TASKS = {
    task.name: task
    for task in (
        Task("segmentation", True, True, "int64", "softmax", "mean Dice", "pixel"),
        Task("classification", False, True, "int64", "softmax", "balanced accuracy", "sample"),
        Task("multilabel", False, False, "int64", "sigmoid", "mean AUC", "sample"),
        Task("regression", False, False, "float32", "none", "R²", "sample"),
    )
}
