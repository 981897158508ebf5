"""The state of a training in one file without pickles, so that a killed run ends as if it had never been killed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["Progress", "pack_checkpoint", "read_checkpoint"]

FORMAT = 1


@dataclass
class Progress:
    """How far a training is.

    Parameters
    ----------
    epoch
        Epochs finished.
    number
        Batches finished in the epoch that has begun.
    step
        Batches finished in all.
    losses
        Loss and number of samples of each batch of the epoch that has begun.
    curve
        A row per finished epoch.
    best_epoch
        Epoch of the best score; 0 before there is one.
    best_score
        The best score; None before there is one.
    seconds
        Time spent, over all interruptions.
    finished
        Whether the training is over.
    workers
        From which batch on how many workers learned together.
    """

    epoch: int = 0
    number: int = 0
    step: int = 0
    losses: list[tuple[float, int]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    finished: bool = False
    workers: list[tuple[int, int]] = field(default_factory=list)


def pack_checkpoint(
    tensors: Mapping[str, Tensor], *, progress: Progress, run: Mapping[str, Any], extra: Mapping[str, Any]
) -> bytes:
    """Return the content of a checkpoint.

    Parameters
    ----------
    tensors
        Weights and the optimiser's state by name.
    progress
        How far the training is.
    run
        What tells this training from others, JSON-compatible.
    extra
        Further JSON-compatible state.
    """
    from safetensors.torch import save

    about = {"format": FORMAT, "run": run, "progress": asdict(progress), "extra": extra}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(stored, {"dhlab": json.dumps(about)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Progress, dict[str, Any], dict[str, Any]]:
    """Read a checkpoint.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    tuple
        Tensors by name, progress, what tells the run from others, and further state.

    Raises
    ------
    BadFileError
        If it is damaged, of a newer format, or no checkpoint.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    # Read, not mapped: the file may be replaced while its tensors are in use.
    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["dhlab"])
        tensors = load(content)
        progress = Progress(**about["progress"])
        progress.losses = [(loss, count) for loss, count in progress.losses]
        progress.workers = [(step, count) for step, count in progress.workers]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadFileError(
            f"{path} is no checkpoint of a training, or a damaged one ({error}). Remove it to begin anew."
        ) from error
    if about["format"] > FORMAT:
        raise BadFileError(f"{path} has format {about['format']}, this dhlab reads up to {FORMAT}: upgrade dhlab.")
    return tensors, progress, about["run"], about["extra"]
