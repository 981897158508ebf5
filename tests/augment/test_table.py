"""The table beside ECVL and torchvision holds: each line is run, and the file says what was run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dhlab.augment.language import FORMS


def load_table():
    spec = importlib.util.spec_from_file_location("augmentation_table", Path(__file__).parent / "table.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its own module up.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table = load_table()
ROWS = [row for rows in table.SECTIONS.values() for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.theirs} is {row.ours}")
def test_a_line_holds(row):
    if row in table.TORCHVISION:
        pytest.importorskip("torchvision")
    if row in table.STAIN:
        pytest.importorskip("skimage")
    assert row.run() <= row.bound


def test_every_augmentation_of_ecvl_is_there():
    shown = {row.theirs.split()[0] for row in table.ECVL}
    assert shown == {*FORMS, "SequentialAugmentationContainer", "OneOfAugmentationContainer"}
    assert len(FORMS) == 25


def test_the_file_is_up_to_date():
    assert table.README.read_text("utf-8") == table.text(), "run python tests/augment/write_table.py"
