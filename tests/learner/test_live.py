"""Live learning in a viewer: what is drawn is learned, shown, applied and outlined while one works on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhlab.annotations import Annotations, Document
from dhlab.errors import BadValueError, UnknownNameError
from dhlab.learner import draw_strokes
from dhlab.phantoms import CLASSES
from dhlab.scan import Scan
from dhlab.view.learning import Learning
from dhlab.view.viewer import Viewer


@pytest.fixture
def document(slide: Scan, tmp_path: Path) -> Iterator[Document]:
    with Document.open(slide, tmp_path / "slide.geojson", author="Ada") as opened:
        yield opened


@pytest.fixture
def viewer(slide: Scan, document: Document) -> Iterator[Viewer]:
    shown = Viewer(slide, document)
    yield shown
    shown.close()


def start(viewer: Viewer) -> Learning:
    viewer.learn(1, wait=True)
    assert viewer._learning is not None
    assert viewer.learner is viewer._learning.learner
    return viewer._learning


def test_waits_for_strokes_then_shows_what_it_learned(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    assert viewer.learning["state"] == "off"
    learning = start(viewer)
    assert viewer.learning["state"] == "waiting"
    assert "no strokes" in viewer.learning["message"]
    document.add(strokes[:1])
    assert learning.wait()
    assert viewer.learning["state"] == "waiting"
    assert "only" in viewer.learning["message"]
    document.add(strokes[1:])
    assert learning.wait()
    assert viewer.learning["state"] == "ready"
    assert viewer.learning["message"] == ""
    assert viewer.learning["strokes"] == dict.fromkeys(CLASSES, 3)
    heat = viewer.layer(viewer.learning["layer"])
    assert [layer.id for layer in viewer.layers] == [0, heat.id, 1], "under what is drawn"
    assert heat.tiles is not None
    data, mime = heat.tiles.encode(0, 0, 0)
    assert mime == "image/png"
    assert len(data) > 1000


def test_a_correction_changes_the_layer(
    viewer: Viewer, document: Document, strokes: Annotations, truth: np.ndarray, slide: Scan
) -> None:
    document.add(strokes)
    learning = start(viewer)
    number = viewer.learning["layer"]
    before = viewer.layer(number)
    viewer.set_layer(number, opacity=0.3)
    document.add(draw_strokes(truth, CLASSES, 4, seed=9, parent=slide))
    assert learning.wait()
    after = viewer.layer(number)
    assert after.revision == before.revision + 1
    assert after.thing is not before.thing
    assert viewer.settings[str(number)]["opacity"] == 0.3
    document.undo()
    assert learning.wait()
    np.testing.assert_array_equal(viewer.layer(number).thing.levels[2][...], before.thing.levels[2][...])


def test_many_edits_are_learned_together(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    learning = start(viewer)
    states: list[str] = []
    viewer.observe(lambda change: states.append(change["new"]["state"]), "learning")
    for number in range(len(strokes)):
        document.add(strokes[number : number + 1])
    assert learning.wait()
    assert viewer.learning["strokes"] == dict.fromkeys(CLASSES, 3)
    assert states.count("training") < len(strokes)
    assert learning.learner.counts == dict.fromkeys(CLASSES, 3)


def test_other_classes_make_another_layer(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    document.add(strokes)
    learning = start(viewer)
    first = viewer.learning["layer"]
    viewer.set_layer(first, channel=3)
    document.remove_class("adipose", to="background")
    assert learning.wait()
    second = viewer.learning["layer"]
    assert second != first
    assert len(viewer.layers) == 3
    assert viewer.layer(second).thing.channels == ("background", "epithelium", "stroma")
    viewer.snapshot(200)


def test_goes_where_it_is_unsure(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    document.add(strokes)
    start(viewer)
    seen = []
    for _ in range(3):
        viewer.learn(1, "next")
        seen.append(viewer.center)
    assert len(set(seen)) == 3
    assert viewer.zoom is not None
    assert viewer.zoom >= 1


def test_applies_and_outlines(viewer: Viewer, document: Document, strokes: Annotations, tmp_path: Path) -> None:
    document.add(strokes)
    learning = start(viewer)
    progress: list[float] = []
    viewer.observe(lambda change: progress.append(change["new"]["progress"]), "learning")
    assert viewer.learn(1, "apply")["state"] == "applying"
    assert learning.wait()
    assert viewer.learning["state"] == "ready"
    assert max(progress) == 1.0
    assert (tmp_path / "slide.learned.ome.zarr").is_dir()
    viewer.learn(1, "polygons")
    added = document.annotations.where(review="proposed")
    assert len(added) > 3
    assert learning.wait()
    assert viewer.learning["strokes"] == dict.fromkeys(CLASSES, 3), "proposals teach nothing"
    assert document.history()[-1].tool == "learner"
    assert "accepted or rejected" in viewer.learning["message"], "not wiped by the edit that it speaks of"
    document.comment(added.ids[:1], "a gland?")
    assert learning.wait()
    assert "accepted or rejected" in viewer.learning["message"], "not by others that teach nothing"
    document.change(added.ids[:1], review="accepted")
    assert learning.wait()
    assert viewer.learning["message"] == "", "a stroke is news"
    for _ in range(2):
        viewer.learn(1, "apply", wait=True)


def test_applying_can_be_cancelled(
    viewer: Viewer, document: Document, strokes: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document.add(strokes)
    learning = start(viewer)
    sent, apply = threading.Event(), learning.learner.apply

    def apply_later(*places: Any, **options: Any) -> Scan:
        assert sent.wait(60)
        return apply(*places, **options)

    monkeypatch.setattr(learning.learner, "apply", apply_later)
    viewer.learn(1, "apply")
    viewer.learn(1, "cancel")
    sent.set()
    assert learning.wait()
    assert viewer.learning["message"] == "cancelled."
    assert viewer.learning["state"] == "ready"
    assert not (tmp_path / "slide.learned.ome.zarr").exists()


def test_polygons_of_what_is_in_view(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    document.add(strokes)
    start(viewer)
    viewer.size, viewer.center, viewer.zoom = (200.0, 300.0), (384.0, 384.0), 1.0
    viewer.learn(1, "polygons")
    bounds = document.annotations.where(review="proposed").bounds
    assert (bounds[:, :2] >= (283, 233)).all()
    assert (bounds[:, 2:] <= (485, 535)).all()


def test_stops_and_begins_again(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    document.add(strokes)
    start(viewer)
    assert viewer.learn(1, "stop")["state"] == "off"
    assert [layer.id for layer in viewer.layers] == [0, 1]
    start(viewer)
    assert viewer.learning["state"] == "ready"
    viewer.remove(1)
    assert viewer.learning["state"] == "off"
    assert [layer.id for layer in viewer.layers] == [0]


def test_who_starts_while_it_stops_begins_again(
    viewer: Viewer, document: Document, strokes: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    document.add(strokes)
    learning = start(viewer)
    busy, go = threading.Event(), threading.Event()
    monkeypatch.setattr(learning.learner, "update", lambda: busy.set() or not go.wait(60))
    document.undo()
    assert busy.wait(60)
    turns = [threading.Thread(target=viewer.learn, args=(1, action)) for action in ("stop", "start")]
    turns[0].start()
    assert learning._ended.wait(60)
    turns[1].start()
    turns[1].join(0.5)
    go.set()
    for turn in turns:
        turn.join(60)
    assert viewer.learner is not None
    assert viewer.learner is not learning.learner


def test_stopping_ends_its_threads(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    document.add(strokes)
    mapping = start(viewer)
    viewer.learn(1, "apply")
    viewer.learn(1, "stop")
    assert not mapping._applying.is_alive()
    # In the pause after a stroke, too.
    resting = start(viewer)
    document.undo()
    viewer.learn(1, "stop")
    assert not resting._thread.is_alive()


def test_failures_are_told_and_learning_goes_on(
    viewer: Viewer, document: Document, strokes: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    document.add(strokes)
    learning = start(viewer)
    with monkeypatch.context() as patch:
        patch.setattr(learning.learner, "apply", fail)
        viewer.learn(1, "apply", wait=True)
        assert viewer.learning["state"] == "ready"
        assert viewer.learning["message"] == "RuntimeError: out of memory"
        patch.setattr(learning.learner, "update", fail)
        document.undo()
        assert learning.wait()
        assert viewer.learning["state"] == "waiting"
        assert viewer.learning["message"] == "RuntimeError: out of memory"
    document.redo()
    assert learning.wait()
    assert viewer.learning["state"] == "ready"


LEAVES = """
import sys, time
from pathlib import Path
from dhlab.annotations import Document
from dhlab.learner import draw_strokes
from dhlab.phantoms import CLASSES, paint_slide
from dhlab.scan import Scan
from dhlab.view.viewer import Viewer

image, labels = paint_slide((768, 768), rng=3, spacing=1.0)
slide = Scan.from_array(image, "yxc", spacing=(1.0, 1.0), unit="µm")
document = Document.open(slide, Path(sys.argv[1]) / "slide.geojson")
document.add(draw_strokes(labels.astype(int) - 1, CLASSES, 12, parent=slide))
viewer = Viewer(slide, document)
viewer.learn(1)
time.sleep(0.25)
"""


def test_python_ends_quietly_while_it_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_says_what_cannot_be(viewer: Viewer, document: Document, strokes: Annotations) -> None:
    with pytest.raises(BadValueError, match="start that first"):
        viewer.learn(1, "next")
    with pytest.raises(BadValueError, match="no document"):
        viewer.learn(0)
    start(viewer)
    with pytest.raises(BadValueError, match="nothing is learned yet"):
        viewer.learn(1, "apply")
    with pytest.raises(UnknownNameError, match="polygons"):
        viewer.learn(1, "polygon")


def test_what_others_draw_is_learned(viewer: Viewer, slide: Scan, document: Document, strokes: Annotations) -> None:
    learning = start(viewer)
    with Document.open(slide, document.path, author="Grace") as other:
        other.add(strokes)
        for _ in range(200):
            if viewer.learning["state"] == "ready":
                break
            time.sleep(0.05)
    assert learning.wait()
    assert viewer.learning["strokes"] == dict.fromkeys(CLASSES, 3)


def test_the_browser_is_answered(slide: Scan, document: Document, strokes: Annotations) -> None:
    widget_module = pytest.importorskip("dhlab.view.widget")
    try:
        widget = widget_module.ViewerWidget(slide, document)
    except widget_module.MissingDependencyError:
        pytest.skip("the viewer's bundle is not built")
    answers: list[dict] = []
    widget._answer = lambda head, buffers: answers.append(head)
    assert widget._scene["layers"][1]["document"]["can"] == ["learn"]
    document.add(strokes)
    for action in ("start", "leap"):
        widget._reply(widget._learned, {"type": "learn", "view": "v", "id": 7, "layer": 1, "action": action})
    assert answers[-2]["learning"]["state"] == "training"
    assert "no action 'leap'" in answers[-1]["error"]
    widget.close()
