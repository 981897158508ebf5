"""A real Jupyter server with the extension, below a prefix, and people who are logged in to it."""

from __future__ import annotations

import hmac
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Jupyter, run_jupyter

from dhlab import phantoms

httpx = pytest.importorskip("httpx", reason="needs JupyterLab (the extra 'lab')")
pytest.importorskip("jupyter_server", reason="needs JupyterLab (the extra 'lab')")


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
class Server(Jupyter):
    """A running server, and those who are logged in to it."""

    @property
    def secret(self) -> bytes:
        """What a Jupyter server without a password makes of its file."""
        return hmac.digest((self.home / "runtime" / "jupyter_cookie_secret").read_bytes(), b"", "sha256")

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
    """Run a Jupyter server that shows a folder and keeps its own files in another."""
    arguments = ["--ServerApp.jpserver_extensions=jupyterlab=False"]
    with run_jupyter(
        folder, home, program="jupyter_server", arguments=arguments, configuration=configuration
    ) as running:
        yield Server(**vars(running))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server for all tests, and look in the end whether it is still well."""
    home = tmp_path_factory.mktemp("home")
    with run_server(tmp_path_factory.mktemp("root"), home) as running:
        yield running
        log = (running.home / "server.log").read_text()
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
