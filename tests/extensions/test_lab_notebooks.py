"""The curated notebooks: listed with what they ask, and copied where a person may write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("jupyter_server", reason="needs JupyterLab (the extra 'lab')")
from dhlab_lab.notebooks import list_notebooks

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_every_notebook_has_a_title_and_says_what_it_is_about() -> None:
    found = list_notebooks(NOTEBOOKS)
    assert [one.name for one in found] == sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    for one in found:
        assert one.title[0].isupper()
        assert one.title != one.name
        assert len(one.summary) > 40
        assert "research use" not in one.summary


def test_a_copy_opens_in_the_folder_and_a_taken_name_gets_a_number(server) -> None:
    (server.folder / "my work").mkdir()
    with server.person() as person:
        listed = person.get("dhlab/notebooks").json()["notebooks"]
        name = listed[0]["name"]
        paths = [
            person.post("dhlab/notebooks", json={"name": name, "folder": "my work"}).json()["path"] for _ in range(2)
        ]
        stem = Path(name).stem
        assert paths == [f"my work/{name}", f"my work/{stem}-1.ipynb"]
        first, second = (json.loads((server.folder / path).read_text()) for path in paths)
        assert first["cells"] == second["cells"]
        own = json.loads((NOTEBOOKS / name).read_text())
        assert len(first["cells"]) == len(own["cells"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "../conftest.py", "folder": ""}, 404),
        ({"name": "no_such.ipynb", "folder": ""}, 404),
        ({"name": "00_first_slide.ipynb", "folder": "nowhere"}, 404),
        ({"name": "00_first_slide.ipynb", "folder": "../.."}, 404),
        ({}, 404),
    ],
)
def test_what_cannot_be_copied_is_refused_with_a_reason(server, body, status) -> None:
    before = sorted(server.folder.rglob("*"))
    with server.person() as person:
        answer = person.post("dhlab/notebooks", json=body)
    assert answer.status_code == status
    assert answer.json()["message"]
    assert sorted(server.folder.rglob("*")) == before


def test_strangers_get_nothing(server) -> None:
    import httpx

    assert httpx.get(f"{server.url}dhlab/notebooks").status_code in (302, 403)
    assert httpx.post(f"{server.url}dhlab/notebooks", json={}).status_code in (302, 403)
