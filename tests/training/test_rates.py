"""The learning-rate finder suggests a rate that learns, and leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab.datasets import Dataset
from dhlab.errors import BadValueError
from dhlab.models import create_model
from dhlab.training import Settings, find_learning_rate


def test_suggests_a_rate_and_leaves_the_model():
    rng = np.random.default_rng(0)
    targets = np.arange(48) % 2
    images = rng.integers(60, 120, (48, 16, 16, 3))
    images[:, :, :, 0] += 40 * targets[:, None, None]
    data = Dataset.from_arrays(images.astype(np.uint8), targets, classes=("a", "b"), task="classification")
    model = create_model("cnn", ("a", "b"), tile=16, spacing=1.0, width=4, depth=2)
    before = model.digest()
    report = find_learning_rate(model, data, settings=Settings(batch_size=8), progress=False)
    assert model.digest() == before
    assert 1e-3 < report.values["suggested learning rate"] < 0.5
    rates = [row["learning rate"] for row in report.tables["Loss by learning rate"]]
    assert rates == sorted(rates)
    assert report.figures[0].image.startswith(b"\x89PNG")
    with pytest.raises(BadValueError, match="rising rates"):
        find_learning_rate(model, data, lowest=1.0, highest=0.1, progress=False)
