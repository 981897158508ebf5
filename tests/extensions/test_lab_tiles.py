"""The Jupyter server sends what the scan holds, byte for byte where the file stores it so, and says what is wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

import dhlab as dh
from dhlab.view.tiles import TileSource


@pytest.fixture
def copy(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a slide of the server's that a test may spoil."""
    path = phantom.parent / f"{tmp_path_factory.mktemp('copy').name}.svs"
    shutil.copyfile(phantom, path)
    return path


def test_stored_tiles_arrive_as_the_file_holds_them(person, skin) -> None:
    opened = person.open_scan("cases/skin.svs")
    scan, data = dh.open(skin), skin.read_bytes()
    assert opened["layer"]["info"]["shape"] == [2967, 2220]
    assert opened["layer"]["info"]["tiles"] == [[240, 240], [512, 512], [512, 512], [512, 512]]
    for row, column in ((0, 0), (5, 4), (12, 9)):
        answer = person.tile(opened, 0, row, column)
        assert answer.headers["Content-Type"] == "image/jpeg"
        expected = scan.levels[0][row * 240 : (row + 1) * 240, column * 240 : (column + 1) * 240]
        pixels = simplejpeg.decode_jpeg(answer.content, "RGB")
        assert np.array_equal(pixels[: expected.shape[0], : expected.shape[1]], expected)
        assert answer.content[-1000:] in data


def test_every_tile_is_that_of_the_same_scan_in_python(person, phantom) -> None:
    opened = person.open_scan(phantom)
    source = TileSource(dh.open(phantom))
    assert opened["layer"]["info"] == source.info()
    for level in range(source.level_count):
        rows, columns = source.grid_shape(level)
        for row in range(rows):
            for column in range(0, columns, 3):
                assert person.tile(opened, level, row, column).content == source.encode(level, row, column)[0]
    styled = person.tile(opened, 1, 2, 2, channel=1, low=20, high="180.5", colors="viridis", threshold="0.1")
    assert styled.content == source.encode(1, 2, 2, channel=1, low=20, high=180.5)[0]


def frames(answer: Any) -> dict[int, tuple[int, str, bytes]]:
    """Return status, kind and bytes of each tile of an answer that holds several, by its number in the request."""
    found, data = {}, answer.content
    while data:
        number, status, kind, size = struct.unpack_from("<4I", data)
        assert number not in found
        found[number] = status, ("application/json", "image/jpeg", "image/png")[kind], data[16 : 16 + size]
        data = data[16 + size :]
    return found


def test_tiles_asked_for_together_are_those_asked_for_alone(person, phantom) -> None:
    opened = person.open_scan(phantom)
    address = f"dhlab/tiles/{opened['token']}"
    places = [(level, row, column) for level in (0, 1, 2) for row in range(3) for column in range(5)]
    text = ",".join(f"{level}.{row}.{column}" for level, row, column in places)
    answer = person.get(address, params={"at": text, "channel": 2, "low": 9})
    assert answer.headers["Cache-Control"] == "no-store"
    found = frames(answer)
    assert len(found) == len(places)
    for number, place in enumerate(places):
        alone = person.tile(opened, *place, channel=2, low=9)
        assert alone.status_code == found[number][0]
        if alone.status_code == 200:
            assert (alone.headers["Content-Type"], alone.content) == found[number][1:]
        else:
            assert json.loads(found[number][2])["message"] == alone.json()["message"]
    assert {status for status, *_ in found.values()} == {200, 404}

    for nonsense in ("", "1.2", "0.0.0,", "0.0.x", "-1.0.0", ",".join(["0.0.0"] * 65)):
        refused = person.get(address, params={"at": nonsense})
        assert refused.status_code == 400
        assert "level.row.column" in refused.json()["message"]
    assert person.get(address).status_code == 400
    assert person.get(f"{address}x", params={"at": "0.0.0"}).status_code == 403


def test_heat_maps_volumes_and_pictures_come_too(server, person) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 255, (2, 90, 70)).astype(np.uint8)
    heat = dh.Scan.from_array(scores, "cyx", kind="heatmap", channels=["tumour", "stroma"], spacing=8.0, unit="µm")
    volume = dh.Scan.from_array(rng.integers(0, 900, (5, 40, 30)).astype(np.int16), "zyx", spacing=1.0, unit="mm")
    dh.save(heat, server.folder / "heat.ome.zarr")
    dh.save(volume, server.folder / "volume.ome.zarr")
    Image.fromarray(rng.integers(0, 255, (33, 44, 3), dtype=np.uint8)).save(server.folder / "picture.png")
    for name, index, style in (
        ("heat.ome.zarr", {}, {"channel": 1, "threshold": 0.5}),
        ("volume.ome.zarr", {"z": 3}, {"low": 100.0, "high": 500.0}),
        ("picture.png", {}, {}),
    ):
        opened = person.open_scan(name)
        source = TileSource(dh.open(server.folder / name))
        answer = person.tile(opened, 0, 0, 0, **index, **style)
        assert answer.content == source.encode(0, 0, 0, index=index, **style)[0]
        assert Image.open(io.BytesIO(answer.content)).get_format_mimetype() == answer.headers["Content-Type"]
        values = person.get(f"dhlab/values/{opened['token']}", params={"y": 7, "x": 9} | index).json()["values"]
        own = dh.open(server.folder / name).read((*index.values(), 7, 9), (*(1 for _ in index), 1, 1))
        assert values == own.ravel().tolist()


def test_what_cannot_be_shown_is_told(server, person, phantom) -> None:
    (server.folder / "notes.txt").write_text("no image")
    (server.folder / "empty.svs").touch()
    (server.folder / "noise.svs").write_bytes(os.urandom(4000))
    dh.save(dh.Scan.from_array(np.zeros((2, 300), np.float32), "ct"), server.folder / "signal.ome.zarr")
    os.mkfifo(server.folder / "pipe.svs")
    for path in ("notes.txt", "empty.svs", "noise.svs", "cases", ".", "pipe.svs", "signal.ome.zarr"):
        answer = person.post("dhlab/scans", json={"path": path})
        assert (path, answer.status_code) == (path, 415)
        assert len(answer.json()["message"]) > 30
    for path in ("none.svs", "x" * 5000, "cases/skin.svs/more", "a/b/c.svs"):
        assert person.post("dhlab/scans", json={"path": path}).status_code == 404
    stamp = phantom.stat()
    good = {"path": "phantom.svs", "stamp": [stamp.st_size, stamp.st_mtime_ns]}
    assert person.post("dhlab/scans", json=good).status_code == 200
    changed = person.post("dhlab/scans", json=good | {"stamp": [stamp.st_size, 5]})
    assert changed.status_code == 409
    assert "changed" in changed.json()["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"phantom.svs"', b'{"path": 3}', b'{"path": null}', b'{"path": "a", "stamp": 3}',
     b'{"path": "a", "stamp": [1]}', b'{"path": "a", "stamp": ["x", "y"]}', b"\xff\xfe"],
)  # fmt: skip
def test_bodies_that_make_no_sense(person, body) -> None:
    answer = person.post("dhlab/scans", content=body)
    assert answer.status_code == 400
    assert "expected" in answer.json()["message"]


def test_tiles_that_do_not_exist(person, phantom) -> None:
    opened = person.open_scan(phantom)
    for place in ((9, 0, 0), (0, 99, 0), (0, 0, 99), (0, 999_999_999, 999_999_999)):
        answer = person.tile(opened, *place)
        assert answer.status_code == 404
        assert answer.json()["message"].startswith("tile")
    assert person.tile(opened, 0, 0, 0, channel=7).status_code == 404
    assert person.tile(opened, 0, 0, 0, z=0).status_code == 200
    for query in ({"low": "nan"}, {"high": "inf"}, {"channel": "red"}, {"colors": "x"}, {"threshold": 2}, {"z": "a"}):
        assert person.tile(opened, 0, 0, 0, **query).status_code == 400, query
    for place in ("0/0", "0/0/-1", "0/0/1.5", "0/0/0/0", "../../api/contents"):
        assert person.get(f"dhlab/tiles/{opened['token']}/{place}").status_code == 404
    for query in ({}, {"y": 1}, {"y": "a", "x": 1}):
        assert person.get(f"dhlab/values/{opened['token']}", params=query).status_code == 400
    assert person.get(f"dhlab/values/{opened['token']}", params={"y": -1, "x": 0}).status_code == 404


def test_browsers_keep_tiles_to_themselves(person, phantom) -> None:
    opened = person.open_scan(phantom)
    assert "phantom" not in opened["token"]
    answer = person.tile(opened, 0, 1, 1)
    headers = answer.headers
    assert headers["Cache-Control"].startswith("private, max-age=")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "sandbox" in headers["Content-Security-Policy"]
    again = person.get(answer.request.url, headers={"If-None-Match": headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert person.tile(opened, 0, 1, 2).headers["ETag"] != headers["ETag"]
    assert person.tile(opened, 0, 1, 1, channel=0).headers["ETag"] != headers["ETag"]
    assert person.open_scan(phantom)["token"] == opened["token"]
    assert person.tile(opened, 0, 99, 1).headers["Cache-Control"] == "no-store"


def test_damage_in_the_middle_of_a_slide_is_told_and_stays_there(person, copy) -> None:
    tifffile = pytest.importorskip("tifffile")
    opened = person.open_scan(copy.name)
    before = copy.stat()
    with tifffile.TiffFile(copy) as file:
        offset, count = file.pages[0].dataoffsets[17], file.pages[0].databytecounts[17]
    whole = person.tile(opened, 0, 0, 0).content
    with copy.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    # A disk that fails does not change the time of the file.
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    columns = -(-1900 // 128)
    answer = person.tile(opened, 0, 17 // columns, 17 % columns)
    assert answer.status_code == 422
    assert "cannot decode level 0, tile (row 1, column 2)" in answer.json()["message"]
    assert person.tile(opened, 0, 0, 0).content == whole
    assert person.tile(opened, 0, 5, 5).status_code == 200


def test_a_slide_that_was_replaced_or_removed(person, copy, skin) -> None:
    opened = person.open_scan(copy.name)
    stamp = [copy.stat().st_size, copy.stat().st_mtime_ns]
    old = person.tile(opened, 0, 0, 0)
    assert old.status_code == 200
    shutil.copyfile(skin, copy.with_suffix(".new"))
    copy.with_suffix(".new").replace(copy)
    gone = _until(lambda: person.tile(opened, 0, 0, 0), 410)
    assert "changed" in gone.json()["message"]
    assert person.post("dhlab/scans", json={"path": copy.name, "stamp": stamp}).status_code == 409
    anew = person.open_scan(copy.name)
    assert anew["token"] != opened["token"]
    assert anew["layer"]["info"]["shape"] == [2967, 2220]
    assert person.tile(anew, 0, 0, 0).content != old.content
    assert person.tile(opened, 0, 0, 0).status_code == 410
    copy.unlink()
    assert _until(lambda: person.tile(anew, 0, 0, 0), 410).json()["message"]
    assert person.post("dhlab/scans", json={"path": copy.name}).status_code == 404


def test_only_so_many_scans_stay_open(server, person, phantom) -> None:
    psutil = pytest.importorskip("psutil")
    first = person.open_scan(phantom)
    folder = server.folder / "many"
    folder.mkdir()
    for number in range(24):
        shutil.copyfile(phantom, folder / f"{number}.svs")
        assert person.tile(person.open_scan(f"many/{number}.svs"), 1, 0, 0).status_code == 200
    held = [f.path for f in psutil.Process(server.process.pid).open_files() if f.path.endswith(".svs")]
    # What a broken connection held goes with the next garbage collection.
    assert 0 < len(held) <= 18
    assert str(folder / "0.svs") not in held
    assert person.tile(first, 0, 0, 0).status_code == 200


def _until(ask: Any, status: int) -> Any:
    """Ask again until the server has looked at the file once more."""
    end = time.monotonic() + 60
    while (answer := ask()).status_code != status and time.monotonic() < end:
        time.sleep(0.1)
    assert answer.status_code == status
    return answer
