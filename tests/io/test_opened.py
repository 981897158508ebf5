"""Only a scan that is exactly what its file holds is known by that file."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import dhlab as dh
from dhlab.io.opened import file_of


@pytest.fixture(params=["a.png", "b.ome.tif", "c.ome.zarr"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (120, 90, 3), np.uint8)
    scan = dh.Scan.from_array(pixels, "yxc", spacing=0.5, unit="µm", name="a")
    return dh.save(scan, tmp_path / request.param)


def test_a_plainly_opened_scan_is_known_by_its_file_whatever_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    for scan in (dh.open(path.name), dh.open(path, name="case 7"), dh.open(path).replace(name="case 8")):
        file = file_of(scan)
        assert file is not None
        assert file.path == path
        found = path.stat()
        assert file.stamp == (found.st_size, found.st_mtime_ns)


def test_what_is_opened_or_made_otherwise_is_not(path: Path) -> None:
    scan = dh.open(path)
    others = [
        dh.open(path, spacing=2.0),
        dh.open(path, icc=True),
        scan.replace(spacing=(9.0, 9.0)),
        scan.replace(levels=(np.zeros(scan.levels[0].shape, np.uint8), *scan.levels[1:])),
        scan.replace(levels=(dh.open(path).levels[0], *scan.levels)[: len(scan.levels)], kind="heatmap"),
        pickle.loads(pickle.dumps(scan)),
        dh.Scan.from_array(np.zeros((3, 4)), "yx"),
    ]
    assert [file_of(other) for other in others] == [None] * len(others)


def test_a_scan_whose_levels_come_from_two_files_is_none_of_them(tmp_path: Path) -> None:
    pixels = np.zeros((2500, 2000), np.uint8)
    one, two = (dh.open(dh.save(dh.Scan.from_array(pixels, "yx"), tmp_path / f"{n}.ome.zarr")) for n in "ab")
    assert len(one.levels) > 1
    assert file_of(one.replace(levels=(one.levels[0], *two.levels[1:]))) is None
