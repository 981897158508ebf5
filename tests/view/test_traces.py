"""Signals as pages of traces: every sample is drawn where its time and channel say, whatever the recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhlab as dh
from dhlab.display import class_color
from dhlab.errors import BadShapeError
from dhlab.view.traces import NAMES, as_pages
from dhlab.view.viewer import Viewer

BLUE = class_color(4)


def signal(data: Any, rate: float = 100.0, **changes: Any) -> dh.Scan:
    fields = {"spacing": 1 / rate, "unit": "s", "name": "eeg"} | changes
    return dh.Scan.from_array(np.asarray(data, np.float32), "ct" if np.ndim(data) == 2 else "t", **fields)


def is_blue(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture.astype(int) - BLUE).max(-1) < 60


def test_a_peak_lies_at_its_time_on_its_page_and_in_its_row() -> None:
    data = np.zeros((4, 3500), np.float32)
    data[2, 2250] = 50  # at 22.5 s: a quarter into the third page of ten seconds
    pages = as_pages(signal(data))
    assert (pages.axes, pages.shape[0], pages.spacing[0], pages.unit) == ("tyxc", 4, 10.0, "s")
    for level in pages.levels:
        plot = np.asarray(level[2])[:, round(level.shape[2] * NAMES) :]
        row = plot.shape[0] * 0.95 / 4
        # The third channel's line lies in the middle of its row; only its peak reaches higher.
        columns = np.flatnonzero(is_blue(plot[round(2.05 * row) : round(2.4 * row)]).any(0))
        assert columns.mean() / plot.shape[1] == pytest.approx(0.25, abs=0.005)


def test_the_last_page_ends_with_the_recording_and_a_gap_stays_empty() -> None:
    data = np.random.default_rng(0).normal(size=(2, 1500)).astype(np.float32)
    data[0, 300:500] = np.nan
    pages = as_pages(signal(data))
    first, last = (np.asarray(pages.levels[1][page]) for page in (0, 1))
    left = round(first.shape[1] * NAMES)
    plot = first.shape[1] - left
    blue = is_blue(last[:, left:]).any(0)
    assert blue[: plot // 2 - 4].mean() > 0.9
    assert not blue[plot // 2 + 4 :].any()
    upper = is_blue(first[: round(first.shape[0] * 0.3), left:]).any(0)
    assert not upper[round(plot * 0.305) : round(plot * 0.495)].any()
    assert upper[: round(plot * 0.29)].mean() > 0.8


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((3, 50)), np.full((2, 5000), np.nan), np.array([[1.0]]), np.full((1, 4000), 1e30),
        np.array([[np.inf, -np.inf, 0.0, 1.0]]), np.ones(30), np.zeros((300, 64)),
    ],
    ids=["flat", "unknown", "one sample", "huge", "infinite", "no channels", "many channels"],
)  # fmt: skip
def test_hostile_recordings_are_drawn(data: Any) -> None:
    pages = as_pages(signal(data))
    picture = np.asarray(pages.levels[-1][0])
    assert picture.shape[2] == 3
    assert picture.min() < 200, "at least names and times are there"
    viewer = Viewer(signal(data))
    assert viewer.snapshot(300).shape[1] == 300


def test_channels_share_one_scale_and_a_loud_one_is_made_to_fit() -> None:
    time = np.arange(1000) / 100
    wave = np.sin(2 * np.pi * time)
    picture = np.asarray(as_pages(signal(np.stack([wave, wave, wave / 4, 100 * wave]))).levels[1][0])
    left, bottom = round(picture.shape[1] * NAMES), picture.shape[0] * 0.95
    rows = [is_blue(picture[round(bottom * i / 4) : round(bottom * (i + 1) / 4), left:]).any(1).sum() for i in range(4)]
    assert rows[0] == pytest.approx(bottom / 4 * 0.9, rel=0.1)
    assert rows[1] == pytest.approx(rows[0], rel=0.05)
    assert rows[2] == pytest.approx(rows[0] / 4, rel=0.15)
    assert rows[3] == pytest.approx(rows[0], rel=0.1)


def test_a_viewer_begins_with_the_first_page_and_reads_no_more_than_it_shows() -> None:
    class Long:
        shape, dtype, read = (2, 10_000_000), np.dtype("f4"), 0

        def __getitem__(self, key: Any) -> np.ndarray:
            size = [k.stop - k.start for k in key]
            Long.read += size[1]
            return np.ones(size, np.float32)

    viewer = Viewer(dh.Scan((Long(),), "ct", (0.002,), "s", channels=("a", "b"), name="night"))
    assert viewer.index == {"t": 0}
    assert viewer.base.shape[0] == 2000
    viewer.index = {"t": 1999}
    tiles = viewer.layers[0].tiles
    assert tiles is not None
    tiles.encode(tiles.level_count - 1, 0, 0, index=viewer.index)
    assert Long.read < 100_000
    assert viewer.layers[0].name == "night"


def test_without_a_known_rate_pages_are_counted_in_samples_and_planes_are_refused() -> None:
    pages = as_pages(signal(np.zeros((1, 4500)), rate=1.0, unit="px"))
    assert pages.shape[0] == 3
    assert as_pages(signal(np.zeros((1, 4500))), seconds=30).shape[0] == 2
    with pytest.raises(BadShapeError, match="expected a signal"):
        as_pages(dh.Scan.from_array(np.zeros((4, 4)), "yx"))
