"""Batches in an order that depends on seed and epoch alone, read and augmented ahead of their use."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.augment.windows import augment_batch
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dhlab.augment import Compose
    from dhlab.datasets import Dataset

__all__ = ["Batch", "Loader"]

READ_AHEAD = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, ready for the model.

    Parameters
    ----------
    images
        ``(B, *window)`` as stored.
    targets
        ``(B, …)`` in the shape and type of the task.
    indices
        ``(B,)`` indices of the samples in their dataset.
    epoch
        Number of the pass over the data, from 0.
    number
        Number of the batch in its epoch, from 0.
    whole
        Number of samples that all workers have together; 0 for these alone.
    rank, workers
        Number of the worker, and how many there are.
    """

    images: NDArray[Any]
    targets: NDArray[Any]
    indices: NDArray[np.int64]
    epoch: int = 0
    number: int = 0
    whole: int = 0
    rank: int = 0
    workers: int = 1

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def together(self) -> int:
        """Number of samples of all workers."""
        return self.whole or len(self)

    @property
    def counts(self) -> bool:
        """Whether these samples count.

        A batch with fewer samples than workers lends its first to the others, which must take part in what is summed.
        """
        return self.rank < self.together

    @property
    def rows(self) -> slice:
        """Which of the samples of all workers these are."""
        return slice(self.rank, None, self.workers) if self.counts else slice(0, 1)


class Loader:
    """Reads a dataset batch by batch.

    The same seed and epoch give the same batches for any number of threads and ranks; several ranks share out each
    batch, so that together they see what one would.

    Parameters
    ----------
    data
        The samples.
    batch_size
        Samples per batch, over all ranks.
    seed
        Decides order and augmentation.
    shuffle
        Draw a new order for each epoch; else the order of the dataset.
    augment
        What is done to samples; a number is the strength of `default_pipeline`, None leaves them as they are.
    rank, world
        Number of this process, and how many there are.

    Raises
    ------
    BadValueError
        If a number is out of range.
    """

    def __init__(
        self,
        data: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Compose | float | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise BadValueError(f"batch_size {batch_size}, rank {rank} of {world}; expected a sample, a rank from 0.")
        self.data, self.batch_size, self.seed, self.shuffle, self.augment = data, batch_size, seed, shuffle, augment
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(self.plan(0))

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the indices of each batch of an epoch, ``(B,)`` int64, over all ranks.

        Parameters
        ----------
        epoch
            Number of the pass over the data.
        """
        order = np.arange(len(self.data), dtype=np.int64)
        if self.shuffle:
            order = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, 1])).permutation(
                order
            )
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        # Batch normalisation cannot learn from a lone sample.
        if self.shuffle and len(batches) > 1 and len(batches[-1]) < min(2, self.batch_size):
            batches.pop()
        return batches

    def batches(self, epoch: int = 0, *, first: int = 0) -> Iterator[Batch]:
        """Read the batches of an epoch, some ahead in a thread.

        Parameters
        ----------
        epoch
            Number of the pass over the data.
        first
            Number of the batch to begin with.

        Yields
        ------
        Batch
            In order.

        Raises
        ------
        BadFileError
            If a sample cannot be read; the message names it.
        """
        waiting = list(enumerate(self.plan(epoch)))[first:]
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                while waiting or ahead:
                    while waiting and len(ahead) <= READ_AHEAD:
                        ahead.append(pool.submit(self._read, epoch, *waiting.pop(0)))
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _read(self, epoch: int, number: int, together: NDArray[np.int64]) -> Batch:
        share = slice(self.rank, None, self.world) if self.rank < len(together) else slice(0, 1)
        indices = together[share]
        images, targets = self.data.batch(indices)
        if self.augment is not None:
            images, targets = augment_batch(
                images,
                targets,
                axes=self.data.axes,
                seed=self.seed,
                epoch=epoch,
                indices=indices,
                pipeline=self.augment,
            )
        return Batch(images, targets, indices, epoch, number, len(together), self.rank, self.world)
