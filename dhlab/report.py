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
    """

    image: bytes
    caption: str

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

    def __post_init__(self) -> None:
        for given, name in ((self.intervals, "intervals"), (self.baseline, "baseline"), (self.n, "n")):
            if unknown := sorted(set(given) - set(self.values)):
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
        return plain | {"sections": [section.to_dict() for section in self.sections]}

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

    def compare(self, other: Report) -> list[dict[str, Any]]:
        """Return a row per figure that both reports hold: this one's value, the other's and the difference."""
        return [
            {
                "figure": name,
                self.title: value,
                other.title: other.values[name],
                "difference": value - other.values[name],
            }
            for name, value in self.values.items()
            if name in other.values
        ]

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
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


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
    )


def _write(path: Path, text: str) -> Path:
    from dhlab.atomic import atomic_file

    with atomic_file(path) as partial:
        partial.write_text(text, "utf-8")
    return path
