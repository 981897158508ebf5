"""Figures of numbers against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError


def test_r_squared_agrees_with_scikit_learn():
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(63, 3)) * [1, 10, 100]
    prediction = truth + rng.normal(size=(63, 3)) * [1, 20, 30]
    assert metrics.r_squared(truth, prediction) == pytest.approx(peer.r2_score(truth, prediction))
    assert metrics.r_squared(truth[:, 1], prediction[:, 1]) == pytest.approx(
        peer.r2_score(truth[:, 1], prediction[:, 1])
    )
    assert metrics.r_squared([3, -0.5, 2, 7], [2.5, 0.0, 2, 8]) == pytest.approx(0.9486081370449679)
    assert metrics.r_squared(truth, np.broadcast_to(truth.mean(0), truth.shape)) == pytest.approx(0)
    truth[::2, 0], prediction[::2, 0] = math.nan, math.nan
    expected = [peer.r2_score(truth[1::2, 0], prediction[1::2, 0])]
    expected += [peer.r2_score(truth[:, k], prediction[:, k]) for k in (1, 2)]
    assert metrics.r_squared(truth, prediction) == pytest.approx(np.mean(expected))
    assert math.isnan(metrics.r_squared([], []))
    assert math.isnan(metrics.r_squared([1.0, math.nan], [1.0, 2.0]))
    with pytest.raises(BadValueError, match="NaN"):
        metrics.r_squared([1, 2], [1, math.nan])
    with pytest.raises(BadShapeError, match="expected the same"):
        metrics.r_squared([1, 2], [1])


def test_errors_agree_with_scikit_learn():
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(63, 3)) * [1, 10, 100]
    prediction = truth + rng.normal(size=(63, 3)) * [1, 20, 30]
    for ours, theirs in (
        (metrics.mean_absolute_error, peer.mean_absolute_error),
        (metrics.root_mean_squared_error, peer.root_mean_squared_error),
    ):
        assert ours(truth, prediction) == pytest.approx(theirs(truth, prediction))
        assert ours(truth[:, 2], prediction[:, 2]) == pytest.approx(theirs(truth[:, 2], prediction[:, 2]))
        hidden = truth.copy()
        hidden[:, 0], hidden[5:, 1] = math.nan, math.nan
        expected = [theirs(truth[:5, 1], prediction[:5, 1]), theirs(truth[:, 2], prediction[:, 2])]
        assert ours(hidden, prediction) == pytest.approx(np.mean(expected))
        assert math.isnan(ours([math.nan], [1.0]))
        with pytest.raises(BadValueError, match="NaN"):
            ours([1.0], [math.inf])
