"""The DeepHealth YAML: every kind of label, faults named, and what is written is read back the same."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dhlab import env
from dhlab.datasets import Dataset
from dhlab.datasets.deephealth import list_masks
from dhlab.datasets.leakage import locate
from dhlab.errors import (
    BadFileError,
    BadShapeError,
    BadValueError,
    ConflictError,
    DHLabError,
    DHLabWarning,
    NotFoundError,
    UnknownNameError,
)

# Of the shape of the example that ECVL ships: every form of label, location and values, names without suffix.
EVERY_FORM = """%YAML:1.2
---
name: every form
description: >
  Folded text,
  over two lines.

classes: [nevus, melanoma, keratosis]
features: [patient, age, site, dose]
images:
  - location: scan_1
    label: [melanoma]
    values: [P1, null, arm, null]
  - location: scan_2
    label: 2
    values: {patient: P2, site: leg}
  - location: scan_3
    label: [nevus, keratosis]
  - location: scan_4
    label: [0, 2]
  - location: scan_5
    label: mask_of_scan_5
  - location: [plane_1, plane_2, plane_3]
    label: 0
  - location: scan_6
  - scan_7
  - [plane_4, plane_5]
split:
  training: [0, 1]
  validation: [2]
  test: [3]
"""


def write(folder, text: str, name: str = "set.yml"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def same(first: Dataset, second: Dataset) -> None:
    assert locate(first.samples) == locate(second.samples)
    grouped = ("groups",) if first.unit_name == "patient" else ()
    for name in ("classes", "task", "splits", "unit_name", "features", "name", "axes", *grouped):
        assert getattr(first, name) == getattr(second, name), name
    indices = np.arange(len(first))
    if first.task == "segmentation":
        assert list_masks(first.samples) == list_masks(second.samples)
    else:
        assert np.array_equal(first.samples.targets(indices), second.samples.targets(indices))


def again_values(data, folder):
    return Dataset.from_yaml(data.to_yaml(folder / "values.yml")).samples.aims.values


def paint(folder, names, shape=(11, 13, 3)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(shape, n, np.uint8)).save(folder / name)


def test_every_form_in_one_file(tmp_path):
    path = write(tmp_path, EVERY_FORM)
    with pytest.warns(DHLabWarning, match="1 of 9 images are labelled with masks.*task='segmentation'"):
        data = Dataset.from_yaml(path)
    assert data.name == "every form"
    assert data.task == "multilabel"
    assert data.class_counts.tolist() == [3, 1, 3]
    wanted = [[0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 0, 1], [-1] * 3, [1, 0, 0], [-1] * 3, [-1] * 3, [-1] * 3]
    assert data.samples.targets(np.arange(9)).tolist() == wanted
    assert data.features["patient"][:3] == ("P1", "P2", None)
    assert data.features["site"] == ("arm", "leg", *[None] * 7)
    assert data.groups[:3] == ("P1", "P2", "sample 2")
    assert data.splits == {"training": (0, 1), "validation": (2,), "test": (3,)}
    assert locate(data.samples)[5] == tuple(str(tmp_path / f"plane_{n}") for n in (1, 2, 3))
    assert locate(data.samples)[7] == (str(tmp_path / "scan_7"),)
    same(data, Dataset.from_yaml(data.to_yaml(tmp_path / "again.yaml")))
    with pytest.warns(DHLabWarning, match="5 of 9 images are labelled with classes"):
        masks = Dataset.from_yaml(path, task="segmentation", values={"skin": 0, "lesion": "rest"})
    assert masks.classes == ("skin", "lesion")
    assert masks.samples.aims.paths[4] == str(tmp_path / "mask_of_scan_5")
    assert masks.samples.aims.paths.count(None) == 8
    with pytest.raises(NotFoundError, match="image 0: nothing at .*scan_1"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DHLabWarning)
        Dataset.from_yaml(path, check=True)
    with pytest.raises(NotFoundError, match="sample 0|scan_1"):
        data.batch([0])
    assert "cannot be shown" in data._repr_html_()


def test_pixels_are_read_only_when_asked_for(tmp_path):
    paint(tmp_path, ["a.png", "b.png", "c.png"])
    path = write(
        tmp_path, "classes: [x, y]\nimages:\n- {location: a.png, label: y}\n- b.png\n- {location: c.png, label: x}\n"
    )
    data = Dataset.from_yaml(path, check=True)
    images, targets = data.batch([2, 1, 0])
    assert targets.tolist() == [0, -1, 1]
    assert images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert Dataset.from_yaml(path, size=5, channels=1).batch([0])[0].shape == (1, 5, 5)
    (tmp_path / "b.png").write_bytes(b"no picture")
    late = Dataset.from_yaml(path)
    with pytest.raises(BadFileError, match=r"sample 1: .*b\.png"):
        late.batch([0, 1])
    with pytest.raises(BadFileError, match=r"b\.png"):
        Dataset.from_yaml(path, check=True)
    paint(tmp_path, ["b.png"], (11, 14, 3))
    with pytest.raises(BadShapeError, match=r"sample 1 \(.*b\.png\) is 11 × 14 px"):
        Dataset.from_yaml(path).batch([0, 1])


def test_stacked_files(tmp_path):
    paint(tmp_path, [f"{n}.png" for n in range(6)], (9, 10))
    path = write(
        tmp_path, "classes: [x]\nimages:\n- {location: [0.png, 1.png, 2.png], label: x}\n- [3.png, 4.png, 5.png]\n"
    )
    data = Dataset.from_yaml(path, check=True)
    assert data.axes == "zyx"
    assert data.batch([1])[0][0, :, 0, 0].tolist() == [3, 4, 5]
    assert Dataset.from_yaml(path, stack="c").axes == "cyx"
    same(data, Dataset.from_yaml(data.to_yaml(tmp_path / "again.yml")))


def test_masks(tmp_path):
    paint(tmp_path, ["i/a.png", "i/b.png"])
    paint(tmp_path / "m", ["a.png", "b.png"], (11, 13))
    path = write(
        tmp_path, "images:\n- {location: i/a.png, label: m/a.png}\n- {location: i/b.png, label: m/b.png}\n- i/c.png\n"
    )
    data = Dataset.from_yaml(path)
    assert data.task == "segmentation"
    assert data.classes == ("background", "foreground")
    assert data.batch([0, 1])[1].mean((1, 2)).tolist() == [0, 1]
    text = path.read_text()
    path.write_text("classes: [disc]\n" + text)
    assert Dataset.from_yaml(path).classes == ("background", "disc")
    path.write_text("classes: [skin, disc]\n" + text)
    assert Dataset.from_yaml(path).batch([0, 1])[1].mean((1, 2)).tolist() == [0, 1]
    path.write_text(text)
    near = Dataset.from_yaml(path, values={"disc": 1}, ignore=[0], tolerance=5)
    assert near.batch([0, 1])[1].mean((1, 2)).tolist() == [-1, 0]
    named = Dataset.from_yaml(path, values={"x": 1, "y": (0,)})
    assert named.batch([0, 1])[1].mean((1, 2)).tolist() == [1, 0]
    assert again_values(named, tmp_path) == named.samples.aims.values
    same(named.subset([1, 2]), Dataset.from_yaml(named.subset([1, 2]).to_yaml(tmp_path / "again.yml")))
    coloured = Dataset.from_pairs(
        tmp_path / "i", tmp_path / "m", values={"a": (0, 0, 0), "b": (1, 1, 1)}, ignore=[(9, 9, 9)], tolerance=2
    )
    again = Dataset.from_yaml(coloured.to_yaml(tmp_path / "colours.yml"), check=True)
    same(coloured, again)
    assert np.array_equal(again.batch([0, 1])[1], coloured.batch([0, 1])[1])
    paint(tmp_path / "m", ["a.png"], (13, 11))
    write(tmp_path, "images:\n- {location: i/a.png, label: m/a.png}\n")
    with pytest.raises(BadShapeError, match="13 × 11 px, its picture"):
        Dataset.from_yaml(path, check=True)
    with pytest.raises(BadShapeError, match="sample 0 is 13 × 11 px"):
        Dataset.from_yaml(path).batch([0])


def test_texts_stay_texts(tmp_path):
    text = """classes: [no, yes, 1.0, null_type]
features: [patient, date, code]
images:
- {location: 0001, label: no, values: [0012, 2020-01-31, 1e3]}
- {location: on, label: "1.0", values: [12, yes, 0x1F]}
- {location: x.png, label: yes, values: ["null", ~, 1_000]}
"""
    data = Dataset.from_yaml(write(tmp_path, text))
    assert data.classes == ("no", "yes", "1.0", "null_type")
    assert data.samples.targets(np.arange(3)).tolist() == [0, 2, 1]
    assert data.groups == ("0012", "12", "null")
    assert data.features["date"] == ("2020-01-31", "yes", None)
    assert data.features["code"] == ("1e3", "0x1F", "1_000")
    again = data.to_yaml(tmp_path / "again.yml")
    same(data, Dataset.from_yaml(again))
    # Another YAML reader sees texts too, since what it would take for something else is quoted.
    plain = yaml.safe_load(again.read_text())
    assert plain["classes"] == ["no", "yes", "1.0", "null_type"]
    assert plain["images"][0]["values"] == {"patient": "0012", "date": "2020-01-31", "code": "1e3"}


def test_more_values_than_features_are_kept_and_told(tmp_path):
    """As in the published file of the MSSEG challenge."""
    path = write(tmp_path, "features: [slices]\n" + A + "- {location: x.nii, values: [512, float32]}\n- y.nii\n")
    with pytest.warns(DHLabWarning, match=r"1 of 2 images have more values than there are features \(1\)"):
        data = Dataset.from_yaml(path)
    assert data.features == {"slices": ("512", None), "value 2": ("float32", None)}
    same(data, Dataset.from_yaml(data.to_yaml(tmp_path / "again.yml")))


def test_numbers_as_class_names(tmp_path):
    data = Dataset.from_yaml(
        write(tmp_path, "classes: [10, 20]\nimages:\n- {location: a, label: 20}\n- {location: b, label: 0}\n")
    )
    assert data.samples.targets(np.arange(2)).tolist() == [1, 0]
    same(data, Dataset.from_yaml(data.to_yaml(tmp_path / "again.yml")))


BAD, UNKNOWN, DAMAGED = BadValueError, UnknownNameError, BadFileError
A, ONE = "classes: [a]\nimages:\n", "classes: [a]\nimages: [x.png]\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (A + "- {location: x.png, label: 1}", BAD, "image 0: label 1; expected a class index, 0 to 0"),
        (A + "- x.png\n- {location: y.png, label: -1}", BAD, "image 1: label -1"),
        ("classes: [abc]\nimages:\n- {location: x.png, label: aba}", UNKNOWN, "image 0: label 'aba' is no .*'abc'"),
        ("classes: [abc]\nimages:\n- {location: x.png, label: [abc, aba]}", UNKNOWN, "'aba' is no class"),
        ("images:\n- {location: x.png, label: 0}", BAD, "lists no classes"),
        ("images:\n- {location: x.png, label: [a]}", BAD, "lists no classes"),
        (A + "- {location: x.png, label: {a: 1}}", UNKNOWN, "no class"),
        (A + "- x.png\n- y.png\n- ./x.png", BAD, r"image 2: location .*x\.png is that of image 0"),
        (A + "- https://host/x.png", BAD, "image 0: https://host/x.png is a URL"),
        ("images:\n- {location: x.png, label: 's3://a/m.png'}", BAD, "is a URL"),
        (A + "- ../x.png", BAD, r"\.\./x\.png leaves the dataset's folder"),
        (A + "- /etc/passwd", BAD, "leaves the dataset's folder"),
        ("images:\n- {location: x.png, label: a/../../m.png}", BAD, "leaves the dataset's folder"),
        (A + "- {label: 0}", BAD, "image 0: location is None"),
        (A + "- []", BAD, r"image 0: location is \[\]"),
        ("classes: [a]\nimages: []", BAD, r"images is \[\]"),
        ("classes: [a]\n", BAD, "images is None"),
        ("- a\n", BAD, "expected a table"),
        ("classes: [a, a]\nimages: [x.png]", BAD, "expected each once"),
        ("classes: a\nimages: [x.png]", BAD, "classes is 'a'; expected a list"),
        ("features: [age]\n" + A + "- {location: x, values: {aeg: 1}}", UNKNOWN, "'aeg' is no feature.*'age'"),
        ("features: [f]\n" + A + "- {location: x, values: [[1]]}", BAD, "expected one text"),
        ("features: [f]\n" + A + "- {location: x, values: 3}", BAD, "values are 3"),
        (ONE + "split: {test: [1]}", BAD, "split 'test' holds 1; expected .* 0 to 0"),
        (ONE + "split: {test: [-1]}", BAD, "split 'test' holds -1"),
        (ONE + "split: {test: [zero]}", BAD, "split 'test' holds 'zero'"),
        (ONE + "split: {test: [0, 0]}", BAD, "more than once"),
        (ONE + "split: [0]", BAD, "split is"),
        ("classes: [a]\nimages: [x.png, y.png]\nsplit: {training: [0, 1], test: [1]}", BAD, "1 sample is in more"),
        ("images: [x.png\n", DAMAGED, "no valid YAML"),
        ("images: !!python/object/apply:os.getcwd []", DAMAGED, "no valid YAML"),
        ("images: " + "[" * 3000, DAMAGED, "no valid YAML"),
    ],
)  # fmt: skip
def test_faults_are_told(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        Dataset.from_yaml(write(tmp_path, text))


def test_other_faults(tmp_path):
    with pytest.raises(NotFoundError, match="nothing at"):
        Dataset.from_yaml(tmp_path / "none.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFileError, match="read as text"):
        Dataset.from_yaml(tmp_path / "binary.yml")
    two = write(tmp_path, "classes: [a, b]\nimages:\n- {location: x.png, label: [a, b]}\n")
    with pytest.raises(BadValueError, match="image 0: 2 classes at once.*multilabel"):
        Dataset.from_yaml(two, task="classification")
    with pytest.raises(BadValueError, match="task 'regression'"):
        Dataset.from_yaml(two, task="regression")


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    paint(tmp_path / "elsewhere", ["x.png"])
    path = write(tmp_path / "data", "classes: [a]\nimages:\n- {location: link/x.png, label: a}\n")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "file.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    with pytest.raises(BadValueError, match="leaves the dataset's folder"):
        Dataset.from_yaml(path)
    assert len(Dataset.from_yaml(path, allow_outside=True, check=True)) == 1
    path.write_text("classes: [a]\nimages: [file.png]\n")
    with pytest.raises(BadValueError, match="leaves the dataset's folder"):
        Dataset.from_yaml(path)
    # The folder itself may be reached through a link.
    paint(tmp_path / "data", ["own.png"])
    path.write_text("classes: [a]\nimages: [own.png]\n")
    (tmp_path / "way").symlink_to(tmp_path / "data")
    assert len(Dataset.from_yaml(tmp_path / "way" / "set.yml", check=True)) == 1
    path.write_text(f"classes: [a]\nimages: [{tmp_path / 'data' / 'own.png'}]\n")
    assert len(Dataset.from_yaml(path, check=True)) == 1


def test_a_patient_in_two_splits_is_caught(tmp_path):
    """As in the kidney files of use case 11: slices of one patient in training and validation."""
    names = [f"{kind}/Pac{who}/slice_{n}.dcm" for kind, who in (("h", 317), ("t", 201), ("h", 3)) for n in range(4)]
    listed = "\n".join(
        f"- {{location: {name}, label: {'ht'.index(name[0])}, values: [{i // 4}]}}" for i, name in enumerate(names)
    )
    split = "split: {training: [0, 1, 2, 4, 5], validation: [3, 6, 7], test: [8, 9, 10, 11]}"
    path = write(tmp_path, f"classes: [healthy, tumour]\nfeatures: [case]\nimages:\n{listed}\n{split}\n")
    assert len(Dataset.from_yaml(path)) == 12
    told = r"2 patients are in more than one split: Pac317 \(3 in training, 1 in validation\); Pac201 \(2 in training"
    with pytest.raises(BadValueError, match=told):
        Dataset.from_yaml(path, patient=r"Pac\d+")
    with pytest.raises(BadValueError, match=r"0 \(3 in training, 1 in validation\)"):
        Dataset.from_yaml(path, patient="case")
    kept = Dataset.from_yaml(path, patient=r"Pac\d+", allow_leakage=True)
    assert kept.groups[0] == "Pac317"
    path.write_text(path.read_text().replace("features: [case]", "features: [Patient ID]"))
    with pytest.raises(BadValueError, match="2 patients are in more than one split"):
        Dataset.from_yaml(path)


def test_what_was_split_by_patient_is_written_and_read_back(tmp_path):
    paint(tmp_path / "x" / "a", [f"P{n % 5}_{n}.png" for n in range(10)])
    paint(tmp_path / "x" / "b", [f"P{5 + n % 5}_{n}.png" for n in range(10)])
    data = Dataset.from_folder(tmp_path / "x", patient=r"(P\d+)_").split({"training": 0.6, "test": 0.4}, seed=3)
    path = data.to_yaml(tmp_path / "x" / "set.yml", description="Two kinds of texture.\n\nFor tests.")
    again = Dataset.from_yaml(path, check=True)
    assert again.groups == data.groups
    assert again.features["patient"] == data.groups
    assert again.splits == data.splits
    assert np.array_equal(again.batch(range(20))[0], data.batch(range(20))[0])
    same(again, Dataset.from_yaml(again.to_yaml(tmp_path / "x" / "more.yml")))
    with pytest.raises(ConflictError, match="overwrite=True"):
        data.to_yaml(path)
    data.to_yaml(path, overwrite=True)
    (tmp_path / "y").mkdir()
    with pytest.raises(BadValueError, match="lies outside"):
        data.to_yaml(tmp_path / "y" / "set.yml")
    elsewhere = data.to_yaml(tmp_path / "y" / "set.yml", allow_outside=True)
    assert len(Dataset.from_yaml(elsewhere, allow_outside=True, check=True)) == 20
    joined = Dataset.concat([data.part("test"), data.part("training")])
    assert len(Dataset.from_yaml(joined.to_yaml(tmp_path / "x" / "joined.yml"))) == 20


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    arrays = Dataset.from_arrays(np.zeros((2, 4, 4, 3), np.uint8), [0, 0], classes="a", task="classification")
    with pytest.raises(BadValueError, match="sample 0 of 'arrays' lies in no file"):
        arrays.to_yaml(tmp_path / "a.yml")
    paint(tmp_path, ["a.png", "b.png"])
    (tmp_path / "t.csv").write_text("image,x,y\na.png,1,\nb.png,0,1\n")
    flags = Dataset.from_table(tmp_path / "t.csv", image="image", label=("x", "y"), allow_missing=True)
    with pytest.raises(BadValueError, match="sample 0 is labelled for some classes"):
        flags.to_yaml(tmp_path / "a.yml")
    numbers = Dataset.from_table(tmp_path / "t.csv", image="image", label="x", task="regression")
    with pytest.raises(BadValueError, match="table"):
        numbers.to_yaml(tmp_path / "a.yml")
    assert not (tmp_path / "a.yml").exists()


def test_25000_entries_load_without_opening_a_file(tmp_path, monkeypatch):
    count = 25_000
    lines = [
        f"  - location: ISIC/{'abc'[n % 3]}/ISIC_{n:07}.jpg\n    label: {n % 8}\n    values: [{n % 90}, null]\n"
        for n in range(count)
    ]
    text = f"classes: {[f'c{n}' for n in range(8)]}\nfeatures: [age, site]\nimages:\n{''.join(lines)}split:\n"
    path = write(tmp_path, text + f"  training: {list(range(0, count, 2))}\n  test: {list(range(1, count, 2))}\n")
    data = Dataset.from_yaml(path)
    assert len(data) == count
    assert data.class_counts.tolist() == [count // 8] * 8


def test_structure_loads_where_the_pixels_cannot_be_read(tmp_path):
    path = write(
        tmp_path,
        "classes: [a]\nimages:\n- {location: [1.xyz, 2.xyz], label: a}\n- {location: [3.xyz, 4.xyz], label: a}\n",
    )
    for n in range(1, 5):
        (tmp_path / f"{n}.xyz").write_bytes(b"volume")
    data = Dataset.from_yaml(path)
    assert data.axes == "zyx"
    assert data.class_counts.tolist() == [2]
    with pytest.raises(UnknownNameError, match="no reader for '.xyz'"):
        data.batch([0])


def real_files():
    folder = env.data_folder()
    found = sorted((folder / "deephealth-yaml").glob("**/*.y*ml")) if folder is not None else []
    return found or [None]


def told_by(path) -> dict:
    """What another reader finds in the file."""
    text = path.read_text("utf-8")
    return yaml.load(text.split("\n", 1)[1] if text.lstrip().startswith("%YAML") else text, yaml.CBaseLoader)


@pytest.mark.parametrize("path", real_files(), ids=lambda p: p.name if p else "absent")
def test_real_files(path, tmp_path):
    if path is None:
        pytest.skip("deephealth-yaml is not in the data folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DHLabWarning)
        data = Dataset.from_yaml(path, allow_outside=True, allow_leakage=True)
        again = data.to_yaml(tmp_path / "again.yml", allow_outside=True)
        same(data, Dataset.from_yaml(again, allow_outside=True, allow_leakage=True))
    told = told_by(path)
    assert len(data) == len(told["images"])
    splits = told.get("split") or {}
    assert {name: len(members or ()) for name, members in splits.items()} == {n: len(m) for n, m in data.splits.items()}
    names = told.get("features") or []
    assert list(data.features)[: len(names)] == names
    labels = [image.get("label") if isinstance(image, dict) else None for image in told["images"]]
    labelled = [label not in (None, "", "null", "~") for label in labels]
    aims = data.samples.aims
    known = (aims >= 0).reshape(len(data), -1).any(1) if isinstance(aims, np.ndarray) else [bool(p) for p in aims.paths]
    # ECVL's example holds one mask among its classes.
    assert sum(labelled) - sum(known) in (0, 1)
    first = Path(locate(data.samples)[0][0])
    if not first.exists():
        with pytest.raises(DHLabError, match=re.escape(first.name)):
            data.batch([0])


def test_the_real_kidney_patients_overlap():
    folder = env.data_folder()
    found = [p for p in real_files() if p is not None and "Pac317" in p.read_text("utf-8")]
    if folder is None or not found:
        pytest.skip("no kidney classification file in the data folder")
    # Healthy and tumour patients are numbered apart.
    told = r"2 patients are in more than one split: healthy/Pac317 \(\d+ in training, \d+ in validation\); .*Pac201"
    with pytest.raises(BadValueError, match=told):
        Dataset.from_yaml(found[0], patient=r"\w+/Pac\d+")
