"""Files in napari: what dhlab opens lies in the right place, and what is saved is exactly what was read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from napari.components import ViewerModel
from npe2 import PluginManager, PluginManifest

import dhlab as dh
from dhlab.annotations import Annotations
from dhlab.errors import BadFileError
from dhlab.samples import SAMPLES, sample_path
from dhlab.scan import Scan
from dhlab_napari.__main__ import Desk
from dhlab_napari.layers import describe, scan_of
from dhlab_napari.reading import get_reader, read
from dhlab_napari.samples import read_sample

MANIFEST = Path(__file__).parents[2] / "extensions" / "napari" / "dhlab_napari" / "napari.yaml"
RING = shapely.Polygon(
    [(100.25, 100.5), (900, 120.75), (880.1, 700), (120, 650)],
    [[(200, 200), (400, 220), (380, 400)], [(500.33, 300), (700, 300), (700, 500), (500, 480)]],
)
PARTS = shapely.MultiPolygon(
    [shapely.box(1000, 100, 1200, 300) - shapely.box(1050, 150, 1100, 200), shapely.box(1300, 1, 1400, 99)]
)
# As QuPath writes it: a hole, several parts, points, lines, measurements, names, and keys that dhlab does not know.
FEATURES = [
    (RING, {"objectType": "annotation", "name": "gland 1", "classification": {"name": "Tumor", "color": [200, 0, 0]}}),
    (
        PARTS,
        {
            "objectType": "annotation",
            "isLocked": True,
            "classification": {"names": ["Tumor", "Positive"], "color": [250, 62, 62]},
        },
    ),
    (
        shapely.MultiPoint([(5, 6), (70.5, 8.25)]),
        {"objectType": "annotation", "metadata": {"author": "anna", "note": "two"}},
    ),
    (shapely.LineString([(0, 0), (10.125, 40), (90, 45)]), {"objectType": "annotation"}),
    (shapely.box(50, 50, 60.5, 61), {"objectType": "detection", "measurements": {"Area µm^2": 27.5, "Solidity": 1.0}}),
]


@pytest.fixture
def geojson(tmp_path: Path) -> Path:
    """Write the features as dhlab does, which is byte for byte how it writes them again."""
    features = [
        {
            "type": "Feature",
            "id": f"0000000{i}-0000-4000-8000-000000000000",
            "geometry": json.loads(shapely.to_geojson(g)),
            "properties": p,
        }
        for i, (g, p) in enumerate(FEATURES)
    ]
    path = tmp_path / "first.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return Annotations.from_geojson(path).to_geojson(tmp_path / "slide.geojson")


@pytest.fixture
def model(plugin: PluginManager, qtbot: Any) -> ViewerModel:
    """Return a viewer without a window."""
    return ViewerModel()


def test_the_manifest_is_valid_and_names_every_sample_and_every_suffix() -> None:
    from dhlab.io import READERS

    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert {s.key for s in manifest.contributions.sample_data} == set(SAMPLES)
    patterns = {p.lstrip("*") for r in manifest.contributions.readers for p in r.filename_patterns}
    assert patterns == {*READERS, ".geojson", ".geojson.gz"}


def test_a_slide_is_lazy_multiscale_and_measured_in_micrometres(viewer, picture) -> None:
    [layer] = viewer.open_sample("dhlab", "phantom-slide")
    scan = scan_of(layer)
    assert scan.name == "phantom-slide"
    assert [tuple(level.shape) for level in layer.data] == [tuple(level.shape) for level in scan.levels]
    assert layer.multiscale
    assert layer.scale == pytest.approx(scan.spacing)
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 2
    # The outer corner of the first pixel is the origin, so its middle lies half a pixel further.
    assert layer.translate == pytest.approx(np.array(scan.spacing) / 2)
    viewer.reset_view()
    shown = picture(viewer)
    small = scan.thumbnail(512)
    pink = (small.astype(int) @ (1, -2, 1) > 40).mean()
    assert (shown @ (1, -2, 1) > 40).mean() > pink / 4


def test_volumes_channels_labels_and_signals_are_shown(viewer, picture) -> None:
    for name, layers in (("phantom-fluorescence", 3), ("phantom-ct", 1), ("phantom-ct-labels", 1), ("phantom-eeg", 1)):
        viewer.layers.clear()
        viewer.open_sample("dhlab", name)
        viewer.reset_view()
        assert len(viewer.layers) == layers
        assert len(np.unique(picture(viewer).reshape(-1, 3), axis=0)) > 3, name
        assert isinstance(scan_of(viewer.layers[0]), Scan)


def test_reading_reads_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    read_sample("phantom-slide")
    monkeypatch.setattr(Scan, "read_many", lambda *_, **__: pytest.fail("read"))
    layers = read_sample("phantom-slide")
    assert layers[0][1]["multiscale"]


def test_only_what_dhlab_knows_is_claimed(tmp_path: Path, geojson: Path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "empty.svs").write_text("")
    assert get_reader(str(tmp_path / "notes.txt")) is None
    assert get_reader(str(tmp_path / "empty.svs")) is None
    assert get_reader([]) is None
    assert get_reader([str(geojson), str(sample_path("phantom-slide"))]) is read
    geojson.write_text("{")
    with pytest.raises(BadFileError):
        read(str(geojson))


def test_geojson_makes_the_journey_through_napari_byte_for_byte(model, geojson: Path, tmp_path: Path) -> None:
    [layer] = model.open(str(geojson), plugin="dhlab")
    # One row for each object, but one for each of several points.
    assert layer.shape_type == ["polygon", "polygon", "ellipse", "ellipse", "path", "polygon"]
    [written] = model.layers.save(str(tmp_path / "again.geojson"), selected=True, plugin="dhlab")
    assert Path(written).read_bytes() == geojson.read_bytes()


def test_what_is_edited_changes_and_nothing_else(model, geojson: Path, tmp_path: Path) -> None:
    [layer] = model.open(str(geojson), plugin="dhlab")
    data = [np.array(d) for d in layer.data]
    data[1] = data[1] + (10, 0)
    layer.data = data
    layer.add_polygons(np.array([(0, 0), (0, 500), (400, 500.0)]))
    features = layer.features.copy()
    features.loc[5, "class"] = "Stroma"
    layer.features = features
    model.layers.save(str(tmp_path / "again.geojson"), selected=True, plugin="dhlab")
    before, after = Annotations.from_geojson(geojson), Annotations.from_geojson(tmp_path / "again.geojson")
    assert after.ids[:5].tolist() == before.ids.tolist()
    assert [a.equals(b) for a, b in zip(after.geometries[:5], before.geometries, strict=True)] == [
        True,
        False,
        True,
        True,
        True,
    ]
    moved = shapely.transform(PARTS, lambda xy: xy + np.array((0, 10)))
    assert after[1].geometry.symmetric_difference(moved).area < 1
    assert after[1].class_name == "Tumor: Positive"
    assert after[4].class_name == "Stroma"
    assert after[4].measurements["Area µm^2"] == 27.5
    assert after[5].geometry.equals(shapely.Polygon([(0, 0), (500, 0), (500, 400)]))


def test_shapes_lie_on_the_slide_of_their_name(tmp_path: Path, geojson: Path) -> None:
    (tmp_path / "slide.svs").symlink_to(sample_path("phantom-slide"))
    [(data, meta, kind)] = read(str(geojson))
    assert (kind, meta["scale"], meta["units"]) == ("shapes", (0.5, 0.5), ("µm", "µm"))
    assert meta["metadata"]["annotations"].parent.name == "slide"
    assert data[0][0].tolist() == [100.5, 100.25]


def test_labels_are_saved_with_spacing_and_opened_again(model, tmp_path: Path) -> None:
    [layer] = model.open_sample("dhlab", "phantom-slide-labels")
    array = np.array(layer.data[0] if layer.multiscale else layer.data)
    layer.multiscale and model.layers.remove(layer)
    painted = model.add_labels(array, scale=layer.scale, translate=layer.translate, units=layer.units, name="painted")
    painted.paint((20, 30), 3)
    [path] = model.layers.save(str(tmp_path / "labels.ome.zarr"), selected=True, plugin="dhlab")
    again = dh.open(path)
    assert (again.kind, again.unit, again.spacing) == ("labels", "µm", (0.5, 0.5))
    assert again.origin == pytest.approx((0, 0))
    assert np.array_equal(np.asarray(again.levels[0][...]), painted.data)


def test_a_heat_map_lies_where_its_parent_lies() -> None:
    base = Scan.from_array(np.zeros((200, 100, 3), np.uint8), "yxc", spacing=0.5, unit="µm").replace(
        origin=(1000.0, 2000.0)
    )
    heat = Scan.from_array(np.zeros((20, 10), np.float32), "yx", spacing=5.0, unit="µm", kind="heatmap").replace(
        parent=base.as_parent(), origin=(10.0, 20.0)
    )
    [(_, meta, _)] = describe(heat, base=base)
    assert meta["scale"] == pytest.approx((5, 5))
    assert meta["translate"] == pytest.approx((1012.5, 2022.5))


def test_every_sample_is_a_function_of_its_own(plugin: PluginManager) -> None:
    from dhlab_napari import samples

    with pytest.raises(AttributeError):
        samples.no_such_sample  # noqa: B018 - asking for it is what fails


def test_a_name_in_the_inbox_is_as_old_as_it_says(tmp_path: Path) -> None:
    opened: list[Path] = []
    for age in (0, 300):
        letter = tmp_path / f"{time.time_ns() - age * 10**9}.path"
        letter.write_text(f"{age} seconds.tif")
        os.utime(letter, (0, 0))  # a file server whose clock is behind
    for _ in range(2):
        Desk.look(SimpleNamespace(open=opened.append), tmp_path)  # type: ignore[arg-type] # no window is needed
    assert opened == [Path("0 seconds.tif")]
    assert not list(tmp_path.iterdir())
