"""Tables that name a picture per row: CSV, TSV or Parquet with columns for labels, patient, split and features."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets.dataset import Dataset
from dhlab.datasets.files import FileSamples, PictureFiles, check_size
from dhlab.datasets.groups import find_patients, refuse_shared, relative
from dhlab.datasets.splitting import split_name
from dhlab.errors import BadFileError, BadValueError, NotFoundError, UnknownNameError, suggest
from dhlab.tasks import IGNORE, TASKS

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.datasets.groups import Patient

__all__ = ["read_table"]

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
Column = list[str | None]
TRUE, FALSE = ("1", "true", "yes", "1.0"), ("0", "false", "no", "0.0")


def read_table(
    path: str | os.PathLike[str],
    *,
    image: str,
    label: str | Sequence[str],
    task: str | None,
    classes: Sequence[str] | None,
    root: str | os.PathLike[str] | None,
    patient: Patient | None,
    split: str | None,
    features: Sequence[str],
    separator: str | None,
    allow_missing: bool,
    allow_leakage: bool,
    size: int | Sequence[int] | None,
    channels: int | None,
    name: str | None,
) -> Dataset:
    """Make a dataset of a table; see `Dataset.from_table`."""
    place = Path(path).expanduser().absolute()
    table = _Table(place, _load(place))
    folder = Path(root).expanduser().absolute() if root is not None else place.parent
    locations = [relative(str(folder / text), folder) for text in table.images(image)]
    task, names, targets = _targets(table, label, task, classes, separator, allow_missing)
    groups = _patients(table, locations, patient)
    splits: dict[str, list[int]] = {}
    for row, text in enumerate(table.needed(split) if split else []):
        splits.setdefault(split_name(text) or text, []).append(row)
    kept = {key: tuple(rows) for key, rows in splits.items()}
    if groups:
        refuse_shared(groups, kept, what="patient", allow_leakage=allow_leakage)
    seen: dict[str, int] = {}
    for row, location in enumerate(locations):
        if (first := seen.setdefault(location, row)) != row:
            raise BadValueError(
                f"{table.where(row)}: {location} is the picture of row {first + 1} too; expected one row each, since "
                "the same picture in two splits makes figures too good."
            )
        if not (folder / location).exists():
            raise NotFoundError(
                f"{table.where(row)}: no picture at {folder / location}. Give root=…, or image='folder/{{column}}.png' "
                "where the column lacks folder or suffix."
            )
    pictures = PictureFiles(tuple((str(folder / p),) for p in locations), check_size(size), channels).check()
    return Dataset(
        samples=FileSamples(pictures, targets),
        classes=names,
        task=task,
        groups=groups,
        unit_name="patient" if groups else "sample",
        splits=kept,
        features={column: tuple(table.column(column)) for column in features},
        axes=pictures.layout.axes,
        name=name or place.stem,
        root=folder,
    )


class _Table:
    """Columns of text by name; a cell is None if it is empty or not a number."""

    def __init__(self, path: Path, columns: dict[str, Column]) -> None:
        self.path = path
        self.columns = columns

    def column(self, name: str) -> Column:
        if name not in self.columns:
            raise UnknownNameError(f"{self.path} has no column {name!r}.{suggest(name, self.columns)}")
        return self.columns[name]

    def needed(self, name: str) -> list[str]:
        """Return a column in which no cell may be empty."""
        filled = []
        for row, text in enumerate(self.column(name)):
            if text is None:
                raise BadValueError(f"{self.where(row, name)} is empty or NaN; fill it, or leave the row out.")
            filled.append(text)
        return filled

    def images(self, image: str) -> list[str]:
        """Return a path per row: a column, or a pattern with columns in braces."""
        used = re.findall(r"\{([^{}]+)\}", image)
        if not used:
            return self.needed(image)
        cells = {name: self.needed(name) for name in used}
        pieces = re.split(r"\{([^{}]+)\}", image)
        # Every second piece is the name of a column.
        return [
            "".join(cells[piece][row] if i % 2 else piece for i, piece in enumerate(pieces)) for row in range(len(self))
        ]

    def where(self, row: int, column: str | None = None) -> str:
        """Return the place of a cell for messages; rows count from 1 without the header."""
        return f"{self.path}, row {row + 1}{f', column {column!r}' if column else ''}"

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def _load(path: Path) -> dict[str, Column]:
    """Read a table; texts stay as they are written, so that a patient 0012 keeps the zeros."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if not path.is_file():
        raise NotFoundError(f"no table at {path}; expected .csv, .tsv or .parquet.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            table = parquet.read_table(path)
        elif suffix in DELIMITERS:
            parse = csv.ParseOptions(delimiter=DELIMITERS[suffix])
            with csv.open_csv(path, parse_options=parse) as first:
                names = first.schema.names
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
            table = csv.read_csv(path, parse_options=parse, convert_options=as_text)
        else:
            raise UnknownNameError(
                f"{path}: no table is read from {suffix or 'a file without suffix'!r}. Use .csv, .tsv or .parquet."
            )
    except (pa.ArrowInvalid, OSError) as error:
        raise BadFileError(f"{path} is no table that can be read: {error}") from error
    if len(set(table.column_names)) != table.num_columns or not table.num_rows:
        raise BadValueError(
            f"{path} has {table.num_rows} rows, columns {table.column_names}; expected rows and distinct names."
        )
    return {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _targets(
    table: _Table,
    label: str | Sequence[str],
    task: str | None,
    classes: Sequence[str] | None,
    separator: str | None,
    allow_missing: bool,
) -> tuple[str, tuple[str, ...], NDArray[Any]]:
    """Return task, class names and targets."""
    columns = [label] if isinstance(label, str) else list(label)
    task = task or ("classification" if len(columns) == 1 and separator is None else "multilabel")
    if task not in TASKS or TASKS[task].dense:
        raise BadValueError(
            f"task {task!r}; a table gives classification, multilabel or regression. Masks: from_pairs."
        )
    if not columns or (task == "classification" and len(columns) > 1):
        raise BadValueError(f"{task} from {len(columns)} label columns; expected one, or task='multilabel'.")
    cells = {c: table.column(c) if allow_missing else list[str | None](table.needed(c)) for c in columns}
    if task == "regression":
        numbers = [[_number(table, row, c, text) for row, text in enumerate(cells[c])] for c in columns]
        return task, tuple(classes or columns), np.array(numbers, np.float32).T
    if task == "multilabel" and separator is None:
        flags = [[_flag(table, row, c, text) for row, text in enumerate(cells[c])] for c in columns]
        return task, tuple(classes or columns), np.array(flags, np.int64).T
    texts = cells[columns[0]]
    parts = [
        None if t is None else [t] if separator is None else [p.strip() for p in t.split(separator) if p.strip()]
        for t in texts
    ]
    found = sorted(
        {p for part in parts if part for p in part}, key=lambda t: (not t.isdigit(), int(t) if t.isdigit() else 0, t)
    )
    names = tuple(map(str, classes)) if classes is not None else tuple(found)
    for row, part in enumerate(parts):
        for text in part or ():
            if text not in names:
                raise UnknownNameError(
                    f"{table.where(row, columns[0])} is {text!r}, which is no class.{suggest(text, names)}"
                )
    if task == "classification":
        return task, names, np.array([IGNORE if p is None else names.index(p[0]) for p in parts], np.int64)
    many = np.array([[IGNORE if p is None else int(name in p) for name in names] for p in parts], np.int64)
    return task, names, many


def _number(table: _Table, row: int, column: str, text: str | None) -> float:
    if text is None:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise BadValueError(f"{table.where(row, column)} is {text!r}; expected a finite number.")
    return value


def _flag(table: _Table, row: int, column: str, text: str | None) -> int:
    if text is None:
        return IGNORE
    if text.lower() not in TRUE + FALSE:
        raise BadValueError(f"{table.where(row, column)} is {text!r}; expected 0 or 1.")
    return int(text.lower() in TRUE)


def _patients(table: _Table, locations: Sequence[str], patient: Patient | None) -> tuple[str, ...]:
    if isinstance(patient, str) and patient in table.columns:
        return tuple(table.needed(patient))
    if isinstance(patient, str) and patient.isidentifier():
        raise UnknownNameError(f"{table.path} has no column {patient!r}.{suggest(patient, table.columns)}")
    return find_patients(locations, patient)
