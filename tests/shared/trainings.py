"""A training of seconds: what it learns from, and what learns."""

from __future__ import annotations

import numpy as np

import dhlab as dh


def some_data() -> dh.Dataset:
    """Return 24 small pictures of two classes, one of them redder."""
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(24) % 2)
    images = rng.integers(60, 120, (24, 20, 20, 3)).astype(np.uint8)
    images[targets == 1, :, :, 0] += 60
    groups = [str(number) for number in range(24)]
    return dh.Dataset.from_arrays(images, targets, classes=("a", "b"), task="classification", groups=groups)


def some_model() -> dh.Model:
    """Return a small network, always with the same weights."""
    return dh.create_model("cnn", ("a", "b"), tile=20, spacing=1.0, width=4, depth=2, seed=0)
