"""Objects against plain loops, worked examples and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError


def plain_aji(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Kumar's algorithm as published, object by object."""
    left = set(np.unique(prediction)) - {0}
    above = below = 0
    used = set()
    for number in sorted(set(np.unique(truth)) - {0}):
        own = truth == number
        best, partner = 0.0, None
        for other in sorted(left):
            common = (own & (prediction == other)).sum()
            share = common / (own | (prediction == other)).sum()
            if share > best:
                best, partner = share, other
        if partner is None:
            below += own.sum()
            continue
        above += (own & (prediction == partner)).sum()
        below += (own | (prediction == partner)).sum()
        used.add(partner)
    return above / (below + sum((prediction == other).sum() for other in left - used))


def speckle(seed: int, shape: tuple[int, ...] = (41, 53)) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 1.5)
    other = field + gaussian_filter(rng.normal(size=shape), 1.5) / 4
    return metrics.label_objects(field > 0.1), metrics.label_objects(other > 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_plain_loops(seed):
    truth, prediction = speckle(seed)
    assert truth.max() > 10
    assert metrics.aggregated_jaccard(truth, prediction) == pytest.approx(plain_aji(truth, prediction))
    shares = []
    for i in range(1, truth.max() + 1):
        for j in range(1, prediction.max() + 1):
            share = ((truth == i) & (prediction == j)).sum() / ((truth == i) | (prediction == j)).sum()
            shares += [share] if share > 0.5 else []
    whole = truth.max() + prediction.max()
    assert metrics.detection_f1(truth, prediction) == pytest.approx(2 * len(shares) / whole)
    assert metrics.panoptic_quality(truth, prediction) == pytest.approx(sum(shares) / (whole / 2))
    matches = metrics.match_objects(truth, prediction)
    assert (matches.found + matches.missed, matches.found + matches.wrong) == (truth.max(), prediction.max())


def test_numbers_of_objects_do_not_matter():
    truth, prediction = speckle(7)
    shuffled = np.r_[0, 100 + np.random.default_rng(0).permutation(prediction.max())][prediction]
    for figure in (metrics.aggregated_jaccard, metrics.detection_f1, metrics.panoptic_quality):
        assert figure(truth, shuffled) == pytest.approx(figure(truth, prediction))
        assert figure(truth, truth) == 1


def test_worked_example():
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3]])
    prediction = np.array([[5, 5, 5, 0, 0, 0, 6, 6, 0]])
    # Object 1: 3 of 4; object 2: 1 of 3, too little to be found; object 3: alone, 1 pixel.
    assert metrics.aggregated_jaccard(truth, prediction) == pytest.approx((3 + 1) / (4 + 3 + 1))
    assert metrics.detection_f1(truth, prediction) == pytest.approx(2 * 1 / (3 + 2))
    assert metrics.panoptic_quality(truth, prediction) == pytest.approx(0.75 / (1 + 3 / 2))
    assert metrics.detection_f1(truth, prediction, threshold=0.75) == 0


def test_nothing_found_and_nothing_there():
    nothing, something = np.zeros((3, 3), int), np.eye(3, dtype=int)
    for figure in (metrics.aggregated_jaccard, metrics.detection_f1, metrics.panoptic_quality):
        assert math.isnan(figure(nothing, nothing))
        assert figure(nothing, something) == figure(something, nothing) == 0


def test_objects_are_connected_also_at_corners():
    assert metrics.label_objects(np.eye(5)).max() == 1
    assert metrics.label_objects([1, 0, 1, 1, 0, 1]).tolist() == [1, 0, 2, 2, 0, 3]
    assert metrics.label_objects(np.zeros((1, 63, 2))).max() == 0
    with pytest.raises(BadValueError, match="threshold"):
        metrics.match_objects([1], [1], threshold=0.3)
    with pytest.raises(BadShapeError, match="expected the same"):
        metrics.aggregated_jaccard([1], [1, 1])
