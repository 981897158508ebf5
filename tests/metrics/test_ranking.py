"""Curves, areas and thresholds against scikit-learn and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError


@pytest.mark.parametrize("ties", [False, True])
def test_auc_agrees_with_scikit_learn(ties):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 301)
    score = rng.normal(size=301) + truth
    score = np.round(score) if ties else score
    assert metrics.auc(truth, score) == pytest.approx(peer.roc_auc_score(truth, score), abs=1e-12)


def test_auc_of_worked_examples():
    assert metrics.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert metrics.auc([0, 1], [0.5, 0.5]) == 0.5
    assert metrics.auc([1, 0], [2, 1]) == 1
    assert math.isnan(metrics.auc([1, 1], [2, 1]))
    with pytest.raises(BadValueError, match="NaN"):
        metrics.auc([0, 1], [math.nan, 1])
    with pytest.raises(BadShapeError, match=r"\(3,\)"):
        metrics.auc([0, 1, 1], [0, 1])


def test_mean_auc_is_the_mean_over_classes_that_have_both_kinds():
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (63, 4))
    scores = rng.normal(size=(63, 4)) + truth
    assert metrics.mean_auc(truth, scores) == pytest.approx(peer.roc_auc_score(truth, scores, average="macro"))
    truth[:, 0] = 1
    expected = [peer.roc_auc_score(truth[:, k], scores[:, k]) for k in (1, 2, 3)]
    assert metrics.mean_auc(truth, scores) == pytest.approx(np.mean(expected))
    truth[:7, 1], scores[:7, 1] = -1, math.nan
    expected[0] = peer.roc_auc_score(truth[7:, 1], scores[7:, 1])
    assert metrics.mean_auc(truth, scores) == pytest.approx(np.mean(expected))
    assert math.isnan(metrics.mean_auc(np.ones((3, 2)), np.zeros((3, 2))))
    assert math.isnan(metrics.mean_auc(np.zeros((0, 2)), np.zeros((0, 2))))
    with pytest.raises(BadShapeError, match=r"\(3, 2\)"):
        metrics.mean_auc(np.ones((3, 2)), np.zeros(3))


def scored(count: int, seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count)
    score = rng.normal(size=count) + truth
    return truth, np.round(score) if ties else score


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [63, 997])
def test_curves_agree_with_scikit_learn(count, ties):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    truth, score = scored(count, 4, ties)
    for ours, theirs in zip(
        metrics.roc_curve(truth, score), peer.roc_curve(truth, score, drop_intermediate=False), strict=True
    ):
        assert ours == pytest.approx(theirs)
    precision, recall, thresholds = metrics.precision_recall_curve(truth, score)
    theirs = peer.precision_recall_curve(truth, score)
    assert thresholds == pytest.approx(theirs[2][::-1])
    assert precision == pytest.approx(theirs[0][:-1][::-1])
    assert recall == pytest.approx(theirs[1][:-1][::-1])
    assert metrics.average_precision(truth, score) == pytest.approx(peer.average_precision_score(truth, score))


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_areas_agree_with_scikit_learn_and_with_repeats(ties):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    truth, score = scored(101, 5, ties)
    weights = np.random.default_rng(6).integers(0, 4, (13, 101))
    weights[3, truth == 1] = 0
    area = metrics.weighted_auc(truth, score, weights)
    mean = metrics.weighted_average_precision(truth, score, weights)
    assert np.flatnonzero(np.isnan(area)).tolist() == np.flatnonzero(np.isnan(mean)).tolist() == [3]
    for row in (0, 1, 2, 12):
        assert area[row] == pytest.approx(peer.roc_auc_score(truth, score, sample_weight=weights[row]))
        assert mean[row] == pytest.approx(peer.average_precision_score(truth, score, sample_weight=weights[row]))
        again = np.repeat(np.arange(101), weights[row])
        assert area[row] == pytest.approx(metrics.auc(truth[again], score[again]))
        assert mean[row] == pytest.approx(metrics.average_precision(truth[again], score[again]))
    ones = np.ones((1, 101))
    assert metrics.weighted_auc(truth, score, ones) == pytest.approx(metrics.auc(truth, score))


def test_what_one_kind_alone_leaves_undefined():
    assert math.isnan(metrics.average_precision([0, 0], [1, 2]))
    assert metrics.average_precision([1, 1], [1, 2]) == 1
    assert math.isnan(metrics.average_precision([], []))
    wrong, found, _ = metrics.roc_curve([1, 1], [1, 2])
    assert np.isnan(wrong).all()
    assert found.tolist() == [0, 0.5, 1]
    assert np.isnan(metrics.weighted_auc([1, 1], [1, 2], np.ones((3, 2)))).all()
    assert np.isnan(metrics.weighted_auc([], [], np.ones((3, 0)))).all()
    with pytest.raises(BadShapeError, match="weights"):
        metrics.weighted_auc([0, 1], [1, 2], np.ones(2))


def test_thresholds_of_a_worked_example():
    truth, score = [0, 0, 1, 0, 1, 1, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    # At 0.8: 3 of 6 found, no false alarm; at 0.5: 5 of 6 found, 1 of 4 falsely: 0.583 beats 0.5.
    assert metrics.choose_threshold(truth, score) == 0.5
    assert metrics.choose_threshold(truth, score, {"sensitivity": 1.0}) == 0.3
    assert metrics.choose_threshold(truth, score, {"sensitivity": 5 / 6}) == 0.5
    assert metrics.choose_threshold(truth, score, {"specificity": 1.0}) == 0.8
    assert metrics.choose_threshold(truth, score, {"specificity": 0.5}) == 0.3
    # A negative on top: nothing is specific enough, so nothing is taken for positive.
    above = metrics.choose_threshold([1, 0], [0.2, 0.9], {"specificity": 1.0})
    assert 0.9 < above < 0.9001


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_are_the_best_of_all(ties):
    truth, score = scored(211, 7, ties)

    def rates(threshold: float) -> tuple[float, float]:
        return (score >= threshold)[truth == 1].mean(), (score < threshold)[truth == 0].mean()

    every = [rates(t) for t in [*np.unique(score), score.max() + 1]]
    assert sum(rates(metrics.choose_threshold(truth, score))) == pytest.approx(max(map(sum, every)))
    found, spared = rates(metrics.choose_threshold(truth, score, {"sensitivity": 0.9}))
    assert found >= 0.9
    assert spared == max(s for f, s in every if f >= 0.9)
    found, spared = rates(metrics.choose_threshold(truth, score, {"specificity": 0.9}))
    assert spared >= 0.9
    assert found == max(f for f, s in every if s >= 0.9)


@pytest.mark.parametrize("rule", ["best", {"sensitivity": 2}, {"recall": 0.5}, {}, {"sensitivity": True}])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(BadValueError, match="operating point"):
        metrics.choose_threshold([0, 1], [0, 1], rule)


def test_a_threshold_needs_both_kinds():
    with pytest.raises(BadValueError, match="one kind only"):
        metrics.choose_threshold([1, 1], [0, 1])
