"""GeoJSON as QuPath writes it, in every version and spelling, streamed, damaged and hostile."""

from __future__ import annotations

import gzip
import json
import math
import resource
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.annotations import Annotations, geojson_bytes, geojson_offset, read_geojson_chunks, write_geojson
from dhlab.annotations import scanner as scanning
from dhlab.errors import BadFileError, BadValueError, DHLabWarning, NotFoundError, StorageError
from dhlab.scan import Scan
from dhlab.timeline import Timeline

ROOT = Path(__file__).resolve().parents[2]

# As QuPath 0.5 exports it with pretty printing; written by hand after its PathObject and ROI type adapters.
QUPATH_5 = """{
  "type": "FeatureCollection",
  "features": [
    {
      "type": "Feature",
      "id": "3b6f0c58-8f0a-4f0e-9f3e-1d8a2c9b7e51",
      "geometry": {
        "type": "Polygon",
        "coordinates": [
          [
            [1024, 2048.5],
            [1124, 2048.5],
            [1124, 2148.5],
            [1024, 2148.5],
            [1024, 2048.5]
          ],
          [
            [1050, 2070],
            [1060, 2070],
            [1060, 2080],
            [1050, 2070]
          ]
        ]
      },
      "properties": {
        "objectType": "annotation",
        "name": "Region 1.0, left",
        "color": [255, 0, 255],
        "classification": {
          "name": "Tumor",
          "color": [200, 0, 0]
        },
        "isLocked": true,
        "measurements": {
          "Area µm^2": 612.5,
          "Perimeter µm": 100,
          "Solidity": NaN
        },
        "metadata": {
          "ANNOTATION_DESCRIPTION": "checked twice",
          "author": "Ann"
        }
      }
    },
    {
      "type": "Feature",
      "id": "0d1f41d2-6a5b-4a43-9d0b-7b8e3f0c1a22",
      "geometry": {
        "type": "Polygon",
        "coordinates": [[[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]],
        "plane": {"c": -1, "z": 2, "t": 0},
        "isEllipse": true
      },
      "nucleusGeometry": {
        "type": "Polygon",
        "coordinates": [[[13, 13], [17, 13], [17, 17], [13, 17], [13, 13]]]
      },
      "properties": {
        "objectType": "cell",
        "classification": {
          "names": ["Tumor", "Positive"],
          "color": [250, 62, 62]
        },
        "measurements": {"Nucleus: Area": 16}
      }
    }
  ]
}
"""

# QuPath 0.2: a bare list, the kind in the id, packed colours, measurements as a list.
QUPATH_2 = """[{"type": "Feature", "id": "PathDetectionObject",
 "geometry": {"type": "MultiPolygon", "coordinates": [[[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]],
   [[[10, 10], [12, 10], [12, 12], [10, 12], [10, 10]]]]},
 "properties": {"classification": {"name": "Stroma", "colorRGB": -6895466}, "isLocked": false,
   "measurements": [{"name": "score", "value": 0.75}, {"name": "Area", "value": 20.0}]}},
 {"type": "Feature", "id": "PathAnnotationObject", "geometry": {"type": "Point", "coordinates": [5, 6]},
 "properties": {"classification": {"name": "Stroma", "colorRGB": -6895466}}}]"""


def feature(geometry: object, **properties: object) -> dict:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: object, **more: object) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": list(features), **more}).encode()


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}


def same(one: Annotations, other: Annotations, tolerance: float = 0.0) -> None:
    assert shapely.equals_exact(one.geometries, other.geometries, tolerance).all()
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.class_name, a.color, a.score, a.name, a.id, a.kind, a.measurements, a.author, a.time, a.extras) == (
            b.class_name, b.color, b.score, b.name, b.id, b.kind, b.measurements, b.author, b.time, b.extras,
        )  # fmt: skip


def test_qupath_0_5_is_read_whole() -> None:
    zones = Annotations.from_geojson(QUPATH_5)
    region, cell = zones
    assert region.geometry.area == 10_000 - 50
    assert region.name == "Region 1.0, left"
    assert (region.class_name, region.color) == ("Tumor", (200, 0, 0))
    assert region.id == "3b6f0c58-8f0a-4f0e-9f3e-1d8a2c9b7e51"
    assert region.measurements == {"Area µm^2": 612.5, "Perimeter µm": 100}
    assert region.author == "Ann"
    assert region.extras["properties"]["isLocked"] is True
    assert cell.kind == "cell"
    assert cell.class_name == "Tumor: Positive"
    assert cell.extras["geometry"] == {"plane": {"c": -1, "z": 2, "t": 0}, "isEllipse": True}


def test_qupath_0_5_is_written_as_it_was() -> None:
    written = json.loads(geojson_bytes(Annotations.from_geojson(QUPATH_5)))
    given = json.loads(QUPATH_5)
    del given["features"][0]["properties"]["measurements"]["Solidity"]  # JSON knows no NaN, QuPath takes none for it
    assert written == given
    text = geojson_bytes(Annotations.from_geojson(QUPATH_5)).decode()
    assert "[1024,2048.5]" in text
    assert "Region 1.0, left" in text, "only numbers are shortened"


def test_qupath_0_2_is_read() -> None:
    tissue, point = Annotations.from_geojson(QUPATH_2)
    assert (tissue.kind, point.kind) == ("detection", "annotation")
    assert tissue.color == (150, 200, 150)  # -6895466 is 0xFF96C896
    assert tissue.score == 0.75
    assert tissue.measurements == {"Area": 20}
    assert tissue.geometry.geom_type == "MultiPolygon"
    assert tissue.geometry.area == 20
    assert tissue.extras == {"properties": {"isLocked": False}}
    uuid.UUID(tissue.id)


def test_children_are_listed_after_their_parents() -> None:
    inner = feature({"type": "Point", "coordinates": [1, 1]}, objectType="detection")
    outer = feature(SQUARE, objectType="annotation", childObjects=[inner, feature(SQUARE, childObjects=[inner])])
    zones = Annotations.from_geojson(collection(outer, inner))
    assert [v.geometry.geom_type for v in zones] == ["Polygon", "Point", "Polygon", "Point", "Point"]
    assert [v.kind for v in zones] == ["annotation", "detection", "annotation", "detection", "detection"]
    assert all(not v.extras for v in zones)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(feature(SQUARE)),
        json.dumps(SQUARE),
        json.dumps([feature(SQUARE)]),
        collection(feature(SQUARE)).decode(),
        collection(feature(SQUARE), name="x", crs={"a": [1, {"features": []}]}).decode(),
        json.dumps({"bbox": [0, 0, 9, 9], "name": "\\\"]}", "features": [feature(SQUARE)], "type": "x"}),
        json.dumps([feature(SQUARE)], indent=4),
        "\ufeff  " + json.dumps([feature(SQUARE)]) + "\n\n",
        json.dumps([{"properties": {"a": {"b": 1}}, "geometry": SQUARE, "id": 7, "type": "Feature"}]),
        json.dumps([feature({**SQUARE, "coordinates": [SQUARE["coordinates"][0][:-1]]})]),  # not closed
        json.dumps([feature({**SQUARE, "coordinates": [[[x, y, 3] for x, y in SQUARE["coordinates"][0]]]})]),  # with z
        json.dumps([feature({**SQUARE, "coordinates": [[[0, 0], [9.0, 0], [0.9e1, 9], [0, 90e-1]]]})]),
        json.dumps([feature({"coordinates": SQUARE["coordinates"], "type": "Polygon"})]).replace('":', '" :\t'),
    ],
)  # fmt: skip
def test_every_form_of_geojson(text: str, tmp_path: Path) -> None:
    path = tmp_path / "zones with spaces 🧪.geojson"
    path.write_text(text, "utf-8")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(text.encode()))
    for source in (path, str(path), text, text.encode(), tmp_path / "packed.gz"):
        (zone,) = Annotations.from_geojson(source)
        assert zone.geometry.equals(shapely.box(0, 0, 9, 9))


def test_every_type_of_geometry_round_trips() -> None:
    shapes = [
        shapely.Point(1.25, -2),
        shapely.MultiPoint([(0, 0), (1.5, 1)]),
        shapely.LineString([(0, 0), (1, 1), (5, 0.01)]),
        shapely.MultiLineString([[(0, 0), (1, 1)], [(2, 2), (3, 3), (4, 5)]]),
        shapely.box(0, 0, 9, 9).difference(shapely.union_all([shapely.box(1, 1, 2, 2), shapely.box(4, 4, 5, 6)])),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 5, 9, 9).difference(shapely.box(6, 6, 7, 7))]),
        shapely.GeometryCollection([shapely.Point(0, 0), shapely.box(1, 1, 2, 2)]),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1)]),
    ]
    zones = Annotations.from_geometries(shapes * 3, "a")
    again = Annotations.from_geojson(geojson_bytes(zones))
    same(zones, again)
    assert geojson_bytes(again) == geojson_bytes(zones)
    ring = Annotations.from_geometries(shapely.LinearRing([(0, 0), (1, 1), (2, 0)]))
    assert Annotations.from_geojson(geojson_bytes(ring))[0].geometry.geom_type == "LineString"
    high = Annotations.from_geometries(shapely.Point(1, 2, 3))
    assert not shapely.has_z(Annotations.from_geojson(geojson_bytes(high)).geometries).any()


TEXTS = st.text(max_size=12) | st.sampled_from(
    ['"coordinates":[[[1,2]]]', "},{", '\\"', "1.0,2.0]", "]]]", "a: b", "🧪"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6).map(lambda v: round(v, 2))


@st.composite
def annotations(draw: st.DrawFn) -> Annotations:
    count = draw(st.integers(0, 6))
    corners = [draw(st.tuples(NUMBERS, NUMBERS, st.integers(1, 50), st.integers(1, 50))) for _ in range(count)]
    kind = st.sampled_from(["box", "hole", "multi", "point"])

    def shape(x: float, y: float, w: int, h: int, form: str):
        if form == "point":
            return shapely.Point(x, y)
        body = shapely.box(x, y, x + 4 * w, y + 4 * h)
        if form == "hole":
            body = body.difference(shapely.box(x + w, y + h, x + 2 * w, y + 2 * h))
        if form == "multi":
            body = shapely.MultiPolygon([body, shapely.box(x + 5 * w, y, x + 6 * w, y + h)])
        return shapely.transform(body, lambda xy: np.round(xy, 2))

    zones = Annotations.from_geometries(
        [shape(*corner, draw(kind)) for corner in corners],
        [draw(st.none() | TEXTS.filter(bool)) for _ in range(count)],
        scores=[draw(st.floats(0, 1) | st.just(np.nan)) for _ in range(count)],
        names=[draw(st.none() | TEXTS) for _ in range(count)],
        author=draw(st.none() | TEXTS),
        time=draw(st.none() | TEXTS),
        kind=draw(st.sampled_from(["annotation", "detection", "cell", "tile"])),
    )
    extras = np.empty(count, object)
    for row in range(count):
        properties = draw(st.dictionaries(TEXTS, VALUES, max_size=3))
        extras[row] = {"properties": properties} if properties else None
    columns = draw(st.dictionaries(TEXTS.filter(lambda t: t != "score"), st.just(0), max_size=2))
    values = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=count, max_size=count)
    return zones.replace(extras=extras, measurements={key: np.array(draw(values), float) for key in columns})


@settings(max_examples=120, deadline=None)
@given(annotations(), st.sampled_from([1 << 20, 600, 64]))
def test_nothing_is_lost_in_a_round_trip(zones: Annotations, block: int) -> None:
    text = geojson_bytes(zones)
    json.loads(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "BLOCK", block)
        again = Annotations.from_geojson(text)
        same(zones, again)
        pretty = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        same(zones, Annotations.from_geojson(pretty))


def test_numbers_are_short_and_rounded() -> None:
    shape = shapely.Polygon([(0.0, -0.0001), (1 / 3, 0), (2.0, 2.5), (1e7 + 0.125, 3)])
    text = geojson_bytes(Annotations.from_geometries(shape))
    assert b"[[0,0],[0.33,0],[2,2.5],[10000000.12,3],[0,0]]" in text.replace(b"-0,", b"!")
    assert b"0.3333," in geojson_bytes(Annotations.from_geometries(shape), decimals=4)
    assert b"[0,0],[2,2]" in geojson_bytes(Annotations.from_geometries(shape), decimals=0)
    with pytest.raises(BadValueError, match="decimals"):
        geojson_bytes(Annotations.from_geometries(shape), decimals=-1)


def test_derived_classes_and_own_ids() -> None:
    zones = Annotations.from_geometries([shapely.Point(0, 0)], "Tumor: Positive")
    features = json.loads(geojson_bytes(zones))["features"]
    assert features[0]["properties"]["classification"]["names"] == ["Tumor", "Positive"]
    given = feature(SQUARE) | {"id": "case-7"}
    assert Annotations.from_geojson(collection(given, feature(SQUARE)))[0].id == "case-7"


def test_offset_for_bounds_is_applied_at_the_border_only(tmp_path: Path) -> None:
    scan = Scan.from_array(np.zeros((5, 5, 3), np.uint8), "yxc")
    assert geojson_offset(scan) == (0, 0)
    for bounds in ([200, 100, 30, 40], {"y": 200, "x": 100, "height": 30, "width": 40}):
        slide = scan.replace(meta={**scan.meta, "bounds": bounds})
        offset = geojson_offset(slide)
        assert offset == (200, 100)
    zones = Annotations.from_geojson(QUPATH_5, offset=offset)
    assert zones[1].geometry.bounds == (110, 210, 120, 220)
    assert zones[1].extras["feature"]["nucleusGeometry"]["coordinates"][0][0] == [113, 213]
    path = zones.to_geojson(tmp_path / "a.geojson", offset=offset)
    same(Annotations.from_geojson(path), Annotations.from_geojson(QUPATH_5))


def test_self_intersections_are_mended_or_refused(tmp_path: Path) -> None:
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    text = collection(feature(SQUARE), feature(bow_tie, name="tie"), feature(bow_tie))
    with pytest.warns(DHLabWarning, match="2 invalid polygons"):
        zones = Annotations.from_geojson(text)
    assert shapely.is_valid(zones.geometries).all()
    assert zones.areas.tolist() == [81, 50, 50]
    assert zones[1].name == "tie"
    with pytest.raises(BadFileError, match=r"feature 1 .* Self-intersection"):
        Annotations.from_geojson(text, strict=True)
    flat = {"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [0, 0], [5, 5], [0, 0]]]}
    with pytest.warns(DHLabWarning, match="1 polygons without any area"):
        assert len(Annotations.from_geojson(collection(feature(flat), feature(SQUARE)))) == 1


def test_features_without_a_shape_are_left_out_and_told() -> None:
    with pytest.warns(DHLabWarning, match="1 features without a geometry"):
        zones = Annotations.from_geojson(collection(feature(None, objectType="root"), feature(SQUARE, name="a")))
    assert [v.name for v in zones] == ["a"]


def polygon(*ring: object) -> dict:
    return {"type": "Polygon", "coordinates": [list(ring)]}


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (polygon([0, 0], [1, math.nan], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1, math.inf], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1, 1e300], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1, None], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1, "2"], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1, True], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1], [1, 1]), "two finite numbers"),
        (polygon([0], [1, 2, 3], [1, 1]), "two finite numbers"),
        (polygon([0, 0], [1, 1]), "ring of 2 points"),
        (polygon([0, 0], [1, 1], [0, 0]), "ring of 2 points"),
        (polygon(), "empty or broken"),
        ({"type": "Polygon", "coordinates": []}, "empty or broken"),
        ({"type": "Polygon", "coordinates": [[0, 0], [1, 1], [2, 0]]}, "two finite numbers|broken"),
        ({"type": "Polygon", "coordinates": 3}, "broken"),
        ({"type": "Polygon"}, "broken"),
        ({"type": "MultiPolygon", "coordinates": [[[0, 0], [1, 1], [2, 0]]]}, "broken|two finite"),
        ({"type": "LineString", "coordinates": [[0, 0]]}, "line of 1 points"),
        ({"type": "Circle", "coordinates": [0, 0]}, "type 'Circle'"),
        ({"type": "GeometryCollection", "geometries": []}, "GeometryCollection"),
        ("POINT (0 0)", "geometry of type None"),
        ({"type": ["Polygon"], "coordinates": []}, "geometry of type"),
    ],
)
def test_broken_shapes_are_named(geometry: object, message: str) -> None:
    with pytest.raises(BadFileError, match=f"feature 2 of the GeoJSON text.*({message})"):
        Annotations.from_geojson(collection(feature(SQUARE), feature(SQUARE), feature(geometry), feature(SQUARE)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3, "element 1"),
        ([1, 2], "element 1"),
        ({"type": "FeatureCollection", "features": []}, "element 1"),
        (feature(SQUARE) | {"properties": [1]}, "feature 1 .* properties"),
        (feature(SQUARE, classification=3), "feature 1 .* classification"),
        (feature(SQUARE, classification={"names": 3}), "feature 1 .* classification"),
        (feature(SQUARE, measurements={"a": "many"}), "feature 1 .* measurements"),
        (feature(SQUARE, measurements=[{"value": 3}]), "feature 1 .* measurements"),
        (feature(SQUARE, measurements=[[1]]), "feature 1 .* measurements"),
    ],
)
def test_broken_features_are_named(bad: object, message: str) -> None:
    with pytest.raises(BadFileError, match=message):
        Annotations.from_geojson(collection(feature(SQUARE), bad))


@pytest.mark.parametrize(
    "text",
    [b"", b"   ", b"hello", b"{}", b"[1, 2]", b'{"type": "Topology"}', b"[", b"[[", b"\x00\x01", b'{"features": {}}',
     b"[" * 100_000, b'{"features": [' + b"[" * 100_000, b'{"a":' * 100_000, b"[]]", b"[]{}", b'{"features":[]}}',
     b'{"features":[]', b"\x1f\x8bnot gzip", gzip.compress(b"[]", mtime=0)[:-6], b"\xff\xfe[\x00]\x00",
     b'[{"type":"Feature"\xff}]',
     b'"features"', b"nul", b'{"features":[],}', b"[1", b'{"type":"FeatureCollection","features":[1'],
)  # fmt: skip
def test_what_is_no_geojson_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.geojson"
    path.write_bytes(text)
    with pytest.raises(BadFileError, match=r"odd\.geojson"):
        Annotations.from_geojson(path)


def test_empty_collections_are_fine() -> None:
    for text in (b"[]", b'{"type":"FeatureCollection","features":[]}', b' { "features" : [ ] , "a" : 1 } '):
        assert len(Annotations.from_geojson(text)) == 0
    assert len(Annotations.from_geojson(geojson_bytes(Annotations.from_geometries([])))) == 0


def test_every_truncation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    zones = Annotations.from_geometries([shapely.box(i, 0, i + 1, 1) for i in range(5)], "a", scores=0.5)
    text = geojson_bytes(zones).rstrip()
    for block in (1 << 20, 100):
        monkeypatch.setattr(scanning, "BLOCK", block)
        for length in range(1, len(text), 3):
            with pytest.raises(BadFileError):
                Annotations.from_geojson(text[:length])
        assert len(Annotations.from_geojson(text)) == 5


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_harmless(data: st.DataObject) -> None:
    text = bytearray(geojson_bytes(Annotations.from_geojson(QUPATH_5)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.sampled_from(list(b'[]{},:"\\0.e-\x01\x02\xff')))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "BLOCK", data.draw(st.sampled_from([1 << 20, 200])))
        try:
            zones = Annotations.from_geojson(bytes(text))
        except (BadFileError, DHLabWarning):  # tests turn warnings into errors
            return
    try:
        expected = json.loads(text.decode())["features"]
    except (ValueError, KeyError):
        return  # numbers such as 01 and bytes of the head are not looked at closely
    assert len(zones) == len(expected)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at"):
        Annotations.from_geojson(tmp_path / "none.geojson")
    with pytest.raises(BadFileError, match="cannot read"):
        Annotations.from_geojson(tmp_path)
    zones = Annotations.from_geometries(shapely.Point(0, 0))
    with pytest.raises(NotFoundError, match="Make it first"):
        zones.to_geojson(tmp_path / "no" / "a.geojson")
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotFoundError)):
        zones.to_geojson(tmp_path / "file" / "a.geojson")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    zones = Annotations.from_geometries(shapely.Point(0, 0))
    write_geojson(path, zones)
    before = path.read_bytes()

    def chunks():
        yield zones
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_geojson(path, chunks())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    zones = Annotations.from_geometries([shapely.Point(i, 0) for i in range(5000)])
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            zones.to_geojson(tmp_path / "a.geojson")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def test_gzip_is_reproducible(tmp_path: Path) -> None:
    zones = Annotations.from_geojson(QUPATH_5)
    one, two = (zones.to_geojson(tmp_path / name) for name in ("a.geojson.gz", "b.geojson.gz"))
    assert one.read_bytes() == two.read_bytes()
    same(Annotations.from_geojson(one), zones)


def test_chunks_come_in_order_and_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "BLOCK", 5000)
    shapes = [shapely.box(i, 0, i + 1, 1 + i % 3) for i in range(500)]
    zones = Annotations.from_geometries(shapes, ["ab"[i % 2] for i in range(500)], scores=np.arange(500) / 500)
    path = write_geojson(tmp_path / "a.geojson", (zones[i : i + 7] for i in range(0, 500, 7)))
    chunks = list(read_geojson_chunks(path))
    assert len(chunks) > 10
    same(Annotations.concat(chunks), zones)
    same(Annotations.from_geojson(path), zones)


def test_reading_marks_the_ledger(tmp_path: Path) -> None:
    with Timeline(tmp_path) as timeline:
        Annotations.from_geojson(QUPATH_5)
    (event,) = timeline.events()
    assert event.stage == "annotated"
    assert event.facts == {"format": "GeoJSON", "objects": 2, "classes": ["Tumor", "Tumor: Positive"]}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell peak memory")
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Writing and reading 10^5 polygons takes little more memory than 10^4: nothing gathers."""
    program = r"""
import re, sys
from pathlib import Path
import numpy as np, shapely
from dhlab.annotations import Annotations, read_geojson_chunks, write_geojson
count, path = int(sys.argv[1]), sys.argv[2]
angle = np.linspace(0, 2 * np.pi, 25)[:-1]
ring = 12 * np.stack([np.cos(angle), np.sin(angle)], -1)
def chunks():
    rng = np.random.default_rng(0)
    for first in range(0, count, 5000):
        shapes = shapely.polygons(rng.uniform(0, 1e5, (5000, 1, 2)) + ring)
        yield Annotations(shapes, classes=np.zeros(5000, np.int32), class_names=("nucleus",), scores=rng.random(5000))
write_geojson(path, chunks())
assert sum(map(len, read_geojson_chunks(path))) == count
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
    peaks = []
    for count in (20_000, 100_000):
        command = [sys.executable, "-c", program, str(count), str(tmp_path / "a.geojson")]
        peaks.append(int(subprocess.check_output(command, cwd=ROOT, text=True)))
    size = (tmp_path / "a.geojson").stat().st_size / 2**20
    assert size > 50, "the file is large enough to tell"
    assert peaks[1] - peaks[0] < 20, f"peak memory {peaks} MiB grew with a file of {size:.0f} MiB"
