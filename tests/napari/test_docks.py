"""The docks: tissue, prediction with its end, and annotating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from napari.components import ViewerModel

import dhlab as dh
from dhlab.annotations import Document
from dhlab.samples import sample_path
from dhlab.scan import Scan
from dhlab_napari.layers import scan_of
from dhlab_napari.linking import DocumentLayers
from dhlab_napari.showing import add
from dhlab_napari.widgets.annotations import AnnotationsWidget
from dhlab_napari.widgets.learning import LearningWidget
from dhlab_napari.widgets.predict import PredictWidget
from dhlab_napari.widgets.tissue import TissueWidget


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    (tmp_path / "slide.svs").symlink_to(sample_path("phantom-slide"))
    return dh.open(tmp_path / "slide.svs")


@pytest.fixture
def model(qtbot: Any, scan: Scan) -> ViewerModel:
    """Return a viewer without a window that shows the slide."""
    made = ViewerModel()
    add(made, scan, base=scan)
    return made


def finish(qtbot: Any, work: Any) -> None:
    qtbot.waitUntil(lambda: work.worker is None, timeout=30_000)


def test_tissue_becomes_labels_that_lie_on_the_slide(model, qtbot, scan) -> None:
    dock = TissueWidget(model)
    qtbot.addWidget(dock)
    assert dock.scans.currentText() == "slide"
    dock.sensitivity.setValue(1.5)
    dock.work.start()
    assert not dock.work.button.isEnabled()
    finish(qtbot, dock.work)
    mask = model.layers["slide tissue"]
    assert mask._type_string == "labels"
    assert scan_of(mask).meta["sensitivity"] == 1.5
    share = np.asarray(mask.data).mean()
    assert 0.2 < share < 0.9
    assert dock.work.news.text() == f"{share:.0%} of slide is tissue."
    size = np.array(mask.data.shape) * mask.scale
    assert size == pytest.approx(scan.size, rel=0.01)


def test_prediction_shows_how_far_it_is_and_ends_when_it_is_told(model, qtbot, monkeypatch, tmp_path) -> None:
    dock = PredictWidget(model)
    qtbot.addWidget(dock)
    dock.work.start()
    assert "no model" in dock.work.news.text()
    dock.model.setText(str(tmp_path / "nothing"))
    dock.work.start()
    finish(qtbot, dock.work)
    assert "nothing" in dock.work.news.text()
    net = dh.create_model("cnn", ["gland", "stroma"], tile=(64, 64), spacing=0.5, width=8, depth=2)
    monkeypatch.setattr("dhlab.models.load_model", lambda _folder: net)
    dock.model.setText(str(tmp_path))
    out = tmp_path / "heat.ome.zarr"
    dock.out.setText(str(out))
    steps: list[tuple[int, int]] = []
    dock.work._steps.done.connect(lambda done, total: (steps.append((done, total)), dock.work.end()))
    dock.work.start()
    finish(qtbot, dock.work)
    assert dock.work.news.text() == "Cancelled."
    assert 0 < steps[0][0] < steps[0][1]
    assert not out.exists()
    assert len(model.layers) == 1
    dock.work._steps.done.disconnect()
    dock.work.start()
    finish(qtbot, dock.work)
    assert out.exists()
    assert [layer.name for layer in model.layers[1:]] == ["slide heat map gland", "slide heat map stroma"] or [
        layer.name.rsplit(" ", 1)[-1] for layer in model.layers[1:]
    ] == ["gland", "stroma"]
    assert "windows in" in dock.work.news.text()


def test_the_layers_on_offer_follow_the_viewer(model, qtbot, scan) -> None:
    dock = PredictWidget(model)
    qtbot.addWidget(dock)
    assert [dock.masks.itemText(i) for i in range(dock.masks.count())] == ["everywhere"]
    add(model, dh.find_tissue(scan), base=scan)
    assert [dock.masks.itemText(i) for i in range(dock.masks.count())] == ["everywhere", "slide tissue"]
    model.layers.remove("slide tissue")
    assert dock.masks.scan is None
    model.layers.clear()
    assert dock.scans.scan is None
    dock.work.start()
    assert "Open one first" in dock.work.news.text()


def test_annotating_classes_review_comments_history(model, qtbot, scan, tmp_path) -> None:
    dock = AnnotationsWidget(model)
    qtbot.addWidget(dock)
    assert dock.news.text() == "No document is open."
    dock.open()
    link = dock.link
    assert isinstance(link, DocumentLayers)
    document = link.document
    assert document.path == tmp_path / "slide.geojson"
    for name in ("tumour", "stroma"):
        dock.new_class.setText(name)
        dock.add_class()
    qtbot.waitUntil(lambda: dock.classes.topLevelItemCount() == 2, timeout=20_000)
    assert link.active_class == "stroma"
    with Document.open(scan, author="bob") as other:
        other.add(shapely.box(10, 10, 210, 110), "tumour", review="proposed")
        other.add(shapely.box(500, 500, 600, 600), "tumour", review="proposed")
    qtbot.waitUntil(lambda: len(link.annotations) == 2, timeout=20_000)
    qtbot.waitUntil(lambda: dock.classes.topLevelItem(0).text(2) == "2", timeout=20_000)
    dock.show_next()
    first = link.selected
    assert len(first) == 1
    assert "tumour, 5,000 µm², proposed" in dock.about.text()
    assert "drawn by bob" in dock.about.text()
    dock.review("accepted")
    dock.words.setText("clear case")
    dock.comment()
    qtbot.waitUntil(lambda: "clear case" in dock.about.text(), timeout=20_000)
    assert f"{document.author}, " in dock.about.text()
    assert [dock.edits.item(i).text().split(": ")[1] for i in range(3)] == ["comment", "accepted", "drawn (tumour)"]
    dock.show_next()
    assert link.selected != first
    # A class with objects is not lost by a click.
    link.active_class = "tumour"
    dock.remove_class()
    qtbot.wait(30)
    assert [one.name for one in document.classes] == ["tumour", "stroma"]
    dock.by_class.setCurrentText("tumour")
    dock.by_review.setCurrentText("any")
    dock.take()
    assert len(link.selected) == 2
    link.classify("stroma")
    qtbot.waitUntil(lambda: dock.classes.topLevelItem(1).text(2) == "2", timeout=20_000)
    dock.edits.setCurrentRow(0)
    dock._revert()
    qtbot.waitUntil(lambda: dock.classes.topLevelItem(0).text(2) == "2", timeout=20_000)
    dock.remove_class()
    link.active_class = "tumour"
    dock.new_class.setText("carcinoma")
    dock.rename_class()
    assert [one.name for one in document.classes] == ["carcinoma"]
    assert link.active_class == "carcinoma"
    qtbot.waitUntil(lambda: dock.classes.topLevelItem(0).text(2) == "2", timeout=20_000)
    assert dock.classes.topLevelItem(0).text(0) == "carcinoma"
    dock._undo()
    assert [one.name for one in document.classes] == ["tumour"]
    dock._undo()
    qtbot.wait(30)
    dock.close_document()
    assert [layer.name for layer in model.layers] == ["slide"]
    assert dock.link is None
    assert (tmp_path / "slide.geojson").exists()


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


def test_strokes_teach_while_one_draws(model, qtbot, scan, monkeypatch) -> None:
    dock = LearningWidget(model)
    qtbot.addWidget(dock)
    dock.switch.click()
    assert "No document is open" in dock.news.text()
    assert not dock.switch.isChecked()
    with Document.open(scan) as document:
        link = DocumentLayers(model, document, base=scan)
        dock.switch.click()
        qtbot.waitUntil(lambda: "strokes" in dock.news.text(), timeout=20_000)
        labels = np.asarray(dh.sample("phantom-slide-labels").levels[0])
        places = {name: np.argwhere(labels == value)[::40_000] for value, name in ((1, "glass"), (2, "stroma"))}
        for name, some in places.items():
            document.add(shapely.MultiPoint([(x, y) for y, x in some[:6]]), name)
        qtbot.waitUntil(lambda: dock.heat is not None, timeout=60_000)
        assert dock.news.text().startswith("Learned from ")
        assert [layer.name for layer in model.layers[:2]] == ["slide", "live learning"]
        shown = np.asarray(dock.layer.data[1])
        truth = labels[:: labels.shape[0] // shown.shape[0], :: labels.shape[1] // shown.shape[1]]
        colors = {one.name: one.color for one in document.classes}
        is_glass = (shown[..., :3] == colors["glass"]).all(-1)
        assert is_glass[truth == 1].mean() > 0.8
        assert is_glass[truth == 2].mean() < 0.2
        before = dock.heat
        document.add(shapely.Point(1000, 1000), "stroma")
        qtbot.waitUntil(lambda: dock.heat is not before, timeout=30_000)
        count = len(document)
        dock.outline_view()
        qtbot.waitUntil(lambda: len(document) > count, timeout=30_000)
        assert "proposed" in dock.news.text()
        # Proposals teach nothing.
        assert sum(dock.learner.counts.values()) == count
        # What goes wrong is told, and the next stroke is learned.
        with monkeypatch.context() as patch:
            patch.setattr(dock.learner, "update", fail)
            document.add(shapely.Point(1010, 1000), "stroma")
            qtbot.waitUntil(lambda: dock.news.text() == "RuntimeError: out of memory", timeout=30_000)
        document.add(shapely.Point(1020, 1000), "stroma")
        qtbot.waitUntil(lambda: dock.news.text().startswith("Learned from "), timeout=30_000)
        given: list[Any] = []
        apply = dock.learner.apply
        monkeypatch.setattr(dock.learner, "apply", lambda *a, **k: (given.append(k["within"]), apply(*a, **k))[1])
        dock.work.start()
        finish(qtbot, dock.work)
        assert "windows in" in dock.work.news.text()
        assert given[0].kind == "mask", "glass is left out"
        dock.switch.click()
        assert "live learning" not in model.layers
        link.end()


def test_what_was_learned_of_a_slide_is_not_laid_on_the_next(qtbot, tmp_path) -> None:
    model = ViewerModel()
    dock = LearningWidget(model)
    qtbot.addWidget(dock)
    opened = []
    for side, spacing in ((1024, 1.0), (256, 0.25)):
        pixels = np.full((side, side, 3), 40, np.uint8)
        pixels[:, side // 2 :] = 200
        slide = Scan.from_array(pixels, "yxc", spacing=(spacing, spacing), unit="µm", name=str(side), kind="image")
        model.layers.clear()
        add(model, slide, base=slide)
        document = Document.open(slide, tmp_path / f"{side}.geojson")
        opened += [DocumentLayers(model, document, base=slide).end, document.close]
        document.add(shapely.box(20, 20, 60, 60), "dark")
        document.add(shapely.box(side - 60, 20, side - 20, 60), "bright")
        # At the second turn the first slide is still being learned.
        dock.switch.click()
    assert dock.switch.isChecked()
    qtbot.waitUntil(lambda: dock.heat is not None, timeout=60_000)
    assert dock.heat.size == pytest.approx(slide.size)
    assert dock.layer.extent.world == pytest.approx(model.layers["256"].extent.world, rel=0.05)
    for end in opened:
        end()
