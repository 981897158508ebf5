"""A scan, and the place of its document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dhlab as dh


@pytest.fixture
def scan() -> dh.Scan:
    """Return a small slide."""
    return dh.Scan.from_array(np.zeros((900, 700, 3), np.uint8), "yxc", spacing=0.5, unit="µm", name="slide")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return where the document of the slide goes."""
    return tmp_path / "slide.geojson"
