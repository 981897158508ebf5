"""napari in the browser: a screen of its own for every user, below the server's address and behind its login."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from dhlab.atomic import atomic_file
from dhlab_lab.proxies import ForRunners

if TYPE_CHECKING:
    from dhlab_lab.access import Access

__all__ = ["HANDLERS", "PAGE", "desktop_server", "desktop_sockets", "inbox", "is_installed"]

# The page of jupyter-remote-desktop-proxy speaks to its neighbour of this name.
SOCKET = "dhlab/desktop-websockify"
PAGE = "dhlab/napari/"
SIZE = "1680x1000"
HERE = Path(__file__).parent


def is_installed() -> bool:
    """Return whether TigerVNC, jupyter-remote-desktop-proxy and napari are there."""
    modules = ("napari", "jupyter_remote_desktop_proxy")
    return shutil.which("vncserver") is not None and all(find_spec(module) is not None for module in modules)


def desktop_server() -> dict[str, Any]:
    """Return what jupyter-server-proxy runs when somebody opens napari: TigerVNC on a socket in a private folder.

    No port is opened, and nobody but the server's own user can reach the screen. There is a card in the launcher where
    TigerVNC, jupyter-remote-desktop-proxy and napari are installed.
    """
    return {
        "command": [
            shutil.which("vncserver") or "vncserver",
            "-rfbunixpath", "{unix_socket}", "-rfbport", "-1", "-SecurityTypes", "None", "-fg", "-verbose",
            "-geometry", SIZE, "-xstartup", str(HERE / "desktop.sh"),
        ],
        "environment": {"DHLAB_PYTHON": sys.executable, "DHLAB_INBOX": str(inbox())},
        "timeout": 60,
        "unix_socket": True,
        "raw_socket_proxy": True,
        "new_browser_tab": True,  # JupyterHub lets no page be a frame of another
        "launcher_entry": {
            "enabled": is_installed(),
            "title": "napari",
            "path_info": PAGE,
            "category": "Notebook",  # the only one of which the launcher shows such icons
            "icon_path": str(HERE / "napari.svg"),
        },
    }  # fmt: skip


def inbox() -> Path:
    """Return the folder in which the napari of this server finds the names of files that it is to open.

    A person's servers may share their home, on one machine or several.
    """
    return Path(jupyter_runtime_dir()) / f"dhlab-napari-{socket.gethostname()}-{os.getpid()}"


def desktop_sockets() -> list[tuple[str, type, dict[str, Any]]]:
    """Return the handlers of screens, for whoever may run programs; they must come before jupyter-server-proxy's."""
    from jupyter_server_proxy.config import ServerProcess

    servers = {SOCKET: desktop_server()}
    if shutil.which("vncserver") and find_spec("jupyter_remote_desktop_proxy"):
        from jupyter_remote_desktop_proxy.setup_websockify import setup_websockify

        # It brings a screen of its own.
        servers["desktop-websockify"] = setup_websockify()
    found = []
    for name, server in servers.items():
        handler, settings = ServerProcess(name=name, **server).make_proxy_handler()
        found.append((rf"{name}/(.*)", type("DesktopSocket", (ForRunners, handler), {}), settings))
    return found


class DesktopPage(JupyterHandler):
    """The page that shows the screen; whoever sees it can run programs, so it takes the right to."""

    auth_resource = "kernels"

    def initialize(self, access: Access) -> None:
        """Keep who may see which file."""
        self.access = access

    @web.authenticated
    @authorized(action="execute")
    def get(self) -> None:
        """Send jupyter-remote-desktop-proxy's own page; the file that ``?path=`` names is opened in napari."""
        if find_spec("jupyter_remote_desktop_proxy") is None:
            raise web.HTTPError(404, "napari in the browser needs jupyter-remote-desktop-proxy: pip install it.")
        from jupyter_remote_desktop_proxy.handlers import jinja_env

        if path := self.get_query_argument("path", ""):
            _post(self.access.resolve(path))
        settings = self.serverapp.jinja_template_vars if self.serverapp else {}
        page = jinja_env.get_template("index.html").render(base_url=self.base_url, **settings)
        page = page.replace("<title>Jupyter Remote Desktop Proxy</title>", "<title>napari</title>")
        self.finish(page.replace('href=".."', f'href="{self.base_url}lab" target="_top"'))


def _post(path: Path) -> None:
    """Leave a file's name where napari looks for it."""
    folder = inbox()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    letter = folder / f"{time.time_ns()}.path"
    with atomic_file(letter) as partial:
        partial.write_text(str(path), "utf-8")


HANDLERS = ((PAGE, DesktopPage),)
