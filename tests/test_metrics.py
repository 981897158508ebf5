"""Figures of merit against scikit-learn, worked examples and the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError


def draw(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    scores = rng.dirichlet(np.ones(classes), count)
    scores[np.arange(count), truth] += rng.random(count)
    scores /= scores.sum(1, keepdims=True)
    return truth, scores.argmax(1), scores


@pytest.mark.parametrize(("classes", "count"), [(2, 63), (5, 997), (3, 1)])
def test_agrees_with_scikit_learn(classes, count):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    truth, prediction, _ = draw(classes, count)
    labels = range(classes)
    matrix = metrics.confusion_matrix(truth, prediction, classes)
    assert np.array_equal(matrix, peer.confusion_matrix(truth, prediction, labels=labels))
    assert metrics.accuracy(matrix) == pytest.approx(peer.accuracy_score(truth, prediction))
    f1 = peer.f1_score(truth, prediction, labels=labels, average=None, zero_division=np.nan)
    assert metrics.dice(matrix) == pytest.approx(f1, nan_ok=True)
    jaccard = peer.jaccard_score(truth, prediction, labels=np.unique(np.r_[truth, prediction]), average=None)
    assert metrics.iou(matrix)[~np.isnan(metrics.iou(matrix))] == pytest.approx(jaccard)
    if count > classes:
        assert metrics.balanced_accuracy(matrix) == pytest.approx(peer.balanced_accuracy_score(truth, prediction))
        assert metrics.macro_f1(matrix) == pytest.approx(peer.f1_score(truth, prediction, average="macro"))
        assert metrics.sensitivity(matrix) == pytest.approx(peer.recall_score(truth, prediction, average=None))


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


def test_dice_and_iou_of_a_worked_example():
    truth = np.array([[0, 0, 1], [1, 1, -1]])
    prediction = np.array([[0, 1, 1], [1, 0, 2]])
    matrix = metrics.confusion_matrix(truth, prediction, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert metrics.dice(matrix) == pytest.approx([1 / 2, 2 / 3, math.nan], nan_ok=True)
    assert metrics.iou(matrix) == pytest.approx([1 / 3, 1 / 2, math.nan], nan_ok=True)
    assert metrics.sensitivity(matrix) == pytest.approx([1 / 2, 2 / 3, math.nan], nan_ok=True)
    assert metrics.specificity(matrix) == pytest.approx([2 / 3, 1 / 2, 1])
    assert metrics.accuracy(matrix) == 3 / 5
    assert metrics.balanced_accuracy(matrix) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_what_is_ignored_never_counts():
    truth, prediction, _ = draw(4, 100)
    hidden = truth.copy()
    hidden[::3] = -1
    matrix = metrics.confusion_matrix(hidden, prediction, 4)
    kept = np.delete(np.arange(100), np.s_[::3])
    assert np.array_equal(matrix, metrics.confusion_matrix(truth[kept], prediction[kept], 4))
    assert metrics.confusion_matrix([9, 1], [0, 1], 2, ignore=9).tolist() == [[0, 0], [0, 1]]


def test_empty_gives_nan_not_a_number_that_looks_good():
    empty = metrics.confusion_matrix([], [], 3)
    assert math.isnan(metrics.accuracy(empty))
    assert math.isnan(metrics.balanced_accuracy(empty))
    assert math.isnan(metrics.macro_f1(empty))
    assert math.isnan(metrics.expected_calibration_error([], np.zeros((0, 2))))


def test_refuses_indices_outside_and_other_shapes():
    with pytest.raises(BadValueError, match="expected 0 to 1"):
        metrics.confusion_matrix([0, 2], [0, 1], 2)
    with pytest.raises(BadValueError, match="prediction holds -1"):
        metrics.confusion_matrix([0, 1], [0, -1], 2)
    with pytest.raises(BadShapeError, match="expected the same"):
        metrics.confusion_matrix([0, 1], [0], 2)
    with pytest.raises(BadShapeError, match=r"\(classes, classes\)"):
        metrics.dice(np.zeros((2, 3)))


def test_calibration_of_worked_examples():
    sure = np.array([[1.0, 0.0]] * 10)
    assert metrics.expected_calibration_error([0] * 10, sure) == 0
    assert metrics.expected_calibration_error([0] * 5 + [1] * 5, sure) == pytest.approx(0.5)
    mixed = np.array([[0.8, 0.2]] * 4 + [[0.3, 0.7]] * 4)
    # In the first bin half are right at 0.8, in the second all at 0.7: (4 * 0.3 + 4 * 0.3) / 8.
    assert metrics.expected_calibration_error([0, 0, 1, 1, 1, 1, 1, 1], mixed) == pytest.approx(0.3)
    with pytest.raises(BadShapeError, match="probability"):
        metrics.expected_calibration_error([0, 1], [0.5, 0.5])


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
