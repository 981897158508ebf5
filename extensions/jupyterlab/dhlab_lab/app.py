"""`DHLab`: the settings of the server extension, and its parts put together."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from jupyter_server.extension.application import ExtensionApp
from traitlets import Float, Int, List, Unicode

from dhlab_lab import desktop, documents, handlers, jobs, notebooks
from dhlab_lab.access import Access
from dhlab_lab.sockets import without_delay
from dhlab_lab.views import Views
from dhlab_lab.workers import Workers

__all__ = ["DHLab"]


class DHLab(ExtensionApp):
    """Sends tiles of slides below allowed folders, under the Jupyter server's own address and login."""

    name = "dhlab_lab"
    load_other_extensions = True

    allowed_roots = List(Unicode(), help="Folders below which scans may be seen; empty: the server's root alone.").tag(
        config=True
    )
    token_lifetime = Float(12 * 3600.0, min=2, help="How long a page may ask for tiles of a scan, in seconds.").tag(
        config=True
    )
    most_open = Int(16, min=1, help="Scans kept open; the one used longest ago is closed.").tag(config=True)
    tile_bytes = Int(64 << 20, min=0, help="Bytes of tiles kept in memory.").tag(config=True)
    threads = Int(4, min=1, help="Threads that make tiles.").tag(config=True)
    most_waiting = Int(4096, min=1, help="Tiles that may wait for a thread; more are refused for the moment.").tag(
        config=True
    )

    def initialize_handlers(self) -> None:
        """Register the addresses below ``dhlab/``."""
        assert self.serverapp is not None
        root = self.serverapp.root_dir
        self.views = Views(most_open=self.most_open, budget=self.tile_bytes)
        self.workers = Workers(self.threads, most_waiting=self.most_waiting)
        access = Access(
            self.allowed_roots or [root], base=root, secret=self.serverapp.cookie_secret, lifetime=self.token_lifetime
        )
        self.documents = documents.Documents(self.most_open)
        parts = {"access": access, "views": self.views, "documents": self.documents, "workers": self.workers}
        every = (*handlers.HANDLERS, *documents.HANDLERS, *jobs.HANDLERS, *notebooks.HANDLERS)
        self.handlers.extend((pattern, handler, parts) for pattern, handler in every)
        self.handlers.extend((pattern, handler, {"access": access}) for pattern, handler in desktop.HANDLERS)
        if find_spec("jupyter_server_proxy"):
            from dhlab_lab import dashboards

            self.handlers.extend((*dashboards.HANDLERS, *desktop.desktop_sockets()))

    def initialize_settings(self) -> None:
        """Let the tiles of kernels travel without delay, and JupyterLab know where napari is."""
        if connection := self.settings.get("kernel_websocket_connection_class"):
            self.settings["kernel_websocket_connection_class"] = without_delay(connection)
        if desktop.is_installed():
            self.settings.setdefault("page_config_data", {})["dhlabNapari"] = desktop.PAGE

    async def stop_extension(self) -> None:
        """Close what is open when the server ends."""
        self.workers.close()
        self.documents.close()
        self.views.close()
        shutil.rmtree(desktop.inbox(), ignore_errors=True)
