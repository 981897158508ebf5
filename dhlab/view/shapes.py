"""Annotations as packed numbers for the browser: where all shapes are at once, their outlines a cell at a time."""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from dhlab.errors import BadValueError
from dhlab.view.layers import shapes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.annotations import Annotations
    from dhlab.view.layers import Shapes

__all__ = ["ShapeSource", "pack"]

# Shapes of one cell: enough that a view needs few cells, few enough that it need not wait for much outside it.
PER_CELL = 1024
# Shapes of one cell differ in extent by at most this factor, so that all are worth an outline or none is.
SPREAD = 4.0
SMALLEST_EXTENT = 4.0
POINT, LINE, POLYGON, RING = 0, 1, 3, 2
# What a ring of vertices is, as the browser reads it.
KINDS = {"point": 0, "line": 1, "shell": 2, "hole": 3}


class ShapeSource:
    """The shapes of annotations, sorted into cells of neighbours of like size.

    Cells are the leaves of a tree packed by sorting and tiling (Leutenegger, Lopez and Edgington 1997,
    https://doi.org/10.1109/ICDE.1997.582015): they follow the density, and the last ones hold the smallest shapes.
    Numbers are little-endian, positions level-0 pixels (x, y). Safe between threads.

    Parameters
    ----------
    annotations
        Any annotations.
    named
        Tell ids and reviews of the shapes, too: of a document.
    """

    def __init__(self, annotations: Annotations, *, named: bool = False) -> None:
        self.annotations, self.named = annotations, named

    @cached_property
    def shapes(self) -> Shapes:
        """Geometries, class indices, names and colours."""
        return shapes_of(self.annotations)

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """Left, top, right and bottom of every shape, ``(N, 4)``."""
        bounds: NDArray[np.float64] = shapely.bounds(self.annotations.geometries).reshape(-1, 4)
        return bounds

    @cached_property
    def _cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the annotations in the order of the cells, and where each cell begins in it."""
        bounds = self._bounds
        groups = size_groups(self.shapes.geometries, bounds)
        order, firsts, begun = [], [np.zeros(1, np.int64)], 0
        for group in np.unique(groups)[::-1]:
            rows = np.flatnonzero(groups == group)
            rows = rows[_sort_and_tile((bounds[rows, :2] + bounds[rows, 2:]) / 2)]
            ends = np.minimum(np.arange(1, 1 + math.ceil(len(rows) / PER_CELL)) * PER_CELL, len(rows))
            order.append(rows)
            firsts.append(begun + ends)
            begun += len(rows)
        return np.concatenate(order) if order else np.empty(0, np.int64), np.concatenate(firsts)

    @property
    def cell_count(self) -> int:
        """Number of cells."""
        return len(self._cells[1]) - 1

    def rows(self, cell: int) -> NDArray[np.int64]:
        """Return which shapes lie in a cell, as rows of the annotations, int64."""
        if not 0 <= cell < self.cell_count:
            raise BadValueError(f"cell {cell} of the shapes; expected 0 to {self.cell_count - 1}.")
        order, firsts = self._cells
        return order[firsts[cell] : firsts[cell + 1]]

    def catalogue(self) -> bytes:
        """Return where every shape is: what a browser needs to draw dots, and to know which cells to ask for.

        Returns
        -------
        bytes
            As `pack` writes them: ``boxes`` (C, 4) float32 of every cell (left, top, right, bottom), ``extents`` (C,)
            float32 (median of the longer sides of its shapes, 0 for points), ``firsts`` (C + 1,) uint32 (where its
            shapes begin), ``centers`` (N, 2) float32 and ``labels`` (N,) uint8 or uint16 in the order of the cells.
        """
        order, firsts = self._cells
        bounds = self._bounds[order]
        labels = self.shapes.labels[order]
        boxes = np.zeros((self.cell_count, 4), np.float32)
        extents = np.zeros(self.cell_count, np.float32)
        sides = (bounds[:, 2:] - bounds[:, :2]).max(-1, initial=0)
        if len(order):
            begins = firsts[:-1]
            boxes[:, :2] = np.minimum.reduceat(bounds[:, :2], begins)
            boxes[:, 2:] = np.maximum.reduceat(bounds[:, 2:], begins)
            extents[:] = [np.median(sides[a:b]) for a, b in zip(begins, firsts[1:], strict=True)]
        return pack(
            {},
            {
                "boxes": boxes,
                "extents": extents,
                "firsts": firsts.astype(np.uint32),
                "centers": ((bounds[:, :2] + bounds[:, 2:]) / 2).astype(np.float32),
                "labels": labels.astype(np.uint8 if len(self.shapes.names) <= 256 else np.uint16),
            },
        )

    def outlines(self, cells: Sequence[int]) -> bytes:
        """Return the outlines of the shapes of some cells, one cell after the other.

        Parameters
        ----------
        cells
            Numbers of cells, as `catalogue` counts them.

        Returns
        -------
        bytes
            As `pack` writes them: ``cells`` (K,) uint32, ``counts`` (K,) uint32 (shapes of each), ``origins`` (K, 2)
            float64, ``shapes`` (N + 1,) uint32 (where the rings of each shape begin), ``rings`` (R + 1,) uint32 (where
            the vertices of each ring begin), ``kinds`` (R,) uint8 (0 point, 1 line, 2 shell, 3 hole; shells turn one
            way, holes the other), ``vertices`` (V, 2) float32 from the origin of their cell, ``areas`` (N,) float32
            in square pixels, ``scores`` (N,) float32, NaN where there is none; ``titles`` in the head, by place among
            the shapes, and if they are `named` the list of ``ids`` and, by place, ``reviews``.

        Raises
        ------
        BadValueError
            If there is no such cell.
        """
        parts = [self.rows(int(cell)) for cell in cells]
        counts = np.array([len(part) for part in parts], np.uint32)
        rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
        origins = np.array([np.floor(self._bounds[part, :2].min(0)) for part in parts]).reshape(-1, 2)
        shapes, rings, kinds, vertices = outline(self.shapes.geometries[rows])
        # Counted from its cell's corner, a vertex on a large slide keeps its fraction in 32 bits.
        of_shape = np.repeat(origins, counts, 0)
        of_ring = np.repeat(of_shape, np.diff(shapes), 0)
        vertices = vertices - np.repeat(of_ring, np.diff(rings), 0)
        head: dict[str, Any] = {"titles": {i: str(name) for i, name in enumerate(self.annotations.names[rows]) if name}}
        if self.named:
            head["ids"] = self.annotations.ids[rows].tolist()
            head["reviews"] = {i: str(review) for i, review in enumerate(self.annotations.reviews[rows]) if review}
        return pack(
            head,
            {
                "cells": np.array(cells, np.uint32),
                "counts": counts,
                "origins": origins,
                "shapes": shapes.astype(np.uint32),
                "rings": rings.astype(np.uint32),
                "kinds": kinds,
                "vertices": vertices.astype(np.float32),
                "areas": shapely.area(self.shapes.geometries[rows]).astype(np.float32),
                "scores": self.annotations.scores[rows].astype(np.float32),
            },
        )


def size_groups(geometries: NDArray[np.object_], bounds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a group for each geometry, ``(N,)`` int64: 0 for single points, else the larger the longer its side."""
    sides = np.maximum((bounds[:, 2:] - bounds[:, :2]).max(-1, initial=0), SMALLEST_EXTENT)
    groups = 1 + np.floor(np.log(sides / SMALLEST_EXTENT) / math.log(SPREAD)).astype(np.int64)
    return np.where(shapely.get_type_id(geometries) == POINT, 0, groups)


def _sort_and_tile(centers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return an order in which runs of `PER_CELL` are compact: slices by x, each sorted by y."""
    slices = math.ceil(math.sqrt(math.ceil(len(centers) / PER_CELL)))
    by_x = np.argsort(centers[:, 0], kind="stable")
    # A slice holds whole cells, so that none spans two slices.
    per_slice = math.ceil(math.ceil(len(centers) / PER_CELL) / max(1, slices)) * PER_CELL
    number = np.empty(len(centers), np.int64)
    number[by_x] = np.arange(len(centers)) // max(1, per_slice)
    return np.lexsort((centers[:, 1], number))


def outline(
    geometries: NDArray[np.object_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64]]:
    """Take geometries of any type apart into rings of vertices.

    Parameters
    ----------
    geometries
        ``(N,)`` shapely geometries; collections within collections are allowed.

    Returns
    -------
    shapes : ndarray
        ``(N + 1,)`` int64, where the rings of each geometry begin.
    rings : ndarray
        ``(R + 1,)`` int64, where the vertices of each ring begin.
    kinds : ndarray
        ``(R,)`` uint8, values of `KINDS`; the rings of one polygon follow one another, its shell first.
    vertices : ndarray
        ``(V, 2)`` float64 (x, y).
    """
    parts, owners = np.asarray(geometries, object), np.arange(len(geometries))
    while (shapely.get_type_id(parts) > POLYGON).any():
        parts, index = shapely.get_parts(parts, return_index=True)
        owners = owners[index]
    kept = ~shapely.is_empty(parts)
    parts, owners = parts[kept], owners[kept]
    areal = shapely.get_type_id(parts) == POLYGON
    lines, part_of_line = parts[~areal], np.flatnonzero(~areal)
    # Holes turn against their shells, so that painting by winding number leaves them open wherever shapes overlap.
    rings, index = shapely.get_rings(shapely.orient_polygons(parts[areal]), return_index=True)
    part_of_ring = np.flatnonzero(areal)[index]
    is_shell = np.diff(index, prepend=-1) != 0
    kinds = np.concatenate(
        [
            np.where(shapely.get_type_id(lines) == POINT, KINDS["point"], KINDS["line"]),
            np.where(is_shell, KINDS["shell"], KINDS["hole"]),
        ]
    ).astype(np.uint8)
    part = np.concatenate([part_of_line, part_of_ring])
    sorted_by_part = np.argsort(part, kind="stable")
    all_rings = np.concatenate([lines, rings])[sorted_by_part]
    vertices, ring = shapely.get_coordinates(all_rings, return_index=True)
    starts = np.arange(len(all_rings) + 1)
    return (
        np.searchsorted(owners[part[sorted_by_part]], np.arange(len(geometries) + 1)),
        np.searchsorted(ring, starts),
        kinds[sorted_by_part],
        vertices,
    )


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write arrays into one run of bytes that a browser can look into without copying.

    Parameters
    ----------
    head
        JSON-compatible facts that go with them.
    arrays
        Arrays by name, of any shape and dtype that JavaScript has.

    Returns
    -------
    bytes
        The length of the head (uint32) and the head as JSON, padded with spaces to 8 bytes; then the arrays, each
        padded to 8. ``head["arrays"]`` gives dtype, shape and offset behind the head of each.
    """
    table, offset, bodies = {}, 0, []
    for name, array in arrays.items():
        body = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        table[name] = [array.dtype.name, list(array.shape), offset]
        bodies.append(body.ljust(-(-len(body) // 8) * 8, b"\0"))
        offset += len(bodies[-1])
    text = json.dumps({**head, "arrays": table}, separators=(",", ":")).encode()
    text = text.ljust(-(-(len(text) + 4) // 8) * 8 - 4)
    return b"".join([len(text).to_bytes(4, "little"), text, *bodies])
