"""Dask's pages on a socket that only their owner can open; the notebook's server shows them behind its login."""

from __future__ import annotations

import hashlib
import html
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab import env
from dhlab.atomic import is_alive, process_identity
from dhlab.scheduling.records import LONGEST_COHORT_S, private_folder, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Scheduler
    from distributed.http.routing import RoutingApplication
    from tornado.httpserver import HTTPServer

__all__ = ["Dashboard", "find_dashboards", "serve_dashboard", "socket_of"]

# Those that the pages stand on; not the ones that Prometheus or scripts would ask.
ROUTES = ["distributed.http.scheduler.info", "distributed.http.statics"]
DIGITS = 16


class Dashboard:
    """Where the server of the notebook shows a cohort's workers: a link in a notebook, an address elsewhere.

    Parameters
    ----------
    name
        Name of the dashboard.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def address(self) -> str:
        """Path of the page on the notebook's server."""
        return f"{_base_url()}dhlab/dask/{self.name}/status"

    def __repr__(self) -> str:
        return f"Dask dashboard: {self.address}"

    def _repr_html_(self) -> str:
        return f"<a href='{html.escape(self.address, quote=True)}' target='_blank'>Dask dashboard</a>"


@contextmanager
def serve_dashboard(cluster: Any, cohort: Path) -> Iterator[Dashboard]:
    """Serve the pages of a Dask cluster whose scheduler is in this process, as long as the context lasts.

    Parameters
    ----------
    cluster
        Dask's cluster.
    cohort
        Folder of the cohort that it works on.

    Yields
    ------
    Dashboard
        Where they are shown.
    """
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _forget_ended(folder)
    dashboard = Dashboard(f"{_digest(cohort)}-{process_identity()}")
    link = folder / dashboard.name
    # A socket's path has at most 107 characters and its folder is best on a local disk; that of a link may be any.
    here = Path(tempfile.gettempdir())
    remove_abandoned(here, silence_s=LONGEST_COHORT_S)
    with private_folder(here, mode=0o700) as private:
        place = private / "socket"
        started = cluster.sync(_start, cluster.scheduler, place)
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(place)
            yield dashboard
        finally:
            link.unlink(missing_ok=True)
            cluster.sync(_stop, *started)


def find_dashboards(cohort: Path) -> list[Dashboard]:
    """Return the dashboards of a cohort that are served on this machine now.

    Parameters
    ----------
    cohort
        Folder of the cohort.
    """
    return [Dashboard(link.name) for link in sorted(_folder().glob(f"{_digest(cohort)}-*")) if _is_served(link.name)]


def socket_of(name: str) -> Path | None:
    """Return the socket on which a dashboard is served, or None if it is not there, or not any more.

    Parameters
    ----------
    name
        Name of the dashboard.
    """
    link = _folder() / name
    return link.resolve() if link.is_socket() and _is_served(name) else None


async def _start(scheduler: Scheduler, place: Path) -> tuple[HTTPServer, RoutingApplication]:
    """Serve what Dask would serve on a port, in the scheduler's own event loop."""
    from distributed.dashboard.scheduler import connect
    from distributed.http.routing import RoutingApplication
    from distributed.http.utils import get_handlers
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_unix_socket

    application = RoutingApplication(get_handlers(scheduler, ROUTES))
    server = HTTPServer(application)
    connect(application, scheduler.http_server, scheduler, prefix="/")
    server.add_socket(bind_unix_socket(str(place), mode=0o600))
    return server, application


async def _stop(server: HTTPServer, application: RoutingApplication) -> None:
    server.stop()
    for pages in application.applications:
        pages.stop()
    await server.close_all_connections()


def _folder() -> Path:
    """Return where links to sockets lie, so that the server of the notebook finds them."""
    return env.jobs_folder() / ".dashboards"


def _forget_ended(folder: Path) -> None:
    for link in folder.iterdir():
        if is_alive(link.name[DIGITS + 1 :]) is False:
            link.unlink(missing_ok=True)


def _is_served(name: str) -> bool:
    return is_alive(name[DIGITS + 1 :]) is True


def _digest(cohort: Path) -> str:
    return hashlib.sha256(str(cohort).encode()).hexdigest()[:DIGITS]


def _base_url() -> str:
    """Return the path below which the Jupyter server that started this kernel answers."""
    from jupyter_core.paths import jupyter_runtime_dir

    told = Path(jupyter_runtime_dir(), f"jpserver-{env.get('JPY_PARENT_PID')}.json")
    try:
        return str(json.loads(told.read_text("utf-8"))["base_url"])
    except (OSError, ValueError, KeyError):
        # A script, in a terminal of JupyterLab perhaps.
        return env.hub_prefix() or "/"
