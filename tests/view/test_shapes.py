"""Packed shapes: every vertex comes out as it went in, whatever the geometry; cells are whole, compact and sorted."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from dhlab.annotations import Annotations
from dhlab.errors import BadValueError
from dhlab.view.shapes import PER_CELL, ShapeSource, outline, pack

RING = shapely.box(0, 0, 100, 100).difference(shapely.box(20, 20, 40, 40)).difference(shapely.box(60, 60, 80, 90))
HOSTILE = [
    RING,
    shapely.MultiPolygon([RING, shapely.box(200, 0, 201, 5)]),
    shapely.Point(5.25, 7.75),
    shapely.MultiPoint([(1, 2), (3, 4)]),
    shapely.LineString([(0, 0), (10, 10), (10, 0)]),
    shapely.MultiLineString([[(0, 0), (1, 1)], [(5, 5), (6, 6), (7, 5)]]),
    shapely.GeometryCollection(
        [shapely.Point(1, 1), shapely.GeometryCollection([shapely.MultiPolygon([shapely.box(0, 0, 1, 1)]), RING])]
    ),
    shapely.Polygon(RING.exterior.coords[::-1], [ring.coords[::-1] for ring in RING.interiors]),
    shapely.LinearRing([(0, 0), (4, 0), (4, 4)]),
    shapely.box(79_999.5, 119_999.25, 80_000.75, 120_003),
    shapely.Point(-7, -1e-3),
]


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `pack` wrote, as the browser does."""
    length = int.from_bytes(data[:4], "little")
    assert (4 + length) % 8 == 0
    head, body = json.loads(data[4 : 4 + length]), data[4 + length :]
    arrays = {}
    for name, (dtype, shape, offset) in head.pop("arrays").items():
        assert offset % 8 == 0
        arrays[name] = np.frombuffer(body, dtype, int(np.prod(shape)), offset).reshape(shape)
    return head, arrays


def rebuild(found: dict[str, NDArray[Any]]) -> list[BaseGeometry]:
    """Put the outlines of cells together again, in the order of the cells."""
    places = np.repeat(found["origins"], found["counts"], 0)
    built = []
    for number, place in enumerate(places):
        parts: list[BaseGeometry] = []
        shell: list[NDArray[Any]] = []
        for ring in range(found["shapes"][number], found["shapes"][number + 1]):
            vertices = found["vertices"][found["rings"][ring] : found["rings"][ring + 1]] + place
            kind = int(found["kinds"][ring])
            if kind != 3 and shell:
                parts.append(shapely.Polygon(shell[0], shell[1:]))
                shell = []
            if kind >= 2:
                shell.append(vertices)
            else:
                parts.append(shapely.Point(vertices[0]) if kind == 0 else shapely.LineString(vertices))
        if shell:
            parts.append(shapely.Polygon(shell[0], shell[1:]))
        built.append(shapely.GeometryCollection(parts))
    return built


def flat(geometry: BaseGeometry) -> BaseGeometry:
    parts = np.array([geometry])
    while (shapely.get_type_id(parts) > 3).any():
        parts = shapely.get_parts(parts)
    lines = [shapely.LineString(p.coords) if p.geom_type == "LinearRing" else p for p in parts]
    return shapely.normalize(shapely.GeometryCollection(lines))


def circles(count: int, *, seed: int = 0, side: float = 50_000) -> Annotations:
    rng = np.random.default_rng(seed)
    centers = shapely.points(rng.uniform(0, side, (count, 2)))
    radii = rng.choice([1.0, 9.0, 14.0, 400.0], count)
    return Annotations(
        geometries=shapely.buffer(centers, radii, quad_segs=3),
        classes=rng.integers(-1, 3, count).astype(np.int32),
        class_names=("a", "b", "c"),
        scores=np.where(rng.random(count) < 0.5, np.nan, 0.25),
    )


def test_every_geometry_comes_out_as_it_went_in() -> None:
    source = ShapeSource(Annotations.from_geometries(HOSTILE, "a", scores=0.5))
    _, found = unpack(source.outlines(range(source.cell_count)))
    order = np.concatenate([source.rows(cell) for cell in range(source.cell_count)])
    assert sorted(order) == list(range(len(HOSTILE)))
    for row, built in zip(order, rebuild(found), strict=True):
        assert shapely.equals_exact(flat(built), flat(HOSTILE[row]), 2e-3), row
    np.testing.assert_allclose(found["areas"], shapely.area(np.array(HOSTILE)[order]), rtol=1e-5)


def test_holes_turn_against_their_shells() -> None:
    _, rings, kinds, vertices = outline(np.array(HOSTILE, object))
    for kind, turns in ((2, True), (3, False)):
        found = [shapely.LinearRing(vertices[rings[i] : rings[i + 1]]).is_ccw for i in np.flatnonzero(kinds == kind)]
        assert found == [turns] * len(found)
        assert found


def test_cells_hold_every_shape_once_and_say_where_it_is() -> None:
    annotations = circles(20_000)
    source = ShapeSource(annotations)
    head, found = unpack(source.catalogue())
    assert head == {}
    firsts = found["firsts"].astype(int)
    assert (np.diff(firsts) > 0).all()
    assert np.diff(firsts).max() <= PER_CELL
    order = np.concatenate([source.rows(cell) for cell in range(source.cell_count)])
    assert np.array_equal(np.sort(order), np.arange(20_000))
    bounds = shapely.bounds(annotations.geometries[order])
    np.testing.assert_allclose(found["centers"], (bounds[:, :2] + bounds[:, 2:]) / 2, atol=0.01)
    assert np.array_equal(found["labels"], np.where(annotations.classes < 0, 3, annotations.classes)[order])
    for cell, (low, high) in enumerate(pairwise(firsts)):
        np.testing.assert_allclose(found["boxes"][cell, :2], bounds[low:high, :2].min(0), atol=0.01)
        np.testing.assert_allclose(found["boxes"][cell, 2:], bounds[low:high, 2:].max(0), atol=0.01)
        sides = (bounds[low:high, 2:] - bounds[low:high, :2]).max(1)
        assert sides.max() <= 4.01 * max(sides.min(), 1)
    # The largest are drawn first, under the small ones.
    assert found["extents"][0] > 700
    assert found["extents"][-1] < 3
    # Cells are compact: those of the many small shapes cover the slide about once.
    areas = np.prod(found["boxes"][:, 2:] - found["boxes"][:, :2], 1)[(found["extents"] > 10) & (found["extents"] < 40)]
    assert areas.sum() < 1.5 * 50_000**2


def test_scores_and_titles_go_with_their_shapes() -> None:
    annotations = circles(2500)
    names = np.array([f"no. {i}" if i % 7 == 0 else None for i in range(2500)], object)
    source = ShapeSource(annotations.replace(names=names))
    cells = list(range(source.cell_count))[::-1]
    head, found = unpack(source.outlines(cells))
    rows = np.concatenate([source.rows(cell) for cell in cells])
    np.testing.assert_array_equal(found["scores"], annotations.scores[rows].astype(np.float32))
    assert {int(at): title for at, title in head["titles"].items()} == {
        at: names[row] for at, row in enumerate(rows) if names[row]
    }


def test_a_vertex_keeps_its_fraction_at_the_far_end_of_a_slide() -> None:
    far = shapely.box(199_999.125, 149_999.375, 200_003.625, 150_001.875)
    source = ShapeSource(Annotations.from_geometries([far], "a"))
    _, found = unpack(source.outlines([0]))
    assert shapely.equals_exact(shapely.normalize(rebuild(found)[0].geoms[0]), shapely.normalize(far), 1e-6)


@pytest.mark.parametrize("count", [0, 1, PER_CELL, PER_CELL + 1])
def test_few_or_no_shapes(count: int) -> None:
    annotations = Annotations.from_geometries([shapely.box(i, 0, i + 10, 10) for i in range(count)], "a")
    source = ShapeSource(annotations)
    _, found = unpack(source.catalogue())
    assert source.cell_count == -(-count // PER_CELL)
    assert (
        found["firsts"].tolist() == [0, PER_CELL, PER_CELL + 1][: source.cell_count + 1] or found["firsts"][-1] == count
    )
    assert found["centers"].shape == (count, 2)
    _, found = unpack(source.outlines(range(source.cell_count)))
    assert len(found["areas"]) == count
    assert unpack(source.outlines([]))[1]["vertices"].shape == (0, 2)
    with pytest.raises(BadValueError, match="cell"):
        source.outlines([source.cell_count])
    with pytest.raises(BadValueError, match="cell"):
        source.outlines([-1])


def test_many_shapes_at_one_place_are_still_cells() -> None:
    source = ShapeSource(Annotations.from_geometries([shapely.Point(5, 5)] * 3000, "a"))
    _, found = unpack(source.catalogue())
    assert found["firsts"].tolist() == [0, 1024, 2048, 3000]
    assert found["extents"].tolist() == [0, 0, 0]
    assert (found["boxes"] == 5).all()


def test_more_classes_than_a_byte_counts() -> None:
    names = [f"class {i}" for i in range(300)]
    source = ShapeSource(Annotations.from_geometries([shapely.Point(i, 0) for i in range(300)], names))
    assert unpack(source.catalogue())[1]["labels"].dtype == np.uint16


@given(
    st.dictionaries(
        st.text("abc", min_size=1),
        st.tuples(st.sampled_from(["u1", "u2", "u4", "f4", "f8"]), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_packing_keeps_every_array(kinds: dict[str, tuple[str, list[int]]]) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 200, shape).astype(dtype) for name, (dtype, shape) in kinds.items()}
    head, found = unpack(pack({"note": "µ × 3"}, arrays))
    assert head == {"note": "µ × 3"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_shapes_of_a_document_tell_their_ids_and_reviews() -> None:
    feature = {"type": "Feature", "id": "one", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    reviewed = {**feature, "id": "two", "properties": {"metadata": {"review": "accepted"}}}
    annotations = Annotations.from_geojson(json.dumps({"type": "FeatureCollection", "features": [feature, reviewed]}))
    head, _ = unpack(ShapeSource(annotations, named=True).outlines([0]))
    assert head["ids"] == ["one", "two"]
    assert head["reviews"] == {"1": "accepted"}
    assert "ids" not in unpack(ShapeSource(annotations).outlines([0]))[0]
