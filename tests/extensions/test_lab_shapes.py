"""Annotations beside a slide come as the same packed numbers that the kernel would send."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

pytest.importorskip("jupyter_server", reason="needs JupyterLab (the extra 'lab')")

import dhlab as dh
from dhlab.view.shapes import ShapeSource


@pytest.fixture(scope="module")
def annotations(server) -> dh.Annotations:
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 20_000, (3000, 2))
    boxes = [*shapely.box(*corners.T, *(corners + rng.uniform(2, 90, (3000, 2))).T), shapely.Point(5, 7)]
    made = dh.Annotations.from_geometries(boxes, [f"class {i % 3}" for i in range(3001)])
    made.to_geojson(server.folder / "zones.geojson")
    return dh.Annotations.from_geojson(server.folder / "zones.geojson")


def test_catalogue_and_outlines_are_those_of_python(person, annotations) -> None:
    opened = person.open_scan("zones.geojson")
    layer = opened["layer"]
    assert (layer["kind"], layer["count"], layer["base"]) == ("shapes", 3001, False)
    assert [one["name"] for one in layer["classes"]] == list(annotations.class_names)
    source = ShapeSource(annotations)
    address = f"dhlab/shapes/{opened['token']}"
    whole = person.get(address)
    assert whole.content == source.catalogue()
    assert "private" in whole.headers["Cache-Control"]
    assert person.get(address, params={"cells": "2,0"}).content == source.outlines([2, 0])


def test_what_is_not_there_is_told(server, person, annotations, phantom) -> None:
    opened = person.open_scan("zones.geojson")
    for cells, status in (("99", 404), ("-1", 404), ("a", 400), ("", 400), ("1,,2", 400)):
        answer = person.get(f"dhlab/shapes/{opened['token']}", params={"cells": cells})
        assert (cells, answer.status_code) == (cells, status)
        assert answer.json()["message"]
    assert person.tile(opened, 0, 0, 0).status_code == 404
    scan = person.open_scan(phantom)
    assert person.get(f"dhlab/shapes/{scan['token']}").status_code == 404
    (server.folder / "broken.geojson").write_text('{"type": "FeatureCollection", "features": [{"type": 3')
    refused = person.post("dhlab/scans", json={"path": "broken.geojson"})
    assert refused.status_code == 415
    assert len(refused.json()["message"]) > 30
