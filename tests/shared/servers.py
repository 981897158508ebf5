"""Real servers for tests: started on loopback with the extension of this checkout, waited for, and stopped."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "extensions" / "jupyterlab"
PREFIX = "/research/lab/"
SECONDS_TO_START, SECONDS_TO_STOP = 120, 20
# People by a header, as a proxy names them; a guest may only look.
PEOPLE = """
from jupyter_server.auth import Authorizer, IdentityProvider, User

class Named(IdentityProvider):
    token = ""
    def get_user(self, handler):
        name = handler.request.headers.get("X-User")
        return User(username=name, name=name) if name else None

class Guests(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return user.username != "guest" or action == "read"

c.ServerApp.identity_provider_class = Named
c.ServerApp.authorizer_class = Guests
"""


@dataclass(frozen=True)
class Jupyter:
    """A running Jupyter server: address with prefix, token, the folder that it shows, its own files, its process."""

    url: str
    token: str
    folder: Path
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.split(":")[2].partition("/")[0])


def listening(processes: Sequence[psutil.Process]) -> list[tuple[str, int]]:
    """Return address and port of all sockets on which some processes listen."""
    connections = [one for process in processes for one in process.net_connections("tcp")]
    return [tuple(one.laddr) for one in connections if one.status == psutil.CONN_LISTEN]


def free_ports(count: int) -> list[int]:
    """Return ports of loopback on which nobody listens."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def install_extension(*, data: Path, config: Path) -> None:
    """Put the extension of this checkout where a wheel would, and let JupyterLab look for no news."""
    data.joinpath("labextensions").mkdir(parents=True)
    data.joinpath("labextensions", "dhlab").symlink_to(EXTENSION / "labextension")
    shutil.copytree(EXTENSION / "jupyter_server_config.d", config / "jupyter_server_config.d")
    silent = {"@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"}}
    data.joinpath("overrides.json").write_text(json.dumps(silent))


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """Write a notebook of code cells."""
    import nbformat.v4 as v4

    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.write_text(json.dumps(notebook))


def with_checkout(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python finds this checkout."""
    path = [str(ROOT), str(EXTENSION), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))} | variables


@contextmanager
def running(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    address: Callable[[subprocess.Popen[bytes]], str],
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context ends.

    Parameters
    ----------
    command
        What to run.
    folder
        Where.
    environment
        Its variables.
    log
        Where what it prints goes.
    address
        Called with its process until it gives an address that answers; it may raise OSError or ValueError before.
    """
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while not _answers(lambda: address(process)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[2]} did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def run_jupyter(
    folder: Path, home: Path, *, program: str, arguments: Sequence[str] = (), configuration: str = "", port: int = 0
) -> Iterator[Jupyter]:
    """Run a Jupyter server below a prefix, with a token.

    Parameters
    ----------
    folder
        What it shows.
    home
        Where it keeps its own files. With the same one, and the same `port`, it is the same server, started again.
    program
        ``jupyter_server`` or ``jupyterlab``.
    arguments
        Further settings.
    configuration
        Its Python file of settings.
    port
        0 takes a free one.
    """
    token = secrets.token_hex(16)
    if not (home / "config").exists():
        install_extension(data=home / "data", config=home / "config")
        (home / "config" / "jupyter_server_config.py").write_text(configuration)
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    command = [
        sys.executable, "-m", program, "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        f"--ServerApp.base_url={PREFIX}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--ServerApp.port_retries=0", *arguments, *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip

    def url(process: subprocess.Popen[bytes]) -> str:
        return str(json.loads((home / "runtime" / f"jpserver-{process.pid}.json").read_text())["url"])

    environment, log = with_checkout({name: str(home / place) for name, place in places.items()}), home / "server.log"
    with running(
        command, folder=folder, environment=environment, log=log, address=lambda process: f"{url(process)}api"
    ) as process:
        yield Jupyter(url(process), token, folder, home, process)


def _answers(address: Callable[[], str]) -> bool:
    try:
        with urllib.request.urlopen(address(), timeout=5):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False
