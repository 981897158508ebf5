"""Figures of a confusion matrix against scikit-learn, worked examples and the definitions."""

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
        assert metrics.precision(matrix) == pytest.approx(peer.precision_score(truth, prediction, average=None))


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


def test_refuses_indices_outside_and_other_shapes():
    with pytest.raises(BadValueError, match="expected 0 to 1"):
        metrics.confusion_matrix([0, 2], [0, 1], 2)
    with pytest.raises(BadValueError, match="prediction holds -1"):
        metrics.confusion_matrix([0, 1], [0, -1], 2)
    with pytest.raises(BadShapeError, match="expected the same"):
        metrics.confusion_matrix([0, 1], [0], 2)
    with pytest.raises(BadShapeError, match=r"\(classes, classes\)"):
        metrics.dice(np.zeros((2, 3)))


def test_several_matrices_at_once_and_means_along_an_axis():
    rng = np.random.default_rng(5)
    matrices = rng.integers(0, 9, (7, 3, 3))
    matrices[0, 2], matrices[0, :, 2] = 0, 0
    for formula in (metrics.dice, metrics.iou, metrics.sensitivity, metrics.specificity, metrics.precision):
        each = np.stack([formula(matrix) for matrix in matrices])
        assert np.array_equal(formula(matrices), each, equal_nan=True)
        means = [metrics.mean_defined(row) for row in each]
        assert metrics.mean_defined(each, axis=-1) == pytest.approx(means)
    assert np.isnan(metrics.mean_defined([[math.nan], [1.0]], axis=1)).tolist() == [True, False]
    assert math.isnan(metrics.mean_defined([]))
