"""What a document leaves on the disk, and what others do to it there: crashes, damage, other programs."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

import dhlab as dh
from dhlab.annotations import Document
from dhlab.errors import BadFileError, BadValueError, DHLabWarning, StorageError

SQUARE = shapely.box(10, 10, 110, 60)
ROOT = Path(__file__).parents[2]

DRAWING = """
import sys, numpy as np, shapely, dhlab as dh
scan = dh.Scan.from_array(np.zeros((900, 700, 3), np.uint8), "yxc", spacing=0.5, unit="µm", name="slide")
document = dh.Document.open(scan, sys.argv[1], "anna")
for number in range(100_000):
    (key,) = document.add(shapely.Point(number % 700, 5), "cell").objects
    print(key, flush=True)
    if number % 10 == 5:
        document.save()
"""

# As QuPath 0.5 writes them: a hole, a multipolygon, a cell with nucleus, derived class, measurements, unknown members.
QUPATH = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "7a3c7d2e-5c9e-4f4e-9f0a-0f0d1b8f7a10",
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [[10.5, 20], [110.25, 20], [110.25, 90.75], [10.5, 90.75], [10.5, 20]],
                    [[40, 40], [40, 60], [60, 60], [60, 40], [40, 40]],
                ],
            },
            "properties": {
                "objectType": "annotation",
                "name": "Région 1",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "isLocked": True,
                "metadata": {"ANNOTATION_DESCRIPTION": "näher ansehen", "pN": "1"},
            },
        },
        {
            "type": "Feature",
            "id": "b1",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [
                    [[[0, 0], [5, 0], [5, 5], [0, 0]]],
                    [
                        [[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]],
                        [[150, 150], [150, 200], [200, 200], [150, 150]],
                    ],
                ],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"names": ["Tumor", "Positive"], "color": [9, 8, 7]},
            },
        },
        {
            "type": "Feature",
            "id": "c1",
            "geometry": {"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]], "isEllipse": True},
            "nucleusGeometry": {"type": "Polygon", "coordinates": [[[2, 2], [4, 2], [4, 4], [2, 2]]]},
            "properties": {"objectType": "cell", "measurements": {"Area µm^2": 12.25, "Circularity": 0.12345678901}},
        },
        *(
            {
                "type": "Feature",
                "id": kind,
                "geometry": {"type": kind, "coordinates": c},
                "properties": {"objectType": "annotation"},
            }
            for kind, c in (
                ("Point", [3.125, 4]),
                ("MultiPoint", [[1, 2], [3, 4.5]]),
                ("LineString", [[0, 0], [1e3, 0.001]]),
                ("MultiLineString", [[[0, 0], [1, 1]], [[2, 2], [3, 3], [4, 2]]]),
            )
        ),
    ],
}  # fmt: skip


def features(path: Path) -> list[Any]:
    return json.loads(path.read_text())["features"]


def rewrite(path: Path, change: Any = None, decimals: int | None = None) -> None:
    """Write the file as another program does: without our member, formatted, perhaps rounded and changed."""
    data = json.loads(path.read_text())
    data.pop("dhlab", None)
    if change is not None:
        change(data["features"])
    text = json.dumps(data, indent=2)
    if decimals is not None:
        text = json.dumps(json.loads(text, parse_float=lambda number: round(float(number), decimals)))
    path.write_text(text)
    # Two writes within one tick of the clock of the file system would look alike.
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


def contents(document: Document) -> dict[str, Any]:
    return {key: json.loads(document.feature(key) or b"") for key in document.annotations.ids}


def log_files(place: Path) -> list[Path]:
    return sorted(place.with_suffix(".edits").iterdir())


def test_geojson_with_everything_in_it_comes_back_exactly(scan: dh.Scan, place: Path) -> None:
    place.write_text(json.dumps(QUPATH))
    with Document.open(scan, place) as document:
        assert len(document.annotations) == len(document) == len(QUPATH["features"])
        (key,) = document.add(SQUARE, "Tumor").objects
        document.change("b1", class_name="Stroma")
        document.change("b1", class_name="Tumor: Positive")
        document.remove(key)
    assert features(place) == QUPATH["features"]
    again = dh.Annotations.from_geojson(place)
    again.to_geojson(place.with_name("again.geojson"), decimals=3)
    theirs = {one["id"]: one for one in features(place.with_name("again.geojson"))}
    assert all(theirs[one["id"]]["geometry"] == one["geometry"] for one in QUPATH["features"])


def test_nested_objects_and_those_without_a_proper_id_are_kept(scan: dh.Scan, place: Path) -> None:
    child = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {"name": "child"}}
    parent = {**child, "id": "same", "properties": {"childObjects": [child, child]}}
    nothing = {"type": "Feature", "geometry": None, "properties": {}}
    place.write_text(json.dumps({"type": "FeatureCollection", "features": [parent, parent, nothing]}))
    ids = Document.open(scan, place).annotations.ids.tolist()
    assert len(set(ids)) == 6
    assert ids == Document.open(scan, place).annotations.ids.tolist()


def test_positions_of_slides_with_bounds_are_shifted_at_the_border_only(scan: dh.Scan, place: Path) -> None:
    slide = scan.replace(meta={**scan.meta, "bounds": [200, 100, 30, 40]})
    place.write_text(json.dumps(QUPATH))
    with Document.open(slide, place) as document:
        assert document.annotations[3].geometry.coords[0] == (103.125, 204)
        (key,) = document.add(shapely.Point(150, 250)).objects
    assert features(place)[:-1] == QUPATH["features"]
    assert features(place)[-1]["geometry"]["coordinates"] == [50, 50]
    assert Document.open(slide, place).geometries([key])[0].equals(shapely.Point(150, 250))


@pytest.mark.parametrize("turn", range(3))
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(scan: dh.Scan, place: Path, turn: int) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", DRAWING, str(place)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(20 + 7 * turn)]
        process.kill()
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    document = Document.open(scan, place, "anna")
    assert set(acknowledged) <= set(document.annotations.ids)
    assert document.undo() is not None
    document.close()
    assert len(features(place)) == len(document)
    assert not [path for path in place.parent.iterdir() if path.name.endswith(".partial")]


def test_a_log_that_ends_anywhere_keeps_all_whole_edits(scan: dh.Scan, place: Path) -> None:
    document = Document.open(scan, place)
    for x in range(3):
        document.add(shapely.Point(x, 1), "cell")
    (log,) = log_files(place)
    whole = log.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in [*range(ends[-2], len(whole), 17), *range(0, ends[0], 40)]:
        log.write_bytes(whole[:length])
        if length in (0, *ends):
            assert len(Document.open(scan, place)) == max(0, sum(end <= length for end in ends) - 1)
        else:
            with pytest.warns(DHLabWarning, match="end within a line"):
                assert len(Document.open(scan, place)) == max(0, sum(end <= length for end in ends) - 1)
    log.write_bytes(whole)
    assert len(Document.open(scan, place)) == 3


HALF = ['"changes":[7,', '"changes":[{},', '"changes":[{"object":3,"after":{}},', '"changes":[{"object":"x"},']
DAMAGE = [b"\0" * 50, b"{}", b"[]", b"7", b'{"clock":1}', b"\xff\xfe", b"hello", b"\r"]


@pytest.mark.parametrize("damage", [*DAMAGE, "cut before", "cut behind", *HALF], ids=str)
def test_a_damaged_line_is_told_and_the_others_count(scan: dh.Scan, place: Path, damage: Any) -> None:
    document = Document.open(scan, place)
    for x in range(3):
        document.add(shapely.Point(x, 1))
    (log,) = log_files(place)
    lines = log.read_bytes().split(b"\n")
    cuts = {"cut before": lines[2][5:], "cut behind": lines[2][:-5]}
    text = cuts.get(damage, damage)
    other = text if isinstance(text, bytes) else lines[2].replace(b'"changes":[', text.encode())
    log.write_bytes(b"\n".join([*lines[:2], other, *lines[3:]]))
    with pytest.warns(DHLabWarning, match=r"edit 2 of .* is damaged and left out"):
        again = Document.open(scan, place)
    assert [one.geometry.x for one in again.annotations] == [0, 2]
    with again:
        again.add(shapely.Point(9, 9))
    with pytest.warns(DHLabWarning, match="damaged"):
        assert len(Document.open(scan, place)) == 3


def test_what_is_no_log_is_refused(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.add(SQUARE)
    (log,) = log_files(place)
    whole = log.read_text()
    for text, said in (("hello\n", "no edit log"), (whole.replace('"version":1', '"version":2'), "Update dhlab")):
        log.write_text(text)
        with pytest.raises(BadFileError, match=said):
            Document.open(scan, place)


def test_a_log_of_another_scan_stays_refused_as_it_grows(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan.replace(name="other"), place.with_name("other.geojson")) as document:
        document.add(SQUARE)
        document.add(SQUARE)
        (log,) = log_files(document.path)
        header, first, second = log.read_bytes().splitlines(keepends=True)[:3]
    with Document.open(scan, place) as document:
        document.add(SQUARE)
        log = log_files(place)[0].with_stem("0" * 16)
        for text in (header + first, header + first + second):
            log.write_bytes(text)
            with pytest.warns(DHLabWarning, match="belongs to the scan 'other'"):
                document.poll()
            assert len(document) == 1


def test_the_document_of_another_scan_is_refused(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.add(SQUARE)
    others = [scan.replace(name="other"), dh.Scan.from_array(np.zeros((9, 9, 3), np.uint8), "yxc", name="slide")]
    for other in others:
        with pytest.raises(BadFileError, match="belongs to the scan 'slide'"):
            Document.open(other, place)
    saved = place.read_text()
    place.unlink()
    with pytest.raises(BadFileError, match=r"\.jsonl belongs to the scan 'slide' of \[900, 700\]"):
        Document.open(others[0], place)
    log_files(place)[0].unlink()
    place.write_text(saved)
    with pytest.raises(BadFileError, match=r"\.geojson belongs"):
        Document.open(others[0], place)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"features": [{"type": "Feature", "geometry": 5}]}'])
def test_a_damaged_file_is_refused_and_left_alone(scan: dh.Scan, place: Path, text: str) -> None:
    place.write_text(text)
    with pytest.raises(BadFileError):
        Document.open(scan, place).annotations  # noqa: B018 - reading it is what fails
    assert place.read_text() == text


def test_a_document_needs_a_place_and_a_fitting_name(scan: dh.Scan, tmp_path: Path) -> None:
    with pytest.raises(BadValueError, match="has no file"):
        Document.open(scan)
    with pytest.raises(BadValueError, match=r"ends in \.geojson"):
        Document.open(scan, tmp_path / "slide.json")
    for name, wanted in (("a.ome.tif", "a.geojson"), ("b.svs", "b.geojson"), ("c.d.tiff", "c.d.geojson")):
        slide = scan.replace(meta={"path": str(tmp_path / name)})
        assert Document.open(slide).path == tmp_path / wanted


def test_a_clock_that_goes_backwards_changes_nothing(scan: dh.Scan, place: Path, monkeypatch) -> None:
    import dhlab.annotations.store as store

    class Backwards(store.datetime):
        hour = 23

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            cls.hour -= 1
            return super().now(tz).replace(year=2001, hour=cls.hour)

    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        (key,) = anna.add(SQUARE, "first").objects
        ben.poll()
        monkeypatch.setattr(store, "datetime", Backwards)
        for author, name in ((ben, "second"), (anna, "third"), (ben, "fourth")):
            author.poll()
            author.change(key, class_name=name)
        anna.poll()
        monkeypatch.undo()
        assert anna.annotations[0].class_name == ben.annotations[0].class_name == "fourth"
        times = [edit.time for edit in anna.history()]
        assert times != sorted(times)
        assert [edit.author for edit in anna.history()] == ["anna", "ben", "anna", "ben"]
        ben.undo()
        assert ben.annotations[0].class_name == "third"


def test_an_edit_by_another_program_appears_in_every_process_and_is_logged_once(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        keys = [anna.add(shapely.box(x, 0, x + 9.123, 9), "tumour").objects[0] for x in range(0, 100, 20)]
        ben.poll()
        ben.comment(keys[0], "hello")
        ben.save()

        def change(found: list[Any]) -> None:
            found[0]["properties"]["classification"] = {"name": "stroma", "color": [1, 2, 3]}
            found[1]["geometry"]["coordinates"] = [[[0, 0], [50, 0], [50, 50], [0, 0]]]
            del found[2]
            found.append({**found[0], "id": "new", "geometry": {"type": "Point", "coordinates": [1, 2]}})

        rewrite(place, change, decimals=2)
        before = anna.revision
        for document in (anna, ben):
            # One that was drawn is gone: the program may have read the file before.
            with pytest.warns(DHLabWarning, match=r"wrote slide.geojson without 1 of the objects drawn"):
                assert document.poll()
        assert anna.changes_since(before).classes
        assert contents(anna) == contents(ben)
        assert set(anna.annotations.ids) == {*keys, "new"} - {keys[2]}
        assert (anna.annotations[0].class_name, anna.annotations[0].color) == ("stroma", (1, 2, 3))
        assert anna.geometries([keys[1]])[0].area == 1250
        (edit,) = [edit for edit in anna.history() if edit.tool == "file"]
        # What the other program only rounded was not changed.
        assert set(edit.objects) == {keys[0], keys[1], keys[2], "new"}
        assert anna.can_undo() == (True, False)
        anna.revert(edit)
        ben.poll()
        assert set(ben.annotations.ids) == set(keys)
    with Document.open(scan, place) as document:
        assert set(document.annotations.ids) == set(keys)
        assert len([edit for edit in document.history() if edit.tool == "file"]) == 1


def test_what_was_acknowledged_after_the_file_was_written_survives_another_program(scan: dh.Scan, place: Path) -> None:
    anna = Document.open(scan, place, "anna")
    first = anna.add(SQUARE, "tumour").objects[0]
    anna.save()
    second = anna.add(SQUARE, "tumour").objects[0]
    anna.change(first, class_name="stroma")
    # Another program saves what it read before these edits, with changes of its own.
    rewrite(place, lambda found: found[0]["properties"].update(name="theirs"))
    anna.poll()
    late = Document.open(scan, place, "ben")
    for document in (anna, late):
        assert set(document.annotations.ids) == {first, second}
        (one,) = (one for one in document.annotations if one.id == first)
        assert (one.class_name, one.name) == ("stroma", "theirs")
    assert contents(anna) == contents(late)
    anna.close()
    late.close()
    assert {one["id"] for one in features(place)} == {first, second}


def test_an_edit_by_another_program_while_nobody_looked_is_found_when_opening(scan: dh.Scan, place: Path) -> None:
    place.write_text(json.dumps(QUPATH))
    with Document.open(scan, place, "anna") as document:
        document.change("b1", class_name="Stroma")
        (key,) = document.add(SQUARE, "Stroma").objects

    def change(found: list[Any]) -> None:
        found[1]["properties"]["classification"] = {"name": "Necrosis", "color": [5, 5, 5]}
        found[0]["properties"]["name"] = "renamed"
        del found[-1]

    rewrite(place, change)
    for told in (pytest.warns(DHLabWarning, match="without 1 of the objects drawn"), nullcontext()):
        with told:
            document = Document.open(scan, place, "ben")
        with document:
            classes = dict(zip(document.annotations.ids, document.annotations.classes, strict=True))
            assert key not in classes
            assert document.annotations.class_names[classes["b1"]] == "Necrosis"
            assert document.annotations[0].name == "renamed"
            (edit,) = [edit for edit in document.history() if edit.tool == "file"]
            assert set(edit.objects) == {"b1", key}
            document.comment("c1", "seen")


def test_an_older_copy_that_another_program_saves_is_told_and_taken_back(scan: dh.Scan, place: Path) -> None:
    place.write_text(json.dumps(QUPATH))
    with Document.open(scan, place, "anna") as document:
        document.add(SQUARE, "tumour")
        document.save()
        older = place.read_text()
        keys = [document.add(shapely.box(x, 0, x + 5, 5), "stroma").objects[0] for x in range(10)]
        document.save()
        place.write_text(older)
        rewrite(place, lambda found: found.pop(1))
        with pytest.warns(DHLabWarning, match=r"without 10 of the objects drawn here.*older copy.*revert"):
            document.poll()
        assert not set(keys) & set(document.annotations.ids)
        assert document.can_undo() == (True, False)
        document.revert(document.history()[-1])
        assert set(keys) < set(document.annotations.ids)
        # What was in the file before the first edit is in every copy of it: whoever leaves it out means it.
        document.save()
        rewrite(place, lambda found: found.pop(0))
        document.poll()
        assert len(document) == len(QUPATH["features"]) + 10


def test_a_file_that_another_program_is_still_writing_is_left_alone(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        (key,) = document.add(SQUARE).objects
        document.save()
        whole = place.read_text()
        place.write_text(whole[:100])
        with pytest.warns(DHLabWarning, match="go on without it"):
            document.poll()
        document.change(key, name="ours")
        document.save()
        assert place.read_text() == whole[:100]
        theirs = json.loads(whole)["features"]
        broken = {**theirs[0], "id": "broken", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}
        place.write_text(json.dumps({"type": "FeatureCollection", "features": [*theirs, broken]}))
        with pytest.warns(DHLabWarning, match="ring of 2 points"):
            document.poll()
        assert len(document.annotations) == 1
        place.write_text(whole.replace('"annotation"', '"detection"'))
        document.poll()
        assert (document.annotations[0].name, document.annotations[0].kind) == ("ours", "detection")
        document.save()
        assert features(place)[0]["properties"]["name"] == "ours"
        place.unlink()
        document.poll()
        assert len(document) == 1
        document.change(key, name="back")
    assert features(place)[0]["properties"]["name"] == "back"


def test_another_program_may_empty_the_file(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.add(SQUARE)
        document.save()
        rewrite(place, lambda found: found.clear())
        with pytest.warns(DHLabWarning, match="without 1 of the objects"):
            document.poll()
        assert len(document) == len(document.annotations) == 0
        document.revert(document.history()[-1])
        assert len(document) == 1


def test_a_document_that_is_only_looked_at_writes_nothing(scan: dh.Scan, place: Path) -> None:
    place.write_text(json.dumps(QUPATH))
    with Document.open(scan, place) as document:
        document.observe(lambda update: None)
        rewrite(place, lambda found: found.pop())
        end = time.monotonic() + 10
        while len(document) == len(QUPATH["features"]) and time.monotonic() < end:
            time.sleep(0.02)
        assert len(document) == len(QUPATH["features"]) - 1
    assert list(place.parent.iterdir()) == [place]


def test_the_file_follows_by_itself(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        document.add(SQUARE)
        end = time.monotonic() + 10
        while not place.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert len(features(place)) == 1


def test_a_full_disk_is_told_and_nothing_half_written_counts(scan: dh.Scan, place: Path, monkeypatch) -> None:
    with Document.open(scan, place) as document:
        document.add(shapely.Point(1, 1))
        write = os.write

        def half(handle: int, data: Any) -> int:
            if len(data) < 30:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(handle, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(StorageError, match="disk is full"):
            document.add(shapely.Point(2, 2))
        monkeypatch.undo()
        assert len(document) == 1
        document.add(shapely.Point(3, 3))
        assert [one.geometry.x for one in Document.open(scan, place).annotations] == [1, 3]
        # Where not even that can be taken back, the next edit goes into another file.
        monkeypatch.setattr(os, "write", half)
        monkeypatch.setattr(os, "ftruncate", lambda handle, size: half(handle, b""))
        with pytest.raises(StorageError, match="disk is full"):
            document.add(shapely.Point(4, 4))
        monkeypatch.undo()
        document.add(shapely.Point(5, 5))
        assert len(log_files(place)) == 2
        with pytest.warns(DHLabWarning, match="end within a line"):
            again = Document.open(scan, place)
        assert [one.geometry.x for one in again.annotations] == [1, 3, 5]
    new = Document.open(scan, place.with_name("new.geojson"))
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StorageError, match="disk is full"):
        new.add(shapely.Point(1, 1))
    monkeypatch.undo()
    new.add(shapely.Point(2, 2))
    assert len(Document.open(scan, new.path)) == 1


def test_what_is_no_log_does_not_keep_the_others_from_being_read(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        anna.add(SQUARE)
        (log,) = log_files(place)
        log.with_name("0.jsonl").write_text("hello\n")
        log.with_name("z.jsonl").write_text("hello\n")
        for document in (anna, ben):
            with pytest.warns(DHLabWarning, match="no edit log"):
                document.poll()
        assert len(ben) == 1
        anna.add(SQUARE)
        assert ben.poll()
        assert not ben.poll()


def test_a_read_only_place_is_told_before_drawing(scan: dh.Scan, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.edits").write_text("a file where the folder should be")
    places = [tmp_path / "a.geojson", tmp_path / "none" / "b.geojson", Path("/proc/c.geojson")]
    for place in places:
        document = Document.open(scan, place)
        assert document.read_only
        assert "read-only" in repr(document)
        with pytest.raises(StorageError, match="cannot be edited"):
            document.add(SQUARE)
        with pytest.raises(StorageError, match="cannot be edited"):
            document.set_class("tumour")
        assert document.undo() is None
        document.close()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "the file system is read-only" in str(Document.open(scan, tmp_path / "d.geojson").read_only)


def test_a_document_on_a_file_system_without_writing_can_be_looked_at(scan: dh.Scan, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    with Document.open(scan, folder / "slide.geojson") as document:
        document.add(SQUARE)
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting needs more rights")
    try:
        document = Document.open(scan, folder / "slide.geojson")
        assert len(document) == 1
        assert "read-only" in str(document.read_only)
        document.close()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_private_document_stays_private(scan: dh.Scan, place: Path) -> None:
    place.write_text(json.dumps(QUPATH))
    place.chmod(0o600)
    place.parent.chmod(0o775)
    with Document.open(scan, place) as document:
        document.add(SQUARE)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, *log_files(place))] == [0o600, 0o600]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_what_root_draws_stays_with_who_owns_the_document(scan: dh.Scan, place: Path) -> None:
    place.write_text(json.dumps(QUPATH))
    os.chown(place, 1001, 1001)
    with Document.open(scan, place) as document:
        document.add(SQUARE)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (place, *log_files(place))} == {(1001, 1001)}


@contextmanager
def as_user(number: int, umask: int) -> Iterator[None]:
    """Do something as another user, who is also of the group 3000."""
    groups, before = os.getgroups(), os.umask(umask)
    os.setgroups([3000])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as other users")
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o2775, 0o775])
def test_two_users_share_a_document_in_a_folder_of_their_group(scan: dh.Scan, umask: int, mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "project", "slide.geojson")
        with Document.open(scan, Path(folder, "first.geojson")) as document:
            # What is imported late may not be readable for others.
            document.add(SQUARE)
        Path(folder).chmod(0o755)
        place.parent.mkdir()
        os.chown(place.parent, 0, 3000)
        place.parent.chmod(mode)
        for count, user in enumerate((1001, 1002, 1001)):
            with as_user(user, umask), Document.open(scan, place) as document:
                assert document.read_only is None
                assert len(document) == count
                document.add(SQUARE)
        assert len(features(place)) == 3
        for path in (place, *log_files(place)):
            assert path.stat().st_gid == 3000
            assert stat.S_IMODE(path.stat().st_mode) == (0o660 if umask == 0o077 else 0o664)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as other users")
def test_what_may_not_be_read_is_told(scan: dh.Scan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "slide.geojson")
        Path(folder).chmod(0o777)
        with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
            anna.add(SQUARE)
            (log,) = log_files(place)
            log.chmod(0o600)
            with as_user(1001, 0o022), pytest.warns(DHLabWarning, match=r"cannot read .*jsonl: Permission denied"):
                ben.poll()
            with as_user(1001, 0o022):
                assert not ben.poll()
            anna.add(SQUARE)
            log.chmod(0o644)
            assert ben.poll()
            assert len(ben) == 2
        for path in (log, place):
            path.chmod(0o600)
            with as_user(1001, 0o022), pytest.raises(BadFileError, match="cannot read"):
                Document.open(scan, place)
            path.chmod(0o644)
        with as_user(1001, 0o022):
            Document.open(scan, place).close()


def test_a_link_leads_to_the_same_document(scan: dh.Scan, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    with Document.open(scan, tmp_path / "case" / "slide.geojson") as document:
        document.add(SQUARE)
    (tmp_path / "link.geojson").symlink_to(tmp_path / "case" / "slide.geojson")
    with Document.open(scan, tmp_path / "link.geojson") as document:
        document.add(SQUARE)
        assert len(document) == 2
    assert len(features(tmp_path / "case" / "slide.geojson")) == 2
    assert (tmp_path / "link.geojson").is_symlink()
