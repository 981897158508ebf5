"""Pictures with their masks, paired by name."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dhlab.datasets.dataset import Dataset
from dhlab.datasets.files import FileSamples, PictureFiles, check_size, list_files
from dhlab.datasets.groups import find_patients, relative
from dhlab.datasets.masks import MaskFiles, MaskValues
from dhlab.datasets.pictures import read_layout
from dhlab.errors import BadShapeError, BadValueError
from dhlab.io import READERS, suffix_of

if TYPE_CHECKING:
    from dhlab.datasets.groups import Patient
    from dhlab.datasets.masks import Value

__all__ = ["check_sizes", "pair_files"]

SHOWN = 5
Where = str | Path | Sequence[str | Path]


def pair_files(
    images: Where,
    masks: Where,
    *,
    values: Mapping[str, Value],
    ignore: Sequence[int | Sequence[int]],
    tolerance: int,
    mask_suffix: str,
    patient: Patient | None,
    size: int | Sequence[int] | None,
    channels: int | None,
    name: str | None,
) -> Dataset:
    """Make a dataset of pictures and masks; see `Dataset.from_pairs`."""
    coding = MaskValues(dict(values), tuple(ignore), tolerance)
    paths, partners = _pair(images, masks, mask_suffix)
    root = Path(os.path.commonpath([str(Path(p).parent) for p in paths]))
    groups = find_patients([relative(p, root) for p in paths], patient)
    wanted = check_size(size)
    pictures = PictureFiles(tuple((p,) for p in paths), wanted, channels).check()
    check_sizes(paths, partners)
    return Dataset(
        samples=FileSamples(pictures, MaskFiles(tuple(partners), coding, wanted)),
        classes=tuple(values),
        task="segmentation",
        groups=groups,
        unit_name="patient" if groups else "sample",
        axes=pictures.layout.axes,
        name=name or (root.parent.name if root.name.lower() in ("images", "image", "img") else root.name),
        root=root,
    )


def check_sizes(paths: Sequence[str], partners: Sequence[str | None]) -> None:
    """Raise BadShapeError if a mask has another size than its picture; reads headers only."""
    for path, partner in zip(paths, partners, strict=True):
        if partner is None:
            continue
        picture, mask = read_layout(path), read_layout(partner)
        sizes = [tuple(layout.size(a) for a in "zyx" if a in layout.axes) for layout in (picture, mask)]
        if sizes[0] != sizes[1]:
            told = [" × ".join(map(str, shape)) for shape in sizes]
            raise BadShapeError(
                f"mask {partner} is {told[1]} px, its picture {path} {told[0]} px; expected the same. "
                "Look for a mask of another picture, or one that was turned or resized."
            )


def _pair(images: Where, masks: Where, suffix: str) -> tuple[list[str], list[str]]:
    paths, partners = list_files(images), list_files(masks)
    if not isinstance(images, str | Path) and not isinstance(masks, str | Path):
        if len(paths) != len(partners) or not paths:
            raise BadValueError(f"{len(paths)} images and {len(partners)} masks; expected as many, at least one.")
        if len(set(paths)) < len(paths):
            raise BadValueError(f"{max(paths, key=paths.count)} stands among the images more than once; list it once.")
        return paths, partners
    keyed = {_key(p, masks): p for p in partners}
    if len(keyed) < len(partners):
        raise BadValueError(f"two masks in {masks} differ in their suffix only; expected one per picture.")
    pairs = {p: keyed.pop(_key(p, images) + suffix, None) for p in paths}
    lonely = [p for p, partner in pairs.items() if partner is None]
    for what, missing, those in (("images", lonely, "mask"), ("masks", list(keyed.values()), "image")):
        if missing:
            raise BadValueError(
                f"{len(missing)} of the {what} have no {those} of the same name{f' + {suffix!r}' if suffix else ''}: "
                f"{', '.join(missing[:SHOWN])}{' …' if len(missing) > SHOWN else ''}. Add or remove files, give "
                "mask_suffix=…, or pass both as lists in the same order."
            )
    return paths, [p for p in pairs.values() if p is not None]


def _key(path: str, where: Where) -> str:
    """Return the name that pairs two files: below their folder, without suffix."""
    place = Path(path)
    folder = Path(where).expanduser().absolute() if isinstance(where, str | Path) else place.parent
    inside = place.relative_to(folder) if folder.is_dir() and place.is_relative_to(folder) else Path(place.name)
    suffix = suffix_of(inside, READERS) or inside.suffix
    return inside.as_posix()[: -len(suffix) or None]
