"""What two sets must not share: patients, files, windows of a scan, and pictures that are nearly the same."""

from __future__ import annotations

import hashlib
import os.path
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets.files import FileSamples, PictureFiles
from dhlab.datasets.samples import JoinedSamples, PickedSamples
from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.datasets.dataset import Dataset
    from dhlab.datasets.samples import Samples

__all__ = ["check_apart", "find_duplicates", "fingerprints", "locate"]

# Measured on shared data: copies (JPEG from quality 50, resized by 0.5 to 2, brightened) reach 0.994 and more;
# the nearest that are none are 0.956 (neighbouring CT slices), 0.93 (MR slices), 0.91 (skin lesions).
ALIKE = 0.97
SIDE, FREQUENCIES = 32, 16
# Thumbnails with less contrast, as a share of the range of values, show nothing to compare.
LEAST_CONTRAST = 2 / 255
DECODED = 64
CHUNK, BLOCK = 64, 4096
SHOWN = 5


def check_apart(first: Dataset, second: Dataset, *, duplicates: bool = True, alike: float = ALIKE) -> None:
    """Raise if two sets share what makes the second no honest test of a model that learned from the first.

    Parameters
    ----------
    first, second
        Sets to compare, such as training and test.
    duplicates
        Look for pictures that are nearly the same, which reads every picture once.
    alike
        Least likeness of two pictures, up to 1, that counts as the same (see `find_duplicates`).

    Raises
    ------
    BadValueError
        If both hold samples of one patient, of one file, or nearly the same picture; the message names the first few
        and how many there are.
    """
    faults = []
    if overlapping := _overlaps(first.samples, second.samples):
        faults.append(_tell(len(overlapping), "scan with windows that overlap", overlapping, "scans with such windows"))
    if first.unit_name == second.unit_name == "patient":
        patients = sorted(set(first.groups) & set(second.groups))
        if patients:
            faults.append(_tell(len(patients), "patient", patients))
    places = [locate(dataset.samples) for dataset in (first, second)]
    files = sorted(set.intersection(*({os.path.realpath(p) for paths in place for p in paths} for place in places)))
    if files:
        faults.append(_tell(len(files), "file", files))
    if duplicates and not files and not overlapping:
        pairs = _pairs(fingerprints(first), fingerprints(second), alike)
        told = [f"{_name(places[0], i)} and {_name(places[1], j)}" for i, j in pairs[:SHOWN]]
        if pairs:
            faults.append(
                _tell(len(pairs), "pair of nearly the same pictures", told, "pairs of nearly the same pictures")
            )
    if faults:
        raise BadValueError(
            f"{first.name!r} and {second.name!r} are not apart: {'; '.join(faults)}. Figures on the second are too "
            "good for a model that learned from the first. Split again by patient, or leave these out."
        )


def refuse_overlap(dataset: Dataset, splits: Mapping[str, Sequence[int]]) -> None:
    """Raise BadValueError if windows of a scan in two splits show the same place."""
    parts = {name: PickedSamples(dataset.samples, np.array(members, np.int64)) for name, members in splits.items()}
    for first, second in combinations(parts, 2):
        if scans := _overlaps(parts[first], parts[second]):
            raise BadValueError(
                f"{first} and {second} would show the same places of {', '.join(scans[:SHOWN])}, since windows of "
                f"{dataset.name!r} overlap. Cut a region for each instead: Dataset.from_annotations(…, region=…)."
            )


def find_duplicates(dataset: Dataset, *, alike: float = ALIKE) -> list[tuple[int, int]]:
    """Return pairs of samples whose pictures are nearly the same: stored again, resized or brightened.

    Pictures are compared as small grey copies by the correlation of their cosine transforms, each frequency weighted
    by its number, since low ones are alike in all pictures of a kind. Pictures without contrast (empty glass) are left
    out; what was cropped, turned or mirrored is not found. Signals and bags are compared value by value.

    Parameters
    ----------
    dataset
        Samples to compare with one another; each is read once.
    alike
        Least likeness of two pictures, up to 1, that counts as the same.

    Returns
    -------
    list of tuple of int
        Indices of two samples each, the smaller first, sorted.

    References
    ----------
    C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, for the cosine transform of
    a small copy as a fingerprint.
    """
    marks = fingerprints(dataset)
    return [(i, j) for i, j in _pairs(marks, marks, alike) if i < j]


def fingerprints(dataset: Dataset) -> NDArray[np.float32] | list[bytes]:
    """Return what tells pictures apart.

    Returns
    -------
    ndarray or list of bytes
        Of pictures ``(N, 256)`` float32 rows of length 1 (0 without contrast), whose product is their likeness; of
        signals and bags a digest per sample.
    """
    batches = [np.arange(i, min(i + CHUNK, len(dataset)), dtype=np.int64) for i in range(0, len(dataset), CHUNK)]
    if not {"y", "x"} <= set(dataset.axes):
        return [
            hashlib.blake2b(np.ascontiguousarray(dataset[index][0]).tobytes(), digest_size=16).digest()
            for index in range(len(dataset))
        ]
    small, highest = [], 0.0
    for indices in batches:
        pictures = _read_small(dataset.samples, indices, dataset.axes)
        highest = max(highest, 255.0 if pictures.dtype == np.uint8 else float(np.abs(pictures).max()))
        small.append(_shrink(pictures))
    return _transform(np.concatenate(small), highest)


def locate(samples: Samples) -> list[tuple[str, ...]]:
    """Return the files of each sample; none for those that lie elsewhere."""
    if isinstance(samples, FileSamples):
        return list(samples.pictures.paths)
    if isinstance(samples, PickedSamples):
        places = locate(samples.source)
        return [places[i] for i in samples.indices.tolist()]
    if isinstance(samples, JoinedSamples):
        return [paths for part in samples.parts for paths in locate(part)]
    return [()] * len(samples)


def _windows(samples: Samples) -> dict[str, NDArray[np.int64]]:
    """Return by scan the corners of its windows in level-0 pixels, ``(N, 2, ndim)``."""
    if isinstance(samples, PickedSamples):
        inner = samples.source
        if isinstance(inner, PickedSamples):
            return _windows(PickedSamples(inner.source, inner.indices[samples.indices]))
        if isinstance(inner, JoinedSamples):
            return _windows(JoinedSamples(inner.pick(samples.indices)))
        return {name: corners[samples.indices] for name, corners in _windows(inner).items()}
    if isinstance(samples, JoinedSamples):
        joined: dict[str, list[NDArray[np.int64]]] = {}
        for part in samples.parts:
            for name, corners in _windows(part).items():
                joined.setdefault(name, []).append(corners)
        return {name: np.concatenate(corners) for name, corners in joined.items()}
    if not hasattr(samples, "tiles"):
        return {}
    scan, grid = samples.tiles.scan, samples.tiles.grid
    starts = grid.starts()
    ends = starts + np.rint(np.asarray(grid.tile) * np.asarray(grid.scale)).astype(np.int64)
    return {str(scan.meta.get("path", scan.name)): np.stack([starts, ends], 1)}


def _overlaps(first: Samples, second: Samples) -> list[str]:
    """Return the scans of which both show the same place."""
    ours, theirs = _windows(first), _windows(second)
    return [
        name
        for name in sorted(ours.keys() & theirs.keys())
        if any(((start < theirs[name][:, 1]) & (theirs[name][:, 0] < end)).all(1).any() for start, end in ours[name])
    ]


def _read_small(samples: Samples, indices: NDArray[np.int64], axes: str) -> NDArray[Any]:
    """Return pictures ``(B, height, width)``, decoded no larger than is of use."""
    if isinstance(samples, PickedSamples):
        return _read_small(samples.source, samples.indices[indices], axes)
    if isinstance(samples, FileSamples) and samples.pictures.layout.axes in ("yx", "yxc"):
        return PictureFiles(samples.pictures.paths, (DECODED, DECODED), channels=1).read(indices)
    windows = samples.read(indices)[0]
    order = [1 + axes.index(a) for a in "yx"]
    others = tuple(i for i in range(1, windows.ndim) if i not in order)
    channels = [i for i in others if axes[i - 1] == "c"]
    # Volumes are told by their middle plane, colours by their mean.
    key = tuple(
        windows.shape[i] // 2 if i in others and i not in channels else slice(None) for i in range(windows.ndim)
    )
    kept = [a for a in axes if a in "cyx"]
    plane = windows[key]
    if channels:
        plane = plane.mean(1 + kept.index("c"), dtype=np.float32).astype(windows.dtype, copy=False)
    return plane if axes.index("y") < axes.index("x") else plane.swapaxes(1, 2)


def _shrink(pictures: NDArray[Any]) -> NDArray[np.float32]:
    import cv2

    small = np.empty((len(pictures), SIDE, SIDE), np.float32)
    height, width = pictures.shape[1:]
    how = cv2.INTER_AREA if min(height, width) >= SIDE else cv2.INTER_LINEAR
    for picture, out in zip(pictures, small, strict=True):
        out[...] = cv2.resize(np.nan_to_num(picture.astype(np.float32)), (SIDE, SIDE), interpolation=how)
    return small


def _transform(small: NDArray[np.float32], highest: float) -> NDArray[np.float32]:
    from scipy.fft import dctn

    contrast = small.std((1, 2))
    waves = np.asarray(dctn(small, axes=(1, 2), norm="ortho"))[:, :FREQUENCIES, :FREQUENCIES]
    weight = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES]).astype(np.float32)
    marks = (waves * weight).reshape(len(small), -1)
    marks /= np.maximum(np.linalg.norm(marks, axis=1, keepdims=True), 1e-12)
    marks[contrast < LEAST_CONTRAST * highest] = 0
    return np.asarray(marks, np.float32)


def _pairs(
    first: NDArray[np.float32] | list[bytes], second: NDArray[np.float32] | list[bytes], alike: float
) -> list[tuple[int, int]]:
    """Return indices into both of what is alike."""
    if not 0 < alike <= 1:
        raise BadValueError(f"alike {alike}; expected a likeness above 0, up to 1.")
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        found: list[tuple[int, int]] = []
        for i in range(0, len(first), BLOCK):
            for j in range(0, len(second), BLOCK):
                near = np.argwhere(first[i : i + BLOCK] @ second[j : j + BLOCK].T >= alike)
                found += [(i + int(a), j + int(b)) for a, b in near]
        return sorted(found)
    if isinstance(first, list) and isinstance(second, list):
        where: dict[bytes, list[int]] = {}
        for j, digest in enumerate(second):
            where.setdefault(digest, []).append(j)
        return [(i, j) for i, digest in enumerate(first) for j in where.get(digest, ())]
    return []


def _tell(count: int, noun: str, names: Sequence[str], plural: str | None = None) -> str:
    more = " …" if count > SHOWN else ""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'} in both ({', '.join(names[:SHOWN])}{more})"


def _name(places: Sequence[tuple[str, ...]], index: int) -> str:
    return places[index][0] if places[index] else f"sample {index}"
