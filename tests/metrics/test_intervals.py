"""Bootstrap intervals cover as often as they say, draw whole units, and are the same in both forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadValueError


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        sample = rng.normal(0, 1, 40)
        low, high = metrics.bootstrap_interval(lambda i, s=sample: s[i].mean(), range(40), resamples=200, rng=trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_draws_whole_groups():
    values = np.repeat(np.arange(10.0), 50)
    groups = np.repeat(np.arange(10), 50)
    alone = metrics.bootstrap_interval(lambda i: values[i].mean(), np.arange(500))
    grouped = metrics.bootstrap_interval(lambda i: values[i].mean(), groups)
    assert np.diff(grouped)[0] > 4 * np.diff(alone)[0]
    assert metrics.bootstrap_interval(lambda i: values[i].mean(), groups) == grouped
    assert metrics.bootstrap_interval(lambda i: values[i].mean(), groups, rng=1) != grouped


def test_interval_of_one_group_is_not_defined():
    low, high = metrics.bootstrap_interval(lambda i: float(len(i)), ["one"] * 9)
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(BadValueError, match="0 groups"):
        metrics.bootstrap_interval(lambda i: 0.0, [])


@pytest.mark.parametrize(("units", "resamples"), [(2, 7), (41, 1000), (997, 63)])
def test_weights_are_the_draws_of_the_interval(units, resamples):
    values = np.random.default_rng(1).normal(size=units)
    weights = np.concatenate(list(metrics.draw_weights(units, resamples=resamples, rng=3)))
    assert weights.shape == (resamples, units)
    assert (weights.sum(1) == units).all()
    expected = metrics.bootstrap_interval(lambda i: values[i].mean(), range(units), resamples=resamples, rng=3)
    assert metrics.percentile_interval(weights @ values / units) == pytest.approx(expected)
    # Blocks of another size are the same draws.
    narrow = list(metrics.draw_weights(units, resamples=resamples, rng=3, width=1 << 20))
    assert len(narrow) == -(-resamples // 4)
    assert np.array_equal(np.concatenate(narrow), weights)


def test_undefined_draws_are_left_out():
    assert metrics.percentile_interval([math.nan, 1.0, math.nan]) == (1, 1)
    assert all(map(math.isnan, metrics.percentile_interval([math.nan])))
    with pytest.raises(BadValueError, match="0 units"):
        next(metrics.draw_weights(0))
