"""The annotation document: edits that last, undo, history, classes, several people at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shapely

import dhlab as dh
from dhlab.annotations import Document
from dhlab.errors import BadValueError, StorageError, UnknownNameError

SQUARE = shapely.box(10, 10, 110, 60)


def contents(document: Document) -> dict[str, object]:
    """Return every object as decoded GeoJSON, by id."""
    return {key: json.loads(document.feature(key) or b"") for key in document.annotations.ids}


def test_nothing_is_written_before_the_first_edit(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        assert document.read_only is None
        assert len(document.annotations) == len(document) == 0
    assert not list(place.parent.iterdir())


def test_an_edit_is_there_after_opening_anew(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as document:
        edit = document.add(SQUARE, "tumour", tool="rectangle")
        assert edit is not None
        (key,) = edit.objects
    with Document.open(scan, place, "ben") as document:
        (one,) = document.annotations
        assert (one.id, one.class_name, one.author) == (key, "tumour", "anna")
        assert one.geometry.equals(SQUARE)
        (past,) = document.history(key)
        assert (past.author, past.tool) == ("anna", "rectangle")
        assert "drawn (tumour)" in document.history()._repr_html_()
    assert dh.Annotations.from_geojson(place).class_names == ("tumour",)


def test_an_edit_lasts_although_the_file_was_never_written(scan: dh.Scan, place: Path) -> None:
    document = Document.open(scan, place)
    document.add(SQUARE)
    assert not place.exists()
    assert len(Document.open(scan, place)) == 1
    document.close()
    assert place.exists()


def test_two_people_change_different_things_of_one_object(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        (key,) = anna.add(SQUARE, "tumour").objects
        assert ben.poll()
        anna.change(key, class_name="stroma")
        ben.change(key, geometry=shapely.box(0, 0, 5, 5), review="accepted")
        ben.comment(key, "too small?")
        anna.comment(key, "no")
        assert anna.poll()
        assert ben.poll()
        assert contents(anna) == contents(ben)
        (one,) = anna.annotations
        assert one.class_name == "stroma"
        assert one.geometry.area == 25
        metadata = one.extras["properties"]["metadata"]
        assert metadata["review"] == "accepted"
        assert {text for name, text in metadata.items() if name.startswith("comment ")} == {"too small?", "no"}


def test_undo_takes_back_ones_own_edits_only(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        (first,) = anna.add(SQUARE, "tumour").objects
        ben.poll()
        (second,) = ben.add(SQUARE, "tumour").objects
        anna.poll()
        anna.undo()
        assert anna.annotations.ids.tolist() == [second]
        assert anna.undo() is None
        anna.redo()
        assert set(anna.annotations.ids) == {first, second}
        assert anna.redo() is None


def test_undo_and_redo_reach_back_to_the_beginning_after_opening_anew(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as document:
        (key,) = document.add(SQUARE, "tumour").objects
        document.change(key, class_name="stroma")
        document.change(key, geometry=shapely.Point(5, 5))
        document.remove(key)
        states = [contents(document)]
    with Document.open(scan, place, "anna") as document:
        assert document.can_undo() == (True, False)
        while document.undo():
            states.append(contents(document))
        assert document.can_undo() == (False, True)
        assert len(states) == 5
        assert not states[-1]
        for state in states[-2::-1]:
            document.redo()
            assert contents(document) == state
        assert document.can_undo() == (True, False)
        document.undo()
        document.add(SQUARE)
        assert document.can_undo() == (True, False)


def test_undo_leaves_what_others_have_changed_since_and_says_so(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        (key,) = anna.add(SQUARE, "tumour").objects
        ben.poll()
        ben.change(key, class_name="stroma")
        anna.poll()
        edit = anna.undo()
        assert "ben changed it" in edit.note
        assert anna.annotations[0].class_name == "stroma"
        ben.poll()
        ben.undo()
        anna.poll()
        anna.redo()
        assert not anna.undo().note
        assert len(anna) == 0


def test_a_class_that_objects_have_is_removed_only_with_another_for_them(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.add(dh.Annotations.from_geometries([SQUARE, shapely.Point(1, 2)], "tumour"))
        with pytest.raises(BadValueError, match="2 objects have the class 'tumour'"):
            document.remove_class("tumour")
        document.remove_class("tumour", to="stroma")
        assert [one.name for one in document.classes] == ["stroma"]
        assert document.annotations.class_names == ("stroma",)
        document.undo()
        assert len(document.annotations.of_class("tumour")) == 2


def test_a_class_is_renamed_and_named_back_in_one_step(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.set_class("tumour", color=(200, 0, 0), shortcut="t")
        document.set_class("stroma", color=(0, 200, 0))
        document.add(dh.Annotations.from_geometries([SQUARE, shapely.Point(1, 2)], "tumour"))
        before = document.classes
        edit = document.rename_class("tumour", "carcinoma")
        assert edit is not None
        assert len(edit.objects) == 2
        assert {(one.name, one.color, one.shortcut) for one in document.classes} == {
            ("carcinoma", (200, 0, 0), "t"),
            ("stroma", (0, 200, 0), "1"),
        }
        assert [one.class_name for one in document.annotations] == ["carcinoma"] * 2
        document.undo()
        assert document.classes == before
        assert [one.class_name for one in document.annotations] == ["tumour"] * 2
        document.redo()
        document.rename_class("carcinoma", "tumour", color=(1, 2, 3), shortcut="")
        assert {(one.name, one.color) for one in document.classes} == {("tumour", (1, 2, 3)), ("stroma", (0, 200, 0))}
        assert document.rename_class("tumour", "tumour") is None
        with pytest.raises(BadValueError, match="already"):
            document.rename_class("tumour", "stroma")
        with pytest.raises(BadValueError, match="some text"):
            document.rename_class("tumour", " ")
        with pytest.raises(UnknownNameError, match="Did you mean 'tumour'"):
            document.rename_class("tumor", "x")
    with Document.open(scan, place) as document:
        assert [one.class_name for one in document.annotations] == ["tumour"] * 2


def test_what_others_draw_while_a_class_is_renamed_keeps_its_class(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, author="anna") as anna, Document.open(scan, place, author="ben") as ben:
        anna.add(SQUARE, "tumour")
        ben.poll()
        anna.rename_class("tumour", "carcinoma")
        ben.add(shapely.Point(5, 5), "tumour")
        ben.rename_class("tumour", "adenoma")
        anna.poll()
        ben.poll()
        for one in (anna, ben):
            assert sorted(each.class_name or "" for each in one.annotations) == ["adenoma", "adenoma"]
            assert {each.name for each in one.classes} == {"carcinoma", "adenoma"}
        anna.undo()
        ben.poll()
        assert [each.class_name for each in anna.annotations] == [each.class_name for each in ben.annotations]
        assert "adenoma" in {each.name for each in anna.classes}


def test_classes_have_colours_and_shortcuts(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.set_class("tumour", color=(200, 0, 0), shortcut="t")
        document.set_class("stroma")
        assert document.set_class("tumour", color=(200, 0, 0)) is None
        with pytest.raises(BadValueError, match="belongs to 'tumour'"):
            document.set_class("stroma", shortcut="t")
        with pytest.raises(BadValueError, match="0 to 255"):
            document.set_class("stroma", color=(1, 2, 300))
        with pytest.raises(UnknownNameError, match="Did you mean 'stroma'"):
            document.remove_class("stromma")
        document.add(SQUARE, "stroma")
    with Document.open(scan, place) as document:
        tumour, stroma = document.classes
        assert (tumour.name, tumour.color, tumour.shortcut) == ("tumour", (200, 0, 0), "t")
        assert (stroma.name, stroma.shortcut) == ("stroma", "1")
        document.set_class("stroma", color=(1, 2, 3))
        assert document.annotations[0].color == (1, 2, 3)
        document.undo()
        assert document.annotations[0].color != (1, 2, 3)
        document.set_class("stroma", shortcut="")
        document.set_class("necrosis")
        assert [one.shortcut for one in document.classes] == ["t", "", "1"]
    for log in place.with_suffix(".edits").iterdir():
        log.unlink()
    with Document.open(scan, place) as document:
        assert [one.shortcut for one in document.classes] == ["t", "", "1"]
    # As earlier versions wrote that none was given.
    place.write_text(place.read_text().replace('"shortcut":null', '"shortcut":""'))
    with Document.open(scan, place) as document:
        assert [one.shortcut for one in document.classes] == ["t", "1", "2"]


def test_a_closed_document_is_not_edited(scan: dh.Scan, place: Path) -> None:
    document = Document.open(scan, place)
    document.close()
    with pytest.raises(StorageError, match="is closed"):
        document.add(SQUARE)
    document.close()


def test_observers_hear_of_every_edit(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        heard: list[tuple[str, ...]] = []
        start = ben.revision
        end = ben.observe(lambda update: heard.append(update.objects))
        edit = anna.add(SQUARE)
        ben.poll()
        ben.change(edit.objects, review="accepted")
        assert heard == [edit.objects, edit.objects]
        assert ben.changes_since(start).objects == edit.objects
        assert ben.changes_since(ben.revision).objects == ()
        assert ben.changes_since(ben.revision + 1) is None
        end()
        ben.remove(edit.objects)
        assert len(heard) == 2
