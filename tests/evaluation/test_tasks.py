"""What is reported for each task: figures against scikit-learn and the definitions, notes on what is not defined."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from dhlab import metrics
from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.evaluation import evaluate
from dhlab.models import Model, ModelCard
from dhlab.report import Report

KINDS = ("benign", "malignant")


def judge(model: Model, data: Dataset, **options: Any) -> Report:
    return evaluate(model, data, pictures=False, progress=False, **options)


def binary(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < 0.4).astype(int)
    logit = rng.normal(size=count) + 1.5 * truth - 1
    return truth, np.stack([np.zeros(count), logit], axis=1)


def chance(table: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(table[:, 0] - table[:, 1]))


def test_two_classes(lookup_model, numbered_data):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    truth, table = binary()
    data = numbered_data(truth, KINDS, "classification", groups=[f"P{i // 3}" for i in range(120)])
    report = evaluate(lookup_model(table, KINDS, "classification"), data, batch_size=7, progress=False)
    score = chance(table)
    said = score > 0.5
    expected = {
        "balanced accuracy": peer.balanced_accuracy_score(truth, said),
        "accuracy": peer.accuracy_score(truth, said),
        "macro F1": peer.f1_score(truth, said, average="macro"),
        "AUC": peer.roc_auc_score(truth, score),
        "average precision": peer.average_precision_score(truth, score),
        "sensitivity": peer.recall_score(truth, said),
        "specificity": peer.recall_score(1 - truth, 1 - said),
        "calibration error": metrics.expected_calibration_error(truth, np.stack([1 - score, score], 1)),
        "Brier score": peer.brier_score_loss(truth, score),
    }
    assert report.values == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}
    share = truth.mean()
    rival = {"AUC": 0.5, "average precision": share, "sensitivity": 0, "specificity": 1, "accuracy": 1 - share}
    assert {name: report.baseline[name] for name in rival} == pytest.approx(rival)
    assert report.baseline["Brier score"] == pytest.approx(share * (1 - share))
    assert "calibration error" not in report.baseline
    assert report.provenance["unit"] == "patient"
    assert "Calibration error cannot" in " ".join(report.notes)
    for name, (low, high) in report.intervals.items():
        assert low < high
        assert low - 0.1 < report.values[name] < high + 0.1, name


def test_draws_are_those_of_samples_drawn_again(lookup_model, numbered_data):
    truth, table = binary()
    groups = np.array([f"P{i // 4:02d}" for i in range(120)])
    data = numbered_data(truth, KINDS, "classification", groups=groups)
    report = judge(lookup_model(table, KINDS, "classification"), data, resamples=50, seed=3)
    score, said = chance(table).astype(np.float32), table[:, 1] > 0

    def statistics(name: str, drawn: np.ndarray) -> float:
        if name == "AUC":
            return metrics.auc(truth[drawn], score[drawn])
        if name == "Brier score":
            return metrics.brier_score(truth[drawn], score[drawn])
        if name == "calibration error":
            return metrics.expected_calibration_error(truth[drawn], np.stack([1 - score, score], 1)[drawn])
        return metrics.balanced_accuracy(metrics.confusion_matrix(truth[drawn], said[drawn].astype(int), 2))

    for name in ("AUC", "Brier score", "calibration error", "balanced accuracy"):
        expected = metrics.bootstrap_interval(lambda d, n=name: statistics(n, d), groups, resamples=50, rng=3)
        assert report.intervals[name] == pytest.approx(expected, abs=1e-6)
        assert len(report.draws[name]) == 50


def test_three_classes(lookup_model, numbered_data):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 63)
    table = rng.normal(size=(63, 3)) + 2 * np.eye(3)[truth]
    data = numbered_data(truth, ("a", "b", "c"), "classification")
    report = evaluate(lookup_model(table, ("a", "b", "c"), "classification"), data, progress=False)
    share = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    assert report.values["AUC"] == pytest.approx(peer.roc_auc_score(truth, share, multi_class="ovr"), abs=1e-6)
    assert report.values["Brier score"] == pytest.approx(metrics.brier_score(truth, share), abs=1e-6)
    assert "sensitivity" not in report.values
    with pytest.raises(BadValueError, match="3 classes; expected a classification of two"):
        evaluate(lookup_model(table, ("a", "b", "c"), "classification"), data, operating_point=0.5, progress=False)


def test_an_operating_point_chosen_elsewhere(lookup_model, numbered_data):
    truth, table = binary(200)
    model = lookup_model(table, KINDS, "classification")
    data = numbered_data(truth, KINDS, "classification")
    validation, test = data.subset(range(100)), data.subset(range(100, 200))
    score = chance(table)
    for rule in ("youden", {"sensitivity": 0.9}):
        report = judge(model, test, operating_point=rule, operating_on=validation)
        threshold = metrics.choose_threshold(truth[:100], score[:100].astype(np.float32), rule)
        said = score[100:].astype(np.float32) >= np.float32(threshold)
        assert report.values["sensitivity"] == pytest.approx(said[truth[100:] == 1].mean())
        assert report.values["specificity"] == pytest.approx((~said)[truth[100:] == 0].mean())
        assert report.values["accuracy"] == pytest.approx((said == truth[100:]).mean())
        assert "too good" not in " ".join(report.notes)
        assert f"{threshold:.3g}" in report.provenance["operating point"]
    itself = judge(model, test, operating_point={"sensitivity": 0.9})
    assert itself.values["sensitivity"] >= 0.9
    assert "too good" in " ".join(itself.notes)
    given = judge(model, test, operating_point=0.2)
    assert given.values["sensitivity"] == pytest.approx((score[100:] >= 0.2)[truth[100:] == 1].mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operating_point": "best"}, "operating point 'best'"),
        ({"operating_point": math.nan}, "finite"),
        ({"operating_point": True}, "finite"),
        ({"operating_point": {"recall": 0.5}}, "operating point"),
        ({"resamples": 0}, "resamples"),
        ({"objects": ["benign"]}, "expected a segmentation"),
    ],
)
def test_refuses_options_that_make_no_sense(lookup_model, numbered_data, options, message):
    truth, table = binary()
    data = numbered_data(truth, KINDS, "classification")
    with pytest.raises(BadValueError, match=message):
        judge(lookup_model(table, KINDS, "classification"), data, **options)


def test_refuses_a_point_that_cannot_be_chosen(lookup_model, numbered_data):
    truth, table = binary()
    model = lookup_model(table, KINDS, "classification")
    data = numbered_data(truth, KINDS, "classification")
    one = data.subset(np.flatnonzero(truth == 0))
    with pytest.raises(BadValueError, match="one kind only"):
        judge(model, data, operating_point="youden", operating_on=one)
    with pytest.raises(BadValueError, match="leave one out"):
        judge(model, data, operating_point=0.5, operating_on=data)
    with pytest.raises(BadValueError, match="without operating_point"):
        judge(model, data, operating_on=data)
    with pytest.raises(BadValueError, match="baseline_from is classification of x, y"):
        judge(
            model,
            data,
            baseline_from=numbered_data(truth, ("x", "y"), "classification"),
        )


def test_one_class_only_leaves_the_area_out(lookup_model, numbered_data):
    _, table = binary(20)
    data = numbered_data(np.zeros(20, int), KINDS, "classification")
    report = evaluate(lookup_model(table, KINDS, "classification"), data, progress=False)
    assert "AUC" not in report.values
    assert "left out: AUC" in " ".join(report.notes)
    assert "Not in these data: malignant" in " ".join(report.notes)
    assert report.values["specificity"] == report.values["accuracy"]
    assert not any("ROC" in figure.caption for figure in report.figures)


def test_the_baseline_knows_the_training_set_only(lookup_model, numbered_data):
    truth, table = binary(60)
    data = numbered_data(truth, KINDS, "classification")
    training = numbered_data(np.array([1, 1, 1, 0]), KINDS, "classification")
    model = lookup_model(table, KINDS, "classification")
    report = judge(model, data, baseline_from=training)
    assert report.baseline["accuracy"] == pytest.approx(truth.mean())
    assert report.baseline["Brier score"] == pytest.approx(((0.75 - truth) ** 2).mean())
    assert report.provenance["baseline"] == "always malignant"
    note = "on these data themselves"
    assert note not in " ".join(report.notes)
    assert note in " ".join(judge(model, data).notes)


LABELS = ("effusion", "nodule", "fracture")


def several(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    truth = (rng.random((count, 3)) < [0.5, 0.3, 0.2]).astype(int)
    table = rng.normal(size=truth.shape) + 1.5 * truth - 1
    truth[rng.random(truth.shape) < 0.2] = -1
    return truth, table


def test_several_labels(lookup_model, numbered_data):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    truth, table = several()
    truth[5] = -1
    data = numbered_data(truth, LABELS, "multilabel", groups=[f"P{i // 2}" for i in range(90)])
    report = evaluate(lookup_model(table, LABELS, "multilabel"), data, progress=False)
    score, known = 1 / (1 + np.exp(-table)), truth >= 0
    columns = [(truth[k, j], score[k, j]) for j, k in enumerate(known.T)]
    expected = {
        "mean AUC": np.mean([peer.roc_auc_score(*c) for c in columns]),
        "mean average precision": np.mean([peer.average_precision_score(*c) for c in columns]),
        "macro F1": np.mean([peer.f1_score(t, s > 0.5) for t, s in columns]),
        "mean sensitivity": np.mean([peer.recall_score(t, s > 0.5) for t, s in columns]),
        "mean specificity": np.mean([peer.recall_score(1 - t, s <= 0.5) for t, s in columns]),
        "Brier score": peer.brier_score_loss(truth[known], score[known]),
        "AUC nodule": peer.roc_auc_score(*columns[1]),
    }
    assert {name: report.values[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    count, sure, share = metrics.reliability_bins(score[known], truth[known])
    gap = np.nansum(count * np.abs(sure - share)) / known.sum()
    assert report.values["calibration error"] == pytest.approx(gap, abs=1e-6)
    assert report.baseline["mean AUC"] == 0.5
    assert report.baseline["mean average precision"] == pytest.approx(np.mean([t.mean() for t, _ in columns]))
    assert report.provenance["labelled"] == known.sum()
    assert [figure.caption.split()[0] for figure in report.figures] == ["ROC", "Reliability:", "Worst"]
    chosen = evaluate(lookup_model(table, LABELS, "multilabel"), data, operating_point="youden", progress=False)
    thresholds = [row["threshold"] for row in chosen.tables["Per label"]]
    assert thresholds == pytest.approx([metrics.choose_threshold(t, s) for t, s in columns], abs=1e-6)


def test_a_label_of_one_kind_is_named(lookup_model, numbered_data):
    truth, table = several()
    truth[:, 2] = 0
    data = numbered_data(truth, LABELS, "multilabel")
    report = judge(lookup_model(table, LABELS, "multilabel"), data)
    assert "One kind only is known of fracture" in " ".join(report.notes)
    assert report.values["mean AUC"] == pytest.approx(
        np.mean([report.values["AUC effusion"], report.values["AUC nodule"]])
    )
    nothing = numbered_data(np.zeros((9, 3), int), LABELS, "multilabel")
    assert "mean AUC" not in judge(lookup_model(table, LABELS, "multilabel"), nothing).values


def test_numbers(lookup_model, numbered_data):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(3)
    truth = rng.normal([1e5, 40], [3, 12], (80, 2)).astype(np.float32)
    table = truth + rng.normal(size=(80, 2)) * [2, 6] + [0.5, 0]
    truth[::7, 1], truth[3] = math.nan, math.nan
    data = numbered_data(truth, ("weight", "age"), "regression", groups=[f"P{i // 2}" for i in range(80)])
    report = evaluate(lookup_model(table, ("weight", "age"), "regression"), data, resamples=50, progress=False)
    table = table.astype(np.float32)
    columns = [(truth[k, j], table[k, j]) for j, k in enumerate(~np.isnan(truth.T))]
    for name, (t, s) in zip(("weight", "age"), columns, strict=True):
        assert report.values[f"MAE {name}"] == pytest.approx(peer.mean_absolute_error(t, s), rel=1e-4)
        assert report.values[f"RMSE {name}"] == pytest.approx(peer.root_mean_squared_error(t, s), rel=1e-4)
        assert report.values[f"R² {name}"] == pytest.approx(peer.r2_score(t.astype(float), s.astype(float)), rel=1e-4)
        assert report.values[f"mean error {name}"] == pytest.approx((s.astype(float) - t).mean(), rel=1e-4)
        assert report.baseline[f"R² {name}"] == pytest.approx(0, abs=1e-6)
    assert report.values["R²"] == pytest.approx(metrics.r_squared(truth, table), rel=1e-6)
    kept = ~np.isnan(truth).all(1)
    groups = np.array([f"P{i // 2}" for i in range(80)])[kept]
    interval = metrics.bootstrap_interval(
        lambda d: metrics.r_squared(truth[kept][d], table[kept][d]), groups, resamples=50
    )
    assert report.intervals["R²"] == pytest.approx(interval, rel=1e-4)
    assert report.provenance["labelled"] == sum(len(t) for t, _ in columns)
    training = numbered_data(np.array([[1e5, 10], [1e5, math.nan]], np.float32), ("weight", "age"), "regression")
    other = evaluate(lookup_model(table, ("weight", "age"), "regression"), data, baseline_from=training, progress=False)
    assert other.baseline["MAE age"] == pytest.approx(np.abs(columns[1][0] - 10).mean(), rel=1e-5)


def test_numbers_that_are_all_the_same_have_no_r_squared(lookup_model, numbered_data):
    data = numbered_data(np.full((9, 1), 7.3, np.float32), ("age",), "regression")
    report = judge(lookup_model(np.full((9, 1), 8.3), ("age",), "regression"), data)
    assert "R²" not in report.values
    assert "left out: R²" in " ".join(report.notes)
    assert report.values["MAE"] == pytest.approx(1, rel=1e-6)
    nothing = numbered_data(np.full((9, 1), math.nan, np.float32), ("age",), "regression")
    with pytest.raises(BadValueError, match="no label at all"):
        judge(lookup_model(np.full((9, 1), 8.3), ("age",), "regression"), nothing)


def masks() -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(4)
    field = gaussian_filter(rng.normal(size=(9, 31, 37)), (0, 3, 3))
    other = field + gaussian_filter(rng.normal(size=(9, 31, 37)), (0, 3, 3)) / 3
    return (field > 0.05).astype(int), (other > 0.05).astype(int)


def test_outlines_and_objects_of_a_segmentation(lookup_model, numbered_data):
    truth, said = masks()
    truth[0], said[1] = 0, 0
    table = np.moveaxis(np.eye(2)[said] * 4, -1, 1)
    classes = ("background", "nuclei")
    data = numbered_data(truth, classes, "segmentation", spacing=(0.5, 0.25), unit="µm")
    model = lookup_model(table, classes, "segmentation", tile=(31, 37), spacing=(0.5, 0.25))
    report = evaluate(model, data, objects=["nuclei"], resamples=20, progress=False)
    pairs = list(zip(truth == 1, said == 1, strict=True))
    far = [metrics.hausdorff95(t, s, spacing=(0.5, 0.25)) for t, s in pairs]
    assert np.isinf(far).sum() == 2
    assert report.values["HD95 (µm)"] == pytest.approx(np.mean(np.array(far)[np.isfinite(far)]))
    near = [metrics.average_surface_distance(t, s, spacing=(0.5, 0.25)) for t, s in pairs]
    assert report.values["surface distance (µm)"] == pytest.approx(np.mean(np.array(near)[np.isfinite(near)]))
    assert "In 2 cases" in " ".join(report.notes)
    maps = [(metrics.label_objects(t), metrics.label_objects(s)) for t, s in pairs]
    assert report.values["AJI nuclei"] == pytest.approx(np.mean([metrics.aggregated_jaccard(*m) for m in maps]))
    matches = [metrics.match_objects(*m) for m in maps]
    found, wrong = sum(m.found for m in matches), sum(m.missed + m.wrong for m in matches)
    assert report.values["detection F1 nuclei"] == pytest.approx(found / (found + wrong / 2))
    assert report.values["PQ nuclei"] == pytest.approx(sum(m.overlap for m in matches) / (found + wrong / 2))
    confusions = [metrics.confusion_matrix(t, s, 2) for t, s in zip(truth, said, strict=True)]
    per_sample = np.mean([metrics.macro_f1(c) for c in confusions])
    assert report.values["mean Dice per sample"] == pytest.approx(per_sample)
    share = np.exp(4) / (np.exp(4) + 1)
    assert report.values["calibration error"] == pytest.approx(abs(share - (truth == said).mean()), abs=1e-6)
    assert report.tables["Per class"][0]["HD95 (µm)"] is None
    assert "Calibration error cannot" not in " ".join(report.notes)
    bare = evaluate(model, data, surfaces=False, resamples=20, progress=False)
    assert not [name for name in bare.values if "HD95" in name or "AJI" in name]
    with pytest.raises(UnknownNameError, match="Did you mean 'nuclei'"):
        evaluate(model, data, objects=["nucleus"], progress=False)


def test_outlines_need_whole_labels(lookup_model, numbered_data):
    truth, said = masks()
    truth[2:, 0, 0] = -1
    table = np.moveaxis(np.eye(2)[said] * 4, -1, 1)
    data = numbered_data(truth, ("background", "nuclei"), "segmentation")
    model = lookup_model(table, ("background", "nuclei"), "segmentation", tile=(31, 37))
    report = judge(model, data, resamples=20)
    expected = np.mean([metrics.hausdorff95(truth[i] == 1, said[i] == 1) for i in (0, 1)])
    assert report.values["HD95 (px)"] == pytest.approx(expected)
    assert "in 2 of 9 samples" in " ".join(report.notes)
    assert "pixel size is not known" in " ".join(report.notes)


def test_bags_are_judged_like_pictures():

    from dhlab.models import Model

    class Mean(nn.Module):
        def forward(self, x):
            return x.nan_to_num(0).sum((2,)) if x.ndim == 3 else x

    truth = np.arange(12) % 2
    bags = [np.full((1 + i % 3, 2), 0.0, np.float32) + np.eye(2, dtype=np.float32)[truth[i]] * 3 for i in range(12)]
    data = Dataset.from_bags(bags, truth, classes=KINDS)
    card = ModelCard(
        name="bags", architecture="attention-mil", task="classification", classes=KINDS, tile=(3,), spacing=(1.0,),
        axes="ic", dtype="float32", value_range=(0.0, 1.0), mean=(0.0, 0.0), std=(1.0, 1.0),
    )  # fmt: skip
    report = evaluate(Model(Mean(), card), data, progress=False)
    assert report.values["AUC"] == report.values["accuracy"] == 1
    assert not any("Worst" in figure.caption for figure in report.figures)


def subgrouped(numbered_data) -> tuple[Dataset, np.ndarray, np.ndarray]:
    truth, table = binary(120)
    data = numbered_data(truth, KINDS, "classification", groups=[f"P{i // 2:02d}" for i in range(120)])
    site = tuple(["Turin", "Oslo", None][i // 2 % 3] if i < 110 else "Rome" for i in range(120))
    return replace(data, features={"site": site, "age": tuple(map(str, range(120)))}), truth, table


def test_subgroups_are_compared_with_the_rest(lookup_model, numbered_data):
    data, truth, table = subgrouped(numbered_data)
    model = lookup_model(table, KINDS, "classification")
    report = judge(model, data, subgroups=("site", "age"), resamples=200)
    rows = {row["value"]: row for row in report.tables["Subgroups"]}
    assert list(rows)[:4] == ["Oslo", "Rome", "Turin", "not stated"]
    inside = np.array([site == "Turin" for site in data.features["site"]])
    said = (table[:, 1] > 0).astype(int)

    def figure(samples: np.ndarray) -> float:
        return metrics.balanced_accuracy(metrics.confusion_matrix(truth[samples], said[samples], 2))

    assert rows["Turin"]["balanced accuracy"] == pytest.approx(figure(inside))
    assert rows["Turin"]["minus the rest"] == pytest.approx(figure(inside) - figure(~inside))
    assert rows["Turin"]["samples"] == inside.sum()
    assert rows["Turin"]["patients"] == inside.sum() / 2
    assert rows["Rome"]["remark"] == "fewer than 10 patients"
    assert rows["Turin"]["remark"] == ""
    assert "by chance" in " ".join(report.notes)
    low, high = map(float, rows["Turin"]["95 % interval"].split(" to "))
    assert low <= rows["Turin"]["balanced accuracy"] <= high
    ages = [row for row in report.tables["Subgroups"] if row["subgroup"] == "age"]
    assert [row["samples"] for row in ages] == [30, 30, 30, 30]
    with pytest.raises(UnknownNameError, match="Did you mean 'site'"):
        judge(model, data, subgroups=("sites",))
    with pytest.raises(UnknownNameError, match="has none"):
        judge(model, replace(data, features={}), subgroups=("site",))


def test_a_subgroup_of_one_patient_has_no_interval(lookup_model, numbered_data):
    data, _, table = subgrouped(numbered_data)
    names = tuple("one" if i < 2 else "rest" for i in range(120))
    report = judge(
        lookup_model(table, KINDS, "classification"),
        replace(data, features={"x": names}),
        subgroups=("x",),
        resamples=20,
    )
    rows = report.tables["Subgroups"]
    assert rows[0]["95 % interval"] == ""
    assert rows[1]["95 % interval"] != ""
    assert rows[1]["95 % interval of that"] == ""


def test_two_models_are_compared_in_pairs(lookup_model, numbered_data):
    truth, table = binary(200)
    groups = [f"P{i // 2}" for i in range(200)]
    data = numbered_data(truth, KINDS, "classification", groups=groups)
    noise = np.random.default_rng(9).normal(size=table.shape)
    reports = [
        judge(lookup_model(t, KINDS, "classification", name=n), data, resamples=300)
        for n, t in (("good", table), ("bad", table + 2 * noise))
    ]
    compared = reports[0].compare(reports[1])
    low, high = compared.intervals["AUC"]
    assert 0 < low < compared.values["AUC"] < high
    assert compared.tables["Figures of both"][3]["p"] < 0.05
    assert compared.title == "good against bad on arrays"
    assert "Paired" in compared.notes[0]
    assert isinstance(compared, Report)
    turned = data.subset(range(199, -1, -1))
    again = judge(lookup_model(table, KINDS, "classification"), turned, resamples=300)
    assert again.units == reports[0].units
    assert again.intervals["AUC"] == pytest.approx(reports[0].intervals["AUC"])
    others = [
        judge(lookup_model(table, KINDS, "classification"), d, resamples=r, seed=s)
        for d, r, s in ((data, 300, 1), (data, 200, 0), (data.subset(range(198)), 300, 0))
    ]
    relabelled = numbered_data(1 - truth, KINDS, "classification", groups=groups)
    others.append(judge(lookup_model(table, KINDS, "classification"), relabelled, resamples=300))
    for other in others:
        assert not reports[0].compare(other).intervals


def test_few_patients_are_named(lookup_model, numbered_data):
    truth = np.zeros(40, int)
    truth[:3] = 1
    rng = np.random.default_rng(0)
    data = numbered_data(truth, KINDS, "classification", groups=[f"P{i}" for i in range(40)])
    report = judge(lookup_model(rng.normal(size=(40, 2)), KINDS, "classification"), data)
    assert "Few patients have malignant (3)" in " ".join(report.notes)
    two = data.subset([0, 30])
    text = " ".join(judge(lookup_model(rng.normal(size=(40, 2)), KINDS, "classification"), two).notes)
    assert "Only 2 patients" in text
    assert "More than one draw in twenty lacks what" in text


def test_groups_of_another_length_are_refused(lookup_model, numbered_data):
    truth, table = binary()
    data = numbered_data(truth, KINDS, "classification")
    with pytest.raises(BadShapeError, match="0 groups for 120 samples"):
        judge(lookup_model(table, KINDS, "classification"), data, groups=[])


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_scores_must_be_finite(lookup_model, numbered_data, task):
    truth, table = several()
    table[70, 1] = math.nan
    data = numbered_data(truth.astype(np.float32) if task == "regression" else truth, LABELS, task)
    with pytest.raises(BadValueError, match="not finite for samples 64 to 79"):
        judge(lookup_model(table, LABELS, task), data)


def test_many_classes_need_little_memory(lookup_model, numbered_data):
    import tracemalloc

    classes = tuple(f"c{k}" for k in range(300))
    truth = np.arange(600) % 300
    table = np.random.default_rng(0).normal(size=(600, 300)) + 9 * np.eye(300)[truth]
    model, data = lookup_model(table, classes, "classification"), numbered_data(truth, classes, "classification")
    tracemalloc.start()
    report = judge(model, data, resamples=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.values["accuracy"] == pytest.approx((table.argmax(1) == truth).mean())
    # A confusion matrix per unit would take 430 MB.
    assert peak < 150e6
