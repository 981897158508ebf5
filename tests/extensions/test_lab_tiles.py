"""The server sends what the scan holds, to those who may see it, and survives whatever it is asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

import dhlab as dh


@pytest.fixture(scope="module")
def slide(server, skin_slide) -> Path:
    """Return a copy of the real slide in the server's folder."""
    path = server.folder / "cases" / "skin.svs"
    path.parent.mkdir()
    shutil.copyfile(skin_slide, path)
    return path


@pytest.fixture
def person(server) -> Any:
    """Return somebody who is logged in."""
    with server.person() as client:
        yield client


def open_scan(person: Any, path: str | Path) -> dict[str, Any]:
    answer = person.post("dhlab/scans", json={"path": str(path), "stamp": None})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_stored_tiles_arrive_as_the_file_holds_them(person, slide) -> None:
    opened = open_scan(person, "cases/skin.svs")
    scan = dh.open(slide)
    info = opened["layer"]["info"]
    assert info["shape"] == [2967, 2220]
    assert info["tiles"] == [[240, 240], [512, 512], [512, 512], [512, 512]]
    data = slide.read_bytes()
    for row, column in ((0, 0), (5, 4), (12, 9)):
        answer = person.get(f"dhlab/tiles/{opened['token']}/0/{row}/{column}")
        assert answer.headers["Content-Type"] == "image/jpeg"
        pixels = simplejpeg.decode_jpeg(answer.content, "RGB")
        expected = scan.levels[0][row * 240 : (row + 1) * 240, column * 240 : (column + 1) * 240]
        assert np.array_equal(pixels[: expected.shape[0], : expected.shape[1]], expected)
        assert answer.content[-1000:] in data


@pytest.mark.parametrize("path", ["../secret.svs", "/etc/passwd", "cases/../../secret.svs", "a\0b"])
def test_nothing_outside_the_root_is_shown(person, slide, path) -> None:
    answer = person.post("dhlab/scans", json={"path": path, "stamp": None})
    assert answer.status_code == 403
    assert "expected a file below" in answer.json()["message"]


def test_strangers_are_sent_away(server, person, slide) -> None:
    token = open_scan(person, slide)["token"]
    with server.person() as other:
        assert other.get(f"dhlab/tiles/{token}/0/0/0").status_code == 403
    assert person.get(f"dhlab/tiles/{token}x/0/0/0").status_code == 403
    person.headers.pop("Authorization")
    person.cookies.clear()
    assert person.get(f"dhlab/tiles/{token}/0/0/0").status_code == 403
