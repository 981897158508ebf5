"""A heat map is shown while a real `predict` writes it: band by band, then as the finished file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dhlab as dh
from dhlab.errors import BadFileError, ConflictError, DHLabWarning
from dhlab.io.bands import BandWriter
from dhlab.io.growing import GrowingImage
from dhlab.io.opened import file_of
from dhlab.view.viewer import Viewer
from dhlab.view.watching import PAUSE_S


def until(condition: Callable[[], Any], timeout: float = 30) -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come")


def slide() -> dh.Scan:
    return dh.Scan.from_array(
        np.full((600, 300, 3), 128, np.uint8), "yxc", spacing=1.0, unit="µm", name="slide", fill=255
    )


def writer(path: Path, base: dh.Scan, **changes: Any) -> BandWriter:
    fields: dict[str, Any] = {
        "shape": (2, 600, 300), "axes": "cyx", "dtype": np.uint8, "spacing": (1.0, 1.0), "unit": "µm", "tile": 64,
        "channels": ("a", "b"), "name": "heat", "parent": base.as_parent(), "fingerprint": {"model": 1},
    }  # fmt: skip
    return BandWriter.create(path, **fields | changes)


def band(out: BandWriter, index: int, value: int) -> None:
    out.write_band(index, np.full(out.band_shape(index), value, np.uint8))


def row(viewer: Viewer, y: int) -> int:
    """Return the value shown at a row of the heat map."""
    scan = viewer.layers[1].thing
    assert isinstance(scan, dh.Scan)
    return int(scan.read((y, 0), (1, 1))[0, 0, 0])


def test_bands_are_read_when_they_are_whole_and_tiles_made_anew_where_they_lie(tmp_path: Path) -> None:
    out = writer(tmp_path / "heat.ome.zarr", slide())
    image = GrowingImage(tmp_path / "heat.ome.zarr")
    height = out.band_height
    assert image.scan.shape == (600, 300)
    assert (image.scan.channels, image.scan.kind, image.scan.parent) == (("a", "b"), "heatmap", slide().as_parent())
    assert not image.scan.read((0, 0), (600, 300)).any()
    assert not image.look()
    band(out, 1, 200)
    assert image.look()
    found = image.scan.read((-5, -5), (700, 400))
    assert (found[:, 5 + height : 5 + 2 * height, 5:305] == 200).all()
    assert (found == 200).sum() == 2 * height * 300
    # Half a band, not yet durable, is not read.
    (out._journal / "1.json").rename(tmp_path / "aside.json")
    assert not GrowingImage(tmp_path / "heat.ome.zarr").scan.read((0, 0), (600, 300)).any()
    (tmp_path / "aside.json").rename(out._journal / "1.json")

    viewer = Viewer(slide(), image.scan)
    tiles = viewer.layers[1].tiles
    assert tiles is not None
    before = {place: tiles.encode(*place)[0] for place in ((0, 0, 0), (0, 1, 0))}
    made = len(tiles._tiles)
    tiles.encode(0, 0, 0)
    assert len(tiles._tiles) == made
    band(out, out.bands - 1, 255)
    image.look()
    assert tiles.encode(0, 0, 0)[0] == before[0, 0, 0]
    assert len(tiles._tiles) == made, "what lies elsewhere is not made anew"
    assert tiles.encode(0, 1, 0)[0] != before[0, 1, 0]
    out.close()


def test_a_viewer_waits_for_a_run_follows_it_and_ends_with_the_file(tmp_path: Path) -> None:
    base, path = slide(), tmp_path / "heat.ome.zarr"
    viewer = Viewer(base)
    watch = viewer.watch(path)
    time.sleep(2.2 * PAUSE_S)
    assert len(viewer.layers) == 1
    out = writer(path, base)
    until(lambda: len(viewer.layers) == 2)
    viewer.set_layer("heat", opacity=0.75)
    band(out, 0, 100)
    until(lambda: viewer.layers[1].revision == 1)
    assert (row(viewer, 0), row(viewer, out.band_height)) == (100, 0)
    for index in range(1, out.bands):
        band(out, index, 100)
    out.finish()
    assert watch.wait(30)
    assert viewer.settings["1"]["opacity"] == 0.75
    assert file_of(viewer.layers[1].thing) is not None  # type: ignore[arg-type] # it is a scan
    assert row(viewer, 599) == 100


def test_a_run_that_is_discarded_may_begin_anew(tmp_path: Path) -> None:
    base, path = slide(), tmp_path / "heat.ome.zarr"
    viewer = Viewer(base)
    watch = viewer.watch(path, name="growing")
    out = writer(path, base)
    band(out, 0, 50)
    until(lambda: len(viewer.layers) == 2 and row(viewer, 0) == 50)
    out.discard()
    out = writer(path, base, fingerprint={"model": 2})
    band(out, 0, 60)
    until(lambda: row(viewer, 0) == 60)
    assert viewer.layers[1].name == "growing"
    viewer.remove("growing")
    assert watch.wait(30)
    out.close()


def test_an_image_that_is_there_is_shown_and_one_that_cannot_lie_on_the_base_is_told(tmp_path: Path) -> None:
    base = slide()
    path = dh.save(slide().replace(name="twin"), tmp_path / "twin.ome.zarr")
    viewer = Viewer(base)
    assert viewer.watch(path).wait(30)
    assert [layer.name for layer in viewer.layers] == ["slide", "twin"]
    out = writer(tmp_path / "time.ome.zarr", base, unit="s", parent=None)
    with pytest.warns(DHLabWarning, match="cannot lay a thing in s"):
        assert viewer.watch(tmp_path / "time.ome.zarr").wait(30)
    out.close()
    with pytest.raises(BadFileError, match="Begin the run"):
        GrowingImage(tmp_path / "never.ome.zarr")
    (tmp_path / ".torn.ome.zarr.partial").mkdir()
    (tmp_path / ".torn.ome.zarr.partial" / "plan.json").write_text('{"axes": "cy')
    with pytest.raises(BadFileError, match="torn"):
        GrowingImage(tmp_path / "torn.ome.zarr")


def test_closing_the_viewer_ends_the_watch(tmp_path: Path) -> None:
    viewer = Viewer(slide())
    watch = viewer.watch(tmp_path / "never.ome.zarr")
    viewer.close()
    assert watch.wait(30)


def test_a_real_prediction_is_seen_while_it_is_made(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = dh.Scan.from_array(
        rng.integers(0, 255, (2048, 512, 3), np.uint8), "yxc", spacing=0.5, unit="µm", name="slide"
    )
    steps = threading.Semaphore(0)

    class Stepped(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            steps.acquire(timeout=60)
            return torch.stack([batch[:, 0] * 0 - 5, batch[:, 0] * 0 + 5], 1)

    card = dh.ModelCard(
        "stepped", "none", "segmentation", ("background", "tumour"), (64, 64), (0.5, 0.5),
    )  # fmt: skip
    model = dh.Model(Stepped(), card)
    viewer = Viewer(base)
    path = tmp_path / "heat.ome.zarr"
    watch = viewer.watch(path)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            dh.predict(model, base, out=path, overlap=0, batch_size=8, progress=False)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: len(viewer.layers) == 2 or failed)
    assert not failed
    # A batch is a row of windows, 64 px high; the file has four bands of 512 px.
    for share in (0.25, 0.5):
        steps.release(8)
        until(lambda share=share: _share(viewer) == share)
    assert not path.exists()
    steps.release(1000)
    thread.join(60)
    assert watch.wait(30)
    assert not failed
    assert _share(viewer) == 1
    assert file_of(viewer.layers[1].thing) is not None  # type: ignore[arg-type] # it is a scan


def _share(viewer: Viewer) -> float:
    """Return how much of the heat map is there."""
    scan = viewer.layers[1].thing
    assert isinstance(scan, dh.Scan)
    return float((scan.read((0, 0), scan.shape)[1] > 200).mean())


def test_another_process_still_cannot_write_what_is_watched(tmp_path: Path) -> None:
    base = slide()
    out = writer(tmp_path / "heat.ome.zarr", base)
    viewer = Viewer(base)
    viewer.watch(tmp_path / "heat.ome.zarr")
    until(lambda: len(viewer.layers) == 2)
    with pytest.raises(ConflictError):
        writer(tmp_path / "heat.ome.zarr", base)
    viewer.close()
    out.discard()
