"""Who listens to a training: a bar, a picture in the notebook, TensorBoard."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from dhlab.datasets import Dataset
from dhlab.errors import BadValueError
from dhlab.models import create_model
from dhlab.training import Event, fit
from dhlab.training.events import JobReport, NotebookPlot, draw_curve


def some_data(seed: int = 0) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    groups = [f"{seed}-{i}" for i in range(12)]
    return Dataset.from_arrays(images, np.arange(12) % 2, classes=("a", "b"), task="classification", groups=groups)


def some_model():
    return create_model("cnn", ("a", "b"), tile=16, spacing=1.0, width=4, depth=2)


def test_events_tell_the_whole_story():
    heard: list[Event] = []
    fit(some_model(), some_data(), some_data(1), epochs=2, batch_size=4, progress=False, on_event=heard.append)
    assert [e.kind for e in heard] == ["step"] * 3 + ["epoch"] + ["step"] * 3 + ["epoch", "end"]
    assert [e.step for e in heard if e.kind == "step"] == [1, 2, 3, 4, 5, 6]
    done = [e.done for e in heard]
    assert done == sorted(done)
    assert done[-1] == 1
    assert len(heard[-1].curve) == 2
    assert heard[3].curve[0]["balanced accuracy"] == heard[-1].curve[0]["balanced accuracy"]


def test_end_is_told_after_an_error_too():
    heard: list[Event] = []

    def listen(event):
        heard.append(event)
        if event.kind == "step":
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(some_model(), some_data(), epochs=2, batch_size=4, progress=False, on_event=listen)
    assert [e.kind for e in heard] == ["step", "end"]


def test_terminal_bar(capsys):
    fit(some_model(), some_data(), some_data(1), epochs=2, batch_size=4)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "balanced accuracy" in shown
    assert "epoch 0" not in shown
    assert "epoch 2" in shown


def test_notebook_plot_shows_bar_numbers_and_curve():
    """The picture is drawn in IPython's own display machinery."""
    pages = []

    class Handle:
        def update(self, page):
            pages.append(page.data)

    plot = NotebookPlot()
    plot.handle = Handle()
    events = []

    def tell(event):
        events.append(event)
        plot(event)

    fit(some_model(), some_data(), some_data(1), epochs=3, batch_size=4, progress=False, on_event=tell)
    assert len(pages) >= 4
    assert "samples/s" in pages[-1]
    assert "balanced accuracy" in pages[-1]
    assert "done" in pages[-1]
    assert "data:image/png;base64,iVBOR" in pages[-1]
    plot.seen = 1
    assert "0.250 samples/s" in plot._page(replace(events[-1], seconds=4.0), b"")


def test_a_job_is_told_the_pace_of_this_worker_alone(tmp_path, monkeypatch):
    """The first half was done by another, in 1000 s."""
    monkeypatch.setenv("DHLAB_JOB", str(tmp_path))
    monkeypatch.setattr("dhlab.progress.SECONDS_BETWEEN_REPORTS", 0.0)
    report = JobReport()
    told = []
    for number in range(3):
        done = 0.5 + 0.1 * number
        report(Event("step", 5, done, 1.0, 0.1, samples=8, step=100 + number, seconds=1000.0 + 4 * number))
        told.append(json.loads((tmp_path / "progress.json").read_text()))
    assert "rate" not in told[0]
    assert "seconds_left" not in told[0]
    assert [row["rate"] for row in told[1:]] == [2.0, 2.0]
    assert [row["seconds_left"] for row in told[1:]] == pytest.approx([16.0, 12.0])


def test_curve_before_the_first_epoch_and_without_validation():
    from PIL import Image

    for curve, steps in (((), ()), ((), [(1, 0.5), (2, 0.4)]), ([{"epoch": 1, "loss": 0.5}], [(1, 0.5)])):
        picture = Image.open(io.BytesIO(draw_curve(curve, "R²", steps=steps, wide=0.3)))
        assert picture.width >= 600


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(some_model(), some_data(), epochs=2, batch_size=4, progress=False, folder=tmp_path, tensorboard=True)
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert len(log.Scalars("step/loss")) == 6
    assert [entry.step for entry in log.Scalars("epoch/loss")] == [1, 2]
    with pytest.raises(BadValueError, match="folder"):
        fit(some_model(), some_data(), epochs=1, progress=False, tensorboard=True)
