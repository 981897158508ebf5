"""Report: self-contained, safe, and back from JSON."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhlab.errors import BadFileError, BadValueError, StorageError
from dhlab.report import Figure, Report, format_number


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def example() -> Report:
    return Report(
        title="Judged & <found>",
        summary="On one slide.",
        values={"mean Dice": 0.8712, "AUC": math.nan},
        intervals={"mean Dice": (0.81, 0.92)},
        baseline={"mean Dice": 0.2},
        n={"mean Dice": 12},
        tables={"Classes": [{"class": "dermis", "Dice": 0.9}, {"class": "<b>", "Dice": np.float32(0.5)}]},
        figures=[Figure(picture(), "A grey square.")],
        notes=["One patient."],
        provenance={"seed": 0, "versions": {"torch": "2"}},
        sections=[Report(title="Inner", values={"x": 1.0})],
    )


def test_html_needs_nothing_else(tmp_path: Path) -> None:
    text = example().to_html(tmp_path / "😀 r.html").read_text("utf-8")
    assert "data:image/png;base64," in text
    assert "0.871" in text
    assert "0.810 to 0.920" in text
    assert "not defined" in text
    assert "Inner" in text
    assert "&lt;found&gt;" in text
    assert "<b>" not in text.replace("<body>", "")
    for word in ("http://", "https://", "<script", 'src="/'):
        assert word not in text


def test_json_round_trip_keeps_every_figure(tmp_path: Path) -> None:
    path = example().to_json(tmp_path / "r.json")
    assert json.loads(path.read_text("utf-8"))["values"]["AUC"] is None
    back = Report.from_json(path)
    assert back.values["mean Dice"] == 0.8712
    assert math.isnan(back.values["AUC"])
    assert back.intervals == {"mean Dice": (0.81, 0.92)}
    assert back.sections[0].title == "Inner"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', "{"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadFileError, match="not a dhlab report"):
        Report.from_json(tmp_path / "r.json")


def test_an_interval_needs_its_value() -> None:
    with pytest.raises(BadValueError, match="intervals of Dise"):
        Report(title="x", values={"Dice": 1.0}, intervals={"Dise": (0, 1)})


def test_compare_lists_what_both_hold() -> None:
    rows = example().compare(Report(title="other", values={"mean Dice": 0.5, "F1": 1.0}))
    assert len(rows) == 1
    assert rows[0]["difference"] == pytest.approx(0.3712)


def test_reprs_are_pure() -> None:
    report = example()
    assert report._repr_html_() == report._repr_html_()
    assert "mean Dice 0.871" in repr(report)


def test_a_folder_in_the_way_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    (tmp_path / "r.html" / "keep").write_text("x")
    with pytest.raises((StorageError, OSError)):
        example().to_html(tmp_path / "r.html" / "keep" / "r.html")
    assert (tmp_path / "r.html" / "keep").read_text() == "x"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (12345.6, "12,346"),
        (7, "7"),
        (math.inf, "not defined"),
        (None, ""),
        (True, "True"),
    ],
)
def test_numbers_for_people(value: object, text: str) -> None:
    assert format_number(value) == text
