"""A slide of known truth in three resolutions, and strokes on it."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab.annotations import Annotations
from dhlab.learner import Learner, draw_strokes
from dhlab.phantoms import CLASSES, paint_slide
from dhlab.scan import Scan, halve

SIDE = 768


@pytest.fixture(scope="session")
def painted() -> tuple[np.ndarray, np.ndarray]:
    image, labels = paint_slide((SIDE, SIDE), rng=3, spacing=1.0)
    return image, labels.astype(np.int64) - 1


@pytest.fixture(scope="session")
def truth(painted: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Index of a class in `CLASSES`, (768, 768)."""
    return painted[1]


@pytest.fixture(scope="session")
def slide(painted: tuple[np.ndarray, np.ndarray]) -> Scan:
    levels = [painted[0]]
    for _ in range(2):
        levels.append(halve(levels[-1], (0, 1)))
    return Scan(tuple(levels), "yxc", (1.0, 1.0), "µm", name="slide", fill=255)


@pytest.fixture(scope="session")
def strokes(truth: np.ndarray, slide: Scan) -> Annotations:
    return draw_strokes(truth, CLASSES, 12, parent=slide)


@pytest.fixture(scope="session")
def learner(slide: Scan, strokes: Annotations) -> Learner:
    taught = Learner(slide, strokes)
    taught.update()
    return taught
