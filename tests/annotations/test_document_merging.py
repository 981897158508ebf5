"""Ten thousand random edits by two people: whoever reads the log, in whatever order, finds the same document."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import shapely

import dhlab as dh
from dhlab.annotations import Document
from dhlab.annotations.edits import Edit
from dhlab.annotations.registers import State
from dhlab.errors import DHLabWarning

EDITS = 10_000
CLASSES = ("tumour", "stroma", "necrosis", None)
# How often each is done; what concerns a whole class changes thousands of objects at once.
ACTIONS = {"add": 3, "class": 2, "move": 2, "review": 1, "comment": 1, "remove": 1, "undo": 1}
ACTIONS |= {"set class": 0.05, "rename class": 0.05, "remove class": 0.05}


def edit_at_random(document: Document, ids: list[str], rng: random.Random) -> None:
    """Do one of everything that a person can do, to objects that may have been removed by the other one."""
    action = rng.choices([*ACTIONS], [*ACTIONS.values()])[0]
    there = [key for key in rng.sample(ids, min(3, len(ids))) if document.feature(key) is not None]
    if action.endswith(" class"):
        (name, other), known = rng.sample(CLASSES[:-1], 2), {one.name for one in document.classes}
        if action == "set class":
            document.set_class(name, color=tuple(rng.randbytes(3)))
        elif action == "remove class" and name in known:
            document.remove_class(name, to=other)
        elif action == "rename class" and name in known and other not in known:
            document.rename_class(name, other)
    elif action == "add" or not there:
        x, y = rng.randrange(600), rng.randrange(800)
        edit = document.add(shapely.box(x, y, x + 5, y + 7), rng.choice(CLASSES))
        ids += edit.objects
    elif action == "class":
        document.change(there, class_name=rng.choice(CLASSES))
    elif action == "move":
        document.change(there[0], geometry=shapely.Point(rng.randrange(600), rng.randrange(800)))
    elif action == "review":
        document.change(there, review=rng.choice(["proposed", "accepted", "rejected", None]))
    elif action == "comment":
        document.comment(there[0], f"remark {rng.random()}")
    elif action == "remove":
        document.remove(there)
    else:
        rng.choice([document.undo, document.undo, document.redo])()


def contents(document: Document) -> dict[str, object]:
    return {key: json.loads(document.feature(key) or b"") for key in document.annotations.ids}


def test_ten_thousand_random_edits_of_two_people_give_one_document(scan, place: Path, monkeypatch) -> None:
    # Whether it reaches the disk is tested by killing processes; here it would take the time.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    rng = random.Random(6)
    anna, ben = Document.open(scan, place, "anna"), Document.open(scan, place, "ben")
    ids: list[str] = []
    while anna.revision < EDITS:
        edit_at_random(rng.choice([anna, ben]), ids, rng)
        if rng.random() < 0.2:
            rng.choice([anna, ben]).poll()
        if rng.random() < 0.002:
            rng.choice([anna, ben]).save()
    anna.poll()
    ben.poll()
    anna.poll()
    final = contents(anna)
    assert len(final) > 100
    assert contents(ben) == final
    assert [edit.stamp for edit in anna.history()] == [edit.stamp for edit in ben.history()]
    assert {edit.author for edit in anna.history()} == {"anna", "ben"}

    # The log alone, in any order and with repetitions.
    lines = [line for log in place.with_suffix(".edits").iterdir() for line in log.read_bytes().splitlines()]
    read = [Edit.read(line) for line in lines if line.startswith(b'{"clock"')]
    assert len(read) == len(anna.history()) >= EDITS
    states = []
    for _ in range(2):
        rng.shuffle(read)
        state = State({}, {})
        for edit, changes in read + read[:1000]:
            state.merge(edit, changes)
        states.append((state.objects.present(), state.known_classes()))
    assert states[0] == states[1]
    assert states[0][0].keys() == final.keys()

    # Opened anew, with the file and without.
    anna.close()
    ben.close()
    assert {one["id"]: one for one in json.loads(place.read_text())["features"]} == final
    with Document.open(scan, place, "clara") as clara:
        assert contents(clara) == final
    place.unlink()
    with Document.open(scan, place, "clara") as clara:
        assert contents(clara) == final


def test_threads_may_share_a_document(scan: dh.Scan, place: Path) -> None:
    with Document.open(scan, place) as document:
        heard: list[str] = []
        document.observe(lambda update: heard.extend(update.objects))

        def work(number: int) -> None:
            (key,) = document.add(shapely.Point(number, 1), "cell").objects
            document.change(key, review="accepted")
            if number % 10 == 0:
                document.save()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(60)))
        assert len(heard) == 120
        assert document.revision == 120
        stamps = [edit.clock for edit in document.history()]
        assert stamps == list(range(1, 121))
    assert len(Document.open(scan, place)) == 60


def test_a_document_that_nobody_holds_is_let_go(scan: dh.Scan, place: Path) -> None:
    import gc
    import weakref

    document = Document.open(scan, place)
    document.add(shapely.Point(1, 1))
    document.watch()
    reference = weakref.ref(document)
    thread = document._thread
    del document
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert reference() is None
    assert len(Document.open(scan, place)) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_annotations_follow_edits_one_by_one_as_they_do_all_at_once(scan, place: Path, count: int) -> None:
    rng = random.Random(count)
    with Document.open(scan, place, "anna") as document:
        ids: list[str] = []
        for _ in range(150):
            edit_at_random(document, ids, rng)
            step = document.annotations
        fresh = Document.open(scan, place).annotations
        assert step.ids.tolist() == list(document._store.state.objects.present())
        by_id = dict(zip(fresh.ids, fresh, strict=True))
        for one in step:
            other = by_id[one.id]
            assert (one.class_name, one.color, one.extras) == (other.class_name, other.color, other.extras)
            assert one.geometry.equals(other.geometry)
        assert step.parent == scan.as_parent()


@pytest.mark.parametrize("whose", ["one's own", "another's"])
def test_a_class_that_was_removed_comes_back_with_an_object_that_has_it(scan, place: Path, whose: str) -> None:
    with Document.open(scan, place, "anna") as anna, Document.open(scan, place, "ben") as ben:
        anna.set_class("tumour", color=(1, 2, 3))
        (key,) = anna.add(shapely.box(0, 0, 5, 5), "tumour").objects
        ben.poll()
        edit = anna.remove(key)
        anna.remove_class("tumour")
        assert not anna.annotations.class_names
        before = anna.revision
        if whose == "one's own":
            anna.revert(edit)
        else:
            ben.add(shapely.box(9, 9, 15, 15), "tumour")
        anna.poll()
        assert anna.changes_since(before).classes
        assert [(one.class_name, one.color) for one in anna.annotations] == [("tumour", (1, 2, 3))]
        ben.poll()
        assert contents(anna) == contents(ben)
    assert len(Document.open(scan, place)) == 1


def test_a_fault_while_saving_is_told_and_does_not_end_the_saving(scan, place: Path, monkeypatch) -> None:
    with Document.open(scan, place) as document:
        failed = threading.Event()

        def fail(pause: float) -> None:
            failed.set()
            raise KeyError("tumour")

        def fail_once() -> None:
            monkeypatch.setattr(document, "_save", fail)
            document.add(shapely.Point(1, 1))
            assert failed.wait(10)
            monkeypatch.undo()
            end = time.monotonic() + 10
            while not place.exists() and time.monotonic() < end:
                time.sleep(0.02)

        with pytest.warns(DHLabWarning, match=r"could not be saved or read: KeyError\('tumour'\)"):
            fail_once()
        assert place.exists()
