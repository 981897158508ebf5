"""Cells one by one: found by stain density, measured, and told apart by those that somebody clicked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2 as opencv
import numpy as np
import shapely
import torch
from scipy import ndimage
from torch.nn import functional

from dhlab.annotations import Annotations
from dhlab.annotations.raster import fill
from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels import filter_bank, measure_objects, separate_stains
from dhlab.learner.coarse import balance
from dhlab.learner.head import teach
from dhlab.learner.pixels import LevelFeatures
from dhlab.learner.strokes import thin_strokes
from dhlab.networks import Perceptron
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.learner.strokes import Stroke

__all__ = ["classify_cells", "find_nuclei", "measure_cells"]

cv2: Any = opencv  # its stubs forget the dtype of what they return
Region = tuple["Sequence[float]", "Sequence[float]"]
# Nuclei are looked for in pixels of about this size, in µm, smoothed by so many of them.
NUCLEUS_SPACING, SMOOTHING = 0.5, 1.0
# Of the depth of a nucleus, what counts as its core; of the area of a usual one, the least.
CORE, LEAST_SHARE = 0.75, 0.25
EIGHT = np.ones((3, 3))
# Fields of view whose usual pixel is darker than this are fluorescence.
DARK = 96
MOST_PIXELS = 1 << 26
TEXTURE_SIGMAS, TEXTURES = (0.7, 1.6, 3.5), ("gradient", "laplacian", "structure")
WIDTH = 16


def find_nuclei(scan: Scan, *, region: Region | None = None, diameter: float | None = None) -> Annotations:
    """Find nuclei by the density of their stain: haematoxylin in bright field, the first channel in fluorescence.

    What is dense is cut where it is narrow. It is simple and needs no training; a network
    that was trained for nuclei finds more of them.

    Parameters
    ----------
    scan
        A plane.
    region
        Start and size (y, x) in level-0 pixels; None is the whole scan.
    diameter
        Of a usual nucleus, in the scan's unit, by which touching ones are cut; None takes it from the picture.

    Returns
    -------
    Annotations
        Polygons of kind ``"cell"`` without a class.

    Raises
    ------
    BadShapeError
        If the scan is no plane.
    BadValueError
        If the region is too large to be held in memory.

    References
    ----------
    Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and Cybernetics
    1979; Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", 2001.
    """
    physical = {"µm": 1.0, "mm": 1e-3}.get(scan.unit)
    wanted = scan.spacing[0] if physical is None else NUCLEUS_SPACING * physical
    level = scan.level_for(wanted)
    features = LevelFeatures(scan, level)
    window, corner = _read(features, region)
    radius = None if diameter is None else diameter / scan.spacing_of(level)[0] / 2
    labels = _split(_density(scan, window), radius)
    return _outline(labels, corner, features.frame.scale).on(scan)


def measure_cells(scan: Scan, cells: Annotations, *, level: int = 0) -> Annotations:
    """Measure shape, colour and texture of cells.

    Parameters
    ----------
    scan
        What they lie on.
    cells
        Polygons in its level-0 pixels.
    level
        Stored level on which colour and texture are measured.

    Returns
    -------
    Annotations
        The same with measurements: area and perimeter in the scan's unit, circularity, solidity and elongation, mean
        and deviation of every channel and of stain density, mean strength of edges at three scales.

    Raises
    ------
    BadValueError
        If there are no cells, or they spread too far to be held in memory.
    """
    if not len(cells):
        raise BadValueError(f"no cells to measure on {scan.name!r}; draw some, or look elsewhere.")
    features = LevelFeatures(scan, level)
    bounds = cells.bounds
    low, high = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    window, corner = _read(features, (low, high - low))
    labels = np.zeros(window.shape[1:], np.int32)
    scale = 1 / np.asarray(features.frame.scale, np.float64)
    fill(labels, cells.geometries, np.arange(1, len(cells) + 1, dtype=np.int32), start=corner / scale, scale=scale)
    columns = _shapes(cells, scan) | _intensities(scan, window, labels, len(cells))
    return cells.replace(measurements={**cells.measurements, **columns})


def classify_cells(
    scan: Scan,
    strokes: Sequence[Stroke],
    cells: Annotations | Scan | None = None,
    *,
    region: Region | None = None,
    level: int = 0,
) -> Annotations:
    """Classify cells by their measurements, from those that strokes touch.

    Parameters
    ----------
    scan
        What they lie on.
    strokes
        Points and lines that touch a cell, or areas that its middle lies in, teach its class.
    cells
        Outlines, or a label map; None finds nuclei.
    region
        Start and size (y, x) in level-0 pixels; None is the whole scan.
    level
        Stored level on which colour and texture are measured.

    Returns
    -------
    Annotations
        The cells with class, score and measurements.

    Raises
    ------
    BadValueError
        If there are no cells, or fewer than two classes of them were clicked.
    """
    if cells is None:
        cells = find_nuclei(scan, region=region)
    elif isinstance(cells, Scan):
        cells = _from_labels(cells, scan)
    cells = cells if region is None else cells.in_window(*region)
    measured = measure_cells(scan, cells, level=level)
    rows, names = _clicked(measured, strokes)
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        said = f"cells of {classes[0]!r} only" if classes else "no cell"
        raise BadValueError(f"{said} clicked among {len(measured)}; expected two classes. Put points into cells.")
    table = torch.from_numpy(np.nan_to_num(np.stack(list(measured.measurements.values()), 1))).float()
    known = np.array([classes.index(name) for name in names])
    members = [np.array(rows)[known == number] for number in range(len(classes))]
    chosen, kinds = thin_strokes(range(len(classes)), [len(one) for one in members])
    targets = functional.one_hot(torch.from_numpy(kinds), len(classes)).float()
    taught = np.concatenate([one[some] for one, some in zip(members, chosen, strict=True)])
    head = Perceptron(table.shape[1], len(classes), width=WIDTH)
    teach(head, table[taught], targets, weights=balance(targets))
    with torch.inference_mode():
        scores, found = head(table.T).softmax(0).max(0)
    labels = found.numpy().astype(np.int32)
    labels[rows] = known
    return measured.replace(classes=labels, class_names=classes, class_colors=(), scores=scores.double().numpy())


def _read(features: LevelFeatures, region: Region | None) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return the pixels of a region, ``(C, height, width)`` from 0 to 255, and its first corner in the level."""
    frame = features.frame
    low, high = np.zeros(2, np.int64), np.asarray(frame.shape)
    if region is not None:
        start, size = (np.asarray(part, float) for part in region)
        low = np.clip(np.floor(start / frame.scale), 0, np.asarray(frame.shape) - 1).astype(np.int64)
        high = np.clip(np.ceil((start + size) / frame.scale), low + 1, frame.shape).astype(np.int64)
    if np.prod(high - low) > MOST_PIXELS:
        raise BadValueError(
            f"{high[0] - low[0]} × {high[1] - low[1]} px of {features.scan.name!r} at once; take a smaller region=, "
            "such as viewer.region."
        )
    shape = (int(high[0] - low[0]), int(high[1] - low[1]))
    return features.read((int(low[0]), int(low[1])), shape), low


def _density(scan: Scan, window: torch.Tensor) -> NDArray[np.float32]:
    """Return how much of the nuclear stain there is, ``(height, width)`` float32."""
    if _bright(scan, window):
        amounts = separate_stains((window[:3] / 255)[None], "hed", channel_axis=1)
        return amounts[0, 0].numpy()
    return window[0].numpy()


def _bright(scan: Scan, window: torch.Tensor) -> bool:
    """Return whether a window is light that stained tissue let through: RGB, perhaps with alpha."""
    return window.shape[0] in (3, 4) and scan.dtype == np.uint8 and float(window[:3].median()) > DARK


def _split(density: NDArray[np.float32], radius: float | None) -> NDArray[np.int32]:
    """Return a label map of what is dense, cut where it is narrow; the radius of a nucleus is in pixels."""
    smooth = cv2.GaussianBlur(density, (0, 0), SMOOTHING)
    low, high = np.quantile(smooth, (0.001, 0.995))
    scaled = np.clip((smooth - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_OTSU)
    mask = cv2.morphologyEx((scaled > threshold).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    mask = ndimage.binary_fill_holes(mask).astype(np.uint8)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    if radius is None:
        # How deep the pixels of the middles lie: in clusters as deep as in single nuclei.
        middles = depth[(depth == ndimage.maximum_filter(depth, 5)) & (depth > 2)]
        radius = float(np.median(middles)) * 1.2 if middles.size else 4.0
    around = cv2.GaussianBlur(depth, (0, 0), max(radius / 4, 0.5))
    cores, count = ndimage.label(around > CORE * ndimage.maximum_filter(around, size=2 * int(radius) + 1), EIGHT)
    cores[mask == 0] = 0
    near = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    labels = np.where(mask > 0, cores[tuple(near)], 0)
    small = np.bincount(labels.ravel(), minlength=count + 1) < LEAST_SHARE * np.pi * radius**2
    small[0] = True
    numbers = np.cumsum(~small)
    numbers[small] = 0
    return numbers[labels].astype(np.int32)


def _outline(labels: NDArray[np.int32], corner: NDArray[np.int64], scale: Sequence[float]) -> Annotations:
    """Return the outlines of a label map that begins at a corner of a level, of each object the largest part."""
    objects = measure_objects(torch.from_numpy(labels))
    shapes = []
    for number, (top, left, bottom, right) in enumerate(objects.box.tolist(), 1):
        if bottom <= top:
            continue
        # Twice as large, so that outlines run along the sides of pixels.
        part = np.kron(np.pad(labels[top:bottom, left:right] == number, 1), np.ones((2, 2))).astype(np.uint8)
        rings, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        ring = max(rings, key=cv2.contourArea)[:, 0]
        yx = (ring[:, ::-1] + 0.5) / 2 - 1 + (top, left) + corner
        # From the middles of small pixels to their sides; rings that touch themselves at a corner fall apart.
        pieces = shapely.get_parts(shapely.buffer(shapely.Polygon(yx[:, ::-1]), 0.25, join_style="mitre"))
        shapes += [max(pieces, key=shapely.area)] if len(pieces) else []
    down, across = scale
    scaled = shapely.transform(np.array(shapes, object), lambda xy: xy * (across, down))
    return Annotations.from_geometries(scaled, kind="cell")


def _from_labels(labels: Scan, scan: Scan) -> Annotations:
    """Return the outlines of a label map that lies on a scan."""
    if labels.axes != "yx":
        raise BadShapeError(f"label map {labels.name!r} has axes {labels.axes!r}; expected 'yx'.")
    found = _outline(np.asarray(labels.levels[0][...]).astype(np.int32), np.zeros(2, np.int64), labels.scales[0])
    ratio = np.asarray(labels.spacing) / np.asarray(scan.spacing)
    shift = np.asarray(labels.origin) / np.asarray(scan.spacing)
    moved = shapely.transform(found.geometries, lambda xy: xy * ratio[::-1] + shift[::-1])
    return found.replace(geometries=moved, ids=np.empty(0, object)).on(scan)


def _shapes(cells: Annotations, scan: Scan) -> dict[str, NDArray[np.float64]]:
    down, across = scan.spacing
    shapes = shapely.transform(cells.geometries, lambda xy: xy * (across, down))
    area, perimeter = shapely.area(shapes), shapely.length(shapes)
    hull = shapely.area(shapely.convex_hull(shapes))
    corners = [shapely.get_coordinates(box)[:3] for box in shapely.oriented_envelope(shapes)]
    sides = np.array([np.linalg.norm(np.diff(c, axis=0), axis=1) if len(c) == 3 else (1.0, 1.0) for c in corners])
    return {
        f"area ({scan.unit}²)": area,
        f"perimeter ({scan.unit})": perimeter,
        "circularity": 4 * np.pi * area / np.maximum(perimeter**2, 1e-12),
        "solidity": area / np.maximum(hull, 1e-12),
        "elongation": sides.max(1) / np.maximum(sides.min(1), 1e-12),
    }


def _intensities(
    scan: Scan, window: torch.Tensor, labels: NDArray[np.int32], count: int
) -> dict[str, NDArray[np.float64]]:
    """Return mean and deviation of colour, and mean of texture, of every cell."""
    names = list(scan.channels) or ["intensity"]
    planes = [*window]
    if _bright(scan, window):
        planes += [*separate_stains((window[:3] / 255)[None], "hed", channel_axis=1)[0, :2]]
        names += ["haematoxylin", "eosin"]
    grey = window.mean(0)
    texture = filter_bank(grey[None, None], sigmas=TEXTURE_SIGMAS, features=TEXTURES, channel_axis=1)[0]
    kinds = ["edges", "blobs", "structure", "structure across"]
    names_of_texture = [f"{kind} {sigma:g} px" for sigma in TEXTURE_SIGMAS for kind in kinds]
    stack = torch.cat([torch.stack(planes), torch.stack(planes).square(), texture])
    mean = measure_objects(torch.from_numpy(labels), stack).mean.numpy()
    # Cells that others cover whole, or that are smaller than a pixel, have none.
    whole = np.full((count, stack.shape[0]), np.nan)
    whole[: len(mean)] = mean
    number = len(planes)
    deviation = np.sqrt(np.maximum(whole[:, number : 2 * number] - whole[:, :number] ** 2, 0))
    return {
        **{f"{name} mean": whole[:, i] for i, name in enumerate(names)},
        **{f"{name} deviation": deviation[:, i] for i, name in enumerate(names)},
        **{name: whole[:, 2 * number + i] for i, name in enumerate(names_of_texture)},
    }


def _clicked(cells: Annotations, strokes: Sequence[Stroke]) -> tuple[list[int], list[str]]:
    """Return the cells that strokes teach, and their classes; the stroke drawn last in a cell counts."""
    middles = shapely.point_on_surface(cells.geometries)
    outlines, points = shapely.STRtree(cells.geometries), shapely.STRtree(middles)
    found: dict[int, str] = {}
    for stroke in strokes:
        tree = points if stroke.geometry.area else outlines
        found |= dict.fromkeys(tree.query(stroke.geometry, predicate="intersects").tolist(), stroke.class_name)
    rows = sorted(found)
    return rows, [found[row] for row in rows]
