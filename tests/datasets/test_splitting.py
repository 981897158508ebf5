"""Splits: patients whole, classes in their share, the same for the same seed, and faults told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from dhlab.datasets import Dataset
from dhlab.errors import BadValueError, DHLabWarning, UnknownNameError

SHARES = {"training": 0.7, "validation": 0.15, "test": 0.15}


def make(labels, patients=(), task="classification", classes=("a", "b", "c"), **options) -> Dataset:
    labels = np.asarray(labels)
    shape = (len(labels), *(labels.shape[1:] if task == "segmentation" else (2, 2)))
    return Dataset.from_arrays(
        np.zeros((*shape, 3), np.uint8), labels, classes=classes, task=task, groups=patients, **options
    )


def cohort(seed: int, patients: int = 60) -> Dataset:
    """Patients with 1 to 40 samples, of classes that are rare, usual and frequent."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.15, patients), 40)
    kinds = rng.choice(3, patients, p=(0.15, 0.25, 0.6))
    return make(np.repeat(kinds, sizes), np.repeat([f"P{i}" for i in range(patients)], sizes))


def check_apart_by_group(data: Dataset) -> None:
    members = [{data.groups[i] for i in indices} for indices in data.splits.values()]
    assert sum(map(len, members)) == len(set.union(*members)) == len(set(data.groups))
    assert sorted(i for indices in data.splits.values() for i in indices) == list(range(len(data)))


@pytest.mark.parametrize("seed", range(6))
def test_patients_stay_whole_and_classes_keep_their_share(seed):
    data = cohort(seed).split(SHARES, seed=seed)
    check_apart_by_group(data)
    held = np.array([[g == group for g in data.groups] for group in dict.fromkeys(data.groups)])
    classes = data.batch(range(len(data)))[1]
    # A class cannot be cut finer than its largest patient.
    grain = [max((held & (classes == c)).sum(1)) / data.class_counts[c] for c in range(3)]
    for name, share in SHARES.items():
        part = data.part(name)
        assert len(part) / len(data) == pytest.approx(share, abs=0.03)
        assert (np.abs(part.class_counts / data.class_counts - share) <= np.maximum(0.05, grain)).all()


def test_single_samples_are_split_nearly_exactly():
    rng = np.random.default_rng(3)
    labels = rng.choice(3, 1000, p=(0.05, 0.25, 0.7))
    data = make(labels).split(SHARES)
    for name, share in SHARES.items():
        assert data.part(name).class_counts == pytest.approx(share * data.class_counts, abs=1.6)


def test_the_seed_decides_and_the_order_of_files_does_not():
    data = cohort(1)
    assert data.split(SHARES, seed=4).splits == data.split(SHARES, seed=4).splits
    assert data.split(SHARES, seed=4).splits != data.split(SHARES, seed=5).splits
    order = np.random.default_rng(0).permutation(len(data))
    shuffled = data.subset(order).split(SHARES, seed=4)
    for name, indices in data.split(SHARES, seed=4).splits.items():
        assert {data.groups[i] for i in indices} == {shuffled.groups[i] for i in shuffled.splits[name]}


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_as_even_as_those_of_scikit_learn(seed):
    data = cohort(seed, patients=40)
    labels = data.batch(range(len(data)))[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DHLabWarning)
        pairs = list(data.folds(5, seed=seed))
    assert len(pairs) == 5
    seen = []
    for training, validation in pairs:
        assert not set(training.groups) & set(validation.groups)
        assert len(training) + len(validation) == len(data)
        seen += list(validation.groups)
    assert sorted(seen) == sorted(data.groups)
    ours = np.array([v.class_counts for _, v in pairs])
    peer = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, data.groups)
    theirs = np.array([np.bincount(labels[held], minlength=3) for _, held in peer])

    def unevenness(counts):
        return (counts / counts.sum(0)).std(0).mean()

    assert unevenness(ours) <= 1.3 * unevenness(theirs) + 0.01


def test_every_part_gets_a_rare_class_while_there_are_patients():
    labels = [2] * 30 + [0] * 3 + [1] * 3
    data = make(labels, [f"P{i}" for i in range(36)]).split(SHARES)
    for name in SHARES:
        assert (data.part(name).class_counts > 0).all()


def test_a_class_missing_from_validation_is_told():
    labels = [2] * 30 + [0] * 5 + [1] * 4
    patients = [f"P{i}" for i in range(30)] + ["Q"] * 5 + ["R", "R", "S", "S"]
    with pytest.warns(DHLabWarning) as told:
        data = make(labels, patients).split(SHARES)
    texts = [str(w.message) for w in told]
    assert len(texts) == 2
    assert "class 'a'" in texts[0]
    assert "missing from validation, test: only 1 patient has it" in texts[0]
    assert "only 2 patients have it" in texts[1]
    assert data.part("training").class_counts[:2].tolist()[0] == 5


def test_masks_several_labels_and_numbers_are_balanced_too():
    rng = np.random.default_rng(0)
    masks = np.zeros((40, 4, 4), int)
    masks[:8, 0, 0] = 1
    masks[6:12, 1] = 2
    masks[:, 3] = -1
    data = make(masks, task="segmentation").split({"training": 0.5, "test": 0.5}, seed=1)
    for name in data.splits:
        assert 3 <= sum(bool((t == 1).any()) for t in data.part(name).batch(range(20))[1]) <= 5
    flags = (rng.random((300, 3)) < (0.04, 0.3, 0.8)).astype(int)
    flags[5] = -1
    data = make(flags, task="multilabel").split(SHARES)
    for name, share in SHARES.items():
        assert data.part(name).class_counts == pytest.approx(share * data.class_counts, abs=0.04 * 300)
    numbers = rng.gamma(1, 20, (200, 1)).astype(np.float32)
    numbers[7] = np.nan
    data = make(numbers, task="regression", classes=("score",)).split(SHARES)
    medians = [np.nanmedian(data.part(name).batch(range(20))[1]) for name in SHARES]
    assert max(medians) < 2 * min(medians)
    for name in SHARES:
        share_low = (data.part(name).batch(range(len(data.part(name))))[1] < np.nanquantile(numbers, 0.25)).mean()
        assert share_low == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_no_part_is_empty_while_there_are_patients(parts):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 30, parts)
        labels = np.repeat(rng.integers(0, 3, parts), sizes)
        data = make(labels, np.repeat([f"P{i}" for i in range(parts)], sizes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DHLabWarning)
            split = data.split({f"s{i}": 1 / parts for i in range(parts)}, seed=seed)
        check_apart_by_group(split)
        assert all(split.splits.values())


def test_faults_are_told():
    data = make([0, 1, 2, 0], list("wxyy"))
    with pytest.raises(BadValueError, match="sum to 0.8; expected 1"):
        data.split({"training": 0.8})
    with pytest.raises(BadValueError, match="positive share"):
        data.split({"training": 1.0, "test": 0.0})
    with pytest.raises(BadValueError, match="positive share"):
        data.split({})
    with pytest.raises(BadValueError, match="3 patients; 4 splits need at least 4"):
        data.split(dict.fromkeys("abcd", 0.25))
    with pytest.raises(BadValueError, match="3 patients; 5 folds"):
        data.folds(5)
    with pytest.raises(BadValueError, match="1 folds"):
        data.folds(1)
    with pytest.raises(UnknownNameError, match=r"no split 'test'.*dataset\.split"):
        data.part("test")


def test_splits_given_by_hand_are_checked():
    base = make([0, 1, 2])
    options = {"samples": base.samples, "classes": base.classes, "task": base.task}
    with pytest.raises(BadValueError, match="split 'test' holds 3; expected indices of samples, 0 to 2"):
        Dataset(**options, splits={"test": (3,)})
    with pytest.raises(BadValueError, match="sample 1 more than once"):
        Dataset(**options, splits={"test": (1, 1)})
    with pytest.raises(BadValueError, match="split 'test' of 'dataset' is empty"):
        Dataset(**options, splits={"test": ()}).part("test")
    assert len(Dataset(**options, splits={"train": (2,)}).part("training")) == 1
