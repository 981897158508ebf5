"""Samples for people: a window with its mask, a sheet of several."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import DHLabError
from dhlab.tasks import TASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.datasets.dataset import Dataset

__all__ = ["describe", "draw_sample"]

MOST, SIDE = 12, 96


def draw_sample(image: NDArray[Any], target: NDArray[np.int64] | None, axes: str, side: int = 96) -> NDArray[np.uint8]:
    """Draw a window, and below it its mask in class colours if it has one.

    Parameters
    ----------
    image
        Window in the order of `axes`, any dtype.
    target
        Mask ``(*space)`` int64 with -1 for unlabelled (white); None, or any other target, draws none.
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
    if target is None or target.ndim != len(space) or "y" not in space or "x" not in space:
        return picture
    labels = Scan.from_array((target + 1).astype(np.uint8), space, kind="labels", pyramid=False)
    return np.concatenate([picture, square(labels)])


def describe(dataset: Dataset) -> str:
    """Return a dataset as HTML: what it is, its classes and splits, some of its samples."""
    try:
        tables, sheet = _class_table(dataset) + _split_table(dataset), _sheet(dataset)
    except DHLabError as error:
        # A repr must not fail where files are missing: it is how one looks for what is wrong.
        tables, sheet = _split_table(dataset), f"<p>Samples cannot be shown: {escape(str(error))}</p>"
    return (
        f"<div><b>{escape(dataset.name)}</b> · {escape(repr(dataset).partition(': ')[2])}"
        f"<div style='display:flex;gap:2em;align-items:flex-start'>{tables}</div>{sheet}</div>"
    )


def _class_table(dataset: Dataset) -> str:
    from dhlab.display import class_color

    counts = dataset.class_counts.tolist()
    whole = sum(counts) if TASKS[dataset.task].exclusive else len(dataset)
    noun = f"{TASKS[dataset.task].noun}s"
    rows = "".join(
        f"<tr><td><span style='color:rgb{class_color(i)}'>■</span> {escape(name)}</td>"
        f"<td>{count:,} {noun}</td><td>{count / max(1, whole):.0%}</td></tr>"
        for i, (name, count) in enumerate(zip(dataset.classes, counts, strict=True))
    )
    return f"<table>{rows}</table>"


def _split_table(dataset: Dataset) -> str:
    if not dataset.splits:
        return ""
    grouped = dataset.unit_name != "sample"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_count(len(indices), 'sample')}</td>"
        + (f"<td>{_count(len({dataset.groups[i] for i in indices}), dataset.unit_name)}</td>" if grouped else "")
        + "</tr>"
        for name, indices in dataset.splits.items()
    )
    return f"<table>{rows}</table>"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _sheet(dataset: Dataset) -> str:
    """Draw some samples side by side, masks below their pictures; bags have no pictures."""
    from PIL import Image

    picked = np.unique(np.linspace(0, len(dataset) - 1, min(MOST, len(dataset))).astype(np.int64))
    if "i" in dataset.axes:
        return ""
    images, targets = dataset.samples.read(picked)
    masks = targets if TASKS[dataset.task].dense else [None] * len(images)
    columns = [draw_sample(image, mask, dataset.axes, SIDE) for image, mask in zip(images, masks, strict=True)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(columns, axis=1)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='samples' src='data:image/png;base64,{data}'>"
