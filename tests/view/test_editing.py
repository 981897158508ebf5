"""What fronts send about documents and what they are answered; every tool, without a front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from shapely.geometry import mapping, shape

import dhlab as dh
from dhlab.errors import BadShapeError, BadValueError, DHLabError, DHLabWarning, StorageError, UnknownNameError
from dhlab.view import editing
from dhlab.view.editing import Editor
from dhlab.view.viewer import Viewer

BOX = shapely.box(10, 10, 110, 60)


@pytest.fixture
def scan() -> dh.Scan:
    _y, x = np.mgrid[:900, :700]
    pixels = np.where(((x > 200) & (x < 500))[..., None], np.array([200, 60, 140], np.uint8), np.uint8(245))
    return dh.Scan.from_array(pixels, "yxc", spacing=0.5, unit="µm", name="slide")


@pytest.fixture
def document(scan: dh.Scan, tmp_path: Path):
    with dh.Document.open(scan, tmp_path / "slide.geojson", "anna") as document:
        yield document


@pytest.fixture
def pushed() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def editor(document: dh.Document, pushed: list[dict[str, Any]]) -> Editor:
    return Editor(document, pushed.append)


def creation(key: str, geometry: Any, class_name: str = "tumour") -> dict[str, Any]:
    """Return what the front sends of a new shape."""
    after = {
        "exists": True,
        "geometry": mapping(geometry),
        "properties/objectType": "annotation",
        "properties/classification": {"name": class_name, "color": [200, 0, 0]},
    }
    return {"object": key, "before": {"exists": False}, "after": after}


def apply(editor: Editor, *changes: dict[str, Any], tool: str = "polygon", **more: Any) -> dict[str, Any]:
    return editor.answer(message(*changes, tool=tool, **more))


def message(*changes: Any, tool: str = "polygon", **more: Any) -> dict[str, Any]:
    """Return what the front sends of finished changes."""
    return {"type": "edit", "action": "apply", "tool": tool, "changes": list(changes), **more}


def draw(editor: Editor, tool: str, path: Any = (), **more: Any) -> dict[str, Any]:
    return editor.answer({"type": "edit", "action": "draw", "tool": tool, "path": path, **more})


def shapes(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the geometries in an answer, by id."""
    json.dumps(answer)
    found = {change["object"]: change["feature"] for change in answer["changes"]}
    return {key: feature and shape(feature["geometry"]) for key, feature in found.items()}


def test_a_drawn_shape_is_answered_as_it_was_saved(editor: Editor, document: dh.Document, pushed) -> None:
    answer = apply(editor, creation("one", BOX))
    assert answer["edit"]["author"] == "anna"
    assert answer["revision"] == document.revision == 1
    assert answer["classes"] == [{"name": "tumour", "color": [200, 0, 0], "shortcut": "1"}]
    (change,) = answer["changes"]
    assert change["feature"]["id"] == "one"
    assert change["feature"]["properties"]["classification"] == {"name": "tumour", "color": [200, 0, 0]}
    assert change["feature"]["properties"]["metadata"]["author"] == "anna"
    assert not pushed


def test_bulk_changes_are_one_edit(editor: Editor, document: dh.Document) -> None:
    keys = [f"object {i}" for i in range(100)]
    apply(editor, *(creation(key, BOX) for key in keys))
    label = {"name": "stroma", "color": [0, 0, 200]}
    answer = apply(editor, *({"object": key, "after": {"properties/classification": label}} for key in keys))
    assert len(answer["changes"]) == 100
    assert document.revision == 2
    undone = editor.answer({"action": "undo"})["changes"][7]["feature"]
    assert undone["properties"]["classification"]["name"] == "tumour"


def test_what_is_sent_twice_is_done_once(editor: Editor, document: dh.Document, scan: dh.Scan) -> None:
    first = draw(editor, "brush", [[50, 50]], radius=20, key="k1", create="one")
    again = draw(editor, "brush", [[50, 50]], radius=20, key="k1", create="one")
    assert shapes(first)["one"].equals(shapes(again)["one"])
    assert document.revision == 1
    assert first["edit"] == again["edit"]
    other = Editor(dh.Document.open(scan, document.path, "anna"), print)
    assert draw(other, "split", [[50, 0], [50, 100]], objects=["one"], key="k2")["revision"] == 2
    document.poll()
    assert len(draw(editor, "split", [[50, 0], [50, 100]], objects=["one"], key="k2")["changes"]) == 2
    assert document.revision == 2
    other.answer({"action": "undo", "key": "k3"})
    other.answer({"action": "undo", "key": "k3"})
    assert len(other.document) == 1
    other.document.close()


def test_the_tools_draw_what_their_names_say(editor: Editor, document: dh.Document) -> None:
    brush = shapes(draw(editor, "brush", [[50, 50], [150, 50]], radius=20, create="b", **{"class": "tumour"}))["b"]
    assert brush.area == pytest.approx(4000 + np.pi * 400, rel=0.01)
    assert document.annotations[0].class_name == "tumour"
    larger = shapes(draw(editor, "brush", [[100, 50], [100, 150]], radius=20, objects=["b"]))["b"]
    assert larger.area > brush.area + 3000
    smaller = shapes(draw(editor, "eraser", [[100, 150]], radius=40, objects=["b"]))["b"]
    assert not smaller.intersects(shapely.Point(100, 150))
    holed = shapes(draw(editor, "hole", [[95, 45], [105, 45], [105, 55], [95, 55]], objects=["b"]))["b"]
    assert len(holed.interiors) == 1
    assert not shapes(draw(editor, "fill", objects=["b"]))["b"].interiors
    coarse = shapes(draw(editor, "simplify", objects=["b"], tolerance=5))["b"]
    assert shapely.count_coordinates(coarse) < shapely.count_coordinates(holed)
    pieces = shapes(draw(editor, "split", [[100, 0], [100, 200]], objects=["b"]))
    assert len(pieces) == 2
    assert "b" in pieces
    assert {one.class_name for one in document.annotations} == {"tumour"}
    merged = shapes(draw(editor, "merge", objects=list(pieces)))
    assert sum(one is None for one in merged.values()) == 1
    assert merged[next(iter(pieces))].area == pytest.approx(coarse.area, rel=0.01)
    region = shapes(draw(editor, "wand", [[350, 450]], tolerance=20, level=0, create="w"))["w"]
    assert region.bounds == (201, 0, 500, 900)
    assert [edit.tool for edit in document.history("w")] == ["wand"]


def test_tools_pass_over_what_lies_under_a_stroke_and_is_not_meant(editor: Editor) -> None:
    drawn = {"box": BOX, "point": shapely.Point(50, 30), "line": shapely.LineString([(0, 30), (90, 30)])}
    drawn["grazed"] = shapely.box(120, 0, 200, 60)
    apply(editor, *(creation(key, geometry) for key, geometry in drawn.items()))
    objects = list(drawn)
    assert shapes(draw(editor, "eraser", [[50, 30]], radius=5, objects=objects)).keys() == {"box"}
    ring = [[80, 20], [90, 20], [90, 30]]
    assert len(shapes(draw(editor, "hole", ring, objects=["point", "box", "line"]))["box"].interiors) == 2
    pieces = shapes(draw(editor, "split", [[0, 50], [140, 50]], objects=["box", "grazed", "point"]))
    assert len(pieces) == 2
    assert "box" in pieces
    assert draw(editor, "eraser", [[50, 30]], radius=5, objects=["point"])["edit"] is None
    with pytest.raises(BadValueError, match="expected a polygon to cut"):
        draw(editor, "hole", ring, objects=["point", "line"])
    with pytest.raises(BadValueError, match="from edge to edge"):
        draw(editor, "split", [[0, 50], [140, 50]], objects=["grazed", "point"])


def test_an_eraser_without_objects_takes_from_all_polygons_and_removes_what_is_gone(editor: Editor) -> None:
    drawn = {"small": shapely.box(40, 40, 44, 44), "large": BOX, "far": shapely.box(500, 500, 510, 510)}
    drawn["line"] = shapely.LineString([(0, 0), (100, 100)])
    apply(editor, *(creation(key, geometry) for key, geometry in drawn.items()))
    rest = shapes(draw(editor, "eraser", [[42, 42]], radius=10))
    assert rest.keys() == {"small", "large"}
    assert rest["small"] is None
    assert len(rest["large"].interiors) == 1
    with pytest.raises(BadShapeError, match=r"^a LineString; expected a polygon"):
        draw(editor, "brush", [[42, 42]], radius=10, objects=["line"])


def test_history_names_who_did_what(editor: Editor, document: dh.Document) -> None:
    apply(editor, creation("one", BOX))
    apply(editor, creation("two", BOX), key="x")
    document.change("one", review="accepted")
    edits = editor.answer({"action": "history"})["edits"]
    assert [edit["what"] for edit in edits] == ["accepted", "drawn (tumour)", "drawn (tumour)"]
    assert [edit["objects"] for edit in edits] == [["one"], ["two"], ["one"]]
    assert len(editor.answer({"action": "history", "object": "one"})["edits"]) == 2


def test_pages_of_history_leave_nothing_out_where_two_writers_share_a_clock(
    editor: Editor, document: dh.Document, scan: dh.Scan, monkeypatch
) -> None:
    monkeypatch.setattr(editing, "MOST_HISTORY", 3)
    with dh.Document.open(scan, document.path, "ben") as ben:
        for x in range(4):
            document.add(shapely.Point(x, 1))
            ben.add(shapely.Point(x, 2))
    document.poll()
    seen: list[tuple[int, str]] = []
    before = None
    while page := editor.answer({"action": "history", "before": before})["edits"]:
        before = [page[-1]["clock"], page[-1]["writer"]]
        seen += [(edit["clock"], edit["writer"]) for edit in page]
    assert len({clock for clock, _ in seen}) == 4
    assert seen[::-1] == [edit.stamp for edit in document.history()]
    with pytest.raises(BadValueError, match="cannot understand"):
        editor.answer({"action": "history", "before": 3})


def test_a_front_is_told_what_another_program_removed_and_takes_it_back(
    editor: Editor, document: dh.Document, pushed, monkeypatch
) -> None:
    apply(editor, creation("one", BOX), creation("two", BOX))
    document.save()
    theirs = json.loads(document.path.read_text())
    for most in (editing.MOST_CHANGES, 0):
        monkeypatch.setattr(editing, "MOST_CHANGES", most)
        text = json.dumps({"type": "FeatureCollection", "features": theirs["features"][:1], "most": most})
        # The document's own thread must not see the file first.
        with document._lock:
            document.path.write_text(text)
            with pytest.warns(DHLabWarning, match="without 1 of the objects"):
                document.poll()
        assert "without 1 of the objects" in pushed[-1]["told"]
        file = editor.answer({"action": "history"})["edits"][0]
        assert file["tool"] == "file"
        for _ in range(2):
            back = editor.answer({"action": "revert", "reverts": [file["clock"], file["writer"]], "key": f"k{most}"})
        assert back["edit"]["undoes"] == [file["clock"], file["writer"]]
        assert set(document.annotations.ids) == {"one", "two"}
        document.save()
    assert document.revision == 5
    with pytest.raises(UnknownNameError, match="expected one of the history"):
        editor.answer({"action": "revert", "reverts": [99, "nobody"]})


def test_find_takes_all_conditions(editor: Editor, document: dh.Document) -> None:
    apply(editor, creation("one", BOX), creation("two", shapely.box(300, 300, 310, 310), "stroma"))
    apply(editor, creation("three", shapely.Point(5, 5), "stroma"))
    apply(editor, {"object": "three", "after": {"properties/classification": None, "properties/name": "Odd one"}})
    document.change("two", review="rejected")
    document.comment("one", "mitosis?")

    def found(**wanted: Any) -> set[str]:
        return set(editor.answer({"action": "find", "filter": wanted})["ids"])

    assert found() == {"one", "two", "three"}
    assert found(**{"class": "stroma"}) == {"two"}
    assert found(**{"class": None}) == {"three"}
    assert found(**{"class": "unknown"}) == set()
    assert found(review="rejected") == {"two"}
    assert found(text="MITOSIS") == {"one"}
    assert found(text="odd") == {"three"}
    assert found(min_area=50, max_area=200) == {"two"}
    assert found(extent=[0, 0, 100, 100]) == {"one", "three"}
    assert found(extent=[0, 0, 100, 100], author="anna", min_area=1) == {"one"}
    features = editor.answer({"action": "objects", "ids": ["one", "none"]})["features"]
    assert (features[0]["id"], features[1]) == ("one", None)


def test_edits_from_elsewhere_are_pushed_and_can_be_asked_for(editor: Editor, document: dh.Document, pushed) -> None:
    edit = document.add(BOX, "tumour")
    (news,) = pushed
    assert news["revision"] == 1
    assert news["author"] == "anna"
    assert [change["object"] for change in news["changes"]] == list(edit.objects)
    assert [one["name"] for one in news["classes"]] == ["tumour"]
    assert editor.answer({"action": "changes", "since": 0}) == news
    assert editor.answer({"action": "changes", "since": 1})["changes"] == []
    assert editor.answer({"action": "changes", "since": 7})["reload"]
    document.remove(edit.objects)
    assert pushed[-1]["changes"] == [{"object": edit.objects[0], "feature": None}]


def test_very_many_changes_are_not_told_one_by_one(editor: Editor, document: dh.Document, pushed, monkeypatch) -> None:
    monkeypatch.setattr(editing, "MOST_CHANGES", 5)
    document.add(dh.Annotations.from_geometries([shapely.Point(i, i) for i in range(9)], "cell"))
    assert pushed == [{"revision": 1, "changes": [], "classes": pushed[0]["classes"], "reload": True}]


def test_classes_are_made_changed_and_removed(editor: Editor) -> None:
    answer = editor.answer({"action": "class", "name": "tumour", "color": [1, 2, 3], "shortcut": "t"})
    assert answer["classes"] == [{"name": "tumour", "color": [1, 2, 3], "shortcut": "t"}]
    apply(editor, creation("one", BOX))
    with pytest.raises(BadValueError, match="1 object"):
        editor.answer({"action": "class", "name": "tumour", "remove": True})
    answer = editor.answer({"action": "class", "name": "tumour", "rename": "carcinoma", "color": [4, 5, 6]})
    assert answer["classes"] == [{"name": "carcinoma", "color": [4, 5, 6], "shortcut": "t"}]
    assert answer["changes"][0]["feature"]["properties"]["classification"]["name"] == "carcinoma"
    answer = editor.answer({"action": "undo"})
    assert answer["classes"] == [{"name": "tumour", "color": [1, 2, 3], "shortcut": "t"}]
    answer = editor.answer({"action": "class", "name": "tumour", "remove": True, "to": "stroma"})
    assert [one["name"] for one in answer["classes"]] == ["stroma"]
    assert answer["changes"][0]["feature"]["properties"]["classification"]["name"] == "stroma"


def test_a_shape_that_crosses_itself_is_mended_and_the_person_told(editor: Editor) -> None:
    answer = apply(editor, creation("one", shapely.Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])))
    assert "mended" in answer["told"]
    assert shapes(answer)["one"].is_valid


BAD = [
    {"action": "fly"},
    {"action": "apply"},
    message(7),
    message({"object": "x", "after": {}}),
    message({"object": "", "after": {"exists": False}}),
    message({"class": "tumour", "after": {"exists": False}}),
    *(
        message({"object": "one", "after": after})
        for after in (
            {"size": 3},
            {"geometry": None},
            {"geometry": {"type": "Cube"}},
            {"geometry": {"type": "Point", "coordinates": [1, "x"]}},
            {"properties/metadata/review": "ok"},
            {"properties/classification": {}},
            {"properties/classification": 5},
        )
    ),
    {"action": "draw", "tool": "chisel"},
    {"action": "draw", "tool": "brush"},
    {"action": "draw", "tool": "brush", "path": [[1, None]]},
    {"action": "draw", "tool": "brush", "path": [[1, 1]], "radius": -4},
    {"action": "draw", "tool": "brush", "path": [[1, 1]], "objects": ["nobody"]},
    {"action": "draw", "tool": "wand", "path": [[-100, 1]]},
    {"action": "draw", "tool": "merge", "objects": ["one"]},
    {"action": "draw", "tool": "split", "objects": ["one"], "path": [[900, 900], [901, 901]]},
    {"action": "class", "name": " "},
    {"action": "class", "name": "x", "color": "red"},
    {"action": "class", "name": "nobody", "remove": True},
    {"action": "changes"},
    {"action": "find", "filter": {"min_area": "big"}},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: str(bad)[:80])
def test_bad_messages_are_refused_and_change_nothing(editor: Editor, document: dh.Document, bad) -> None:
    apply(editor, creation("one", BOX))
    with pytest.raises((BadValueError, BadShapeError, UnknownNameError)):
        editor.answer(bad)
    assert document.revision == 1


@pytest.mark.parametrize("points", [[[0, 0], [9, 9]], [[0, 0], [9, 9], [0, 0]], [[0, 0], [5, 5], [9, 9], [0, 0]]])
def test_a_polygon_of_two_points_is_refused(editor: Editor, document: dh.Document, points) -> None:
    change = creation("one", BOX)
    change["after"]["geometry"] = {"type": "Polygon", "coordinates": [points]}
    with pytest.raises(BadValueError, match="points"):
        apply(editor, change)
    assert document.revision == 0


def test_a_viewer_edits_its_documents_and_shows_them(scan: dh.Scan, document: dh.Document) -> None:
    viewer = Viewer(scan, document)
    layer = viewer.layers[1]
    assert layer.document is document
    before = viewer.snapshot(300, legend=False)
    viewer.edit(layer.id, message(creation("one", shapely.box(200, 200, 600, 600))))
    assert (viewer.snapshot(300, legend=False) != before).any()
    assert viewer.layer(layer.id).revision == 0
    with pytest.raises(BadValueError, match="no document"):
        viewer.edit(0, {"action": "undo"})
    with pytest.raises(BadValueError, match="nor a document"):
        viewer.replace(layer.id, document.annotations)
    viewer.remove(layer.id)
    document.remove("one")
    viewer.close()


def test_a_viewer_gives_all_shapes_anew_after_very_many_changes(scan, document, monkeypatch) -> None:
    monkeypatch.setattr("dhlab.view.viewer.MOST_CHANGES", 5)
    viewer = Viewer(scan, document)
    number = viewer.layers[1].id
    for i in range(5):
        document.add(shapely.Point(i, i), "cell")
    assert viewer.layer(number).revision == 0
    document.add(shapely.Point(50, 50), "nucleus")
    layer = viewer.layer(number)
    assert (layer.revision, layer.packed, len(layer.thing)) == (1, 6, 6)
    assert len(viewer.settings[str(number)]["class_colors"]) == 2
    viewer.close()


def test_an_edit_of_a_read_only_document_says_why(scan: dh.Scan, tmp_path: Path) -> None:
    (tmp_path / "slide.edits").write_text("a file where the folder should be")
    with dh.Document.open(scan, tmp_path / "slide.geojson") as document:
        editor = Editor(document, print)
        assert document.read_only is not None
        assert editing.describe_document(document, 0)["readOnly"] == document.read_only
        with pytest.raises(StorageError, match="cannot be edited"):
            apply(editor, creation("one", BOX))
        assert issubclass(StorageError, DHLabError)
