"""Calibration against worked examples and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError


def test_calibration_of_worked_examples():
    sure = np.array([[1.0, 0.0]] * 10)
    assert metrics.expected_calibration_error([0] * 10, sure) == 0
    assert metrics.expected_calibration_error([0] * 5 + [1] * 5, sure) == pytest.approx(0.5)
    mixed = np.array([[0.8, 0.2]] * 4 + [[0.3, 0.7]] * 4)
    # In the first bin half are right at 0.8, in the second all at 0.7: (4 * 0.3 + 4 * 0.3) / 8.
    assert metrics.expected_calibration_error([0, 0, 1, 1, 1, 1, 1, 1], mixed) == pytest.approx(0.3)
    with pytest.raises(BadShapeError, match="probability"):
        metrics.expected_calibration_error([0, 1], [0.5, 0.5])


def test_nothing_is_not_calibrated():
    assert math.isnan(metrics.expected_calibration_error([], np.zeros((0, 2))))
    assert math.isnan(metrics.brier_score([], []))
    assert math.isnan(metrics.brier_score([], np.zeros((0, 2))))


def test_reliability_agrees_with_scikit_learn():
    peer = pytest.importorskip("sklearn.calibration", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(0)
    chance = rng.random(997)
    happened = rng.random(997) < chance**2
    count, confidence, share = metrics.reliability_bins(chance, happened, bins=10)
    right, sure = peer.calibration_curve(happened, chance, n_bins=10)
    assert count.sum() == 997
    assert share == pytest.approx(right)
    assert confidence == pytest.approx(sure)
    both = np.stack([1 - chance, chance], 1)
    chosen = both.argmax(1) == happened
    count, confidence, share = metrics.reliability_bins(both.max(1), chosen)
    assert np.isnan(share[:7]).all()
    error = np.nansum(count * np.abs(share - confidence)) / 997
    assert metrics.expected_calibration_error(happened.astype(int), both) == pytest.approx(error)


def test_brier_score_agrees_with_scikit_learn():
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(1)
    chance = rng.random(63)
    truth = rng.integers(0, 2, 63)
    assert metrics.brier_score(truth, chance) == pytest.approx(peer.brier_score_loss(truth, chance))
    # Over all classes the errors of both sides are summed, as Brier had it.
    both = np.stack([1 - chance, chance], 1)
    assert metrics.brier_score(truth, both) == pytest.approx(2 * peer.brier_score_loss(truth, chance))
    assert metrics.brier_score([0, 2], [[1, 0, 0], [1, 0, 0]]) == 1
    with pytest.raises(BadShapeError, match="probability"):
        metrics.brier_score([0, 1], [0.5])


@pytest.mark.parametrize("confidence", [[1.5], [-0.1], [math.nan]])
def test_confidence_is_a_probability(confidence):
    with pytest.raises(BadValueError, match="0 to 1"):
        metrics.reliability_bins(confidence, [1])
    with pytest.raises(BadValueError, match="0 bins"):
        metrics.reliability_bins([0.5], [1], bins=0)
