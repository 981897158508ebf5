"""OME-Zarr metadata (NGFF 0.4 and 0.5): from JSON to the fields of a scan, and back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError
from dhlab.io.chunks import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dhlab.scan import Parent

__all__ = ["Image", "Multiscale", "compose_attributes", "disk_axes", "read_attributes", "read_multiscale"]

ORDER = "tczyx"
UNITS = {"µm": "micrometer", "mm": "millimeter", "s": "second"}
# To µm, mm or s from what other writers use.
FACTORS = {
    "angstrom": ("µm", 1e-4),
    "nanometer": ("µm", 1e-3),
    "micrometer": ("µm", 1.0),
    "micron": ("µm", 1.0),
    "millimeter": ("mm", 1.0),
    "centimeter": ("mm", 10.0),
    "meter": ("mm", 1000.0),
    "microsecond": ("s", 1e-6),
    "millisecond": ("s", 1e-3),
    "second": ("s", 1.0),
    "minute": ("s", 60.0),
    "hour": ("s", 3600.0),
}
RGB = (("FF0000", "00FF00", "0000FF"), ("RED", "GREEN", "BLUE"), ("R", "G", "B"))
COLOURS = ("FF0000", "00FF00", "0000FF", "FFFF00", "FF00FF", "00FFFF", "FF8000", "8000FF")


@dataclass(frozen=True)
class Image:
    """What is written about a scan besides its pixels; fields as in `Scan`."""

    axes: str
    spacing: tuple[float, ...]
    unit: str
    origin: tuple[float, ...]
    channels: tuple[str, ...]
    name: str
    kind: str
    dtype: np.dtype[Any]
    fill: int | float = 0
    parent: Parent | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Multiscale:
    """What an OME-Zarr group says of its image.

    Parameters
    ----------
    version
        ``"0.4"`` or ``"0.5"``.
    axes
        Axis letters on disk.
    paths
        Folder of every level, finest first.
    scales, translations
        Physical size of a pixel, and position, per level and disk axis, in the unit of `units`.
    units
        Unit per disk axis (``"µm"``, ``"mm"``, ``"s"``), or None.
    name
        Name of the image.
    omero
        Rendering settings, as found.
    own
        Our own attributes, as found; empty in files of others.
    is_label
        The group is a label image.
    """

    version: str
    axes: str
    paths: tuple[Path, ...]
    scales: tuple[tuple[float, ...], ...]
    translations: tuple[tuple[float, ...] | None, ...]
    units: tuple[str | None, ...]
    name: str
    omero: Mapping[str, Any]
    own: Mapping[str, Any]
    is_label: bool

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are red, green and blue of one colour image."""
        channels = self.omero.get("channels") or []
        return any(tuple(str(c.get(key, "")).upper() for c in channels) in RGB for key in ("color", "label"))


def disk_axes(axes: str) -> str:
    """Return the axes to write for those of a scan: t, c, space, with at least y and x (of length 1 if need be)."""
    return "".join(a for a in ORDER if a in axes or a in "yx")


def read_attributes(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a group's OME metadata and our own attributes, or raise `BadFileError` saying what is there instead."""
    if not folder.is_dir():
        raise BadFileError(f"{folder} is a file; expected an OME-Zarr folder. Unpack it if it is an archive.")
    if (folder / "zarr.json").is_file():
        meta = read_json(folder / "zarr.json")
        if meta.get("node_type") == "array":
            raise BadFileError(_bare_array(folder))
        attributes = meta.get("attributes") or {}
        ome = attributes.get("ome") or {}
    elif (folder / ".zarray").is_file():
        raise BadFileError(_bare_array(folder))
    elif (folder / ".zattrs").is_file() or (folder / ".zgroup").is_file():
        attributes = ome = read_json(folder / ".zattrs") if (folder / ".zattrs").is_file() else {}
    else:
        held = sorted(p.name for p in folder.iterdir())
        raise BadFileError(
            f"{folder} has no zarr metadata (zarr.json, .zgroup or .zattrs); it holds "
            f"{', '.join(held[:5]) or 'nothing'}{' …' if len(held) > 5 else ''}. Copy the whole folder again, hidden "
            "files included."
        )
    own = attributes.get("dhlab")
    return ome, own if isinstance(own, dict) else {}


def read_multiscale(folder: Path) -> Multiscale:
    """Return what the OME-Zarr group at `folder` says, or raise `BadFileError`."""
    ome, own = read_attributes(folder)
    found = ome.get("multiscales")
    if not found:
        raise BadFileError(_no_image(folder, ome))
    try:
        return _parse(folder, ome, found[0], own)
    except BadFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadFileError(
            f"{folder}: cannot understand its multiscales metadata ({type(error).__name__}: {error}); expected "
            "OME-Zarr 0.4 or 0.5. Write it again with a current OME-Zarr tool."
        ) from error


def compose_attributes(
    image: Image, shapes: Sequence[tuple[int, ...]], *, shards: Sequence[int], fingerprint: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return a group's attributes: OME-Zarr 0.5 for everybody, and ours for what it cannot say.

    Parameters
    ----------
    image
        What to say.
    shapes
        Shape of every level on disk, in pixels.
    shards
        Number of shards written of every level: a lost one is noticed.
    fingerprint
        What the pixels were made with, if they were.
    """
    axes, window = disk_axes(image.axes), image.axes.replace("c", "")
    spacing, origin = dict(zip(window, image.spacing, strict=True)), dict(zip(window, image.origin, strict=True))
    spatial = image.unit != "s"
    datasets = []
    for level in range(len(shapes)):
        scale = [spacing.get(a, 1.0) * (2.0**level if a in "yx" else 1.0) for a in axes]
        # NGFF places the centre of the first pixel; `origin` is its outer corner.
        shift = [
            origin.get(a, 0.0) + (s / 2 if a in window and a != "t" else 0) for a, s in zip(axes, scale, strict=True)
        ]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    described = []
    for a in axes:
        kind = {"t": "time", "c": "channel"}.get(a, "space")
        fits = a in window and image.unit in UNITS and (kind == "space") == spatial
        described.append({"name": a, "type": kind} | ({"unit": UNITS[image.unit]} if fits else {}))
    nearest = image.kind in ("mask", "labels")
    multiscale = {
        "name": image.name,
        "axes": described,
        "datasets": datasets,
        "type": "nearest" if nearest else "mean",
        "metadata": {"method": "dhlab.scan.halve", "args": [], "kwargs": {"nearest": nearest}},
    }
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if nearest:
        ome["image-label"] = {"version": "0.5"}
    elif image.channels:
        ome["omero"] = {"channels": [_channel(image, i) for i in range(len(image.channels))]}
    own = {
        "version": 1,
        "axes": image.axes,
        "spacing": list(image.spacing),
        "unit": image.unit,
        "origin": list(image.origin),
        "channels": list(image.channels),
        "name": image.name,
        "kind": image.kind,
        "parent": asdict(image.parent) if image.parent else None,
        "shards": list(shards),
        **image.provenance,
    }
    return {"ome": ome, "dhlab": own | ({"fingerprint": dict(fingerprint)} if fingerprint is not None else {})}


def _parse(folder: Path, ome: Mapping[str, Any], multiscale: Mapping[str, Any], own: Mapping[str, Any]) -> Multiscale:
    version = str(ome.get("version") or multiscale.get("version") or "0.4")
    if version not in ("0.4", "0.5"):
        raise BadFileError(
            f"{folder} is OME-Zarr {version}; dhlab reads 0.4 and 0.5. Convert it with a current OME-Zarr tool."
        )
    names = [str(a["name"]) for a in multiscale["axes"]]
    axes = "".join(names)
    if any(n not in ORDER for n in names) or len(set(names)) != len(names):
        raise BadFileError(f"{folder} has axes {names}; expected distinct ones among t, c, z, y, x.")
    if len(multiscale["datasets"]) < 1:
        raise BadFileError(f"{folder} names no dataset in its multiscales metadata. Copy it again from its source.")
    base_scale, base_shift = _transform(multiscale.get("coordinateTransformations"), len(axes))
    units = [FACTORS.get(str(a.get("unit", "")).lower(), (None, 1.0)) for a in multiscale["axes"]]
    paths, scales, shifts = [], [], []
    for dataset in multiscale["datasets"]:
        scale, shift = _transform(dataset.get("coordinateTransformations"), len(axes))
        factor = base_scale or [1.0] * len(axes)
        total = [b * s * u[1] for b, s, u in zip(factor, scale or [1.0] * len(axes), units, strict=True)]
        if not all(math.isfinite(v) and v > 0 for v in total):
            raise BadFileError(f"{folder}: dataset {dataset['path']!r} has scale {scale}; expected positive numbers.")
        moved = None
        if shift is not None or base_shift is not None:
            inner = shift or [0.0] * len(axes)
            outer = base_shift or [0.0] * len(axes)
            moved = tuple((i * f + o) * u[1] for i, f, o, u in zip(inner, factor, outer, units, strict=True))
        paths.append(folder / str(dataset["path"]))
        scales.append(tuple(total))
        shifts.append(moved)
    return Multiscale(
        version,
        axes,
        tuple(paths),
        tuple(scales),
        tuple(shifts),
        tuple(u[0] for u in units),
        str(multiscale.get("name") or ""),
        ome.get("omero") or {},
        own,
        "image-label" in ome,
    )


def _transform(found: Sequence[Mapping[str, Any]] | None, ndim: int) -> tuple[list[float] | None, list[float] | None]:
    scale = shift = None
    for transform in found or ():
        values = transform.get(transform["type"])
        if transform["type"] in ("scale", "translation") and values is not None:
            if len(values) != ndim:
                raise ValueError(f"{transform['type']} {values} for {ndim} axes")
            if transform["type"] == "scale":
                scale = [float(v) for v in values]
            else:
                shift = [float(v) for v in values]
    return scale, shift


def _channel(image: Image, index: int) -> dict[str, Any]:
    rgb = len(image.channels) == 3 and image.kind == "image"
    integers = np.iinfo(image.dtype) if image.dtype.kind in "iu" else None
    low, top = (int(integers.min), int(integers.max)) if integers else (0, 1)
    return {
        "label": image.channels[index],
        "color": COLOURS[index % len(COLOURS)],
        "window": {"start": low, "end": top, "min": low, "max": top},
        "active": rgb or index == 0,
    }


def _bare_array(folder: Path) -> str:
    return (
        f"{folder} is a bare zarr array, without the axes and spacing of an OME-Zarr image. Open it with zarr and hand "
        "it over with Scan.from_array(array, axes, spacing=…)."
    )


def _no_image(folder: Path, ome: Mapping[str, Any]) -> str:
    if "plate" in ome or "well" in ome:
        noun = "plate" if "plate" in ome else "well"
        return f"{folder} is an OME-Zarr {noun}; open one of its fields, such as {folder / 'A' / '1' / '0'}."
    groups = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return (
        f"{folder} is a zarr group without multiscales metadata; it holds {', '.join(groups[:5]) or 'no groups'}. "
        "Expected an OME-Zarr image; open the image inside it, or write it again with a current OME-Zarr tool."
    )
