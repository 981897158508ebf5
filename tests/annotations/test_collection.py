"""`Annotations` as a value: columns, classes, views, spatial index, joining."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.annotations import Annotations
from dhlab.errors import BadShapeError, BadValueError, DHLabWarning, UnknownNameError
from dhlab.scan import Parent, Scan

BOW_TIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
SLIDE = Parent("slide", (0.5, 0.25), (100, 200), "µm")


def some() -> Annotations:
    return Annotations.from_geometries(
        [shapely.box(0, 0, 10, 10), shapely.box(20, 5, 24, 10), shapely.Point(3, 4), shapely.box(50, 50, 60, 70)],
        ["tumour", "stroma", None, "tumour"],
        colors={"stroma": (1, 2, 3)},
        scores=[0.9, 0.2, np.nan, 0.5],
        names=["a", None, "point", None],
        author="Ann",
        time="2026-01-01T00:00:00Z",
        parent=SLIDE,
    )


def test_views_hold_what_was_given() -> None:
    zones = some()
    assert len(zones) == 4
    first, second, third, _ = zones
    assert first.class_name == "tumour"
    assert first.score == 0.9
    assert first.author == "Ann"
    assert second.color == (1, 2, 3)
    assert second.name is None
    assert third.class_name is third.color is third.score is None
    assert third.geometry == shapely.Point(3, 4)
    assert zones[-1].geometry == zones.geometries[3]
    with pytest.raises(IndexError):
        zones[4]


def test_areas_follow_the_parents_spacing() -> None:
    zones = some()
    assert zones.unit == "µm"
    np.testing.assert_allclose(zones.areas, [100 / 8, 20 / 8, 0, 200 / 8])
    np.testing.assert_allclose(zones.replace(parent=None).areas, [100, 20, 0, 200])
    assert zones.bounds.tolist()[1] == [5, 20, 10, 24]
    rows = {row["class"]: row for row in zones.table()}
    assert rows["tumour"]["objects"] == 2
    assert rows["tumour"]["total area (µm²)"] == 37.5
    assert rows["tumour"]["mean score"] == pytest.approx(0.7)
    assert rows["no class"]["objects"] == 1


def test_where_meets_all_conditions() -> None:
    zones = some()
    assert len(zones.of_class("tumour")) == 2
    assert len(zones.where(class_name=["tumour", "stroma"], min_score=0.5)) == 2
    assert len(zones.where(min_area=12.5)) == 2
    assert len(zones.where(author="Ann", kind="annotation")) == 4
    assert len(zones.where(author="Bob")) == len(zones.where(kind="cell")) == 0
    assert zones.of_class("tumour").class_names == zones.class_names
    with pytest.raises(UnknownNameError, match="Did you mean 'tumour'"):
        zones.of_class("tumor")


def test_selection_by_mask_slice_and_positions() -> None:
    zones = some().replace(measurements={"size": np.arange(4.0)})
    assert zones[np.array([True, False, False, True])].ids.tolist() == zones.ids[[0, 3]].tolist()
    assert zones[1:3].names.tolist() == [None, "point"]
    assert zones[[3, 0]].measurements["size"].tolist() == [3, 0]
    assert len(zones[[]]) == len(zones[np.zeros(4, bool)]) == 0
    assert zones[[]].class_names == zones.class_names


def test_nothing_changes_in_place() -> None:
    shapes = np.array([shapely.box(0, 0, 1, 1)], object)
    zones = Annotations(shapes, classes=np.zeros(1, np.int32), class_names=("a",))
    for column in (zones.geometries, zones.classes, zones.scores, zones.ids, zones.names):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = column[0]
    with pytest.raises(AttributeError):
        zones.parent = SLIDE  # type: ignore[misc] # frozen, as is tried here
    longer = zones.add(shapely.Point(1, 1), "b", score=0.5, author="Ann")
    assert (len(zones), len(longer)) == (1, 2)
    assert longer.class_names == ("a", "b")
    assert longer.class_colors[0] == zones.class_colors[0]
    assert longer[1].score == 0.5
    assert longer.ids[0] == zones.ids[0]


def test_ids_follow_from_the_shapes_and_are_distinct() -> None:
    assert some().ids.tolist() == some().ids.tolist()
    assert some().replace(ids=np.empty(0, object), class_names=("x", "y")).ids.tolist() != some().ids.tolist()
    twins = Annotations.from_geometries([shapely.box(0, 0, 1, 1)] * 500, "a")
    assert len(set(twins.ids)) == 500
    doubled = Annotations.concat([twins, twins, twins])
    assert len(set(doubled.ids)) == 1500
    assert doubled.ids[:500].tolist() == twins.ids.tolist()
    assert all(i[14] == "4" and i[19] in "89ab" and len(i) == 36 for i in twins.ids)


def test_concat_joins_classes_by_name() -> None:
    one = Annotations.from_geometries(shapely.box(0, 0, 1, 1), "b", colors={"b": (9, 9, 9)}, parent=SLIDE)
    two = Annotations.from_geometries([shapely.Point(0, 0), shapely.Point(1, 1)], ["a", "b"])
    two = two.replace(measurements={"m": np.array([1.0, 2.0])})
    both = Annotations.concat([one, two])
    assert both.class_names == ("b", "a")
    assert [v.class_name for v in both] == ["b", "a", "b"]
    assert both.class_colors[0] == (9, 9, 9)
    assert both.parent == SLIDE
    np.testing.assert_array_equal(both.measurements["m"], [np.nan, 1, 2])
    assert len(Annotations.concat([])) == 0
    with pytest.raises(BadValueError, match="different scans"):
        Annotations.concat([one, two.on(Parent("other", (1.0, 1.0), (5, 5), "µm"))])


def test_what_stays_invalid_is_merged() -> None:
    shape = shapely.Polygon([(0, 0), (1, 0), (0, 1), (0, 0), (-1, 0), (0, 1)])
    with pytest.warns(DHLabWarning, match="1 invalid polygons"):
        zones = Annotations.from_geometries([shape])
    assert shapely.is_valid(zones.geometries).all()
    assert zones.areas.tolist() == [1]


def test_invalid_shapes_are_mended_and_told() -> None:
    with pytest.warns(DHLabWarning, match="1 invalid polygons"):
        zones = Annotations.from_geometries([BOW_TIE, shapely.box(0, 0, 1, 1)], ["a", "b"])
    assert shapely.is_valid(zones.geometries).all()
    assert zones.areas.tolist() == [50, 1]
    flat = shapely.Polygon([(0, 0), (5, 5), (0, 0), (5, 5)])
    with pytest.warns(DHLabWarning, match="without any area"):
        zones = Annotations.from_geometries([flat, shapely.box(0, 0, 1, 1)], ["a", "b"], scores=[0.1, 0.2])
    assert [v.class_name for v in zones] == ["b"]
    assert zones.scores.tolist() == [0.2]
    with pytest.raises(BadValueError, match="geometry 0 is invalid"):
        Annotations.from_geometries([BOW_TIE], strict=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coordinates_must_be_finite(value: float) -> None:
    with np.errstate(invalid="ignore"):
        line = shapely.LineString([(0, 0), (1, value)])
    with pytest.raises(BadValueError, match="geometry 1"):
        Annotations.from_geometries([shapely.Point(0, 0), line])


def test_bad_columns_are_refused() -> None:
    shapes = np.array([shapely.box(0, 0, 1, 1)] * 3, object)
    with pytest.raises(BadShapeError, match="scores has shape"):
        Annotations(shapes, scores=np.zeros(2))
    with pytest.raises(BadShapeError, match="classes has 2 entries"):
        Annotations.from_geometries(list(shapes), ["a", "b"])
    with pytest.raises(BadValueError, match="expected -1 to 0"):
        Annotations(shapes, classes=np.ones(3, np.int32), class_names=("a",))
    with pytest.raises(BadValueError, match="each name once"):
        Annotations(shapes, class_names=("a", "a"))
    with pytest.raises(BadValueError, match="geometry 1 is missing or empty"):
        Annotations(np.array([shapes[0], shapely.Polygon(), shapes[0]], object))
    with pytest.raises(BadValueError, match="geometry 2 is missing or empty"):
        Annotations(np.array([shapes[0], shapes[0], None], object))
    with pytest.raises(UnknownNameError, match="annotation"):
        Annotations.from_geometries(shapes[0], kind="annotations")


def test_one_shape_or_none() -> None:
    assert len(Annotations.from_geometries(shapely.box(0, 0, 1, 1), "a")) == 1
    none = Annotations.from_geometries([])
    assert len(none) == 0
    assert none.areas.shape == (0,)
    assert none.table() == []
    assert len(none.in_window((0, 0), (5, 5))) == 0
    assert "0 objects" in repr(none)
    none._repr_html_()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_window_finds_exactly_what_touches(data: st.DataObject) -> None:
    number = st.integers(-20, 20)
    corners = data.draw(st.lists(st.tuples(number, number, st.integers(1, 9), st.integers(1, 9)), max_size=30))
    shapes = [shapely.box(x, y, x + w, y + h) for x, y, w, h in corners]
    zones = Annotations.from_geometries(shapes)
    start = data.draw(st.tuples(number, number))
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    window = shapely.box(start[1], start[0], start[1] + size[1], start[0] + size[0])
    expected = [i for i, shape in enumerate(shapes) if shape.intersects(window)]
    assert zones.indices_in_window(start, size).tolist() == expected
    assert zones.in_window(start, size).ids.tolist() == zones.ids[expected].tolist()


def test_pickle_and_copy_keep_everything() -> None:
    zones = some()
    zones.in_window((0, 0), (5, 5))  # builds the index, which stays behind
    for other in (pickle.loads(pickle.dumps(zones)), copy.deepcopy(zones)):
        assert "_tree" not in vars(other)
        assert list(other) == list(zones)
        assert other.parent == zones.parent


def test_reprs_are_pure_and_escape() -> None:
    zones = Annotations.from_geometries(
        [
            shapely.box(0, 0, 5, 5).difference(shapely.box(1, 1, 2, 2)),
            shapely.Point(9, 9),
            shapely.LineString([(0, 0), (3, 3)]),
        ],
        "<script>",
    )
    before = zones.geometries.copy()
    text = zones._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<path") == 3
    assert (zones.geometries == before).all()
    assert repr(some()) == "Annotations: 4 objects on 'slide' (tumour 2, stroma 1, no class 1)"


def test_on_takes_a_scan() -> None:
    scan = Scan.from_array(np.zeros((7, 13, 3), np.uint8), "yxc", spacing=0.5, unit="µm", name="s")
    assert some().replace(parent=None).on(scan).parent == scan.as_parent()
