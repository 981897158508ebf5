"""Samples: every entry of `dhlab.samples` under its own name, with underscores, as a function without arguments."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dhlab.samples import SAMPLES, sample
from dhlab_napari.layers import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from dhlab.view.layers import LayerData

__all__ = ["read_sample"]


def read_sample(name: str) -> list[LayerData]:
    """Return the layers of a sample by its name; raises as `dhlab.sample` does."""
    return describe(sample(name))


def __getattr__(name: str) -> Callable[[], list[LayerData]]:
    known = name.replace("_", "-")
    if known not in SAMPLES:
        raise AttributeError(f"no sample {known!r}")
    return partial(read_sample, known)
