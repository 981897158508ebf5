"""Bags of any size: padding is NaN, joining and picking keep it so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError

SIZES = (1, 63, 7, 2)


def make(sizes=SIZES, width=5, **options) -> Dataset:
    rng = np.random.default_rng(sum(sizes))
    bags = [rng.normal(size=(n, width)).astype(np.float32) for n in sizes]
    return Dataset.from_bags(bags, np.arange(len(sizes)) % 2, **({"classes": ("no", "yes")} | options))


def test_a_batch_is_padded_to_its_largest_bag():
    data = make()
    bags, targets = data.batch([0, 2, 3])
    assert bags.shape == (3, 7, 5)
    assert targets.tolist() == [0, 0, 1]
    assert (~np.isnan(bags)).all(2).sum(1).tolist() == [1, 7, 2]
    assert np.isnan(bags[0, 1:]).all()
    assert data[1][0].shape == (63, 5)
    assert data.axes == "ic"
    assert data.class_counts.tolist() == [2, 2]
    assert "yes" in data._repr_html_()


def test_objects_with_features_and_other_tasks():
    bags = [SimpleNamespace(features=np.ones((n, 3))) for n in (2, 4)]
    numbers = Dataset.from_bags(bags, [[0.5], [np.nan]], classes=("age",), task="regression", groups=("P1", "P2"))
    assert numbers.batch([1])[0].dtype == np.float32
    assert numbers.unit_name == "patient"
    assert Dataset.from_bags(bags, [[0, 1], [1, -1]], classes=("a", "b"), task="multilabel")[1][1].tolist() == [1, -1]


def test_bags_join_and_split():
    whole = Dataset.concat([make(), make((3, 90)).subset([1])])
    bags, targets = whole.batch([4, 0, 1])
    assert bags.shape == (3, 90, 5)
    assert (~np.isnan(bags)).all(2).sum(1).tolist() == [90, 1, 63]
    assert targets.tolist() == [1, 0, 1]
    many = make(tuple(range(1, 41))).split({"training": 0.5, "test": 0.5})
    assert many.part("test").class_counts.tolist() == [10, 10]


def test_faults_are_told():
    with pytest.raises(BadShapeError, match=r"bag 1 is \(0, 5\)"):
        make((3, 0))
    with pytest.raises(BadShapeError, match="bag 1 has 4 features per instance, bag 0 has 3"):
        Dataset.from_bags([np.ones((2, 3)), np.ones((2, 4))], [0, 0], classes="a")
    with pytest.raises(BadShapeError, match="int64"):
        Dataset.from_bags([np.ones((2, 3), int)], [0], classes="a")
    with pytest.raises(BadValueError, match="bag 0 holds NaN"):
        Dataset.from_bags([np.full((2, 3), np.nan)], [0], classes="a")
    with pytest.raises(BadShapeError, match=r"targets are \(1,\) for 2 bags"):
        Dataset.from_bags([np.ones((2, 3))] * 2, [0], classes="a")
    with pytest.raises(BadValueError, match="one label"):
        make(task="segmentation")
    with pytest.raises(BadValueError, match="empty"):
        Dataset.from_bags([], np.zeros(0, int), classes="a")
    with pytest.raises(BadValueError, match="differ in shape"):
        Dataset.concat([make(), make(width=6)])
