"""Annotations beside a slide come as packed shapes, in the slide's own pixels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely

import dhlab as dh
from dhlab import env
from dhlab.view.shapes import ShapeSource


@pytest.fixture(scope="module")
def drawn(server) -> dh.Annotations:
    """Return annotations that lie in the server's folder as ``drawn.geojson``, plain and gzipped."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 1400, (3000, 2))
    boxes = [shapely.box(x, y, x + 9, y + 7) for x, y in corners]
    annotations = dh.Annotations.from_geometries(
        boxes, classes=["tumour", "stroma", "immune"] * 1000, scores=rng.random(3000)
    )
    for name in ("drawn.geojson", "drawn.geojson.gz"):
        annotations.to_geojson(server.folder / name)
    return dh.Annotations.from_geojson(server.folder / "drawn.geojson")


@pytest.mark.parametrize("name", ["drawn.geojson", "drawn.geojson.gz"])
def test_shapes_are_those_of_the_file(person, phantom, drawn, name) -> None:
    opened = person.open_scan(name)
    layer, source = opened["layer"], ShapeSource(drawn)
    assert (layer["kind"], layer["name"], layer["count"], layer["base"]) == ("shapes", name, 3000, False)
    assert [(c["name"], c["count"]) for c in layer["classes"]] == [(c, 1000) for c in ("tumour", "stroma", "immune")]
    address = f"dhlab/shapes/{opened['token']}"
    catalogue = person.get(address)
    assert catalogue.headers["Content-Type"] == "application/octet-stream"
    assert catalogue.content == source.catalogue()
    assert source.cell_count > 1
    for cells in ([0], list(range(source.cell_count))):
        got = person.get(address, params={"cells": ",".join(map(str, cells))})
        assert got.content == source.outlines(cells)
    assert person.get(address, params={"cells": "1,0,1,1,0"}).content == source.outlines([1, 0])
    etag = {"If-None-Match": catalogue.headers["ETag"]}
    assert person.get(address, headers=etag).status_code == 304
    assert person.get(address, params={"cells": "0"}, headers=etag).status_code == 200


def test_what_is_not_there_is_told(person, phantom, drawn) -> None:
    shapes, scan = person.open_scan("drawn.geojson"), person.open_scan(phantom)
    for cells, status in (
        ("99", 404),
        ("-1", 404),
        ("9" * 30, 404),
        ("", 400),
        ("a", 400),
        ("1,,2", 400),
        ("1;2", 400),
        ("1.5", 400),
    ):
        assert person.get(f"dhlab/shapes/{shapes['token']}", params={"cells": cells}).status_code == status, cells
    assert person.get(f"dhlab/shapes/{scan['token']}").status_code == 404
    assert person.tile(shapes, 0, 0, 0).status_code == 404
    assert person.get(f"dhlab/values/{shapes['token']}", params={"y": 0, "x": 0}).status_code == 404


def test_broken_geojson_is_told(server, person) -> None:
    for number, text in enumerate(
        (b"", b"{", b'{"type": "FeatureCollection", "features": [{"type": 3}]}', os.urandom(99))
    ):
        (server.folder / f"broken{number}.geojson").write_bytes(text)
        answer = person.post("dhlab/scans", json={"path": f"broken{number}.geojson"})
        assert answer.status_code == 415, text
        assert len(answer.json()["message"]) > 20


def test_shapes_follow_their_slide(server, person, phantom, drawn, tmp_path) -> None:
    stale = server.folder / "moved.svs"
    shutil.copyfile(phantom, stale)
    answer = person.post("dhlab/scans", json={"path": "drawn.geojson", "on": stale.name})
    assert answer.status_code == 200
    opened = answer.json()
    assert not opened["layer"]["base"]
    assert opened["token"] != person.open_scan("drawn.geojson")["token"]
    assert person.get(f"dhlab/shapes/{opened['token']}").content == ShapeSource(drawn).catalogue()
    for on, status in (("../x.svs", 403), ("/etc/passwd", 403), ("none.svs", 404), ("drawn.geojson", 415), (3, 400)):
        assert person.post("dhlab/scans", json={"path": "drawn.geojson", "on": on}).status_code == status, on
    stale.unlink()
    again = person.post("dhlab/scans", json={"path": "drawn.geojson", "on": stale.name})
    assert again.status_code == 404


def test_shapes_on_a_mirax_slide_count_from_where_qupath_does(server, person, drawn) -> None:
    folder = (env.data_folder() or Path("/none")) / "wsi-mirax-fluorescence"
    if not folder.exists():
        pytest.skip("needs the shared MIRAX slide")
    shutil.copytree(folder, server.folder / "mirax")
    name = "mirax/Mirax2-Fluorescence-2.mrxs"
    scan = dh.open(server.folder / name)
    y, x = scan.meta["bounds"][:2]
    assert min(y, x) > 0
    opened = person.post("dhlab/scans", json={"path": "drawn.geojson", "on": name}).json()
    moved = dh.Annotations.from_geojson(server.folder / "drawn.geojson", offset=(y, x))
    assert person.get(f"dhlab/shapes/{opened['token']}").content == ShapeSource(moved).catalogue()
