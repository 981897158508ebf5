"""Dask's pages of the cohorts that notebooks of this server run, for whoever may run code here."""

from __future__ import annotations

from typing import Any

from jupyter_server_proxy.handlers import LocalProxyHandler

from dhlab.scheduling.dashboard import socket_of
from dhlab_lab.access import Refused
from dhlab_lab.proxies import ForRunners

__all__ = ["HANDLERS", "DashboardHandler"]


class DashboardHandler(ForRunners, LocalProxyHandler):  # type: ignore[misc] # jupyter-server-proxy ships no types
    """``GET dhlab/dask/{name}/…``: what Dask answers on the socket of that name; its web socket too."""

    SUPPORTED_METHODS = ("GET",)

    def find(self) -> None:
        """Take the socket that belongs to the name."""
        place = socket_of(self.path_args[0])
        if place is None:
            raise Refused(404, "this cohort has ended, or runs on another machine.")
        self.unix_socket = str(place)


def _keep_inside(response: Any) -> None:
    """Let a page load nothing from elsewhere: one of Dask's asks a stranger for its style."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
    )


HANDLERS = ((r"dhlab/dask/(\w[\w.-]{0,199})/(.*)", DashboardHandler, {"rewrite_response": _keep_inside}),)
