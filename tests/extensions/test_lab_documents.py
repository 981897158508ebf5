"""Documents through a real server: edits under one's own name, news for all who look, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from servers import PEOPLE
from shapely.geometry import mapping
from waiting import wait_for

import dhlab as dh

BOX = shapely.box(10, 10, 90, 90)


@pytest.fixture(scope="module")
def clinic(start_server, tmp_path_factory: pytest.TempPathFactory):
    """Start a server that several people share."""
    home = tmp_path_factory.mktemp("home")
    with start_server(tmp_path_factory.mktemp("clinic"), home, PEOPLE) as running:
        yield running
        assert "Traceback" not in (home / "server.log").read_text()


@pytest.fixture
def slide(clinic, request: pytest.FixtureRequest) -> str:
    """Return the name of a new picture in the server's folder."""
    name = f"{request.node.name.partition('[')[0]}.png"
    dh.save(make_scan(name), clinic.folder / name)
    return name


def make_scan(name: str) -> dh.Scan:
    pixels = np.full((300, 400, 3), 240, np.uint8)
    pixels[50:150, 50:200] = (200, 60, 140)
    return dh.Scan.from_array(pixels, "yxc", name=name.removesuffix(".png"))


@pytest.fixture
def anna(clinic):
    with clinic.named("anna") as person:
        yield person


@pytest.fixture
def ben(clinic):
    with clinic.named("ben") as person:
        yield person


def open_document(person: Any, slide: str) -> dict[str, Any]:
    path = slide.replace(".png", ".geojson")
    answer = person.post("dhlab/scans", json={"path": path, "on": slide, "document": True})
    assert answer.status_code == 200, answer.text
    return answer.json()


def edit(person: Any, opened: dict[str, Any], status: int = 200, **message: Any) -> dict[str, Any]:
    answer = person.post(f"dhlab/documents/{opened['token']}", json={"type": "edit", "layer": 0, **message})
    assert answer.status_code == status, answer.text
    return answer.json()


def drawing(name: str, geometry: Any = BOX, **more: Any) -> dict[str, Any]:
    label = {"name": "tumour", "color": [200, 0, 0]}
    after = {"exists": True, "geometry": mapping(geometry), "properties/classification": label}
    return {"action": "apply", "tool": "polygon", "changes": [{"object": name, "after": after}], **more}


def changes(person: Any, opened: dict[str, Any], since: int) -> dict[str, Any]:
    # The server itself waits for longer.
    answer = person.get(f"dhlab/documents/{opened['token']}/changes", params={"since": since}, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_edit_is_on_the_disk_under_ones_own_name_when_it_is_answered(clinic, anna, slide) -> None:
    opened = open_document(anna, slide)
    assert opened["layer"]["document"]["author"] == "anna"
    assert opened["layer"]["document"]["readOnly"] is None
    place = clinic.folder / slide.replace(".png", ".geojson")
    assert not place.exists()
    answer = edit(anna, opened, **drawing("one"))
    assert answer["edit"]["author"] == "anna"
    assert dh.Document.open(make_scan(slide), place).history()[0].author == "anna"
    region = edit(anna, opened, action="draw", tool="wand", path=[[100, 100]], tolerance=30, create="two")
    assert region["changes"][0]["feature"]["geometry"]["type"] == "Polygon"


def test_others_hear_of_an_edit_at_once(clinic, anna, ben, slide) -> None:
    first, second = open_document(anna, slide), open_document(ben, slide)
    heard: dict[str, Any] = {}
    listener = threading.Thread(target=lambda: heard.update(changes(ben, second, 0)))
    listener.start()
    time.sleep(0.3)
    edit(anna, first, **drawing("one"))
    listener.join()
    assert (heard["author"], heard["revision"], heard["changes"][0]["object"]) == ("anna", 1, "one")
    answer = edit(ben, second, action="undo")
    assert answer["edit"] is None
    edit(ben, second, **drawing("two"))
    assert changes(anna, first, 1)["changes"][0]["object"] == "two"
    place = clinic.folder / slide.replace(".png", ".geojson")
    with dh.Document.open(make_scan(slide), place, "clara") as kernel:
        kernel.change("one", review="accepted")
        news = changes(anna, first, 2)
        assert (news["author"], news["changes"][0]["object"]) == ("clara", "one")


def test_who_may_only_look_is_told_before_drawing(clinic, anna, slide) -> None:
    edit(anna, open_document(anna, slide), **drawing("one"))
    with clinic.named("guest") as guest:
        opened = open_document(guest, slide)
        assert "guest may look" in opened["layer"]["document"]["readOnly"]
        assert len(changes(guest, opened, 0)["changes"]) == 1
        for message in (drawing("two"), {"action": "undo"}, {"action": "class", "name": "tumour", "color": [1, 2, 3]}):
            assert "guest may look" in edit(guest, opened, 403, **message)["message"]
        assert [one["author"] for one in edit(guest, opened, action="history")["edits"]] == ["anna"]
        assert edit(guest, opened, action="find", filter={"class": "tumour"})["ids"] == ["one"]
        assert edit(guest, opened, action="objects", ids=["one"])["features"][0]["id"] == "one"
    with clinic.named("anna") as stranger:
        del stranger.headers["X-XSRFToken"]
        edit(stranger, open_document(anna, slide), 403, **drawing("two"))


def test_shapes_come_as_they_were_packed(clinic, anna, slide) -> None:
    place = clinic.folder / slide.replace(".png", ".geojson")
    boxes = [shapely.box(x, y, x + 3, y + 3) for x in range(0, 380, 10) for y in range(0, 290, 10)]
    drawn = dh.Annotations.from_geometries(boxes, "cell")
    drawn.to_geojson(place)
    opened = open_document(anna, slide)
    assert opened["layer"]["count"] == len(boxes)
    address = f"dhlab/shapes/{opened['token']}"
    old = anna.get(address, params={"cells": "0", "revision": 0})
    assert old.status_code == 200
    assert json.loads(old.content[4 : 4 + int.from_bytes(old.content[:4], "little")])["ids"]
    keys = dh.Annotations.from_geojson(place).ids[:300].tolist()
    edit(anna, opened, action="apply", tool="delete", changes=[{"object": k, "after": {"exists": False}} for k in keys])
    again = open_document(anna, slide)
    assert (again["layer"]["revision"], again["layer"]["count"]) == (1, len(boxes) - 300)
    assert anna.get(address, params={"cells": "0", "revision": 0}).content == old.content
    assert anna.get(address, params={"cells": "0", "revision": 1}).content != old.content
    assert anna.get(address, params={"cells": "0", "revision": 9}).status_code == 410
    assert changes(anna, opened, -5)["layer"]["revision"] == 1


def test_a_page_is_told_when_a_document_counts_anew(clinic, anna, slide) -> None:
    opened = open_document(anna, slide)
    edit(anna, opened, **drawing("one"))
    # As of a document that was closed and opened again since the page heard of it.
    news = changes(anna, opened, 5)
    assert (news["anew"], news["layer"]["document"]["revision"], news["layer"]["count"]) == (True, 0, 0)
    assert not changes(anna, opened, -5)["anew"]


def test_a_document_that_cannot_be_written_as_it_closes_troubles_no_other(tmp_path: Path, caplog) -> None:
    from dhlab.io.pool import Stamp
    from dhlab_lab.documents import Documents
    from dhlab_lab.views import File

    dh.save(make_scan("slide"), tmp_path / "slide.png")
    scan = File(tmp_path / "slide.png", Stamp.of(tmp_path / "slide.png"))
    documents, loop = Documents(most_open=2), asyncio.new_event_loop()

    for name in ("first", "second", "third"):
        path = tmp_path / f"{name}.geojson"
        opened = documents.open(name, path, scan, loop)
        if name != "third":
            # A folder in the place of the file: it cannot be written.
            (path / "full").mkdir(parents=True)
        opened.answer(drawing("one"), "anna", None)
    documents.close()
    loop.close()
    assert len(dh.Annotations.from_geojson(tmp_path / "third.geojson")) == 1
    for name in ("first", "second"):
        assert f"{name}.geojson is closed and was not written" in caplog.text


def test_bad_requests_are_refused(clinic, anna, slide) -> None:
    opened = open_document(anna, slide)
    edit(anna, opened, 400, action="fly")
    edit(anna, opened, 404, **drawing("one", shapely.Point()))
    assert anna.post(f"dhlab/documents/{opened['token']}", content=b"[1]").status_code == 400
    assert anna.post(f"dhlab/documents/{opened['token']}", content=b"{").status_code == 400
    assert anna.post(f"dhlab/documents/{opened['token'][:-1]}x", json={}).status_code == 403
    assert anna.get(f"dhlab/documents/{opened['token']}/changes", params={"since": "x"}).status_code == 400
    for body, status in (
        ({"path": "../x.geojson", "on": slide, "document": True}, 403),
        ({"path": "x.geojson", "document": True}, 400),
        ({"path": "x.geojson", "on": "none.png", "document": True}, 404),
        ({"path": "x.txt", "on": slide, "document": True}, 415),
    ):
        assert anna.post("dhlab/scans", json=body).status_code == status, body
    (clinic.folder / "outside.edits").symlink_to("/tmp")
    body = {"path": "outside.geojson", "on": slide, "document": True}
    assert anna.post("dhlab/scans", json=body).status_code == 403


def test_edits_that_are_sent_at_once_are_all_made_and_those_sent_twice_once(clinic, anna, slide) -> None:
    opened = open_document(anna, slide)
    messages = [drawing(f"object {i % 40}", key=f"key {i % 40}") for i in range(80)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda message: edit(anna, opened, **message), messages))
    assert len({answer["edit"]["clock"] for answer in answers}) == 40
    assert changes(anna, opened, 0)["revision"] == 40


def test_a_mistake_of_the_server_is_told_and_stands_in_its_log(start_server, tmp_path: Path) -> None:
    for name in ("clinic", "home"):
        (tmp_path / name).mkdir()
    dh.save(make_scan("slide"), tmp_path / "clinic" / "slide.png")
    with start_server(tmp_path / "clinic", tmp_path / "home", PEOPLE) as clinic, clinic.named("anna") as anna:
        answer = edit(anna, open_document(anna, "slide.png"), 500, action="find", filter="tumour")
    assert "AttributeError" in answer["message"]
    assert "Traceback" in (tmp_path / "home" / "server.log").read_text()


@pytest.mark.timeout(120)
def test_a_server_that_is_killed_while_people_draw_loses_nothing_that_it_answered(start_server, tmp_path: Path) -> None:
    folder, slide = tmp_path / "clinic", "slide.png"
    folder.mkdir()
    dh.save(make_scan(slide), folder / slide)
    acknowledged: dict[str, int] = {}
    last: list[dict[str, Any]] = []
    for turn in range(2):
        (tmp_path / f"home {turn}").mkdir()
        with start_server(folder, tmp_path / f"home {turn}", PEOPLE) as clinic, clinic.named("anna") as anna:
            opened = open_document(anna, slide)
            if last:
                # The answer may have been lost, the edit not: it is not made twice.
                edit(anna, opened, **last[-1])

            def draw(clinic: Any = clinic, opened: dict[str, Any] = opened, turn: int = turn) -> None:
                with clinic.named("anna") as anna:
                    for number in range(10_000):
                        stroke = {"path": [[number % 390, 50 + turn]], "radius": 5, "create": f"{turn} {number}"}
                        last.append({"action": "draw", "tool": "brush", "key": f"{turn} {number}", **stroke})
                        try:
                            edit(anna, opened, **last[-1])
                        except Exception:  # noqa: BLE001 - the connection ends in any of many ways
                            return
                        acknowledged[f"{turn} {number}"] = number

            thread = threading.Thread(target=draw)
            thread.start()
            enough = 20 * (turn + 1)
            wait_for(lambda enough=enough: len(acknowledged) >= enough)
            os.kill(clinic.process.pid, 9)
            thread.join()
    with dh.Document.open(make_scan(slide), folder / "slide.geojson") as document:
        assert acknowledged.keys() <= set(document.annotations.ids)
        assert len(document) == len(set(document.annotations.ids)) <= len(acknowledged) + 2
        keys = [edit.key for edit in document.history()]
        assert len(keys) == len(set(keys))
