"""Folders of pictures: a folder per class, below a folder per split if there are splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dhlab.datasets.dataset import Dataset
from dhlab.datasets.files import FileSamples, PictureFiles, check_size, is_picture
from dhlab.datasets.groups import find_patients, refuse_shared
from dhlab.datasets.splitting import split_name
from dhlab.errors import BadValueError, NotFoundError, UnknownNameError, suggest

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from dhlab.datasets.groups import Patient

__all__ = ["read_folder"]


def read_folder(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None,
    splits: bool | None,
    patient: Patient | None,
    size: int | Sequence[int] | None,
    channels: int | None,
    allow_leakage: bool,
    name: str | None,
) -> Dataset:
    """Make a dataset of a folder; see `Dataset.from_folder`."""
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise NotFoundError(f"no folder at {folder}; expected one with a folder per class.")
    tops = _folders(folder)
    if not tops:
        raise NotFoundError(f"{folder} has no folders in it; expected one per class, or one per split.")
    usual = [top for top in tops if split_name(top.name)]
    if splits is None and usual and len(usual) < len(tops):
        odd = ", ".join(top.name for top in tops if top not in usual)
        raise BadValueError(
            f"{folder} has folders named as splits ({', '.join(t.name for t in usual)}) beside others ({odd}). "
            "Say what they are: splits=True or splits=False."
        )
    split_folders = (
        {split_name(top.name) or top.name: top for top in tops} if (usual if splits is None else splits) else {}
    )
    if split_folders and len(split_folders) < len(tops):
        raise BadValueError(
            f"{folder}: several folders mean one split ({', '.join(t.name for t in tops)}). Rename one."
        )
    sources = split_folders or {"": folder}
    found = sorted({child.name for source in sources.values() for child in _folders(source)})
    names = tuple(found) if classes is None else tuple(classes)
    for unknown in [n for n in found if n not in names]:
        raise UnknownNameError(f"{folder} has a folder {unknown!r} that is no class.{suggest(unknown, names)}")
    paths: list[Path] = []
    labels: list[int] = []
    members: dict[str, tuple[int, ...]] = {}
    for split, source in sources.items():
        first = len(paths)
        for index, label in enumerate(names):
            files = sorted(p for p in (source / label).rglob("*") if is_picture(p.relative_to(source)) and p.is_file())
            paths += files
            labels += [index] * len(files)
        members[split] = tuple(range(first, len(paths)))
    if not paths:
        raise NotFoundError(f"no pictures in the class folders {', '.join(found) or '(none)'} of {folder}.")
    for split in (s for s in split_folders if not members[s]):
        raise BadValueError(f"split {split!r} of {folder} holds no pictures. Fill or remove {split_folders[split]}.")
    groups = find_patients([p.relative_to(folder).as_posix() for p in paths], patient)
    kept = members if split_folders else {}
    if groups:
        refuse_shared(groups, kept, what="patient", allow_leakage=allow_leakage)
    pictures = PictureFiles(tuple((str(p),) for p in paths), check_size(size), channels).check()
    return Dataset(
        samples=FileSamples(pictures, np.array(labels, np.int64)),
        classes=names,
        task="classification",
        groups=groups,
        unit_name="patient" if groups else "sample",
        splits=kept,
        axes=pictures.layout.axes,
        name=name or folder.name,
        root=folder,
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
