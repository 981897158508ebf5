"""The main job end to end on the real slide, with little training: every result is there and belongs together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dhlab as dh
from dhlab.cli import main
from dhlab.demo import CLASSES, run_demo
from dhlab.samples import sample_path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, epochs=3, progress=False)


def test_the_heat_map_covers_the_slide(results: tuple[Path, dict[str, object]]) -> None:
    heat, slide = dh.open(results[0] / "heat.ome.zarr"), dh.sample("skin-slide")
    assert heat.channels == CLASSES
    assert heat.kind == "heatmap"
    assert heat.parent is not None
    assert heat.parent.shape == slide.shape
    np.testing.assert_allclose(heat.size, slide.size, atol=1.01 * heat.spacing[0])
    scores = np.asarray(heat.levels[0][...], int).sum(0)
    predicted = scores > 0
    assert 0.3 < predicted.mean() < 1
    assert np.abs(scores[predicted] - 255).max() <= len(CLASSES)


def test_three_epochs_beat_the_most_frequent_class(results: tuple[Path, dict[str, object]]) -> None:
    report = json.loads((results[0] / "report.json").read_text("utf-8"))
    figures = report["values"]
    assert figures["mean Dice on the unseen part"] > 1.5 * report["baseline"]["mean Dice on the unseen part"]
    low, high = report["intervals"]["mean Dice on the unseen part"]
    assert low <= figures["mean Dice on the unseen part"] <= high


def test_the_report_is_one_page_with_the_whole_story(results: tuple[Path, dict[str, object]]) -> None:
    page = (results[0] / "report.html").read_text("utf-8")
    for heading in ("Scan and tissue", "Heat map", "Regions", "Training", "Time to model in production"):
        assert heading in page
    assert page.count("data:image/") >= 8
    assert "http" not in page
    assert "research use only" in page


def test_the_regions_open_again_and_lie_on_the_slide(results: tuple[Path, dict[str, object]]) -> None:
    zones, slide = dh.Annotations.from_geojson(results[0] / "regions.geojson"), dh.sample("skin-slide")
    assert len(zones) > 0
    top, left, bottom, right = np.asarray(zones.bounds).reshape(-1, 4).T
    assert min(left.min(), top.min()) >= -1
    assert right.max() <= slide.shape[1] + 2
    assert bottom.max() <= slide.shape[0] + 2


def test_the_ledger_reaches_production(results: tuple[Path, dict[str, object]]) -> None:
    (folder,) = (results[0] / "ledger").iterdir()
    rows = {row["stage"]: row for row in dh.Timeline(folder).table()}
    assert {"need", "data", "annotated", "trained", "validated", "packaged", "deployed"} <= set(rows)
    assert rows["time to model in production"]["reached"]


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    first = run_demo(tmp_path, epochs=1, progress=False)
    second = run_demo(tmp_path, epochs=2, progress=False)
    assert first["mean Dice"] != second["mean Dice"]
    assert len(list((tmp_path / "ledger").iterdir())) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_package_predicts_from_the_command_line(
    results: tuple[Path, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, heat, regions = sample_path("skin-slide"), tmp_path / "h.ome.zarr", tmp_path / "r.geojson"
    words = ["predict", str(scan), "-m", str(results[0] / "package"), "-o", str(heat), "--annotations", str(regions)]
    assert main([*words, "--overlap", "0.5", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["regions"] > 0
    first, second = dh.open(results[0] / "heat.ome.zarr"), dh.open(heat)
    np.testing.assert_array_equal(first.levels[0][...], second.levels[0][...])
    page = tmp_path / "page.html"
    words = ["report", str(scan), "--heat", str(heat), "--annotations", str(regions), "-o", str(page), "--json"]
    assert main(words) == 0
    assert "Heat map" in page.read_text("utf-8")
