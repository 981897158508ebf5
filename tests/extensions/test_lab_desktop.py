"""napari's screen, by way of the server: for whoever may run programs there."""

from __future__ import annotations

import itertools
import shutil

import pytest
from servers import PEOPLE

pytest.importorskip("jupyter_server_proxy", reason="needs jupyter-server-proxy (the extra 'lab')")
pytest.importorskip("jupyter_remote_desktop_proxy", reason="needs jupyter-remote-desktop-proxy")


def test_only_who_may_run_programs_comes_to_the_screen_of_a_server(start_server, tmp_path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    # The second one is jupyter-remote-desktop-proxy's own.
    sockets = ["dhlab/desktop-websockify/", *(["desktop-websockify/"] if shutil.which("vncserver") else [])]
    with start_server(root, tmp_path, PEOPLE) as server, server.named("anna") as anna:
        assert anna.get("dhlab/napari/", params={"path": "slide.tif"}).status_code == 200
        [letter] = (tmp_path / "runtime").glob("dhlab-napari-*/*.path")
        assert letter.read_text("utf-8") == str(root / "slide.tif")
        assert letter.parent.name.endswith(f"-{server.process.pid}"), "another server's napari does not see it"
        with server.named("guest") as guest, type(anna)(base_url=server.url) as stranger:
            for person in (guest, stranger):
                assert person.get("dhlab/napari/").status_code in (302, 403)
                for socket, headers in itertools.product(sockets, ({}, {"Upgrade": "websocket"})):
                    assert person.get(socket, headers=headers).status_code in (302, 403)
    assert not letter.parent.exists()
