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
    compared = example().compare(Report(title="other", values={"mean Dice": 0.5, "F1": 1.0}))
    assert compared.values == {"mean Dice": pytest.approx(0.3712)}
    assert compared.tables["Figures of both"] == [{"figure": "mean Dice", "Judged & <found>": 0.8712, "other": 0.5}]
    assert not compared.intervals
    assert "without a test" in " ".join(compared.notes)
    with pytest.raises(BadValueError, match="no figure in common"):
        example().compare(Report(title="other", values={"F1": 1.0}))


def drawn(title: str, values: np.ndarray, rng: np.random.Generator | int, units: str = "same") -> Report:
    picks = np.random.default_rng(rng).integers(0, len(values), (500, len(values)))
    draws = tuple(values[picks].mean(1).tolist())
    return Report(title=title, values={"score": float(values.mean())}, draws={"score": draws}, units=units)


def test_compare_pairs_the_draws() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=40)
    better, worse = hard + 0.2 + rng.normal(size=40) / 20, hard
    paired = drawn("a on data", better, 1).compare(drawn("b on data", worse, 1))
    low, high = paired.intervals["score"]
    assert 0 < low < paired.values["score"] < high
    # What makes units hard is the same for both: the interval is that of the gap alone.
    assert high - low < 0.06
    assert paired.tables["Figures of both"][0]["p"] == pytest.approx(2 / 501)
    assert paired.title == "a against b on data"
    assert drawn("b on data", worse, 1).compare(drawn("a on data", better, 1)).intervals["score"] == (
        pytest.approx(-high),
        pytest.approx(-low),
    )
    for other in (drawn("b", worse, 2, units="others"), drawn("b", worse, 1).replace(units="")):
        loose = drawn("a", better, 1).compare(other)
        assert not loose.intervals
        assert "without a test" in loose.notes[0]
        assert "p" not in loose.tables["Figures of both"][0]


def test_a_difference_of_nothing_is_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=9)
    same = drawn("a", values, 1).compare(drawn("a", values, 1))
    assert same.tables["Figures of both"][0] == {
        "figure": "score",
        "this": values.mean(),
        "other": values.mean(),
        "p": 1,
    }
    assert same.intervals["score"] == (0, 0)


def test_p_values_are_rarely_small_without_a_difference() -> None:
    small = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        compared = drawn("a", rng.normal(size=40), trial).compare(drawn("b", rng.normal(size=40), trial))
        small += compared.tables["Figures of both"][0]["p"] < 0.05
    assert 2 <= small <= 22


def test_draws_survive_json(tmp_path: Path) -> None:
    report = drawn("a", np.random.default_rng(0).normal(size=9), 1)
    holed = report.replace(draws={"score": (*report.draws["score"][:-1], math.nan)})
    back = Report.from_json(holed.to_json(tmp_path / "r.json"))
    assert back.units == "same"
    assert back.draws["score"][:-1] == pytest.approx(report.draws["score"][:-1], rel=1e-5)
    assert math.isnan(back.draws["score"][-1])
    assert back.compare(report).intervals["score"] == pytest.approx((0, 0), abs=1e-5)
    plain = json.loads((tmp_path / "r.json").read_text("utf-8"))
    for name in ("draws", "units"):
        del plain[name]
    (tmp_path / "old.json").write_text(json.dumps(plain))
    assert Report.from_json(tmp_path / "old.json").draws == {}
    with pytest.raises(BadValueError, match="draws of F1"):
        report.replace(draws={"F1": (1.0,)})


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
        (1.0, "1.00"),
        (100.0, "100"),
        (-0.0001, "0.000"),
        (-0.25, "-0.250"),
        (math.inf, "not defined"),
        (None, ""),
        (True, "True"),
    ],
)
def test_numbers_for_people(value: object, text: str) -> None:
    assert format_number(value) == text
