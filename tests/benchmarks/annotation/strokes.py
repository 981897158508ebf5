"""Dice against the number of strokes, beside scikit-image's trainable segmentation on the same strokes and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TESTS = ["tests/learner/test_strokes.py"]
STROKES, SEEDS, WIDTH = (2, 4, 8, 16), (0, 1), 5.0
# Of EBHI-Seg every second picture: features of 512² pixels take the peer long.
SETS = {
    "EBHI-Seg, polyps": ("histo-colon-ebhi/polyp", 2),
    "DSB2018, stained nuclei": ("nuclei-dsb2018/stained", 1),
    "DSB2018, fluorescent nuclei": ("nuclei-dsb2018/fluorescence", 1),
}
CLASSES = ("background", "object")


def measure(bench: Bench) -> None:
    """Let both learn the same strokes on each picture, and compare what they find with the truth."""
    from dhlab import env

    data = env.data_folder()
    if data is None:
        print("  no data: set DHLAB_DATA to a folder that holds them")
        return
    for name, (folder, step) in SETS.items():
        found: dict[int, list[tuple[float, float]]] = {count: [] for count in STROKES}
        for image, truth in pictures(data / folder, step):
            compare(image, truth, found)
        for count, values in found.items():
            ours, peer = np.mean(values, axis=0).tolist()
            bench.record(
                f"{name}: mean Dice after {count} strokes",
                ours,
                peer,
                peer_name="scikit-image",
                unit="Dice",
                goal=1.0,
                package="scikit-image",
                better="more",
                spread={
                    k: np.quantile(v, (0, 0.25, 0.5, 0.75)).tolist()
                    for k, v in zip(("ours", "peer"), np.transpose(values), strict=True)
                },
            )


def pictures(folder: Path, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield RGB pictures and their truth, 0 or 1, that show enough of both classes to draw on."""
    from dhlab.io import open as open_scan

    truths = {path.stem: path for place in ("masks", "labels") for path in (folder / place).glob("*")}
    for path in sorted((folder / "images").iterdir())[::step]:
        image = np.asarray(open_scan(path).levels[0][...])
        image = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image[..., :3]
        mask = np.asarray(open_scan(truths[path.stem]).levels[0][...])
        mask = mask if mask.ndim == 2 else mask[..., 0]
        truth = (mask > (127 if truths[path.stem].parent.name == "masks" else 0)).astype(np.int64)
        if 0.01 < truth.mean() < 0.99:
            yield np.ascontiguousarray(image), truth


def compare(image: np.ndarray, truth: np.ndarray, found: dict[int, list[tuple[float, float]]]) -> None:
    """Add our Dice and the peer's for every number of strokes."""
    from skimage.feature import multiscale_basic_features
    from skimage.future import fit_segmenter, predict_segmenter
    from sklearn.ensemble import RandomForestClassifier

    from dhlab.learner import Learner, draw_strokes
    from dhlab.learner.strokes import Frame, sample_pixels
    from dhlab.scan import Scan

    scan = Scan.from_array(image, "yxc", name="picture", pyramid=False)
    # The features and the forest of its TrainableSegmenter.
    features = multiscale_basic_features(image, channel_axis=-1)
    for seed in SEEDS:
        for count in STROKES:
            strokes = draw_strokes(truth, CLASSES, count, width=WIDTH, seed=seed, parent=scan)
            drawn = np.zeros(truth.shape, np.int64)  # as the peer wants them: 0 where nobody drew
            for geometry, label in zip(strokes.geometries, strokes.classes, strict=True):
                y, x = sample_pixels(geometry, Frame(truth.shape, (1.0, 1.0)), width=WIDTH).T
                drawn[y, x] = CLASSES.index(strokes.class_names[label]) + 1
            learner = Learner(scan, strokes, stroke_width=WIDTH)
            names = [CLASSES.index(name) for name in learner.heat.channels]
            ours = np.array(names)[learner.heat.levels[0][...].argmax(0)]
            forest = fit_segmenter(drawn, features, RandomForestClassifier(100, n_jobs=-1, random_state=0))
            theirs = predict_segmenter(features, forest) - 1
            judged = drawn == 0
            found[count].append((dice(ours, truth, judged), dice(theirs, truth, judged)))


def dice(labels: Any, truth: Any, judged: Any) -> float:
    """Return the mean of both classes' Dice, over pixels that nobody drew on."""
    parts = []
    for kind in range(len(CLASSES)):
        one, other = (labels == kind) & judged, (truth == kind) & judged
        parts.append(2 * (one & other).sum() / max(1, one.sum() + other.sum()))
    return float(np.mean(parts))
