"""`Report`: figures with their uncertainty, pictures, tables and provenance, in one value."""

from __future__ import annotations

import base64
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadFileError, BadValueError

if TYPE_CHECKING:
    import os

__all__ = ["Figure", "Report", "software_versions"]

Row = Mapping[str, Any]
FORMAT = 1


@dataclass(frozen=True)
class Figure:
    """A picture in a report.

    Parameters
    ----------
    image
        Encoded PNG, JPEG or SVG bytes.
    caption
        What the reader sees, in one sentence.
    width
        Width at which it is meant to be seen, in CSS pixels; 0 shows its own.
    """

    image: bytes
    caption: str
    width: int = 0

    @property
    def mime(self) -> str:
        """Media type of the picture, by its first bytes."""
        if self.image.startswith(b"\x89PNG"):
            return "image/png"
        return "image/jpeg" if self.image.startswith(b"\xff\xd8") else "image/svg+xml"

    @property
    def uri(self) -> str:
        """The picture as a ``data:`` URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.image).decode()}"


@dataclass(frozen=True, eq=False)
class Report:
    """Figures with their intervals, baselines, tables, pictures and provenance.

    Parameters
    ----------
    title
        What is reported.
    summary
        One paragraph for a reader in a hurry.
    values
        Named figures, for example ``{"mean Dice": 0.87}``.
    intervals
        Confidence interval ``(low, high)`` of a figure, by the same name.
    baseline
        The same figure for the simplest rival (majority class, mean).
    n
        Number of independent units (patients, slides, blocks) behind a figure.
    tables
        Tables by caption; each a list of rows with the same keys.
    figures
        Pictures, in order.
    notes
        Limits and remarks that must be read with the figures.
    provenance
        Data, model, seed, versions: what is needed to do it again.
    sections
        Reports shown below this one, in order.
    draws
        Value of a figure in each bootstrap draw, by the same name.
    units
        Digest of the independent units, what is true of them, the seed and the number of draws; the draws of two
        reports with the same digest are pairs.
    """

    title: str
    summary: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    n: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sections: Sequence[Report] = ()
    draws: Mapping[str, Sequence[float]] = field(default_factory=dict)
    units: str = ""

    def __post_init__(self) -> None:
        for name in ("intervals", "baseline", "n", "draws"):
            if unknown := sorted(set(getattr(self, name)) - set(self.values)):
                raise BadValueError(f"{name} of {', '.join(unknown)}; expected names among {sorted(self.values)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as JSON-compatible values (NaN becomes None)."""
        plain: dict[str, Any] = _plain(
            {
                "format": FORMAT,
                "title": self.title,
                "summary": self.summary,
                "values": self.values,
                "intervals": self.intervals,
                "baseline": self.baseline,
                "n": self.n,
                "tables": self.tables,
                "figures": [figure.caption for figure in self.figures],
                "notes": self.notes,
                "provenance": self.provenance,
            }
        )
        plain["sections"] = [section.to_dict() for section in self.sections]
        # Six digits are more than any draw means; last, since they are many.
        draws = {name: [float(f"{v:.6g}") for v in values] for name, values in self.draws.items()}
        return plain | {"units": self.units, "draws": _plain(draws)}

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the figures as JSON (pictures by caption only) and return the path.

        Parameters
        ----------
        path
            JSON file to write.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        return _write(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `to_json` wrote; pictures are not stored in JSON.

        Parameters
        ----------
        path
            The JSON file.

        Raises
        ------
        BadFileError
            If the file is not a report.
        """
        try:
            return _from_dict(json.loads(Path(path).read_text("utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise BadFileError(f"{path} is not a dhlab report in JSON: {error}. Write one with to_json.") from error

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page (pictures inside, no scripts, prints well) and return the path.

        Parameters
        ----------
        path
            HTML file to write.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        from jinja2 import Environment, PackageLoader

        template = Environment(loader=PackageLoader("dhlab", "templates"), autoescape=True).get_template("report.html")
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return _write(Path(path), template.render(report=self, made=made, number=format_number, body=self._body))

    def compare(self, other: Report) -> Report:
        """Compare the figures that both reports hold, in pairs where both judged the same units.

        Both must then have been made with the same samples, seed and number of draws: each draw takes the same
        patients in both, so that what makes a patient hard for either cancels out.

        Parameters
        ----------
        other
            Report of another model on the same data.

        Returns
        -------
        Report
            Differences, this one's figure minus the other's, with 95 % intervals and two-sided p-values if paired.

        Raises
        ------
        BadValueError
            If they have no figure in common.

        References
        ----------
        Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapters 13 and 15.
        """
        names = [name for name in self.values if name in other.values]
        if not names:
            raise BadValueError(
                f"{self.title!r} and {other.title!r} have no figure in common; expected reports of the same task."
            )
        first, second, on = _name_apart(self.title, other.title)
        paired = bool(self.units) and self.units == other.units
        differences, intervals, rows = {}, {}, []
        for name in names:
            differences[name] = self.values[name] - other.values[name]
            row = {"figure": name, first: self.values[name], second: other.values[name]}
            if paired and name in self.draws and name in other.draws:
                found = _test_pairs(self.draws[name], other.draws[name])
                if found is not None:
                    intervals[name], row["p"] = found[:2], found[2]
            rows.append({"p": None, **row} if paired and "p" not in row else row)
        order = ("figure", first, second, "p") if paired else ("figure", first, second)
        return Report(
            title=f"{first} against {second}{on}",
            summary=f"Differences of each figure: {first} minus {second}.",
            values=differences,
            intervals=intervals,
            n={name: self.n[name] for name in names if paired and name in self.n},
            tables={"Figures of both": [{key: row[key] for key in order} for row in rows]},
            notes=_notes_on(paired, bool(self.units and other.units), len(names)),
            provenance={first: self.provenance, second: other.provenance, "paired": paired},
        )

    def replace(self, **changes: Any) -> Report:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def rows(self) -> list[dict[str, str]]:
        """Return the figures as text rows: value, interval, baseline and n."""
        rows = []
        for name, value in self.values.items():
            row = {"figure": name, "value": format_number(value)}
            if name in self.intervals:
                row["95 % interval"] = " to ".join(map(format_number, self.intervals[name]))
            if name in self.baseline:
                row["baseline"] = format_number(self.baseline[name])
            if name in self.n:
                row["n"] = str(self.n[name])
            rows.append(row)
        return rows

    def _body(self) -> str:
        from jinja2 import Environment, PackageLoader

        environment = Environment(loader=PackageLoader("dhlab", "templates"), autoescape=True)
        return environment.get_template("report_body.html").render(report=self, number=format_number)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {format_number(value)}" for name, value in list(self.values.items())[:4])
        return f"Report {self.title!r}: {figures or 'no figures'}"

    def _repr_html_(self) -> str:
        return f"<div style='max-width:60em'><h3>{_escape(self.title)}</h3>{self._body()}</div>"


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a result, for a report's provenance."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("dhlab", "torch", "numpy", "openslide-bin", "simplejpeg", "zarr", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def format_number(value: Any) -> str:
    """Format a number for people: three significant figures below 1000, thousands separated above."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not defined"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1:
        return f"{value:.3f}" if abs(value) >= 0.0005 else "0.000"
    return f"{value:#.3g}".rstrip(".")


def _name_apart(first: str, second: str) -> tuple[str, str, str]:
    """Return two names that differ, and what both titles end with after ' on '."""
    (one, _, where), (two, _, there) = first.partition(" on "), second.partition(" on ")
    if where and where == there and one != two:
        return one, two, f" on {where}"
    return (first, second, "") if first != second else ("this", "other", f": {first}")


def _test_pairs(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the 95 % interval of the difference of paired draws, and its two-sided p-value; None if undefined."""
    import numpy as np

    if len(first) != len(second):
        return None
    gaps = np.asarray(first, float) - np.asarray(second, float)
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps):
        return None
    low, high = np.quantile(gaps, (0.025, 0.975)).tolist()
    # One more than counted: no finite number of draws shows that something never happens.
    beyond = 1 + int(min(np.count_nonzero(gaps <= 0), np.count_nonzero(gaps >= 0)))
    return low, high, min(1.0, 2 * beyond / (len(gaps) + 1))


def _notes_on(paired: bool, known: bool, figures: int) -> list[str]:
    if paired:
        notes = ["Paired bootstrap over the same units: intervals and p-values are of the differences themselves."]
        if figures > 1:
            notes.append(f"Each p-value is for its figure alone, not corrected for looking at {figures}.")
        return notes
    reason = (
        "The reports are of other units or labels, or were drawn with another seed or number of draws"
        if known
        else "A report has no bootstrap draws"
    )
    advice = "Evaluate both on the same dataset with the same seed and resamples to test them."
    return [f"{reason}: differences only, without a test. {advice}"]


def _escape(text: str) -> str:
    from html import escape

    return escape(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _from_dict(data: Mapping[str, Any]) -> Report:
    if data["format"] > FORMAT:
        raise ValueError(f"format {data['format']} is newer than {FORMAT}; update dhlab")

    def numbers(mapping: Mapping[str, Any]) -> dict[str, float]:
        return {key: math.nan if value is None else value for key, value in mapping.items()}

    return Report(
        title=data["title"],
        summary=data["summary"],
        values=numbers(data["values"]),
        intervals={key: (low, high) for key, (low, high) in data["intervals"].items()},
        baseline=numbers(data["baseline"]),
        n=data["n"],
        tables=data["tables"],
        notes=data["notes"],
        provenance=data["provenance"],
        sections=[_from_dict(section) for section in data["sections"]],
        draws={
            name: tuple(math.nan if v is None else v for v in values) for name, values in data.get("draws", {}).items()
        },
        units=data.get("units", ""),
    )


def _write(path: Path, text: str) -> Path:
    from dhlab.atomic import atomic_file

    with atomic_file(path) as partial:
        partial.write_text(text, "utf-8")
    return path
