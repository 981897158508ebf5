"""Strokes as an annotator would draw them, from known truth: to measure how fast a learner learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from scipy import ndimage

from dhlab.annotations import Annotations
from dhlab.errors import BadShapeError, BadValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from dhlab.scan import Scan

__all__ = ["draw_strokes"]

STEP = 2.0


def draw_strokes(
    truth: ArrayLike,
    classes: Sequence[str],
    count: int,
    *,
    wrong: ArrayLike | None = None,
    length: float = 50.0,
    width: float = 5.0,
    seed: int = 0,
    parent: Scan | None = None,
) -> Annotations:
    """Draw strokes that stay inside their class, as a careful person would.

    Parameters
    ----------
    truth
        ``(height, width)`` integers, the class of every pixel.
    classes
        Their names, by number.
    count
        How many strokes, one class after the other. The first ones of a seed are the same for any count.
    wrong
        ``(height, width)`` bool: strokes begin there, as corrections do; None: anywhere.
    length
        Of a stroke in pixels; where there is no room it ends earlier.
    width
        Of a stroke in pixels: its middle keeps half of that from other classes, where there is room.
    seed
        Where and how they wander.
    parent
        The scan, whose level-0 pixels `truth` has.

    Returns
    -------
    Annotations
        Lines, or points where there is no room for one, with a class.

    Raises
    ------
    BadShapeError
        If the arrays are no planes of one size.
    BadValueError
        If `truth` has numbers that are no classes.
    """
    labels = np.asarray(truth)
    places = np.ones(labels.shape, bool) if wrong is None else np.asarray(wrong, bool)
    if labels.ndim != 2 or places.shape != labels.shape:
        raise BadShapeError(f"truth {labels.shape}, wrong {places.shape}; expected (height, width) of both.")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise BadValueError(
            f"truth holds {labels.min()} to {labels.max()}; expected numbers of {len(classes)} classes."
        )
    present = np.unique(labels).tolist()
    # Far from other classes, and from the edge of the picture.
    depth = {k: ndimage.distance_transform_edt(np.pad(labels == k, 1))[1:-1, 1:-1] for k in present}
    shapes, names = [], []
    for number in range(count):
        kind = present[number % len(present)]
        rng = np.random.default_rng([seed, number])
        room = depth[kind]
        start = np.where(places, room, 0)
        if not start.any():
            start = room
        points = _wander(room, start, rng, steps=int(length / STEP), least=width / 2)
        shapes.append(shapely.LineString(points) if len(points) > 1 else shapely.Point(points[0]))
        names.append(classes[kind])
    return Annotations.from_geometries(shapes, names, parent=parent)


def _wander(
    room: NDArray[np.float64], start: NDArray[np.float64], rng: np.random.Generator, *, steps: int, least: float
) -> NDArray[np.float64]:
    """Return ``(N, 2)`` points (x, y) of a smooth path that keeps its distance from other classes."""
    least = min(least + 0.5, 0.7 * float(start.max()))
    rows, columns = np.nonzero(start >= least)
    first = rng.integers(len(rows))
    place, angle = np.array([rows[first], columns[first]], float), rng.uniform(0, 2 * np.pi)
    path = [place]
    for _ in range(steps):
        for attempt in range(8):
            turned = angle + rng.normal(0, 0.3 + 0.3 * attempt)
            further = place + STEP * np.array([np.sin(turned), np.cos(turned)])
            y, x = np.rint(further).astype(int)
            if 0 <= y < room.shape[0] and 0 <= x < room.shape[1] and room[y, x] >= least:
                place, angle = further, turned
                path.append(place)
                break
        else:
            break
    return np.array(path)[:, ::-1] + 0.5
