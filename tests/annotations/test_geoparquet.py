"""GeoParquet: nothing is lost, others can read it, damage is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely

from dhlab.annotations import Annotations
from dhlab.errors import BadFileError, NotFoundError, StorageError
from dhlab.scan import Parent


def rich() -> Annotations:
    shapes = [
        shapely.box(0, 0, 1 / 3, 1),
        shapely.Point(1, 2),
        shapely.box(5, 5, 9, 9).difference(shapely.box(6, 6, 7, 7)),
    ]
    zones = Annotations.from_geometries(
        shapes, ["a", None, "b: c"], scores=[0.123456789, np.nan, 1], names=["é 🧪", None, ""], author="Ann",
        parent=Parent("slide", (0.25, 0.25), (100, 100), "µm"),
    )  # fmt: skip
    extras = np.array([{"properties": {"isLocked": True, "x": [1, {"y": None}]}}, None, None], object)
    return zones.replace(measurements={"Nucleus: Area": np.array([1.5, np.nan, 3])}, extras=extras)


def test_nothing_is_lost(tmp_path) -> None:
    zones = rich()
    path = zones.to_parquet(tmp_path / "zones 🧪.parquet")
    again = Annotations.from_parquet(path)
    assert list(again) == list(zones)
    assert (again.class_names, again.class_colors, again.parent) == (
        zones.class_names,
        zones.class_colors,
        zones.parent,
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    empty = Annotations.from_parquet(zones[[]].to_parquet(tmp_path / "empty.parquet"))
    assert len(empty) == 0
    assert empty.class_names == zones.class_names


def test_metadata_follow_geoparquet(tmp_path) -> None:
    import pyarrow.parquet as pq

    path = rich().to_parquet(tmp_path / "zones.parquet")
    table = pq.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0"
    assert column["encoding"] == "WKB"
    assert sorted(column["geometry_types"]) == ["Point", "Polygon"]
    assert column["bbox"] == [0, 0, 9, 9]
    assert column["crs"] is None
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    boxes = table["bbox"].to_pylist()
    assert boxes[2] == {"xmin": 5, "ymin": 5, "xmax": 9, "ymax": 9}
    assert shapely.from_wkb(table["geometry"][2].as_py()).equals(rich().geometries[2])


def test_geopandas_reads_it_and_we_read_geopandas(tmp_path) -> None:
    geopandas = pytest.importorskip("geopandas")
    zones = rich()
    frame = geopandas.read_parquet(zones.to_parquet(tmp_path / "ours.parquet"))
    assert frame.geometry.geom_equals(geopandas.GeoSeries(zones.geometries)).all()
    assert frame["class"].tolist()[2] == "b: c"
    theirs = geopandas.GeoDataFrame({"class": ["a", "b"]}, geometry=[shapely.Point(0, 0), shapely.box(0, 0, 1, 1)])
    theirs.to_parquet(tmp_path / "theirs.parquet")
    again = Annotations.from_parquet(tmp_path / "theirs.parquet")
    assert [v.class_name for v in again] == ["a", "b"]
    assert again.areas.tolist() == [0, 1]


def test_damage_is_told(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(NotFoundError):
        Annotations.from_parquet(tmp_path / "none.parquet")
    path = rich().to_parquet(tmp_path / "zones.parquet")
    (tmp_path / "short.parquet").write_bytes(path.read_bytes()[:-30])
    (tmp_path / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "plain.parquet")
    for name in ("short", "empty", "plain"):
        with pytest.raises(BadFileError, match=f"{name}.parquet"):
            Annotations.from_parquet(tmp_path / f"{name}.parquet")
    table = pq.read_table(path)
    bad = table.set_column(1, "geometry", pa.array([b"\x01\x02", None, b""]))
    pq.write_table(bad.replace_schema_metadata(table.schema.metadata), tmp_path / "wkb.parquet")
    with pytest.raises(BadFileError, match="wkb.parquet"):
        Annotations.from_parquet(tmp_path / "wkb.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotFoundError)):
        rich().to_parquet(tmp_path / "file" / "zones.parquet")
