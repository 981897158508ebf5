"""The tutorial's tissue: real where it is, else generated, grouped by patient either way."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab import env
from dhlab.datasets import tutorial_dataset


def check(data):
    assert data.task == "segmentation"
    assert data.unit_name == "patient"
    assert len(set(data.groups)) < len(data) == 32
    images, targets = data.batch(range(5))
    assert images.shape == (5, 63, 63, 3)
    assert set(np.unique(targets)) == {0, 1}
    parts = data.split({"training": 0.6, "validation": 0.15, "test": 0.25})
    assert all((parts.part(name).class_counts > 0).all() for name in parts.splits)


def test_generated_where_there_is_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DHLAB_DATA", str(tmp_path))
    data = tutorial_dataset(size=63)
    assert "phantom" in data.name
    check(data)


def test_real_where_it_is():
    folder = env.data_folder()
    if folder is None or not (folder / "histo-colon-ebhi").is_dir():
        pytest.skip("EBHI-Seg is not on this machine")
    data = tutorial_dataset(size=63)
    assert data.name == "colon biopsies"
    check(data)
