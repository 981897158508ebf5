"""The folder of one training: what it is, its metrics, its best weights and its last state, each always whole."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from dhlab.atomic import atomic_file, atomic_write_bytes, atomic_write_text, storage_error, sync
from dhlab.distributed import is_main
from dhlab.errors import BadFileError, ConflictError, NotFoundError
from dhlab.training.checkpoints import Progress, pack_checkpoint, read_checkpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from dhlab.models import Model
    from dhlab.training.loading import Batch
    from dhlab.training.trainer import Trainer

__all__ = ["Interruption", "Run", "load_run", "save_batch"]

# Holds the number of the last who began to write into the folder, and a word that nobody else has.
TURN = "turn"
ABOUT, METRICS, BEST, LAST, FAILED = (
    "run.json",
    "metrics.jsonl",
    "best.safetensors",
    "last.safetensors",
    "failed-batch.npz",
)


class Run:
    """The folder of one training.

    Parameters
    ----------
    folder
        Where it is kept; made if it is not there.
    identity
        What tells this training from others, JSON-compatible.
    overwrite
        Begin anew, whatever is there: worker 0 removes it, perhaps while others look.

    Raises
    ------
    ConflictError
        If another training is there.
    StorageError
        If the folder cannot be written: said before hours of work.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.mine = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.folder) or error from error
        if not overwrite:
            self._check_same()
        elif is_main():
            for name in (LAST, BEST, METRICS, ABOUT, FAILED):
                (self.folder / name).unlink(missing_ok=True)

    def restore(self, trainer: Trainer, digest: str) -> tuple[Progress, dict[str, Tensor] | None]:
        """Bring a trainer to where the run stopped.

        Parameters
        ----------
        trainer
            A fresh trainer of the same model and data.
        digest
            Digest of the weights that the model has now.

        Returns
        -------
        tuple
            How far the run is, and its best weights.

        Raises
        ------
        ConflictError
            If the model's weights are neither those that the run began with nor those that it ended with.
        BadFileError
            If the checkpoint is damaged.
        """
        last = self.folder / LAST
        if not last.exists():
            return Progress(), None
        tensors, progress, about, extra = read_checkpoint(last)
        if digest not in (about["begun with"], extra["weights"], extra["best"]):
            raise ConflictError(
                f"{self.folder} holds a training that began with other weights than this model has. Make the model as "
                "it was then to continue, choose another folder, or pass overwrite=True to begin anew."
            )
        self.identity["begun with"] = about["begun with"]
        trainer.load_state(tensors, extra)
        return progress, self._best() if progress.best_epoch else None

    def last_turn(self) -> int:
        """Return the number of the last who began to write here; 0 if nobody has."""
        number = self._turn().partition(" ")[0]
        return int(number) if number.isdecimal() else 0

    def take_turn(self, number: int) -> None:
        """Be the only one who writes here from now on; of several who take the same turn, the last one is.

        A worker may stop answering, be given up, and wake up when others have gone on with its training: then it can
        write no more.

        Parameters
        ----------
        number
            One more than `last_turn`, found before the workers last agreed on who they are.

        Raises
        ------
        ConflictError
            If it is this worker that was given up.
        """
        self.mine = f"{number} {secrets.token_hex(8)}"
        if self.last_turn() >= number:
            self._give_up()
        atomic_write_text(self.folder / TURN, f"{self.mine}\n")

    def begin(self, model: Model) -> None:
        """Write what the run is."""
        about = self.identity | {"card": model.card.to_dict()}
        self._write(ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())

    def save(self, trainer: Trainer, progress: Progress, *, best: str = "") -> None:
        """Write the state of a training.

        Parameters
        ----------
        trainer
            The trainer.
        progress
            How far it is.
        best
            Digest of the best weights.

        Raises
        ------
        StorageError
            If the disk is full; the last state that could be written stays.
        ConflictError
            If others have gone on with this training.
        """
        tensors, extra = trainer.state()
        extra |= {"weights": trainer.model.digest(), "best": best}
        self._write(LAST, pack_checkpoint(tensors, progress=progress, run=self.identity, extra=extra))

    def record(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics so far, a JSON line per epoch."""
        lines = (json.dumps({k: None if v != v else v for k, v in row.items()}) for row in curve)
        self._write(METRICS, "".join(line + "\n" for line in lines).encode())

    def keep_best(self, model: Model, weights: Mapping[str, Tensor], epoch: int) -> None:
        """Write the best weights."""
        from safetensors.torch import save

        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        self._write(BEST, save(stored, {"model": model.card.name, "epoch": str(epoch)}))

    def _write(self, name: str, content: bytes) -> None:
        with atomic_file(self.folder / name) as partial:
            partial.write_bytes(content)
            sync(partial)
            # Between this look and the renaming nothing lies that takes time.
            if self._turn() != self.mine:
                self._give_up()

    def _turn(self) -> str:
        try:
            return (self.folder / TURN).read_text("ascii").strip()
        except (FileNotFoundError, ValueError):
            return ""

    def _give_up(self) -> NoReturn:
        raise ConflictError(
            f"others have gone on with the training in {self.folder} (turn {self._turn()}, this worker has "
            f"{self.mine}): it was thought lost, or the same call was made again. Nothing of it is written any more."
        )

    def _best(self) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load((self.folder / BEST).read_bytes()))
        except (OSError, SafetensorError) as error:
            raise BadFileError(
                f"{self.folder / BEST} cannot be read: {error}. Pass overwrite=True to begin anew."
            ) from error

    def _check_same(self) -> None:
        about = self.folder / ABOUT
        if not about.exists():
            return
        try:
            there = json.loads(about.read_text("utf-8"))
        except ValueError as error:
            raise BadFileError(f"{about} is no JSON: {error}. Pass overwrite=True to begin anew.") from error
        differing = [
            f"{part} {name}: {there.get(part, {}).get(name)!r} there, {value!r} now"
            for part in ("settings", "model", "data")
            for name, value in self.identity[part].items()
            if there.get(part, {}).get(name) != value
        ]
        if differing:
            raise ConflictError(
                f"{self.folder} holds another training ({'; '.join(differing[:4])}). Choose another folder, or pass "
                "overwrite=True to begin anew."
            )


def load_run(folder: str | os.PathLike[str]) -> Model:
    """Load the best weights of a training, as far as it is.

    Parameters
    ----------
    folder
        The run's folder, as `fit` wrote it.

    Returns
    -------
    Model
        Ready to predict.

    Raises
    ------
    NotFoundError
        If there is no run, or it has no weights yet.
    BadFileError
        If a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from dhlab.cards import ModelCard
    from dhlab.models import build_model

    place = Path(folder).expanduser()
    about, best = place / ABOUT, place / BEST
    for path in (about, best):
        if not path.exists():
            raise NotFoundError(f"{path} is not there; expected the folder of a training, after its first epoch.")
    try:
        model = build_model(ModelCard.from_dict(json.loads(about.read_text("utf-8"))["card"]))
        model.load_state_dict(load(best.read_bytes()))
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise BadFileError(f"{place} cannot be loaded: {error}") from error
    return model.eval()


class Interruption:
    """Lets a batch finish when the process is asked to stop, so that its state can be written first.

    A first SIGTERM, Ctrl-C or SIGUSR2 (a job whose time is nearly over) is remembered; a second one acts at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may handle signals; elsewhere they act as they did.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal = number
        signal.signal(number, self.before[number])

    def act(self, number: int) -> None:
        """Do what a signal would have done, whether this worker or another one got it."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, self.before[number])
        signal.raise_signal(number)
        raise KeyboardInterrupt


@contextmanager
def signals_held(active: bool) -> Iterator[Interruption]:
    """Hold signals back within the block if `active`."""
    interruption = Interruption()
    if not active:
        yield interruption
        return
    with interruption:
        yield interruption


def save_batch(folder: Path | None, batch: Batch) -> Path:
    """Write the batch that stopped a training, and return where.

    Parameters
    ----------
    folder
        The run's folder; None takes a temporary one.
    batch
        The batch.
    """
    import io
    import tempfile

    place = folder if folder is not None else Path(tempfile.mkdtemp(prefix="dhlab-"))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=batch.images, targets=batch.targets, indices=batch.indices)
    atomic_write_bytes(place / FAILED, buffer.getvalue())
    return place / FAILED
