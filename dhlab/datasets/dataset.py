"""`Dataset`: labelled samples, where each comes from, and which of them belong to the same patient or place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets.samples import ArraySamples, JoinedSamples, PickedSamples
from dhlab.datasets.splitting import check_splits, make_folds, split_dataset, take_part
from dhlab.datasets.targets import check_targets
from dhlab.errors import BadShapeError, BadValueError
from dhlab.tasks import TASKS
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os

    from numpy.typing import ArrayLike, NDArray

    from dhlab.annotations import Annotations
    from dhlab.cards import ModelCard
    from dhlab.datasets.groups import Patient
    from dhlab.datasets.masks import Value
    from dhlab.datasets.samples import Batch, Samples
    from dhlab.scan import Scan

__all__ = ["Dataset"]

Region = Sequence[Sequence[float]]


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
        object.__setattr__(self, "splits", check_splits(self.splits, len(self.samples)))

    @classmethod
    def from_annotations(
        cls,
        scan: Scan,
        annotations: Annotations,
        *,
        classes: Sequence[str],
        tile: int | Sequence[int],
        task: str = "segmentation",
        spacing: float | Sequence[float] | None = None,
        region: Region | None = None,
        overlap: float = 0.5,
        min_labelled: float = 0.05,
        min_share: float = 0.5,
        patient: str | None = None,
    ) -> Dataset:
        """Cut a scan into windows, each with a label map drawn from annotations or with the class that covers it.

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
        task
            ``"segmentation"``, or ``"classification"``: each window is of the class that covers most of it.
        spacing
            Pixel size to look at, in the scan's unit; None is the scan's own.
        region
            ``(start, size)`` in level-0 pixels, each along the window axes; None is the whole scan.
        overlap
            Share of a window that its neighbour also sees, from 0 up to but excluding 1.
        min_labelled
            Least share of labelled pixels that a window needs.
        min_share
            Least share of a window that its class must cover in a classification; windows without are left out.
        patient
            Whom the scan is of; then all windows are one group. None: blocks of the scan, one tile wide.

        Returns
        -------
        Dataset
            Targets are masks, -1 where nothing is drawn, or a class per window.

        Raises
        ------
        UnknownNameError
            If no annotation has one of the classes.
        BadValueError
            If the region is not inside the scan or smaller than a window, nothing in it is labelled enough, or a
            number is out of range.
        """
        from dhlab.datasets.regions import cut_regions

        with stage("data", verb="from_annotations", scan=scan.name):
            return cut_regions(
                scan,
                annotations,
                classes=classes,
                tile=tile,
                task=task,
                spacing=spacing,
                region=region,
                overlap=overlap,
                min_labelled=min_labelled,
                min_share=min_share,
                patient=patient,
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
    def from_folder(
        cls,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        splits: bool | None = None,
        patient: Patient | None = None,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        allow_leakage: bool = False,
        name: str | None = None,
    ) -> Dataset:
        """Classify pictures by the folder they lie in: ``class/…``, or ``split/class/…``.

        Pixels are read when a batch is; headers are read now.

        Parameters
        ----------
        root
            Folder with a folder per class, or with a folder per split that has these.
        classes
            Class names in the order of their indices; None takes the folders by name.
        splits
            Whether the upper folders are splits; None: if they are named train, validation, test or alike.
        patient
            Regular expression searched in each path below `root` (its first group, else the whole match), or a
            function from path to patient.
        size
            Height and width in pixels that pictures are resized to, one number for both; None leaves them, and then
            all must be alike.
        channels
            1 for grey, 3 for colour without alpha; None leaves them, and then all must be alike.
        allow_leakage
            Keep splits that share a patient.
        name
            Short name for people; None is that of the folder.

        Returns
        -------
        Dataset
            Classification samples, with splits if there are such folders.

        Raises
        ------
        NotFoundError
            If there is no such folder, or no picture in it.
        UnknownNameError
            If a folder is not among `classes`.
        BadShapeError
            If pictures differ in size or mode; the message names two.
        BadValueError
            If a split is empty, or a patient is in two.
        BadFileError
            If a file is no picture.
        """
        from dhlab.datasets.folder import read_folder

        with stage("data", verb="from_folder", folder=Path(root).name):
            return read_folder(
                root,
                classes=classes,
                splits=splits,
                patient=patient,
                size=size,
                channels=channels,
                allow_leakage=allow_leakage,
                name=name,
            )

    @classmethod
    def from_table(
        cls,
        path: str | os.PathLike[str],
        *,
        image: str,
        label: str | Sequence[str],
        task: str | None = None,
        classes: Sequence[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        patient: Patient | None = None,
        split: str | None = None,
        features: Sequence[str] = (),
        separator: str | None = None,
        allow_missing: bool = False,
        allow_leakage: bool = False,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        name: str | None = None,
    ) -> Dataset:
        """Read pictures and labels from a table, a row per sample.

        Parameters
        ----------
        path
            ``.csv``, ``.tsv`` or ``.parquet``.
        image
            Column with the picture's path, or a pattern with columns in braces: ``"images/{image_id}.jpg"``.
        label
            Column of the class; or columns of 0 and 1 (multilabel) or of numbers (regression).
        task
            ``"classification"``, ``"multilabel"`` or ``"regression"``; None: classification for one column,
            multilabel for several or with a `separator`.
        classes
            Class names in the order of their indices; None takes those found, sorted, or the columns' names.
        root
            Folder that paths start from; None is that of the table.
        patient
            Column of the patient, or a regular expression on the path, or a function of it.
        split
            Column with the name of the split.
        features
            Columns to keep as text: age, sex, scanner …
        separator
            What stands between several classes in one cell, such as ``"|"``.
        allow_missing
            Keep rows without a label: their targets are -1 or NaN.
        allow_leakage
            Keep splits that share a patient.
        size
            Height and width in pixels that pictures are resized to, one number for both; None leaves them.
        channels
            1 for grey, 3 for colour without alpha; None leaves them.
        name
            Short name for people; None is that of the table.

        Returns
        -------
        Dataset
            A sample per row, in the table's order.

        Raises
        ------
        NotFoundError
            If the table or a picture is not there.
        UnknownNameError
            If a column, or a class, is unknown.
        BadValueError
            If a needed cell is empty or NaN, or holds no number; the message names row and column.
        BadShapeError
            If pictures differ in size or mode; the message names two.
        BadFileError
            If the table or a picture cannot be read.
        """
        from dhlab.datasets.table import read_table

        with stage("data", verb="from_table", table=Path(path).name):
            return read_table(
                path,
                image=image,
                label=label,
                task=task,
                classes=classes,
                root=root,
                patient=patient,
                split=split,
                features=features,
                separator=separator,
                allow_missing=allow_missing,
                allow_leakage=allow_leakage,
                size=size,
                channels=channels,
                name=name,
            )

    @classmethod
    def from_pairs(
        cls,
        images: str | Path | Sequence[str | Path],
        masks: str | Path | Sequence[str | Path],
        *,
        values: Mapping[str, Value],
        ignore: Sequence[int | Sequence[int]] = (),
        tolerance: int = 0,
        mask_suffix: str = "",
        patient: Patient | None = None,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        name: str | None = None,
    ) -> Dataset:
        """Segment pictures that have a mask file each.

        Parameters
        ----------
        images
            Folder, pattern such as ``"images/*.png"``, or the files.
        masks
            The same for masks; files pair by name without suffix, or by order if both are lists.
        values
            Class names in the order of their indices, each with a grey value, a colour ``(red, green, blue)``, or
            ``"rest"`` for all other values: ``{"background": 0, "nucleus": "rest"}``.
        ignore
            Mask values whose pixels do not count.
        tolerance
            How far, in grey levels, a mask value may lie from a named one; for masks stored as JPEG.
        mask_suffix
            What a mask's name has more than its picture's, such as ``"_segmentation"``.
        patient
            Regular expression searched in each path below the pictures' folder (its first group, else the whole
            match), or a function from path to patient.
        size
            Height and width in pixels that pictures and masks are resized to, one number for both; None leaves them.
        channels
            1 for grey, 3 for colour without alpha; None leaves them.
        name
            Short name for people; None is that of the folder.

        Returns
        -------
        Dataset
            Segmentation samples.

        Raises
        ------
        NotFoundError
            If there is no such folder or file.
        BadValueError
            If a picture has no mask, a mask no picture, or (when read) a mask holds a value without a name.
        BadShapeError
            If a mask has another size than its picture, or pictures differ in size or mode.
        BadFileError
            If a file is no picture.
        """
        from dhlab.datasets.pairs import pair_files

        with stage("data", verb="from_pairs"):
            return pair_files(
                images,
                masks,
                values=values,
                ignore=ignore,
                tolerance=tolerance,
                mask_suffix=mask_suffix,
                patient=patient,
                size=size,
                channels=channels,
                name=name,
            )

    @classmethod
    def from_yaml(
        cls,
        path: str | os.PathLike[str],
        *,
        task: str | None = None,
        values: Mapping[str, Value] | None = None,
        ignore: Sequence[int | Sequence[int]] = (),
        tolerance: int = 0,
        patient: Patient | None = None,
        check: bool = False,
        allow_outside: bool = False,
        allow_leakage: bool = False,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        stack: str | None = None,
    ) -> Dataset:
        """Read a dataset in the DeepHealth format, as the DeepHealth toolkit and ECVL write it.

        Labels may be class names or indices, lists of them (several labels), or paths of masks. Where a file mixes
        them, classes decide: one list that has not exactly one entry makes it multilabel, else one class makes it
        a classification, and only without classes is it a segmentation. Samples labelled otherwise, or not at all,
        are kept as unlabelled. Pixels are read when a batch is; without `check` a file need not be there.

        Parameters
        ----------
        path
            The ``.yml`` or ``.yaml`` file; locations start from its folder.
        task
            ``"classification"``, ``"multilabel"`` or ``"segmentation"``; None is what the labels say.
        values
            Class names with their mask values, as in `from_pairs`. None: the file's classes by index; without
            classes ``{"background": 0, "foreground": "rest"}``.
        ignore
            With `values`: mask values whose pixels do not count.
        tolerance
            With `values`: how far, in grey levels, a mask value may lie from a named one.
        patient
            Feature with the patient, or regular expression on the path, or function of it. None: a feature called
            patient or subject, if there is one.
        check
            Open every file's header: all are there, all alike.
        allow_outside
            Take files that do not lie below the folder, links resolved.
        allow_leakage
            Keep splits that share a patient or a sample.
        size
            Height and width in pixels that pictures are resized to, one number for both; None leaves them.
        channels
            1 for grey, 3 for colour without alpha; None leaves them.
        stack
            Axis along which the files of a sample with several are stacked, ``"z"`` or ``"c"``; None chooses ``"z"``
            for pictures and ``"c"`` for volumes.

        Returns
        -------
        Dataset
            The samples in the file's order, with its splits, and its values as `features`.

        Raises
        ------
        NotFoundError
            If the file, or with `check` an image, is not there.
        BadFileError
            If it is no YAML.
        UnknownNameError
            If a label is no class, or a value no feature.
        BadValueError
            If an index is out of range, a location stands twice, is a URL or leaves the folder, or splits share a
            patient.

        Warns
        -----
        DHLabWarning
            If some labels are of a kind that the task does not take.
        """
        from dhlab.datasets.deephealth import read_yaml
        from dhlab.datasets.masks import MaskValues

        with stage("data", verb="from_yaml", file=Path(path).name):
            return read_yaml(
                path,
                task=task,
                values=None if values is None else MaskValues(dict(values), tuple(ignore), tolerance),
                patient=patient,
                check=check,
                allow_outside=allow_outside,
                allow_leakage=allow_leakage,
                size=size,
                channels=channels,
                stack=stack,
            )

    @classmethod
    def from_bags(
        cls,
        bags: Sequence[Any],
        targets: ArrayLike,
        *,
        classes: Sequence[str],
        task: str = "classification",
        groups: Sequence[str] = (),
        name: str = "bags",
    ) -> Dataset:
        """Make a dataset of bags of instances with one label each, for multiple-instance learning.

        Parameters
        ----------
        bags
            Per bag its instances, ``(instances, features)`` floating-point, or an object with such `features`; any
            number of instances.
        targets
            ``(N,)`` class indices (-1 does not count), or ``(N, classes)`` as in `from_arrays`.
        classes
            Class names.
        task
            ``"classification"``, ``"multilabel"`` or ``"regression"``.
        groups
            Patient of each bag; else each stands for itself.
        name
            Short name for people.

        Returns
        -------
        Dataset
            With axes ``"ic"``; a batch is padded to its largest bag with rows of NaN.

        Raises
        ------
        BadShapeError
            If a bag is empty, or bags differ in their number of features.
        BadValueError
            If a bag holds NaN, or a target is not among the classes.
        """
        from dhlab.datasets.bags import gather_bags

        return gather_bags(bags, targets, classes=classes, task=task, groups=groups, name=name)

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
            windows = [data[0][0] for data in (other, first)]
            # Bags have any number of instances.
            shapes = [tuple(n for n, a in zip(w.shape, first.axes, strict=True) if a != "i") for w in windows]
            if shapes[0] != shapes[1] or windows[0].dtype != windows[1].dtype:
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

    def split(self, shares: Mapping[str, float], *, seed: int = 0) -> Dataset:
        """Split into parts, whole patients each, every class in its share as nearly as can be.

        Segmentation is balanced by the masks in which a class occurs (each is read once), several labels by label,
        regression by quarters of the range. Every part gets a patient of each class as long as there are enough.

        Parameters
        ----------
        shares
            Share of the samples per split, summing to 1: ``{"training": 0.7, "validation": 0.15, "test": 0.15}``.
        seed
            Decides between equals; the same seed and data give the same splits.

        Returns
        -------
        Dataset
            The same samples with `splits`.

        Raises
        ------
        BadValueError
            If the shares do not sum to 1, there are fewer patients than splits, or windows of one scan overlap
            across them.

        Warns
        -----
        DHLabWarning
            If a class has too few patients to be in every split.
        """
        return split_dataset(self, shares, seed)

    def part(self, name: str) -> Dataset:
        """Return the samples of the split of this name; the usual names (train, val …) stand for one another.

        Raises
        ------
        UnknownNameError
            If there is no such split.
        BadValueError
            If it is empty.
        """
        return take_part(self, name)

    def folds(self, count: int = 5, *, seed: int = 0) -> Iterator[tuple[Dataset, Dataset]]:
        """Split for cross-validation: each patient is in one validation set, every class in its share.

        Parameters
        ----------
        count
            Number of folds, at least 2.
        seed
            Decides between equals.

        Returns
        -------
        iterator of tuple of Dataset
            Training and validation samples of each fold.

        Raises
        ------
        BadValueError
            If there are fewer patients than folds.

        Warns
        -----
        DHLabWarning
            If a class has too few patients to be in every fold.
        """
        return make_folds(self, count, seed)

    def to_yaml(
        self,
        path: str | os.PathLike[str],
        *,
        description: str = "",
        allow_outside: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Write the dataset in the DeepHealth format; `from_yaml` gives it back.

        Files are listed, not copied. What the format cannot say (task, mask values, which feature is the patient)
        stands under a key ``dhlab`` that other readers pass over. Sizes and channels asked for are not kept.

        Parameters
        ----------
        path
            Where to; above the files, so that their paths stay below its folder.
        description
            What the dataset is.
        allow_outside
            List files elsewhere by their whole path.
        overwrite
            Replace what is there.

        Returns
        -------
        Path
            Where it was written.

        Raises
        ------
        BadValueError
            If samples lie in no file or outside the folder, or the format cannot hold their targets.
        ConflictError
            If something is there and `overwrite` is off.
        StorageError
            If it cannot be written.
        """
        from dhlab.datasets.deephealth import write_yaml

        return write_yaml(self, path, description=description, allow_outside=allow_outside, overwrite=overwrite)

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
        from dhlab.datasets.drawing import describe

        return describe(self)
