"""A real JupyterLab below a prefix, and Debian's Chromium to look at it."""

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
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "extensions" / "jupyterlab"
PREFIX = "/research/lab/"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: address with prefix, token, and the folder that it serves."""

    url: str
    token: str
    folder: Path

    def write(self, name: str, cells: list[str]) -> None:
        """Put a notebook into the folder."""
        import nbformat.v4 as v4

        notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (self.folder / name).write_text(json.dumps(notebook))


@dataclass
class Watch:
    """What a page did besides showing itself."""

    errors: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab on loopback below a prefix, with a token, and stop it in the end."""
    pytest.importorskip("jupyterlab", reason="needs JupyterLab (the extra 'lab')")
    folder = tmp_path_factory.mktemp("lab")
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    # Settings of the person at this machine must not decide the tests, nor be changed by them.
    settings = home / "overrides"
    settings.mkdir()
    overrides = {"@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"}}
    (settings / "overrides.json").write_text(json.dumps(overrides))
    # The extension of this checkout, as a wheel would install it.
    shutil.copytree(EXTENSION / "jupyter_server_config.d", home / "config" / "jupyter_server_config.d")
    (home / "data" / "labextensions").mkdir(parents=True)
    (home / "data" / "labextensions" / "dhlab").symlink_to(EXTENSION / "labextension")
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(EXTENSION), os.environ.get("PYTHONPATH")])),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        f"--ServerApp.base_url={PREFIX}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--ServerApp.port_retries=0", "--LabApp.news_url=", f"--LabServerApp.app_settings_dir={settings}",
        *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    log = home / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        url = f"http://127.0.0.1:{port}{PREFIX}"
        try:
            _wait_for(url, token, server, log)
            yield Lab(url, token, folder)
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(url: str, token: str, server: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{url}api/status", headers={"Authorization": f"token {token}"})
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Start Chromium once for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def watch() -> Watch:
    """Collect console errors and requests to other places."""
    return Watch()


@pytest.fixture
def page(browser, lab: Lab, watch: Watch) -> Iterator[object]:
    """Open a fresh page that is watched."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    home = lab.url.split(PREFIX)[0]
    page.on("console", lambda message: watch.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watch.errors.append(str(error)))

    def look(request) -> None:
        own = (home, home.replace("http", "ws", 1), "data:", "blob:")
        if not request.url.startswith(own):
            watch.external.append(request.url)

    page.on("request", look)
    yield page
    page.close()
