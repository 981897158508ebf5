"""Tables: every kind of label, and a bad cell is named by row and column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dhlab.datasets import Dataset
from dhlab.errors import BadFileError, BadValueError, NotFoundError, UnknownNameError

ROWS = [
    {
        "id": "a",
        "grade": "low",
        "age": "61",
        "score": "1.5",
        "oedema": "1",
        "fluid": "0",
        "who": "0012",
        "part": "train",
    },
    {
        "id": "b",
        "grade": "high",
        "age": "7",
        "score": "-2",
        "oedema": "0",
        "fluid": "0",
        "who": "0012",
        "part": "train",
    },
    {"id": "c", "grade": "low", "age": "", "score": "0.25", "oedema": "1", "fluid": "1", "who": "12", "part": "val"},
]


def write(folder, rows=ROWS, name="t.csv"):
    delimiter = "\t" if name.endswith(".tsv") else ","
    (folder / "pictures").mkdir(exist_ok=True)
    for n, row in enumerate(rows):
        if row["id"]:
            Image.fromarray(np.full((9, 11), 20 * n, np.uint8)).save(folder / "pictures" / f"{row['id']}.png")
    if name.endswith(".parquet"):
        typed = [{k: (float(v) if v else None) if k in ("age", "score") else v for k, v in row.items()} for row in rows]
        parquet.write_table(pa.Table.from_pylist(typed), folder / name)
    else:
        lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def load(path, **options):
    return Dataset.from_table(path, **({"image": "pictures/{id}.png", "label": "grade"} | options))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_every_format_gives_the_same(tmp_path, name):
    data = load(write(tmp_path, name=name), patient="who", split="part", features=("age", "score"))
    assert data.classes == ("high", "low")
    assert data.batch([0, 1, 2])[1].tolist() == [1, 0, 1]
    assert data.batch([2])[0][0, 0, 0] == 40
    assert data.groups == ("0012", "0012", "12")
    assert data.features["age"] == ("61", "7", None)
    assert data.splits == {"training": (0, 1), "validation": (2,)}
    assert data.root == tmp_path


def test_numbers_flags_and_lists(tmp_path):
    path = write(tmp_path)
    numbers = load(path, label="score", task="regression")
    assert numbers.classes == ("score",)
    assert numbers.batch([1, 2])[1].tolist() == [[-2], [0.25]]
    two = load(path, label=("score", "age"), task="regression", allow_missing=True)
    assert np.isnan(two[2][1]).tolist() == [False, True]
    flags = load(path, label=("oedema", "fluid"))
    assert flags.task == "multilabel"
    assert flags.batch([0, 1, 2])[1].tolist() == [[1, 0], [0, 0], [1, 1]]
    rows = [row | {"grade": text} for row, text in zip(ROWS, ("low|wet", "", "high"), strict=True)]
    several = load(write(tmp_path, rows, "s.csv"), separator="|", allow_missing=True)
    assert several.classes == ("high", "low", "wet")
    assert several.batch([0, 1, 2])[1].tolist() == [[0, 1, 1], [-1, -1, -1], [1, 0, 0]]


def test_class_numbers_are_sorted_as_numbers(tmp_path):
    rows = [row | {"grade": text} for row, text in zip(ROWS, ("10", "9", "0"), strict=True)]
    assert load(write(tmp_path, rows)).classes == ("0", "9", "10")


@pytest.mark.parametrize("cell", ["", "NaN", "nan", "NA"])
@pytest.mark.parametrize("column", ["grade", "id", "who", "part"])
def test_an_empty_cell_is_named(tmp_path, cell, column):
    rows = [dict(row) for row in ROWS]
    path = write(tmp_path, rows)
    rows[1][column] = cell
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines))
    with pytest.raises(BadValueError, match=rf"t\.csv, row 2, column '{column}' is empty or NaN"):
        load(path, patient="who", split="part")


def test_bad_cells_are_named(tmp_path):
    path = write(tmp_path)
    with pytest.raises(BadValueError, match="row 3, column 'age' is empty"):
        load(path, label="age", task="regression")
    with pytest.raises(BadValueError, match="row 1, column 'grade' is 'low'; expected a finite number"):
        load(path, label="grade", task="regression")
    with pytest.raises(BadValueError, match="row 1, column 'age' is '61'; expected 0 or 1"):
        load(path, label=("age", "oedema"), allow_missing=True)
    with pytest.raises(UnknownNameError, match="row 2, column 'grade' is 'high', which is no class.*low"):
        load(path, classes=("low", "medium"))
    with pytest.raises(UnknownNameError, match="no column 'grads'.*grade"):
        load(path, label="grads")
    with pytest.raises(UnknownNameError, match="no column 'whom'.*who"):
        load(path, patient="whom")
    with pytest.raises(NotFoundError, match=r"row 1: no picture at .*a\.jpg"):
        load(path, image="pictures/{id}.jpg")
    with pytest.raises(BadValueError, match="task 'segmentation'"):
        load(path, task="segmentation")
    with pytest.raises(NotFoundError, match="no table"):
        load(tmp_path / "u.csv")
    (tmp_path / "u.csv").write_text("id,grade\na,low,more\n")
    with pytest.raises(BadFileError, match=r"u\.csv is no table"):
        load(tmp_path / "u.csv")
    (tmp_path / "v.csv").write_text("id,grade\n")
    with pytest.raises(BadValueError, match="0 rows"):
        load(tmp_path / "v.csv")


def test_a_picture_in_two_rows_is_refused(tmp_path):
    path = write(tmp_path, [*ROWS, ROWS[1] | {"part": "test"}])
    with pytest.raises(BadValueError, match=r"row 4: pictures/b\.png is the picture of row 2 too"):
        load(path)


def test_a_patient_in_two_splits_is_refused(tmp_path):
    rows = [row | {"who": "P1"} for row in ROWS]
    path = write(tmp_path, rows)
    with pytest.raises(
        BadValueError, match=r"1 patient is in more than one split: P1 \(2 in training, 1 in validation\)"
    ):
        load(path, patient="who", split="part")
    assert load(path, patient="who", split="part", allow_leakage=True).splits
