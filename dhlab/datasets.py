"""`Dataset`: labelled samples, where each comes from, and which of them belong to the same patient or place."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.grid import TileGrid
from dhlab.tasks import IGNORE, TASKS
from dhlab.tiles import Tiles
from dhlab.timeline import stage

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from dhlab.annotations import Annotations
    from dhlab.models import ModelCard
    from dhlab.scan import Scan

__all__ = ["ArraySamples", "Dataset", "JoinedSamples", "PickedSamples", "Samples", "TileSamples", "check_targets"]

# A label map is kept in memory, one byte per pixel at the dataset's spacing.
LARGEST_LABELS = 1 << 30
Region = Sequence[Sequence[float]]
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

    def fresh(self, index: int) -> None:  # noqa: ARG002
        """Return None: samples in memory stand for themselves."""
        return


@dataclass(frozen=True, eq=False)
class TileSamples:
    """Windows of one scan with their part of a label map.

    Parameters
    ----------
    tiles
        The windows.
    labels
        Label map at the grid's spacing, ``(*space)`` uint8: 0 unlabelled, else class index + 1.
    corner
        First corner of the label map in grid pixels.
    """

    tiles: Tiles
    labels: NDArray[np.uint8]
    corner: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    @cached_property
    def corners(self) -> NDArray[np.int64]:
        """First corners of the windows in grid pixels, ``(N, ndim)``."""
        return self.tiles.grid.corners(self.tiles.grid.indices)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return windows and targets by index."""
        return self.tiles.read(indices), self.targets(indices)

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label map under each window."""
        targets = np.empty((len(indices), *self.tiles.grid.tile), np.int64)
        for target, corner in zip(targets, self.corners[indices] - self.corner, strict=True):
            window = tuple(slice(c, c + t) for c, t in zip(corner.tolist(), self.tiles.grid.tile, strict=True))
            np.subtract(self.labels[window], 1, out=target, dtype=np.int64)
        return targets

    def fresh(self, index: int) -> NDArray[np.bool_]:
        """Return the pixels of a window that no earlier window covers."""
        tile = np.asarray(self.tiles.grid.tile)
        new = np.ones(tuple(tile), bool)
        offsets = self.corners[:index] - self.corners[index]
        for offset in offsets[(np.abs(offsets) < tile).all(1)].tolist():
            new[tuple(slice(max(0, o), min(t, o + t)) for o, t in zip(offset, tile.tolist(), strict=True))] = False
        return new


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

    def fresh(self, index: int) -> NDArray[np.bool_] | None:
        """Return the pixels that no earlier sample of the same part shows."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[number].fresh(index - int(self.ends[number] - len(self.parts[number])))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples of one task.

    An item is ``(window, target)``: the window in the scan's own axis order and dtype, and a class index or an int64
    mask, -1 where unlabelled. `batch` reads several at once, which is quicker.

    Parameters
    ----------
    samples
        Where pixels and targets come from.
    classes
        Class names; index i is target i. Of a regression, the names of its numbers.
    task
        ``"segmentation"``, ``"classification"``, ``"multilabel"`` or ``"regression"`` (see `dhlab.tasks`).
    groups
        Name of the independent unit (patient, or a block of the slide) that each sample belongs to.
    unit_name
        What a group is: ``"patient"``, ``"block"`` or ``"sample"``.
    splits
        Indices of samples by split name.
    features
        What else is known of each sample (age, sex, scanner …), a text or None per sample, by name.
    axes
        Axis letters of a window.
    spacing
        Pixel size of a window per window axis, in `unit`; empty if unknown.
    unit
        Unit of `spacing`.
    name
        Short name for people.
    root
        Folder that the samples come from, if any.
    """

    samples: Samples
    classes: tuple[str, ...]
    task: str
    groups: tuple[str, ...] = ()
    unit_name: str = "sample"
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    features: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    axes: str = "yxc"
    spacing: tuple[float, ...] = ()
    unit: str = "px"
    name: str = "dataset"
    root: Path | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise BadValueError(f"task {self.task!r}; expected one of {', '.join(TASKS)}.")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise BadValueError(f"classes {self.classes}; expected at least one name, each once.")
        if not len(self.samples):
            raise BadValueError(f"dataset {self.name!r} is empty; expected at least one sample.")
        if not self.groups:
            object.__setattr__(self, "groups", tuple(map(str, range(len(self.samples)))))
        if len(self.groups) != len(self.samples):
            raise BadShapeError(f"{len(self.groups)} groups for {len(self.samples)} samples; expected one each.")
        for name, values in self.features.items():
            if len(values) != len(self.samples):
                raise BadShapeError(f"feature {name!r} has {len(values)} values for {len(self.samples)} samples.")

    @classmethod
    def from_annotations(
        cls,
        scan: Scan,
        annotations: Annotations,
        *,
        classes: Sequence[str],
        tile: int | Sequence[int],
        spacing: float | Sequence[float] | None = None,
        region: Region | None = None,
        overlap: float = 0.5,
        min_labelled: float = 0.05,
        patient: str | None = None,
    ) -> Dataset:
        """Cut a scan into windows with label maps drawn from annotations.

        Windows lie wholly inside `region`, so that two regions apart give datasets that share no pixel. The last
        row and column are moved back to end with the region.

        Parameters
        ----------
        scan
            The scan.
        annotations
            Areas with a class, in level-0 pixels of the scan.
        classes
            Classes to learn; areas of others stay unlabelled.
        tile
            Window size in pixels at `spacing`; one number counts for all window axes.
        spacing
            Pixel size to look at, in the scan's unit; None is the scan's own.
        region
            ``(start, size)`` in level-0 pixels, each along the window axes; None is the whole scan.
        overlap
            Share of a window that its neighbour also sees, from 0 up to but excluding 1.
        min_labelled
            Least share of labelled pixels that a window needs.
        patient
            Whom the scan is of; then all windows are one group. None: blocks of the scan, one tile wide.

        Returns
        -------
        Dataset
            Segmentation samples; targets -1 where nothing is drawn.

        Raises
        ------
        UnknownNameError
            If no annotation has one of the classes.
        BadValueError
            If the region is not inside the scan or smaller than a window, nothing in it is labelled enough, or a
            number is out of range.
        """
        with stage("data", verb="from_annotations", scan=scan.name):
            names = tuple(classes)
            if scan.window_axes != "yx":
                raise BadShapeError(
                    f"{scan.name!r} has axes {scan.axes!r}; annotations lie on scans with y and x only."
                )
            if not 0 < len(names) <= 255:
                raise BadValueError(f"{len(names)} classes; expected 1 to 255.")
            known = [annotations.class_names[i] for i in np.unique(annotations.classes[annotations.classes >= 0])]
            for name in names:
                if name not in known:
                    raise UnknownNameError(f"no annotation of {scan.name!r} has class {name!r}.{suggest(name, known)}")
            if not 0 <= min_labelled <= 1:
                raise BadValueError(f"min_labelled {min_labelled}; expected a share from 0 to 1.")
            whole = TileGrid.cover(scan, tile, spacing=spacing, overlap=overlap)
            scale = np.asarray(whole.scale)
            start, size = _check_region(scan, region)
            first = np.ceil(start / scale - 1e-6).astype(np.int64)
            last = np.minimum(np.floor((start + size) / scale + 1e-6).astype(np.int64), whole.extent)
            span = last - first
            if (span < whole.tile).any():
                raise BadValueError(
                    f"region of {tuple(span.tolist())} px at {whole.spacing[0]:g} {scan.unit}/px is smaller than a "
                    f"tile of {whole.tile} px. Take a smaller tile, a finer spacing or a larger region."
                )
            if math.prod(span.tolist()) > LARGEST_LABELS:
                raise BadValueError(
                    f"the label map would have {math.prod(span.tolist()):,} px, more than {LARGEST_LABELS:,}. "
                    "Give region=… or a coarser spacing."
                )
            grid = _cover_region(whole, first, last)
            labels = _draw_labels(scan, annotations, names, grid, first, span)
            samples = TileSamples(Tiles(scan, grid), labels, tuple(first.tolist()))
            area = math.prod(grid.tile)
            share = np.array([np.count_nonzero(labels[_window(c - first, grid.tile)]) for c in samples.corners]) / area
            enough = share >= max(min_labelled, 0.5 / area)
            if not enough.any():
                raise BadValueError(
                    f"no window of the region at {tuple(start.tolist())} has {min_labelled:.0%} of its pixels labelled "
                    f"as {', '.join(names)}. Draw more there, or lower min_labelled."
                )
            grid = replace(grid, keep=grid.indices[enough])
            samples = TileSamples(Tiles(scan, grid), labels, tuple(first.tolist()))
            blocks = (samples.corners + np.asarray(grid.tile) // 2 - first) // np.asarray(grid.tile)
            groups = [f"{scan.name} {'/'.join(map(str, block))}" for block in blocks.tolist()]
            return cls(
                samples=samples,
                classes=names,
                task="segmentation",
                groups=tuple(groups) if patient is None else (patient,) * len(samples),
                unit_name="block" if patient is None else "patient",
                axes=scan.axes,
                spacing=grid.spacing,
                unit=scan.unit,
                name=scan.name,
            )

    @classmethod
    def from_arrays(
        cls,
        images: ArrayLike,
        targets: ArrayLike,
        *,
        classes: Sequence[str],
        task: str,
        axes: str = "yxc",
        groups: Sequence[str] = (),
        spacing: float | Sequence[float] = (),
        unit: str = "px",
        name: str = "arrays",
    ) -> Dataset:
        """Make a dataset of arrays in memory.

        Parameters
        ----------
        images
            ``(N, *window)``, one axis per letter of `axes` after the first.
        targets
            ``(N,)`` class indices (classification), ``(N, *space)`` masks of them (segmentation), ``(N, classes)`` of
            0 and 1 (multilabel): -1 does not count. ``(N, classes)`` numbers (regression): NaN does not count.
        classes
            Class names.
        task
            ``"segmentation"``, ``"classification"``, ``"multilabel"`` or ``"regression"``.
        axes
            Axis letters of a window.
        groups
            Patient of each sample; else each stands for itself.
        spacing
            Pixel size per window axis, in `unit`.
        unit
            Unit of `spacing`.
        name
            Short name for people.

        Returns
        -------
        Dataset
            Over the arrays (images are not copied).

        Raises
        ------
        BadShapeError
            If the shapes do not fit.
        BadValueError
            If a target is not among the classes, or there is no sample.
        """
        pictures, names = np.asarray(images), tuple(classes)
        aims = check_targets(targets, task, names)
        space = tuple(n for n, a in zip(pictures.shape[1:], axes, strict=False) if a != "c")
        wanted = (len(pictures), *(space if TASKS[task].dense else () if TASKS[task].exclusive else (len(names),)))
        if pictures.ndim != 1 + len(axes) or aims.shape != wanted:
            raise BadShapeError(
                f"images {pictures.shape} with axes {axes!r} and targets {aims.shape}; expected (N, {', '.join(axes)}) "
                f"and targets {wanted} for {task}."
            )
        step = (float(spacing),) * len(space) if isinstance(spacing, (int, float)) else tuple(map(float, spacing))
        return cls(
            samples=ArraySamples(pictures, aims),
            classes=names,
            task=task,
            groups=tuple(map(str, groups)),
            unit_name="patient" if len(groups) else "sample",
            axes=axes,
            spacing=step,
            unit=unit,
            name=name,
        )

    @classmethod
    def concat(cls, datasets: Sequence[Dataset]) -> Dataset:
        """Join datasets of the same classes, task, axes and window shape, one after the other.

        Raises
        ------
        BadValueError
            If there is none, or they differ.
        """
        parts = list(datasets)
        if not parts:
            raise BadValueError("no datasets to join; expected at least one.")
        first = parts[0]
        for other in parts[1:]:
            for what in ("classes", "task", "axes", "spacing", "unit", "unit_name"):
                if getattr(other, what) != getattr(first, what):
                    raise BadValueError(
                        f"{other.name!r} has {what} {getattr(other, what)}, {first.name!r} {getattr(first, what)}; "
                        "expected the same."
                    )
            if other[0][0].shape != first[0][0].shape or other[0][0].dtype != first[0][0].dtype:
                raise BadValueError(f"windows of {other.name!r} and {first.name!r} differ in shape or dtype.")
        # Bare numbers name nobody: the same number in two sets is not the same sample.
        groups = tuple(
            f"{number}:{group}" if part.unit_name == "sample" else group
            for number, part in enumerate(parts)
            for group in part.groups
        )
        return replace(
            first,
            samples=JoinedSamples(tuple(part.samples for part in parts)),
            groups=groups,
            features={
                name: tuple(v for part in parts for v in part.features.get(name, (None,) * len(part)))
                for name in dict.fromkeys(name for part in parts for name in part.features)
            },
            splits={},
            name=" + ".join(dict.fromkeys(part.name for part in parts)),
        )

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Return the dataset of some samples, in the order of `indices`.

        Raises
        ------
        BadValueError
            If there is none, or one is out of range.
        """
        picked = self._check(indices)
        if not len(picked):
            raise BadValueError("no indices; expected at least one sample.")
        return replace(
            self,
            samples=PickedSamples(self.samples, picked),
            groups=tuple(self.groups[i] for i in picked.tolist()),
            features={name: tuple(values[i] for i in picked.tolist()) for name, values in self.features.items()},
            splits={},
        )

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Read several samples; windows of a scan decode each stored tile once.

        Parameters
        ----------
        indices
            ``(B,)`` indices of samples.

        Returns
        -------
        tuple of ndarray
            Windows ``(B, *window)`` in the order of `axes`, and int64 targets, ``(B, *space)`` masks or ``(B,)``
            classes, -1 where unlabelled.

        Raises
        ------
        BadValueError
            If an index is out of range.
        BadFileError
            If stored data cannot be decoded.
        """
        return self.samples.read(self._check(indices))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        images, targets = self.samples.read(np.array([index % len(self)], np.int64))
        return images[0], targets[0]

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """What is labelled per class, ``(classes,)`` int64.

        Pixels (segmentation) or samples (classification) of the class, samples that have it (multilabel), or samples
        whose number is known (regression).
        """
        total = np.zeros(len(self.classes), np.int64)
        for first in range(0, len(self), 64):
            targets = self.samples.targets(np.arange(first, min(first + 64, len(self)), dtype=np.int64))
            if TASKS[self.task].exclusive:
                total += np.bincount(targets[targets >= 0], minlength=len(total))
            else:
                total += (~np.isnan(targets) if self.task == "regression" else targets == 1).sum(0)
        return total

    def check_fits(self, card: ModelCard) -> None:
        """Raise if these samples are not what a model learns from or is judged on.

        Parameters
        ----------
        card
            Card of the model.

        Raises
        ------
        BadValueError
            If task, classes or spacing differ.
        BadShapeError
            If axes or dtype of the windows differ.
        """
        for name in ("task", "classes"):
            if getattr(card, name) != getattr(self, name):
                raise BadValueError(
                    f"{name} of dataset {self.name!r} is {getattr(self, name)}; model {card.name!r} expects "
                    f"{getattr(card, name)}."
                )
        known = self.unit == card.unit and len(self.spacing) == len(card.spacing)
        if known and not np.allclose(self.spacing, card.spacing, rtol=0.02):
            raise BadValueError(
                f"dataset {self.name!r} is at {self.spacing} {self.unit}/px; model {card.name!r} wants {card.spacing}."
            )
        window = self[0][0]
        if self.axes != card.axes or str(window.dtype) != card.dtype:
            raise BadShapeError(
                f"windows of {self.name!r} are {self.axes!r} {window.dtype}; model {card.name!r} expects "
                f"{card.axes!r} {card.dtype}."
            )

    def _check(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        picked = np.asarray(indices, np.int64).reshape(-1)
        if picked.size and not 0 <= picked.min() <= picked.max() < len(self):
            raise BadValueError(f"samples {picked.min()} to {picked.max()}; expected 0 to {len(self) - 1}.")
        return picked

    def __repr__(self) -> str:
        noun = "sample" if len(self) == 1 else "samples"
        units = len(set(self.groups))
        of = "" if self.unit_name == "sample" else f" of {units} {self.unit_name}{'s' if units > 1 else ''}"
        at = f" at {self.spacing[0]:g} {self.unit}/px" if self.spacing else ""
        return f"Dataset {self.name!r}: {len(self)} {noun}{of}, {self.task} of {', '.join(self.classes)}{at}"

    def _repr_html_(self) -> str:
        from html import escape

        from PIL import Image

        from dhlab.display import class_color

        buffer = io.BytesIO()
        Image.fromarray(self._contact_sheet()).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        counts = self.class_counts
        noun = f"{TASKS[self.task].noun}s"
        rows = "".join(
            f"<tr><td><span style='color:rgb{class_color(i)}'>■</span> {escape(name)}</td>"
            f"<td>{count:,} {noun}</td><td>{count / max(1, counts.sum()):.0%}</td></tr>"
            for i, (name, count) in enumerate(zip(self.classes, counts.tolist(), strict=True))
        )
        return (
            f"<div><b>{escape(self.name)}</b> · {escape(repr(self).partition(': ')[2])}"
            f"<table>{rows}</table><img alt='samples' src='data:image/png;base64,{data}'></div>"
        )

    def _contact_sheet(self, most: int = 12, side: int = 96) -> NDArray[np.uint8]:
        """Draw some samples, segmentation with its targets below, ``(height, width, 3)`` uint8."""
        picked = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))
        images, targets = self.samples.read(picked)
        columns = [draw_sample(i, t, self.axes, side) for i, t in zip(images, targets, strict=True)]
        return np.concatenate(columns, axis=1)


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


def draw_sample(image: NDArray[Any], target: NDArray[np.int64] | None, axes: str, side: int = 96) -> NDArray[np.uint8]:
    """Draw a window, and below it its mask in class colours if it has one.

    Parameters
    ----------
    image
        Window in the order of `axes`, any dtype.
    target
        Mask ``(*space)`` int64 with -1 for unlabelled (white); None, or a single index, draws none.
    axes
        Axis letters of the window.
    side
        Side of the square that each picture fits in, in pixels.

    Returns
    -------
    ndarray
        ``(height, width, 3)`` uint8.
    """
    from PIL import Image

    from dhlab.scan import Scan

    def square(scan: Scan) -> NDArray[np.uint8]:
        small = Image.fromarray(scan.thumbnail(side))
        small.thumbnail((side - 4, side - 4))
        canvas = np.full((side, side, 3), 255, np.uint8)
        canvas[2 : 2 + small.height, 2 : 2 + small.width] = np.asarray(small)
        return canvas

    picture = square(Scan.from_array(image, axes, pyramid=False))
    space = axes.replace("c", "")
    if target is None or target.ndim == 0 or "y" not in space or "x" not in space:
        return picture
    labels = Scan.from_array((target + 1).astype(np.uint8), space, kind="labels", pyramid=False)
    return np.concatenate([picture, square(labels)])


def _scatter(parts: Sequence[NDArray[Any]], places: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        whole[place] = part
    return whole


def _window(corner: NDArray[np.int64], tile: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(c, c + t) for c, t in zip(corner.tolist(), tile, strict=True))


def _check_region(scan: Scan, region: Region | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shape = np.asarray(scan.shape, float)
    if region is None:
        return np.zeros(len(shape)), shape
    try:
        start, size = (np.asarray(part, float) for part in region)
    except (TypeError, ValueError):
        start = size = np.zeros(0)
    if start.shape != shape.shape or size.shape != shape.shape:
        raise BadShapeError(
            f"region {region}; expected ((start …), (size …)) with {len(shape)} numbers each ({scan.window_axes})."
        )
    if not (np.isfinite(start).all() and (start >= 0).all() and (size > 0).all() and (start + size <= shape).all()):
        raise BadValueError(
            f"region from {tuple(start.tolist())} of size {tuple(size.tolist())} is not inside {scan.name!r} of "
            f"{scan.shape} px. Positions and sizes are level-0 pixels."
        )
    return start, size


def _cover_region(whole: TileGrid, first: NDArray[np.int64], last: NDArray[np.int64]) -> TileGrid:
    """Return a grid of stride 1 that keeps `whole`'s windows, counted from `first`, the last ones flush with `last`."""
    grid = replace(whole, stride=(1,) * len(whole.tile), keep=None)
    along = []
    for low, high, tile, stride in zip(first.tolist(), last.tolist(), whole.tile, whole.stride, strict=True):
        along.append(np.unique([*range(low, high - tile, stride), high - tile]))
    places = np.meshgrid(*along, indexing="ij")
    keep = np.ravel_multi_index([p.reshape(-1) for p in places], grid.shape)
    return replace(grid, keep=keep.astype(np.int64))


def _draw_labels(
    scan: Scan,
    annotations: Annotations,
    classes: tuple[str, ...],
    grid: TileGrid,
    first: NDArray[np.int64],
    span: NDArray[np.int64],
) -> NDArray[np.uint8]:
    scale = np.asarray(grid.scale)
    region = (tuple((first * scale).tolist()), tuple((span * scale).tolist()))
    picture = annotations.rasterize(spacing=grid.spacing, classes=classes, region=region, parent=scan)
    drawn = np.asarray(picture.levels[0][...])
    labels = np.zeros(tuple(span.tolist()), np.uint8)
    # Rounding of the region's size may give a pixel more or less at the far edges.
    common = tuple(slice(0, min(a, b)) for a, b in zip(labels.shape, drawn.shape, strict=True))
    labels[common] = drawn[common]
    return labels
