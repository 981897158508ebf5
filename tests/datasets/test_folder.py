"""Folders: classes and splits by name, and what does not fit is told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dhlab.datasets import Dataset
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError, UnknownNameError


def fill(root, tree: dict[str, int], size=(16, 12)) -> None:
    """Write `count` pictures into each folder."""
    for number, (folder, count) in enumerate(tree.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            image = np.full((*size, 3), 10 * number + n, np.uint8)
            Image.fromarray(image).save(root / folder / f"P{n % 3}_{n}.png")


def test_a_folder_per_class(tmp_path):
    fill(tmp_path, {"benign": 3, "malignant/deep/below": 2})
    (tmp_path / "benign" / "notes.txt").write_text("no picture")
    data = Dataset.from_folder(tmp_path)
    assert data.classes == ("benign", "malignant")
    assert data.class_counts.tolist() == [3, 2]
    assert data.splits == {}
    images, targets = data.batch([4, 0])
    assert images[:, 0, 0, 0].tolist() == [11, 0]
    assert targets.tolist() == [1, 0]
    turned = Dataset.from_folder(tmp_path, classes=("malignant", "benign", "unclear"))
    assert turned.class_counts.tolist() == [2, 3, 0]


def test_a_folder_per_split(tmp_path):
    fill(tmp_path, {"train/a": 4, "train/b": 3, "val/a": 2, "val/b": 1, "Test/b": 2})
    data = Dataset.from_folder(tmp_path)
    assert {k: len(v) for k, v in data.splits.items()} == {"test": 2, "training": 7, "validation": 3}
    assert data.part("val").class_counts.tolist() == [2, 1]
    assert data.part("training").class_counts.tolist() == [4, 3]
    with pytest.raises(UnknownNameError, match="no split 'tset'.*test"):
        data.part("tset")


def test_free_split_names_are_told(tmp_path):
    fill(tmp_path, {"centre1/a": 2, "centre1/b": 2, "centre2/a": 1, "centre2/b": 1})
    assert Dataset.from_folder(tmp_path).classes == ("centre1", "centre2")
    data = Dataset.from_folder(tmp_path, splits=True)
    assert data.classes == ("a", "b")
    assert set(data.splits) == {"centre1", "centre2"}
    fill(tmp_path, {"test/a": 1})
    with pytest.raises(BadValueError, match=r"test\) beside others \(centre1, centre2\).*splits=True"):
        Dataset.from_folder(tmp_path)


def test_a_patient_in_two_splits_is_refused(tmp_path):
    fill(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 1})
    with pytest.raises(BadValueError, match=r"2 patients are in more than one split: P0 \(2 in training, 2 in validat"):
        Dataset.from_folder(tmp_path, patient=r"(P\d)_")
    data = Dataset.from_folder(tmp_path, patient=r"(P\d)_", allow_leakage=True)
    assert data.unit_name == "patient"
    assert data.groups[:3] == ("P0", "P1", "P2")
    by_function = Dataset.from_folder(tmp_path, patient=lambda path: path)
    assert by_function.groups[0] == "train/a/P0_0.png"


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(NotFoundError, match="no folder"):
        Dataset.from_folder(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no folders in it"):
        Dataset.from_folder(tmp_path)
    fill(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(UnknownNameError, match="folder 'b' that is no class"):
        Dataset.from_folder(tmp_path, classes=("a", "c"))
    with pytest.raises(BadValueError, match="no patient in a/P0_0"):
        Dataset.from_folder(tmp_path, patient=r"Q\d")
    with pytest.raises(BadValueError, match="no regular expression"):
        Dataset.from_folder(tmp_path, patient=r"(")
    with pytest.raises(BadValueError, match="size"):
        Dataset.from_folder(tmp_path, size=0)
    (tmp_path / "a" / "odd.png").write_bytes(b"nothing")
    with pytest.raises(BadFileError, match=r"odd\.png"):
        Dataset.from_folder(tmp_path)
    (tmp_path / "a" / "odd.png").unlink()
    fill(tmp_path, {"b": 1}, size=(17, 12))
    with pytest.raises(BadShapeError, match=r"b/P0_0\.png.*17 × 12.*a/P0_0\.png.*16 × 12"):
        Dataset.from_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no pictures"):
        Dataset.from_folder(tmp_path, classes=("empty", "a", "b"), splits=True)


def test_an_empty_split_is_refused(tmp_path):
    fill(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 0, "val/b": 0})
    with pytest.raises(BadValueError, match="split 'validation'.*no pictures"):
        Dataset.from_folder(tmp_path)


def test_shows_itself_with_splits_and_without_its_files(tmp_path):
    fill(tmp_path, {"train/<a>": 2, "val/<a>": 1})
    data = Dataset.from_folder(tmp_path, patient=lambda path: path)
    html = data._repr_html_()
    assert "data:image/png" in html
    assert "&lt;a&gt;" in html
    assert "validation</td><td>1 sample</td><td>1 patient<" in html
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert "cannot be shown" in data._repr_html_()
