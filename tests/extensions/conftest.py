"""A real Jupyter server with the extension, below a prefix, and people who are logged in to it."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhlab import phantoms

httpx = pytest.importorskip("httpx", reason="needs JupyterLab (the extra 'lab')")
pytest.importorskip("jupyter_server", reason="needs JupyterLab (the extra 'lab')")

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "extensions" / "jupyterlab"
PREFIX = "/research/lab/"


class Person(httpx.Client):
    """Somebody who logs in and keeps cookies as a browser does."""

    def open_scan(self, path: str | Path) -> dict[str, Any]:
        """Open a scan and return what the server says of it."""
        answer = self.post("dhlab/scans", json={"path": str(path), "stamp": None})
        assert answer.status_code == 200, answer.text
        opened: dict[str, Any] = answer.json()
        return opened

    def tile(self, opened: dict[str, Any], *place: int, **query: Any) -> httpx.Response:
        """Ask for a tile by level, row and column."""
        return self.get(f"dhlab/tiles/{opened['token']}/{'/'.join(map(str, place))}", params=query)


@dataclass(frozen=True)
class Server:
    """A running server: its address, token, the folder that it shows, its cookie secret and its process."""

    url: str
    token: str
    folder: Path
    secret: bytes
    process: subprocess.Popen[bytes]

    def person(self) -> Person:
        """Return somebody new."""
        return Person(base_url=self.url, headers={"Authorization": f"token {self.token}"}, timeout=30)

    def named(self, name: str) -> Person:
        """Return somebody whom a proxy has named, with the cookie that lets a page send."""
        headers = {"X-User": name, "X-XSRFToken": "same"}
        return Person(base_url=self.url, headers=headers, cookies={"_xsrf": "same"}, timeout=40)

    def memory(self) -> int:
        """Return the bytes of memory that the server holds."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def run_server(folder: Path, home: Path, configuration: str = "") -> Iterator[Server]:
    """Run a Jupyter server on loopback that shows a folder and keeps its own files in another."""
    # The file that the wheel installs is what switches the extension on.
    shutil.copytree(EXTENSION / "jupyter_server_config.d", home / "config" / "jupyter_server_config.d")
    (home / "config" / "jupyter_server_config.py").write_text(configuration)
    token = secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXTENSION), os.environ.get("PYTHONPATH", "")]),
    }
    command = [
        sys.executable, "-m", "jupyter_server", "--no-browser", "--ip=127.0.0.1", "--port=0",
        f"--ServerApp.base_url={PREFIX}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--ServerApp.jpserver_extensions=jupyterlab=False",
        *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    log = home / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        try:
            url = _wait_for(home / "runtime", process, log)
            # What a Jupyter server without a password makes of its file.
            secret = hmac.digest((home / "runtime" / "jupyter_cookie_secret").read_bytes(), b"", "sha256")
            yield Server(url, token, folder, secret, process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server for all tests, and look in the end whether it is still well."""
    home = tmp_path_factory.mktemp("home")
    with run_server(tmp_path_factory.mktemp("root"), home) as running:
        yield running
        log = (home / "server.log").read_text()
        assert running.process.poll() is None, log[-3000:]
        assert "Traceback" not in log, log[-3000:]


@pytest.fixture(scope="session")
def start_server() -> Callable[..., AbstractContextManager[Server]]:
    """Return `run_server`, for servers of one's own."""
    return run_server


@pytest.fixture
def person(server: Server) -> Iterator[Person]:
    """Return somebody who is logged in."""
    with server.person() as client:
        yield client


@pytest.fixture(scope="session")
def skin(server: Server, skin_slide: Path) -> Path:
    """Return a copy of the real slide in a folder of the server."""
    path = server.folder / "cases" / "skin.svs"
    path.parent.mkdir()
    shutil.copyfile(skin_slide, path)
    return path


@pytest.fixture(scope="session")
def phantom(server: Server) -> Path:
    """Return a slide of three stored levels, with label and macro pages that show an invented patient."""
    image = np.asarray(phantoms.paint_slide((1500, 1900), rng=3)[0])
    return phantoms.write_slide(server.folder / "phantom.svs", image, tile=128, levels=(1, 2, 4), label=True)


def _wait_for(runtime: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the server's address once it answers."""
    said = runtime / f"jpserver-{process.pid}.json"
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            url = str(json.loads(said.read_text())["url"])
            if httpx.get(f"{url}api", timeout=5).is_success:
                return url
        except (OSError, ValueError, httpx.TransportError):
            pass
        time.sleep(0.25)
    raise RuntimeError(f"the Jupyter server did not start:\n{log.read_text()[-3000:]}")
