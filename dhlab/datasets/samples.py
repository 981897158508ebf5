"""Where pixels and targets come from: arrays in memory, some samples of others, several sources joined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ArraySamples", "JoinedSamples", "PickedSamples", "Samples"]

Batch = tuple["NDArray[Any]", "NDArray[Any]"]


class Samples(Protocol):
    """Where a dataset's pixels and targets come from: anything that reads batches by index."""

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows ``(B, *window)`` and targets ``(B, …)`` in the shape and type of the task."""
        ...

    def targets(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return targets alone, without reading pixels where they can be known so."""
        ...

    def fresh(self, index: int) -> NDArray[np.bool_] | None:
        """Return the pixels, ``(*space)``, that no earlier sample shows; None if samples never overlap."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Samples in memory.

    Parameters
    ----------
    images
        ``(N, *window)``.
    labels
        Targets ``(N, …)`` in the shape and type of the task (see `dhlab.tasks`).
    """

    images: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index."""
        return self.images[indices], self.labels[indices]

    def targets(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return targets by index."""
        return self.labels[indices]

    def fresh(self, index: int) -> None:
        """Return None: samples in memory stand for themselves."""
        return


@dataclass(frozen=True, eq=False)
class PickedSamples:
    """Some samples of others.

    Parameters
    ----------
    source
        The others.
    indices
        Which, ``(N,)`` int64.
    """

    source: Samples
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index."""
        return self.source.read(self.indices[indices])

    def targets(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return targets by index."""
        return self.source.targets(self.indices[indices])

    def fresh(self, index: int) -> NDArray[np.bool_] | None:
        """Return the pixels of a window that no earlier window of the source covers."""
        return self.source.fresh(int(self.indices[index]))


@dataclass(frozen=True, eq=False)
class JoinedSamples:
    """Samples of several sources, one after the other.

    Parameters
    ----------
    parts
        The sources; their windows have the same shape.
    """

    parts: tuple[Samples, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Index after the last sample of each part."""
        return np.cumsum([len(part) for part in self.parts])

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index, in the order asked for."""
        owners = self._owners(indices)
        pairs = [part.read(inside) for part, _, inside in owners]
        places = [places for _, places, _ in owners]
        return _scatter([p[0] for p in pairs], places), _scatter([p[1] for p in pairs], places)

    def targets(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return targets by index, in the order asked for."""
        owners = self._owners(indices)
        return _scatter([part.targets(inside) for part, _, inside in owners], [places for _, places, _ in owners])

    def _owners(self, indices: NDArray[np.int64]) -> list[tuple[Samples, NDArray[np.int64], NDArray[np.int64]]]:
        """Return for each part concerned its places among `indices` and its own indices."""
        owner = np.searchsorted(self.ends, indices, side="right")
        found = []
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            found.append((self.parts[number], places, indices[places] - (self.ends[number] - len(self.parts[number]))))
        return found

    def pick(self, indices: NDArray[np.int64]) -> tuple[PickedSamples, ...]:
        """Return the samples of each part that `indices` take, in no special order."""
        return tuple(PickedSamples(part, inside) for part, _, inside in self._owners(indices))

    def fresh(self, index: int) -> NDArray[np.bool_] | None:
        """Return the pixels that no earlier sample of the same part shows."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[number].fresh(index - int(self.ends[number] - len(self.parts[number])))


def _scatter(parts: Sequence[NDArray[Any]], places: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    count, shapes = sum(map(len, parts)), {part.shape[1:] for part in parts}
    if len(shapes) == 1:
        whole = np.empty((count, *parts[0].shape[1:]), parts[0].dtype)
        for part, place in zip(parts, places, strict=True):
            whole[place] = part
        return whole
    # Bags: each part was padded to its own largest.
    whole = np.full((count, max(shape[0] for shape in shapes), *parts[0].shape[2:]), np.nan, parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        whole[place, : part.shape[1]] = part
    return whole
