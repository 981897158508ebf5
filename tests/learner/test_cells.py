"""Cells: found, measured, and told apart by a few that were clicked."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from dhlab import env
from dhlab.annotations import Annotations, Document
from dhlab.errors import BadShapeError, BadValueError
from dhlab.io import open as open_scan
from dhlab.learner import Learner, find_nuclei, measure_cells
from dhlab.scan import Scan

SIDE, STEP = 640, 40


@pytest.fixture(scope="module")
def cells() -> tuple[Scan, np.ndarray, np.ndarray]:
    """Pale round and dark long nuclei in turns on pink: the scan, a label map, and the kind of each label."""
    rng = np.random.default_rng(0)
    labels = np.zeros((SIDE, SIDE), np.int32)
    image = np.full((SIDE, SIDE, 3), (225, 180, 205), np.float64)
    kinds = []
    for number, (y, x) in enumerate(np.argwhere(np.ones((SIDE // STEP, SIDE // STEP))) * STEP + STEP // 2, 1):
        kind = int(rng.integers(2))
        axes = (9, 9) if kind == 0 else (13, 6)
        axes = tuple(int(a + rng.integers(-1, 2)) for a in axes)
        shift = rng.integers(-3, 4, 2)
        cv2.ellipse(labels, (int(x + shift[1]), int(y + shift[0])), axes, float(rng.integers(180)), 0, 360, number, -1)
        image[labels == number] = (150, 110, 175) if kind == 0 else (95, 60, 140)
        kinds.append(kind)
    noisy = np.clip(cv2.GaussianBlur(image, (0, 0), 1.0) + rng.normal(0, 9, image.shape), 0, 255)
    scan = Scan.from_array(noisy.astype(np.uint8), "yxc", spacing=0.5, unit="µm", name="cells", fill=255)
    return scan, labels, np.array(kinds)


def click(labels: np.ndarray, kinds: np.ndarray, count: int) -> Annotations:
    """Put points into the first cells of each kind."""
    rows = [row for kind in (0, 1) for row in np.flatnonzero(kinds == kind)[:count]]
    points = [shapely.Point(*(np.argwhere(labels == row + 1).mean(0)[::-1] + 0.5)) for row in rows]
    return Annotations.from_geometries(points, [("round", "long")[kinds[row]] for row in rows])


def kind_at(found: Annotations, labels: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the found kind of every cell that is where one was drawn."""
    middles = shapely.get_coordinates(shapely.centroid(found.geometries)).astype(int)
    numbers = labels[middles[:, 1], middles[:, 0]]
    names = np.array([found.class_names[i] for i in found.classes])
    keep = numbers > 0
    return kinds[numbers[keep] - 1], (names[keep] == "long").astype(int)


def test_nuclei_are_found_and_told_apart(cells: tuple[Scan, np.ndarray, np.ndarray]) -> None:
    scan, labels, kinds = cells
    learner = Learner(scan, click(labels, kinds, 3), spacing=0.5)
    found = learner.objects()
    assert abs(len(found) - len(kinds)) <= 0.05 * len(kinds)
    true, said = kind_at(found, labels, kinds)
    assert len(true) >= 0.95 * len(kinds)
    assert (true == said).mean() > 0.95
    assert set(found.reviews.tolist()) == {"proposed"}
    assert set(found.kinds.tolist()) == {"cell"}
    assert {"area (µm²)", "circularity", "haematoxylin mean"} <= set(found.measurements)
    assert all(np.isfinite(values).all() for values in found.measurements.values())


def test_cells_of_a_label_map(cells: tuple[Scan, np.ndarray, np.ndarray]) -> None:
    scan, labels, kinds = cells
    learner = Learner(scan, click(labels, kinds, 3), spacing=0.5)
    found = learner.objects(Scan.from_array(labels, "yx", spacing=0.5, unit="µm", kind="labels"))
    assert len(found) == len(kinds)
    true, said = kind_at(found, labels, kinds)
    assert (true == said).mean() > 0.97
    np.testing.assert_allclose(found.measurements["area (µm²)"], np.bincount(labels.ravel())[1:] / 4, rtol=0.02)
    for kind in (np.uint16, np.uint32, np.int64):
        again = learner.objects(Scan.from_array(labels.astype(kind), "yx", spacing=0.5, unit="µm", kind="labels"))
        np.testing.assert_array_equal(again.classes, found.classes)
    coarse = Scan.from_array(labels[::2, ::2], "yx", spacing=1.0, unit="µm", kind="labels")
    ratio = learner.objects(coarse).measurements["area (µm²)"] / found.measurements["area (µm²)"]
    assert 0.9 < np.median(ratio) < 1.1


def test_cells_of_annotations_and_of_a_region(cells: tuple[Scan, np.ndarray, np.ndarray]) -> None:
    scan, labels, kinds = cells
    drawn = find_nuclei(scan)
    learner = Learner(scan, click(labels, kinds, 4), spacing=0.5)
    found = learner.objects(drawn, region=((0, 0), (SIDE / 2, SIDE)))
    assert 0.4 * len(drawn) < len(found) < 0.6 * len(drawn)
    assert set(found.ids) <= set(drawn.ids)
    again = learner.objects(drawn, region=((0, 0), (SIDE / 2, SIDE)))
    np.testing.assert_array_equal(found.classes, again.classes)
    np.testing.assert_array_equal(found.scores, again.scores)


def test_an_area_teaches_all_cells_in_it(cells: tuple[Scan, np.ndarray, np.ndarray]) -> None:
    scan, labels, _ = cells
    rows = {"above": (0, 4 * STEP), "below": (SIDE - 4 * STEP, SIDE)}
    boxes = [shapely.box(0, low, SIDE, high) for low, high in rows.values()]
    label_map = Scan.from_array(labels, "yx", spacing=0.5, unit="µm", kind="labels")
    found = Learner(scan, Annotations.from_geometries(boxes, list(rows)), spacing=0.5).objects(label_map)
    # What an area says of a cell holds, whatever the cell looks like.
    assert [found.class_names[i] for i in found.classes[:64]] == ["above"] * 64
    assert [found.class_names[i] for i in found.classes[-64:]] == ["below"] * 64


def test_the_last_stroke_in_a_cell_counts(cells: tuple[Scan, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    scan, labels, kinds = cells
    clicks = click(labels, kinds, 3)
    label_map = Scan.from_array(labels[: 2 * STEP], "yx", spacing=0.5, unit="µm", kind="labels")
    first = np.flatnonzero(kinds == 0)[0]
    corrected = Annotations.from_geometries(clicks.geometries[:1], ["long"])
    for order, name in (([clicks, corrected], "long"), ([corrected, clicks], "round")):
        with Document.open(scan, tmp_path / f"{name}.geojson", author="Ada") as document:
            for part in order:
                document.add(part)
            for drawn in (Annotations.concat(order), document):
                found = Learner(scan, drawn, spacing=0.5).objects(label_map)
                assert found.class_names[found.classes[first]] == name


def test_says_what_is_missing(cells: tuple[Scan, np.ndarray, np.ndarray]) -> None:
    scan, labels, kinds = cells
    clicks = click(labels, kinds, 2)
    with pytest.raises(BadValueError, match="'round' only"):
        Learner(scan, clicks[:2], spacing=0.5).objects()
    away = Annotations.from_geometries([shapely.Point(1, 1), shapely.Point(639, 639)], ["round", "long"])
    with pytest.raises(BadValueError, match="no cell clicked"):
        Learner(scan, away, spacing=0.5).objects()
    with pytest.raises(BadValueError, match="no cells"):
        Learner(scan, clicks, spacing=0.5).objects(Annotations.from_geometries([]))
    with pytest.raises(BadShapeError, match="'yx'"):
        Learner(scan, clicks, spacing=0.5).objects(Scan.from_array(np.zeros((3, 9, 9), np.uint8), "zyx"))


def test_measures_what_can_be_checked(cells: tuple[Scan, np.ndarray, np.ndarray]) -> None:
    scan = cells[0]
    square, bar = shapely.box(100, 100, 120, 120), shapely.box(200, 200, 240, 210)
    got = measure_cells(scan, Annotations.from_geometries([square, bar])).measurements
    np.testing.assert_allclose(got["area (µm²)"], [100, 100])
    np.testing.assert_allclose(got["perimeter (µm)"], [40, 50])
    np.testing.assert_allclose(got["elongation"], [1, 4])
    np.testing.assert_allclose(got["solidity"], [1, 1])
    pixels = scan.levels[0][100:120, 100:120].reshape(-1, 3).astype(float)
    np.testing.assert_allclose([got[f"{c} mean"][0] for c in scan.channels], pixels.mean(0), rtol=1e-4)
    np.testing.assert_allclose([got[f"{c} deviation"][0] for c in scan.channels], pixels.std(0), rtol=1e-2)


def test_nothing_to_find() -> None:
    blank = Scan.from_array(np.full((64, 64, 3), 240, np.uint8), "yxc")
    assert len(find_nuclei(blank)) == 0
    assert len(find_nuclei(Scan.from_array(np.zeros((64, 64), np.uint8), "yx"))) == 0


@pytest.mark.parametrize("kind", ["stained", "fluorescence"])
def test_real_nuclei(kind: str) -> None:
    folder = env.data_folder()
    if folder is None or not (folder / "nuclei-dsb2018").is_dir():
        pytest.skip("needs the shared data")
    overlaps = []
    for path in sorted((folder / "nuclei-dsb2018" / kind / "images").iterdir())[:6]:
        scan = open_scan(path)
        truth = open_scan(path.parents[1] / "labels" / path.name).levels[0][...] > 0
        found = find_nuclei(scan).mask(parent=scan).levels[0][...] > 0
        overlaps.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert np.mean(overlaps) > 0.75, overlaps
