"""Real data of every kind through the constructors; each test skips where its data are absent."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dhlab import env
from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError

SHARES = {"training": 0.6, "validation": 0.2, "test": 0.2}
# Colours of the 16 structures of the lumbar spine, from the folder's README.
SPINE = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (128, 40, 40), (40, 128, 40),
    (40, 40, 128), (128, 128, 0), (0, 128, 128), (128, 0, 128), (40, 40, 40), (80, 80, 80), (128, 128, 128),
    (255, 255, 255),
)  # fmt: skip


def data_folder(name: str) -> Path:
    folder = env.data_folder()
    if folder is None or not (folder / name).is_dir():
        pytest.skip(f"{name} is not in the data folder")
    return folder / name


def test_colon_polyps_are_split_by_case():
    folder = data_folder("histo-colon-ebhi/polyp")
    data = Dataset.from_pairs(
        folder / "images",
        folder / "masks",
        values={"background": 0, "polyp": 255},
        tolerance=127,
        patient=r"GT([A-Za-z]*\d+)",
    )
    assert data.axes == "yxc"
    assert data.name == "polyp"
    assert (data.class_counts > 0).all()
    split = data.split(SHARES)
    cases = {name: {re.search(r"\d+", data.groups[i])[0] for i in where} for name, where in split.splits.items()}
    assert not cases["training"] & cases["test"]
    with pytest.raises(BadValueError, match="JPEG changes values"):
        Dataset.from_pairs(folder / "images", folder / "masks", values={"background": 0, "polyp": 255})[0]


def test_dermoscopy_table():
    folder = data_folder("dermoscopy-isic-uda1")
    data = Dataset.from_table(
        folder / "metadata.csv",
        image="images/{image_id}.jpg",
        label="benign_malignant",
        features=("age_approx", "sex"),
    )
    assert data.classes == ("benign", "malignant")
    assert data.class_counts.tolist() == [204, 65]
    assert data[0][0].shape == (256, 256, 3)
    for name, share in SHARES.items():
        part = data.split(SHARES).part(name)
        assert part.class_counts == pytest.approx(share * data.class_counts, abs=1.5)
        assert set(part.features["sex"]) <= {"female", "male", None}
    ages = Dataset.from_table(
        folder / "metadata.csv",
        image="images/{image_id}.jpg",
        label="age_approx",
        task="regression",
        allow_missing=True,
        size=64,
    )
    assert 10 < np.nanmean(ages.batch(range(100))[1]) < 90


def test_nuclei_of_any_number_are_one_class():
    folder = data_folder("nuclei-dsb2018/stained")
    data = Dataset.from_pairs(
        folder / "images", folder / "labels", values={"background": 0, "nucleus": "rest"}, channels=3, size=(256, 320)
    )
    images, targets = data.batch(range(4))
    assert images.shape == (4, 256, 320, 3)
    assert set(np.unique(targets)) == {0, 1}
    # Nuclei are darker than what is around them.
    assert images[targets == 1].mean() < images[targets == 0].mean()


def test_lumbar_spine_in_colours():
    folder = data_folder("mri-lumbar-spider")
    names = {"background": (0, 0, 0)} | {f"structure {i + 1}": colour for i, colour in enumerate(SPINE)}
    options = {"values": names, "patient": r"(\d+)_\d+"}
    with pytest.raises(BadShapeError, match="size="):
        Dataset.from_pairs(folder / "images", folder / "masks", **options)
    data = Dataset.from_pairs(folder / "images", folder / "masks", size=192, **options)
    assert len(data.classes) == 17
    assert len(set(data.groups)) == 8
    assert data.axes == "yx"
    assert data.class_counts[0] > data.class_counts[1:].sum()
    assert (data.class_counts > 0).sum() > 12
    assert data._repr_html_().count("<tr>") == 17
