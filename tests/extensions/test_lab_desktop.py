"""napari's screen, by way of the server: for whoever may run programs there."""

from __future__ import annotations

import pytest
from servers import PEOPLE

pytest.importorskip("jupyter_server_proxy", reason="needs jupyter-server-proxy (the extra 'lab')")
pytest.importorskip("jupyter_remote_desktop_proxy", reason="needs jupyter-remote-desktop-proxy")


def test_only_who_may_run_programs_comes_to_the_screen_of_a_server(start_server, tmp_path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with start_server(root, tmp_path, PEOPLE) as server, server.named("anna") as anna:
        assert anna.get("dhlab/napari/", params={"path": "slide.tif"}).status_code == 200
        [letter] = (tmp_path / "runtime").glob("dhlab-napari-*/*.path")
        assert letter.read_text("utf-8") == str(root / "slide.tif")
        assert letter.parent.name.endswith(f"-{server.process.pid}"), "another server's napari does not see it"
        with server.named("guest") as guest, type(anna)(base_url=server.url) as stranger:
            for person in (guest, stranger):
                assert person.get("dhlab/napari/").status_code in (302, 403)
                for headers in ({}, {"Upgrade": "websocket"}):
                    answer = person.get("dhlab/desktop-websockify/", headers=headers)
                    assert answer.status_code in (302, 403)
    assert not letter.parent.exists()
