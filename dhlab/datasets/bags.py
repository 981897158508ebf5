"""Bags of instances, such as the embedded tiles of a slide: one label for all, any number in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets.dataset import Dataset
from dhlab.datasets.targets import check_targets
from dhlab.errors import BadShapeError, BadValueError
from dhlab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from dhlab.datasets.samples import Batch

__all__ = ["BagSamples", "gather_bags"]


@dataclass(frozen=True, eq=False)
class BagSamples:
    """Bags of any size in memory, or mapped from files.

    Parameters
    ----------
    bags
        Instances of each bag, ``(instances, features)`` float32.
    labels
        Targets ``(N, …)`` in the shape and type of the task.
    """

    bags: tuple[NDArray[np.float32], ...]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.bags)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return bags ``(B, instances, features)``, padded to the largest with rows of NaN, and targets by index."""
        picked = [self.bags[i] for i in indices.tolist()]
        most = max(map(len, picked), default=0)
        out = np.full((len(picked), most, self.bags[0].shape[1]), np.nan, np.float32)
        for place, bag in zip(out, picked, strict=True):
            place[: len(bag)] = bag
        return out, self.labels[indices]

    def targets(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return targets by index."""
        return self.labels[indices]

    def fresh(self, index: int) -> None:
        """Return None: bags stand for themselves."""
        return


def gather_bags(
    bags: Sequence[Any], targets: ArrayLike, *, classes: Sequence[str], task: str, groups: Sequence[str], name: str
) -> Dataset:
    """Make a dataset of bags; see `Dataset.from_bags`."""
    names = tuple(classes)
    aims = check_targets(targets, task, names)
    if TASKS[task].dense:
        raise BadValueError(f"task {task!r}; a bag has one label: classification, multilabel or regression.")
    arrays = tuple(_instances(bag, index) for index, bag in enumerate(bags))
    widths = {array.shape[1] for array in arrays}
    if len(widths) > 1:
        odd = next(i for i, a in enumerate(arrays) if a.shape[1] != arrays[0].shape[1])
        raise BadShapeError(
            f"bag {odd} has {arrays[odd].shape[1]} features per instance, bag 0 has {arrays[0].shape[1]}; expected "
            "the same: embed all with one model."
        )
    wanted = (len(arrays),) if TASKS[task].exclusive else (len(arrays), len(names))
    if aims.shape != wanted:
        raise BadShapeError(f"targets are {aims.shape} for {len(arrays)} bags; expected {wanted} for {task}.")
    return Dataset(
        samples=BagSamples(arrays, aims),
        classes=names,
        task=task,
        groups=tuple(map(str, groups)),
        unit_name="patient" if len(groups) else "sample",
        axes="ic",
        name=name,
    )


def _instances(bag: Any, index: int) -> NDArray[np.float32]:
    array = np.asarray(getattr(bag, "features", bag))
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise BadShapeError(
            f"bag {index} is {array.shape} {array.dtype}; expected (instances, features) floating-point numbers, at "
            "least one instance."
        )
    if not np.isfinite(array).all():
        raise BadValueError(f"bag {index} holds NaN or infinite numbers; rows of NaN are kept for padding.")
    return array.astype(np.float32, copy=False)
