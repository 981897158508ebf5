"""Slides behind a real JupyterHub and its proxy: below the person's prefix, and closed to everybody else."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "extensions" / "jupyterlab"
PROXY = Path(__file__).parent / "hub" / "node_modules" / ".bin" / "configurable-http-proxy"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not PROXY.exists(), reason="the hub's proxy is not installed (npm ci --prefix tests/browser/hub)"
    ),
    pytest.mark.skipif(
        not (EXTENSION / "labextension" / "package.json").exists(), reason="the Lab extension is not built"
    ),
]
# Places on the real slide, level-0 pixels (y, x).
TISSUE = [(1780 + 15 * i, 1240) for i in range(4)]
GLASS = (1000, 200)
CELL = 'import dhlab as dh\ndh.show(dh.open("skin.svs"))'


@dataclass(frozen=True)
class Hub:
    """A running JupyterHub: its address with prefix, everybody's password, and where people's homes are."""

    url: str
    password: str
    homes: Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, skin_slide: Path) -> Iterator[Hub]:
    """Start JupyterHub with its proxy, and stop both and all servers of people in the end."""
    pytest.importorskip("jupyterhub", reason="needs JupyterHub")
    folder = tmp_path_factory.mktemp("hub")
    for name in ("alice", "bob"):
        (folder / "home" / name).mkdir(parents=True)
    shutil.copyfile(skin_slide, folder / "home" / "alice" / "skin.svs")
    cell = {"cell_type": "code", "id": "show", "source": CELL, "metadata": {}, "outputs": [], "execution_count": None}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]}
    (folder / "home" / "alice" / "show.ipynb").write_text(json.dumps(notebook))
    overrides = {"@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"}}
    (folder / "settings").mkdir()
    (folder / "settings" / "overrides.json").write_text(json.dumps(overrides))
    # The extension of this checkout, as a wheel would install it.
    (folder / "data" / "labextensions").mkdir(parents=True)
    (folder / "data" / "labextensions" / "dhlab").symlink_to(EXTENSION / "labextension")
    shutil.copytree(EXTENSION / "jupyter_server_config.d", folder / "config" / "jupyter_server_config.d")
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    password = secrets.token_hex(16)
    environment = os.environ | {
        "HUB_FOLDER": str(folder),
        "HUB_PORTS": " ".join(ports),
        "HUB_PASSWORD": password,
        "JUPYTER_PATH": str(folder / "data"),
        "JUPYTER_CONFIG_PATH": str(folder / "config"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(EXTENSION), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "jupyterhub", "-f", str(Path(__file__).parent / "hub" / "jupyterhub_config.py")]
    log = folder / "hub.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        url = f"http://127.0.0.1:{ports[0]}/research/"
        try:
            wait_for(f"{url}hub/api/", server, log)
            yield Hub(url, password, folder / "home")
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise RuntimeError(f"JupyterHub did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page(browser, hub: Hub, watch) -> Iterator[Any]:
    """Open a fresh page that is watched."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.on("pageerror", lambda error: watch.errors.append(str(error)))

    def look(response) -> None:
        if "/dhlab/" in response.url:
            watch.own.append(f"{response.request.method} {response.status} {response.url.removeprefix(hub.url)}")
        elif not response.url.startswith((hub.url, "data:", "blob:")):
            watch.external.append(response.url)

    page.on("response", look)
    yield page
    page.close()


def log_in(page: Any, hub: Hub, name: str) -> None:
    page.goto(f"{hub.url}hub/login")
    page.fill("#username_input", name)
    page.fill("#password_input", hub.password)
    page.click("#login_submit")
    page.wait_for_url(f"**/user/{name}/lab**", timeout=120_000)
    page.wait_for_selector(".jp-DirListing", timeout=90_000)


def test_a_slide_is_opened_shown_and_found_again_and_nobody_else_sees_it(page, browser, hub, watch, open_stage) -> None:
    log_in(page, hub, "alice")
    page.dblclick(".jp-DirListing-item >> text=skin.svs")
    stage = open_stage()
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert stage.color(*GLASS).min() > 225
    assert any(entry.startswith("POST 200 user/alice/dhlab/scans") for entry in watch.own)
    tiles = [entry for entry in watch.own if entry.startswith("GET 200 user/alice/dhlab/tiles/")]
    assert tiles

    stage.move(*TISSUE[0])
    for _ in range(3):
        page.mouse.wheel(0, -240)
        page.wait_for_timeout(120)
    stage.settle()
    stage.viewer.get_by_label("Opacity of skin", exact=True).fill("0.5")
    stage.settle()
    resolution = stage.viewer.evaluate("({ dhlab: { map } }) => map.getView().getResolution()")
    page.wait_for_timeout(2500)  # JupyterLab writes its workspace now and then
    page.goto(f"{hub.url}user/alice/lab")
    stage = open_stage()
    found = stage.viewer.evaluate("({ dhlab: { map } }) => map.getView().getResolution()")
    assert found == pytest.approx(resolution, rel=1e-3)
    assert stage.viewer.get_by_label("Opacity of skin", exact=True).input_value() == "0.5"

    # In a cell the tiles come by the same way, not from the kernel.
    before = len([entry for entry in watch.own if "/dhlab/tiles/" in entry])
    page.goto(f"{hub.url}user/alice/lab/tree/show.ipynb?reset")
    page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    page.keyboard.press("Shift+Enter")
    stage = open_stage(".jp-Notebook .dhlab-viewer")
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert len([entry for entry in watch.own if "/dhlab/tiles/" in entry]) > before
    refused = [entry for entry in watch.own if entry.split()[1] not in ("200", "304")]
    assert refused == []
    assert watch.errors == []
    assert watch.external == []

    # Somebody else, and somebody without a name, get nothing.
    address = hub.url + tiles[-1].split(" ", 2)[2]
    assert page.request.get(address).status == 200
    stranger = browser.new_context()
    assert stranger.request.get(address).status == 403
    stranger.close()
    other = browser.new_context()
    log_in(other.new_page(), hub, "bob")
    assert other.request.get(address).status == 403
    assert other.request.get(address.replace("/user/alice/", "/user/bob/")).status == 403
    other.close()
