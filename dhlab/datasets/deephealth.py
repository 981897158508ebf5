"""The DeepHealth dataset format: a YAML file that lists images, labels, values and splits."""

from __future__ import annotations

import os
import os.path
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.atomic import atomic_write_text
from dhlab.datasets.dataset import Dataset
from dhlab.datasets.files import FileSamples, PictureFiles, check_size
from dhlab.datasets.groups import find_patients, refuse_shared, relative
from dhlab.datasets.leakage import locate
from dhlab.datasets.listing import OURS, read_listing
from dhlab.datasets.masks import MaskFiles, MaskValues
from dhlab.datasets.pairs import check_sizes
from dhlab.datasets.samples import JoinedSamples, PickedSamples
from dhlab.errors import (
    BadValueError,
    ConflictError,
    DHLabError,
    DHLabWarning,
    NotFoundError,
)
from dhlab.tasks import IGNORE, TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.datasets.groups import Patient
    from dhlab.datasets.listing import Listing
    from dhlab.datasets.samples import Samples

__all__ = ["list_masks", "read_yaml", "write_yaml"]

# Features that name the patient, whatever their case.
PATIENT = ("patient", "patient_id", "patientid", "subject", "subject_id")
VERSION = 1


def read_yaml(
    path: str | os.PathLike[str],
    *,
    task: str | None,
    values: MaskValues | None,
    patient: Patient | None,
    check: bool,
    allow_outside: bool,
    allow_leakage: bool,
    size: int | Sequence[int] | None,
    channels: int | None,
    stack: str | None,
) -> Dataset:
    """Make a dataset of a DeepHealth YAML file; see `Dataset.from_yaml`."""
    source = Path(path).expanduser().absolute()
    content = read_listing(source, allow_outside=allow_outside)
    task = task or str(content.ours.get("task") or "") or _infer(content)
    if task not in TASKS or task == "regression":
        raise BadValueError(f"task {task!r}; the format has classification, multilabel and segmentation.")
    _warn_unused(source, content, task)
    wanted = check_size(size)
    pictures = PictureFiles(content.places, wanted, channels, stack)
    if TASKS[task].dense:
        coding = _coding(content, values)
        names = tuple(coding.named)
        masks = tuple(label.mask for label in content.labels)
        aims: NDArray[Any] | MaskFiles = MaskFiles(masks, coding, wanted)
    else:
        names, aims = content.classes, _class_targets(source, content, task)
    if check:
        _check_files(source, content)
        pictures = pictures.check()
        if isinstance(aims, MaskFiles):
            alone = [i for i, places in enumerate(content.places) if len(places) == 1]
            check_sizes([content.places[i][0] for i in alone], [aims.paths[i] for i in alone])
    groups = _patients(content, source.parent, patient)
    if groups:
        refuse_shared(groups, content.splits, what="patient", allow_leakage=allow_leakage)
    refuse_shared(
        [str(i) for i in range(len(content.places))], content.splits, what="sample", allow_leakage=allow_leakage
    )
    return Dataset(
        samples=FileSamples(pictures, aims),
        classes=names,
        task=task,
        groups=groups,
        unit_name="patient" if groups else "sample",
        splits=content.splits,
        features=content.features,
        axes=_axes(pictures),
        name=content.name,
        root=source.parent,
    )


def write_yaml(
    dataset: Dataset, path: str | os.PathLike[str], *, description: str, allow_outside: bool, overwrite: bool
) -> Path:
    """Write a dataset as a DeepHealth YAML file; see `Dataset.to_yaml`."""
    import yaml

    target = Path(path).expanduser().absolute()
    if target.exists() and not overwrite:
        raise ConflictError(f"{target} exists already; choose another name or pass overwrite=True.")
    if dataset.task == "regression":
        raise BadValueError("the format has no numbers as labels; keep a regression in a table.")
    places = locate(dataset.samples)
    if not all(places):
        raise BadValueError(
            f"sample {places.index(())} of {dataset.name!r} lies in no file; the format lists files. Save them first."
        )
    dense = TASKS[dataset.task].dense
    masks = list_masks(dataset.samples) if dense else []
    ours: dict[str, Any] = {"version": VERSION, "task": dataset.task}
    if dense:
        ours |= _plain_values(dataset)
    features, patient = _with_patient(dataset)
    if patient is not None:
        ours["patient"] = patient
    labels = [None] * len(dataset) if dense else _class_labels(dataset)
    images: list[Any] = []
    for index, paths in enumerate(places):
        told = [_relative(p, target, allow_outside) for p in paths]
        entry: dict[str, Any] = {"location": told[0] if len(told) == 1 else told}
        label = _relative(masks[index], target, allow_outside) if dense and masks[index] else labels[index]
        if label is not None:
            entry["label"] = label
        known = {name: column[index] for name, column in features.items() if column[index] is not None}
        if known:
            entry["values"] = known
        images.append(entry)
    whole: dict[str, Any] = {"name": dataset.name}
    if description:
        whole["description"] = description
    if not dense:
        whole["classes"] = list(dataset.classes)
    if features:
        whole["features"] = list(features)
    whole["images"] = images
    if dataset.splits:
        whole["split"] = {name: list(indices) for name, indices in dataset.splits.items()}
    whole[OURS] = ours
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(whole, Dumper=dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    atomic_write_text(target, text)
    return target


def _infer(content: Listing) -> str:
    """Return the task that the labels speak of; classes decide over masks, as the format has it."""
    labels = content.labels
    if any(label.several for label in labels):
        return "multilabel"
    if any(label.classes is not None for label in labels):
        return "classification"
    return "classification" if content.classes and not any(label.mask for label in labels) else "segmentation"


def _warn_unused(source: Path, content: Listing, task: str) -> None:
    dense = TASKS[task].dense
    unused = sum(label.classes is not None if dense else label.mask is not None for label in content.labels)
    if unused:
        kind, other = ("classes", "classification") if dense else ("masks", "segmentation")
        warnings.warn(
            f"{source}: {unused} of {len(content.labels)} images are labelled with {kind}, which a {task} does not "
            f"take; they count as unlabelled. Pass task={other!r} to learn from these instead.",
            DHLabWarning,
            stacklevel=4,
        )


def _class_targets(source: Path, content: Listing, task: str) -> NDArray[np.int64]:
    if not content.classes:
        raise BadValueError(f"{source} lists no classes; a {task} needs them.")
    count = len(content.classes)
    if task == "multilabel":
        rows = np.full((len(content.labels), count), IGNORE, np.int64)
        for row, label in zip(rows, content.labels, strict=True):
            if label.classes is not None:
                row[:] = 0
                row[list(label.classes)] = 1
        return rows
    for index, label in enumerate(content.labels):
        if label.several:
            raise BadValueError(
                f"{source}, image {index}: {len(label.classes or ())} classes at once; expected one, or pass "
                "task='multilabel'."
            )
    return np.array([IGNORE if label.classes is None else label.classes[0] for label in content.labels], np.int64)


def _coding(content: Listing, values: MaskValues | None) -> MaskValues:
    """Return what mask values stand for: as given, as the file says, or by the format's habit."""
    if values is not None:
        return values
    named = content.ours.get("values")
    if isinstance(named, dict):
        ignored = content.ours.get("ignore")
        return MaskValues(
            {str(name): _value(value) for name, value in named.items()},
            tuple(_value(value) for value in ignored) if isinstance(ignored, list) else (),
            tolerance if isinstance(tolerance := content.ours.get("tolerance"), int) else 0,
        )
    if len(content.classes) > 1:
        return MaskValues({name: index for index, name in enumerate(content.classes)})
    return MaskValues({"background": 0, (content.classes or ("foreground",))[0]: "rest"})


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_files(source: Path, content: Listing) -> None:
    masks = [label.mask for label in content.labels]
    for index, (places, mask) in enumerate(zip(content.places, masks, strict=True)):
        for path in (*places, *([mask] if mask is not None else [])):
            if not os.path.exists(path):  # noqa: PTH110 - 25,000 of them
                raise NotFoundError(f"{source}, image {index}: nothing at {path}. Copy it there, or mend the location.")


def _patients(content: Listing, root: Path, patient: Patient | None) -> tuple[str, ...]:
    """Return the patient of each sample: of a feature, or of the path."""
    if patient is None:
        said = str(content.ours.get("patient") or "")
        patient = said if said in content.features else None
        patient = patient or next((n for n in content.features if n.lower().replace(" ", "_") in PATIENT), None)
    if isinstance(patient, str) and patient in content.features:
        column = content.features[patient]
        # Who is not known is nobody else.
        return tuple(f"sample {i}" if name is None else name for i, name in enumerate(column))
    return find_patients([relative(places[0], root) for places in content.places], patient)


def _axes(pictures: PictureFiles) -> str:
    """Return the axes of the windows; where the first file cannot be opened here, those of ordinary pictures."""
    try:
        return pictures.layout.axes
    except DHLabError:
        several = len(pictures.paths[0]) > 1
        return f"{pictures.stack or 'z'}yx" if several else "yx" if pictures.channels == 1 else "yxc"


def list_masks(samples: Samples) -> list[str | None]:
    """Return the mask of each sample."""
    if isinstance(samples, FileSamples) and isinstance(samples.aims, MaskFiles):
        return list(samples.aims.paths)
    if isinstance(samples, PickedSamples):
        paths = list_masks(samples.source)
        return [paths[i] for i in samples.indices.tolist()]
    if isinstance(samples, JoinedSamples):
        return [path for part in samples.parts for path in list_masks(part)]
    raise BadValueError("these samples have no mask files; the format lists files.")


def _plain_values(dataset: Dataset) -> dict[str, Any]:
    """Return what the mask values of a dataset stand for, as YAML holds it."""
    codings: list[MaskValues] = []

    def visit(samples: Samples) -> None:
        if isinstance(samples, FileSamples) and isinstance(samples.aims, MaskFiles):
            codings.append(samples.aims.values)
        for part in samples.parts if isinstance(samples, JoinedSamples) else ():
            visit(part)
        if isinstance(samples, PickedSamples):
            visit(samples.source)

    visit(dataset.samples)
    if any(coding != codings[0] for coding in codings):
        raise BadValueError(f"the parts of {dataset.name!r} name mask values differently; write one file for each.")
    coding = codings[0]
    plain: dict[str, Any] = {"values": {n: v if isinstance(v, int | str) else list(v) for n, v in coding.named.items()}}
    if coding.ignore:
        plain |= {"ignore": [v if isinstance(v, int) else list(v) for v in coding.ignore]}
    if coding.tolerance:
        plain |= {"tolerance": coding.tolerance}
    return plain


def _with_patient(dataset: Dataset) -> tuple[dict[str, tuple[str | None, ...]], str | None]:
    """Return the features, with the patients among them, and which feature these are."""
    features = dict(dataset.features)
    if dataset.unit_name != "patient":
        return features, None
    # Whoever is not named in a file is a patient of his own (see `_patients`).
    for name, column in features.items():
        if tuple(f"sample {i}" if who is None else who for i, who in enumerate(column)) == dataset.groups:
            return features, name
    name = next(n for n in ("patient", "patient group", "dhlab patient") if n not in features)
    return features | {name: dataset.groups}, name


def _class_labels(dataset: Dataset) -> list[Any]:
    labels: list[Any] = []
    for index, target in enumerate(dataset.samples.targets(np.arange(len(dataset), dtype=np.int64))):
        if TASKS[dataset.task].exclusive:
            labels.append(None if target == IGNORE else dataset.classes[int(target)])
        elif (target == IGNORE).all():
            labels.append(None)
        elif (target == IGNORE).any():
            raise BadValueError(
                f"sample {index} is labelled for some classes and unknown for others; the format cannot say so. "
                "Complete its label, or take it away."
            )
        else:
            labels.append([name for name, flag in zip(dataset.classes, target, strict=True) if flag])
    return labels


def _relative(path: str | None, target: Path, allow_outside: bool) -> str:
    full = os.path.abspath(path or "")  # noqa: PTH100 - a link must keep its name
    if os.path.commonpath([full, target.parent]) == str(target.parent):
        return Path(os.path.relpath(full, target.parent)).as_posix()
    if not allow_outside:
        raise BadValueError(
            f"{full} lies outside {target.parent}; a file that lists it would be refused. Write it beside the "
            "data, or pass allow_outside=True."
        )
    return Path(full).as_posix()
