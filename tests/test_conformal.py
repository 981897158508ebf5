"""Conformal prediction: thresholds by hand, and coverage as promised over many random splits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab.conformal import ConformalPredictor, conform
from dhlab.datasets import ArraySamples, Dataset
from dhlab.errors import BadShapeError, BadValueError, DHLabWarning
from dhlab.models import create_model

SPLITS = 150


def draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities of 4 classes from an overconfident model, and truths from the honest ones."""
    logits = rng.normal(0, 1.5, (count, 4))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (rng.random((count, 1)) > honest.cumsum(1)).sum(1).clip(0, 3)
    sure = np.exp(2.5 * logits)
    return sure / sure.sum(1, keepdims=True), truth


def promised(coverages: list[float], alpha: float, calibration: int, test: int) -> tuple[float, float]:
    """Return mean coverage and three standard errors of it (beta distribution of each split, binomial test)."""
    spread = math.sqrt(alpha * (1 - alpha) * (1 / (calibration + 2) + 1 / test))
    return float(np.mean(coverages)), 3 * spread / math.sqrt(len(coverages))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_hold_the_truth_as_often_as_promised(method: str, alpha: float) -> None:
    rng = np.random.default_rng(1)
    held, sizes, naive = [], [], []
    for _ in range(SPLITS):
        (scores, truth), (fresh, answers) = draw(99, rng), draw(400, rng)
        predictor = ConformalPredictor.fit(scores, truth, alpha=alpha, method=method)
        held.append(predictor.coverage(fresh, answers))
        sets = predictor.sets(fresh)
        assert held[-1] == sets[np.arange(400), answers].mean()
        sizes.append(sets.sum(1).mean())
        naive.append(ConformalPredictor(method, alpha, (1 - alpha,), 0).coverage(fresh, answers))
    mean, error = promised(held, alpha, 99, 400)
    assert mean >= 1 - alpha - error
    if method == "lac":
        assert mean <= 1 - alpha + 1 / 100 + error, "not looser than need be"
    assert np.mean(sizes) < 4
    assert abs(np.mean(naive) - (1 - alpha)) > error, "taking the model at its word does not do"


@pytest.mark.parametrize("numbers", [1, 3])
def test_intervals_hold_the_truth_as_often_as_promised(numbers: int) -> None:
    rng, alpha = np.random.default_rng(2), 0.1
    held = []
    for _ in range(SPLITS):
        given = rng.normal(size=(499, numbers)) * [1, 10, 100][:numbers]
        truth = given + rng.standard_t(3, given.shape) * [1, 10, 100][:numbers]
        predictor = ConformalPredictor.fit(given[:99], truth[:99], alpha=alpha, method="residual")
        held.append(predictor.coverage(given[99:], truth[99:]))
    mean, error = promised(held, alpha, 99, 400)
    assert 1 - alpha - error <= mean <= 1 - alpha + 1 / 100 + error
    widths = np.diff(predictor.intervals(given), axis=2)[0, :, 0]
    np.testing.assert_allclose(np.diff(np.log10(widths)), 1, atol=0.3)


def test_a_new_patient_is_covered_where_counting_samples_fails() -> None:
    """Patients with many samples are easy here; those with one are not, and they are as many."""
    rng, alpha = np.random.default_rng(3), 0.2
    by_patient, by_sample = [], []
    for _ in range(SPLITS):
        counts = np.where(rng.random(60) < 0.5, 20, 1)
        groups = np.repeat(np.arange(60), counts)
        spread = np.where(counts == 1, 10.0, 1.0)
        truth = rng.normal(0, spread[groups])[:, None]
        kept = groups < 40
        zeros = np.zeros_like(truth)
        # One sample of each new patient.
        chosen = np.searchsorted(groups, np.arange(40, 60)) + rng.integers(0, counts[40:])
        for held, owners in ((by_patient, groups[kept]), (by_sample, None)):
            predictor = ConformalPredictor.fit(zeros[kept], truth[kept], alpha=alpha, method="residual", groups=owners)
            held.append(predictor.coverage(zeros[chosen], truth[chosen]))
    error = 3 * math.sqrt(alpha * (1 - alpha) * (1 / 42 + 1 / 20) / SPLITS)
    assert np.mean(by_patient) >= 1 - alpha - error
    assert np.mean(by_sample) < 1 - alpha - 5 * error
    assert predictor.groups == kept.sum()


def test_thresholds_by_hand() -> None:
    """Nine samples and 20 %: the 8th smallest misfit of 9, since ⌈(9 + 1) · 0.8⌉ = 8."""
    right = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.55, 0.4, 0.1])
    scores = np.stack([right, 1 - right], axis=1)
    lac = ConformalPredictor.fit(scores, np.zeros(9, int), alpha=0.2)
    assert lac.thresholds == (pytest.approx(0.6),)
    np.testing.assert_array_equal(
        lac.sets([[0.41, 0.59], [0.39, 0.61], [0.5, 0.5]]), [[True, True], [False, True], [True, True]]
    )
    # Sums down to the truth: its own probability where it comes first, all of 1 where it comes second.
    aps = ConformalPredictor.fit(scores, np.zeros(9, int), alpha=0.3, method="aps")
    assert aps.thresholds == (pytest.approx(0.95),)
    np.testing.assert_array_equal(aps.sets([[0.96, 0.04], [0.94, 0.06]]), [[True, False], [True, True]])
    numbers = np.arange(1.0, 10)[:, None]
    residual = ConformalPredictor.fit(np.zeros((9, 1)), numbers, alpha=0.2, method="residual")
    assert residual.thresholds == (8.0,)
    np.testing.assert_array_equal(residual.intervals([[5.0]]), [[[-3.0, 13.0]]])
    assert ConformalPredictor.fit(np.zeros((9, 1)), numbers, alpha=0.1, method="residual").thresholds == (9.0,)


def test_adaptive_sets_are_never_empty_and_hold_sure_classes() -> None:
    scores, truth = draw(200, np.random.default_rng(4))
    predictor = ConformalPredictor.fit(scores, truth, alpha=0.5, method="aps")
    sets = predictor.sets(scores)
    assert sets.any(1).all()
    assert sets[np.arange(200), scores.argmax(1)].all()
    certain = np.tile([1.0, 0.0], (50, 1))
    always = ConformalPredictor.fit(certain, np.ones(50, int), alpha=0.1, method="aps")
    assert always.sets(certain).all(), "a truth of probability 0 belongs to the set, if such truths occur"


def test_what_is_not_known_does_not_count() -> None:
    scores, truth = draw(60, np.random.default_rng(5))
    hidden = np.where(np.arange(60) % 3 == 0, -1, truth)
    got = ConformalPredictor.fit(scores, hidden)
    assert got == ConformalPredictor.fit(scores[hidden >= 0], truth[hidden >= 0])
    assert got.coverage(scores, hidden) == got.coverage(scores[hidden >= 0], truth[hidden >= 0])
    assert math.isnan(got.coverage(scores, np.full(60, -1)))
    numbers = np.where(np.arange(60) % 2, np.nan, np.arange(60.0))[:, None]
    assert ConformalPredictor.fit(np.zeros((60, 1)), numbers, method="residual").groups == 30


def test_too_few_promise_nothing() -> None:
    scores, truth = draw(8, np.random.default_rng(6))
    with pytest.warns(DHLabWarning, match="at least 9"):
        predictor = ConformalPredictor.fit(scores, truth, alpha=0.1)
    assert predictor.sets(scores).all()
    with pytest.warns(DHLabWarning, match="too few"):
        ConformalPredictor.fit(*draw(200, np.random.default_rng(7)), groups=np.arange(200) % 5)


@pytest.mark.parametrize(
    ("scores", "truth", "arguments", "error", "match"),
    [
        (np.ones((4, 2)) / 2, np.zeros(3, int), {}, BadShapeError, "truth"),
        (np.ones(4), np.zeros(4, int), {}, BadShapeError, "classes"),
        (np.full((4, 2), np.nan), np.zeros(4, int), {}, BadShapeError, "finite"),
        (np.ones((4, 2)) / 2, np.full(4, 2), {}, BadValueError, "truth holds"),
        (np.ones((4, 2)) / 2, np.full(4, -1), {}, BadValueError, "nothing is labelled"),
        (np.ones((4, 2)) / 2, np.zeros(4, int), {"alpha": 0}, BadValueError, "alpha"),
        (np.ones((4, 2)) / 2, np.zeros(4, int), {"method": "raps"}, BadValueError, "'lac', 'aps' or 'residual'"),
        (np.ones((4, 2)) / 2, np.zeros(4, int), {"groups": [1, 2]}, BadShapeError, "groups"),
        (np.ones((4, 2)), np.zeros(4), {"method": "residual"}, BadShapeError, "numbers"),
        (np.full((4, 1), np.inf), np.zeros((4, 1)), {"method": "residual"}, BadValueError, "finite"),
    ],
)
def test_refuses_what_does_not_fit(scores, truth, arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ConformalPredictor.fit(scores, truth, **arguments)


def test_sets_and_intervals_are_not_mixed_up() -> None:
    with pytest.raises(BadValueError, match="ask for intervals"):
        ConformalPredictor("residual", 0.1, (1.0,), 9).sets([[0.5, 0.5]])
    with pytest.raises(BadValueError, match="ask for sets"):
        ConformalPredictor("lac", 0.1, (1.0,), 9).intervals([[0.5]])
    with pytest.raises(BadShapeError, match=r"\(N, 1\)"):
        ConformalPredictor("residual", 0.1, (1.0,), 9).intervals([[0.5, 0.5]])


def test_a_model_on_a_dataset() -> None:
    """What `conform` fits is what `fit` does of the model's scores, patients counted once."""
    model = create_model("cnn", ["a", "b"], tile=8, spacing=1.0, unit="px", width=4, depth=2).eval()
    rng = np.random.default_rng(8)
    images, truth = rng.integers(0, 256, (47, 8, 8, 3)).astype(np.uint8), rng.integers(0, 2, 47)
    patients = tuple(str(i // 2) for i in range(47))
    data = Dataset(ArraySamples(images, truth), ("a", "b"), "classification", groups=patients, unit_name="patient")
    import torch

    with torch.inference_mode():
        scores = model(torch.from_numpy(images)).numpy()
    for method in ("lac", "aps"):
        got = conform(model, data, method=method, batch_size=5)
        expected = ConformalPredictor.fit(scores, truth, method=method, groups=patients)
        assert got.groups == 24
        assert got.thresholds == pytest.approx(expected.thresholds)
    assert conform(model, data).method == "lac"
    with pytest.raises(BadValueError, match="expected lac or aps"):
        conform(model, data, method="residual")
    segments = create_model("unet", ["a", "b"], tile=8, spacing=1.0, width=4, depth=2)
    with pytest.raises(BadValueError, match="sets are made for classification and regression"):
        conform(segments, data)
