"""Kappas against scikit-learn, Fleiss' own example, and the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError

# Table 1 of Fleiss (1971): 14 raters, 10 subjects, 5 categories, as worked out in many textbooks.
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]
)  # fmt: skip


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("weighting", ["none", "linear", "quadratic"])
def test_cohen_agrees_with_scikit_learn(classes, weighting):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(classes)
    first = rng.integers(0, classes, 997)
    second = np.where(rng.random(997) < 0.6, first, rng.integers(0, classes, 997))
    matrix = metrics.confusion_matrix(first, second, classes)
    expected = peer.cohen_kappa_score(first, second, weights=None if weighting == "none" else weighting)
    assert metrics.cohen_kappa(matrix, weighting=weighting) == pytest.approx(expected)
    assert metrics.cohen_kappa(np.stack([matrix, matrix.T]), weighting=weighting) == pytest.approx([expected] * 2)


def test_cohen_of_full_and_of_no_agreement():
    assert metrics.cohen_kappa(np.diag([3, 4])) == 1
    assert metrics.cohen_kappa([[0, 5], [5, 0]]) == -1
    assert metrics.cohen_kappa([[1, 1], [1, 1]]) == 0
    assert np.isnan(metrics.cohen_kappa([[7, 0], [0, 0]]))


def test_fleiss_of_the_published_example():
    assert metrics.fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)


def test_weights_stand_for_repeated_rows():
    times = np.array([1, 0, 3, 2, 1, 1, 4, 0, 1, 2])
    both = metrics.fleiss_kappa(FLEISS, weights=np.stack([times, np.ones(10)]))
    assert both[0] == pytest.approx(float(metrics.fleiss_kappa(np.repeat(FLEISS, times, 0))))
    assert both[1] == pytest.approx(float(metrics.fleiss_kappa(FLEISS)))


def test_two_raters_who_use_the_classes_alike_have_the_kappa_of_cohen():
    matrix = np.array([[40, 5, 1], [5, 30, 4], [1, 4, 20]])
    items = np.repeat(np.stack(np.indices((3, 3)), -1).reshape(-1, 2), matrix.reshape(-1), 0)
    counts = (items[:, :, None] == np.arange(3)).sum(1)
    assert metrics.fleiss_kappa(counts) == pytest.approx(metrics.cohen_kappa(matrix))


def test_what_cannot_be_is_refused():
    with pytest.raises(BadShapeError, match=r"expected \(classes, classes\)"):
        metrics.cohen_kappa(np.ones((2, 3)))
    with pytest.raises(BadValueError, match="expected one of none, linear, quadratic"):
        metrics.cohen_kappa(np.eye(2), weighting="cubic")
    with pytest.raises(BadValueError, match="judged by 1 to 2 raters"):
        metrics.fleiss_kappa([[1, 1], [1, 0]])
    with pytest.raises(BadValueError, match="two or more"):
        metrics.fleiss_kappa([[1, 0], [1, 0]])
    with pytest.raises(BadShapeError, match=r"expected \(…, 2\)"):
        metrics.fleiss_kappa([[1, 1], [2, 0]], weights=[1.0])
    with pytest.raises(BadShapeError, match="at least one item"):
        metrics.fleiss_kappa(np.ones((0, 3)))
