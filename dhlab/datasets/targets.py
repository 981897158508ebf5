"""Targets in the type that their task takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadValueError
from dhlab.tasks import IGNORE, TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["check_targets"]


def check_targets(targets: ArrayLike, task: str, classes: Sequence[str]) -> NDArray[Any]:
    """Return targets in the type of a task.

    Parameters
    ----------
    targets
        Class indices, 0 and 1, or numbers; any shape.
    task
        Name of the task.
    classes
        Class names.

    Returns
    -------
    ndarray
        int64 with -1 where unlabelled, or float32 with NaN where unlabelled.

    Raises
    ------
    BadValueError
        If the task is unknown, or a target is not what the task takes.
    """
    if task not in TASKS:
        raise BadValueError(f"task {task!r}; expected one of {', '.join(TASKS)}.")
    values = np.asarray(targets)
    if task == "regression":
        if not np.issubdtype(values.dtype, np.number) or np.isinf(values).any():
            raise BadValueError(f"targets are {values.dtype} or infinite; expected finite numbers, NaN where unknown.")
        return values.astype(np.float32)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise BadValueError(f"targets are {values.dtype}; expected class indices as integers.")
    most = len(classes) - 1 if TASKS[task].exclusive else 1
    if values.size and not IGNORE <= values.min() <= values.max() <= most:
        raise BadValueError(f"targets hold {values.min()} to {values.max()}; expected 0 to {most}, or -1.")
    return values.astype(np.int64)
