"""Training, validation and test: whole patients, each class in its share, the same for the same seed."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dhlab.datasets.leakage import refuse_overlap
from dhlab.errors import BadValueError, DHLabWarning, UnknownNameError, suggest
from dhlab.tasks import IGNORE, TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.datasets.dataset import Dataset

__all__ = ["check_splits", "make_folds", "split_dataset", "split_name", "take_part"]

# The usual names of splits, and what people also call them.
USUAL = {
    "training": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
CANONICAL = {alias: name for name, aliases in USUAL.items() for alias in aliases}
QUARTILES = (0.25, 0.5, 0.75)
CHUNK = 64


def split_name(name: str) -> str | None:
    """Return the usual name of a split (``training``, ``validation``, ``test``), or None if `name` is not usual."""
    return CANONICAL.get(name.lower())


def check_splits(splits: Mapping[str, Sequence[int]], count: int) -> dict[str, tuple[int, ...]]:
    """Return splits as tuples of indices.

    Raises
    ------
    BadValueError
        If an index is out of range or twice in one split.
    """
    checked = {}
    for name, indices in splits.items():
        listed: tuple[object, ...] = tuple(indices)
        for index in listed:
            if not isinstance(index, int | np.integer) or isinstance(index, bool) or not 0 <= index < count:
                raise BadValueError(f"split {name!r} holds {index!r}; expected indices of samples, 0 to {count - 1}.")
        if len(set(listed)) != len(listed):
            twice = next(i for i in listed if listed.count(i) > 1)
            raise BadValueError(f"split {name!r} holds sample {twice} more than once; expected each once.")
        checked[name] = tuple(map(int, indices))
    return checked


def split_dataset(dataset: Dataset, shares: Mapping[str, float], seed: int) -> Dataset:
    """Return the dataset with splits; see `Dataset.split`."""
    if not shares or not all(math.isfinite(s) and s > 0 for s in shares.values()):
        raise BadValueError(f"shares {dict(shares)}; expected a positive share per split, such as {{'training': 0.8}}.")
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise BadValueError(f"shares {dict(shares)} sum to {sum(shares.values()):g}; expected 1.")
    names, content = measure_content(dataset)
    parts = _assign(dataset, content, np.array(list(shares.values()), float), seed, f"{len(shares)} splits")
    splits = {name: tuple(np.flatnonzero(parts == i).tolist()) for i, name in enumerate(shares)}
    _check_made(dataset, names, content, splits)
    return replace(dataset, splits=splits)


def make_folds(dataset: Dataset, count: int, seed: int) -> Iterator[tuple[Dataset, Dataset]]:
    """Yield training and validation sets; see `Dataset.folds`."""
    if count < 2:
        raise BadValueError(f"{count} folds; expected at least 2.")
    names, content = measure_content(dataset)
    parts = _assign(dataset, content, np.full(count, 1 / count), seed, f"{count} folds")
    _check_made(
        dataset, names, content, {f"fold {i + 1}": tuple(np.flatnonzero(parts == i).tolist()) for i in range(count)}
    )

    def each() -> Iterator[tuple[Dataset, Dataset]]:
        for fold in range(count):
            yield (
                replace(
                    dataset.subset(np.flatnonzero(parts != fold)), name=f"{dataset.name} (without fold {fold + 1})"
                ),
                replace(dataset.subset(np.flatnonzero(parts == fold)), name=f"{dataset.name} (fold {fold + 1})"),
            )

    return each()


def take_part(dataset: Dataset, name: str) -> Dataset:
    """Return the samples of one split; see `Dataset.part`."""
    known = dataset.splits
    found = (
        name if name in known else next((n for n in known if split_name(n) and split_name(n) == split_name(name)), None)
    )
    if found is None:
        advice = suggest(name, known) if known else " It has no splits: make them with dataset.split({…})."
        raise UnknownNameError(f"dataset {dataset.name!r} has no split {name!r}.{advice}")
    if not known[found]:
        raise BadValueError(f"split {found!r} of {dataset.name!r} is empty; expected at least one sample.")
    return replace(dataset.subset(known[found]), name=f"{dataset.name} ({found})")


def measure_content(dataset: Dataset) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return what a split should keep in proportion, and how much of it each sample holds.

    Returns
    -------
    tuple of tuple of str and ndarray
        Names, and ``(N, names)`` float64: 1 where the sample is of the class, or has it (several labels, or a pixel
        of it in the mask), or has a number in that quarter of all numbers (regression).
    """
    task = TASKS[dataset.task]
    chunks = [
        dataset.samples.targets(np.arange(first, min(first + CHUNK, len(dataset)), dtype=np.int64))
        for first in range(0, len(dataset), CHUNK)
    ]
    if task.dense:
        found = [_present(target, len(dataset.classes)) for targets in chunks for target in targets]
        return dataset.classes, np.array(found, float)
    targets = np.concatenate(chunks)
    if task.exclusive:
        return dataset.classes, (targets[:, None] == np.arange(len(dataset.classes))).astype(float)
    if dataset.task != "regression":
        return dataset.classes, (targets == 1).astype(float)
    columns, names = [], []
    for name, values in zip(dataset.classes, targets.T, strict=True):
        known = values[~np.isnan(values)]
        quarter = np.searchsorted(np.quantile(known, QUARTILES), values) if known.size else np.zeros(len(values), int)
        for number in range(len(QUARTILES) + 1):
            columns.append((quarter == number) & ~np.isnan(values))
            names.append(f"{name}, quarter {number + 1}")
    return tuple(names), np.stack(columns, 1).astype(float)


def _present(target: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    return np.bincount(target[target != IGNORE].ravel(), minlength=count) > 0


def _assign(
    dataset: Dataset, content: NDArray[np.float64], shares: NDArray[np.float64], seed: int, what: str
) -> NDArray[np.int64]:
    """Return the part of each sample, ``(N,)``: all samples of a group in one."""
    groups, member = np.unique(np.asarray(dataset.groups), return_inverse=True)
    if len(groups) < len(shares):
        raise BadValueError(
            f"dataset {dataset.name!r} has {len(groups)} {dataset.unit_name}s; {what} need at least {len(shares)}, "
            f"since all samples of a {dataset.unit_name} stay together."
        )
    amounts = np.zeros((len(groups), content.shape[1] + 1))
    np.add.at(amounts, member, np.column_stack([content, np.ones(len(content))]))
    return _assign_groups(amounts, shares, np.random.default_rng(seed))[member]


def _assign_groups(
    amounts: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Give each group to the part where it brings the classes nearest to their shares.

    First every part gets one group of every class, rarest classes first, as far as there are enough; then the
    rest follow, largest groups first. What is minimised is the chi-square of amounts against shares.

    Parameters
    ----------
    amounts
        ``(groups, classes + 1)``: what each group holds; the last column counts its samples.
    shares
        ``(parts,)``, summing to 1.
    rng
        Breaks ties.

    Returns
    -------
    ndarray
        ``(groups,)`` int64.
    """
    total = np.maximum(amounts.sum(0), 1e-12)
    relative = amounts / total
    weight = np.r_[np.full(amounts.shape[1] - 1, 1 / max(1, amounts.shape[1] - 1)), 1.0]
    held = np.zeros((len(shares), amounts.shape[1]))
    parts = np.full(len(amounts), -1)

    def cost(groups: NDArray[np.int64], part: int) -> NDArray[np.float64]:
        more = relative[groups]
        return ((more * (2 * (held[part] - shares[part]) + more)) @ weight) / shares[part]

    def give(group: int, part: int) -> None:
        parts[group] = part
        held[part] += relative[group]

    order = rng.permutation(len(amounts))
    order = order[np.argsort(-relative[order].max(1), kind="stable")]
    rarest = np.argsort((amounts > 0).sum(0), kind="stable")
    for column in rarest:
        for part in np.argsort(-shares, kind="stable").tolist():
            free = order[parts[order] < 0]
            empty = (held[:, -1] == 0).sum()
            candidates = free[amounts[free, column] > 0]
            # A group is kept back for every part that has none yet.
            spare = len(free) > empty or held[part, -1] == 0
            if held[part, column] == 0 and len(candidates) and spare:
                give(int(candidates[np.argmin(cost(candidates, part))]), part)
    for group in order.tolist():
        if parts[group] < 0:
            costs = [float(cost(np.array([group]), part)[0]) for part in range(len(shares))]
            give(group, int(np.argmin(costs)))
    return parts


def _check_made(
    dataset: Dataset, names: Sequence[str], content: NDArray[np.float64], splits: Mapping[str, Sequence[int]]
) -> None:
    """Refuse splits that show the same place of a scan, and warn of classes that are missing from one."""
    refuse_overlap(dataset, splits)
    if dataset.task == "regression":
        return
    groups = np.asarray(dataset.groups)
    for column, name in enumerate(names):
        units = len(np.unique(groups[content[:, column] > 0]))
        missing = [split for split, indices in splits.items() if not content[list(indices), column].any()]
        if units and missing:
            warnings.warn(
                f"class {name!r} of {dataset.name!r} is missing from {', '.join(missing)}: only {units} "
                f"{dataset.unit_name}{'s have' if units > 1 else ' has'} it. Nothing can be said of it there; gather "
                "more, merge classes, or take fewer splits.",
                DHLabWarning,
                stacklevel=4,
            )
