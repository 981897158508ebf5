"""Kernel messages without delay, for the tiles that travel over the kernel's own connection."""

from __future__ import annotations

from typing import Any

__all__ = ["without_delay"]


def without_delay(connection: type[Any]) -> type[Any]:
    """Return a kernel connection of Jupyter's whose WebSocket sends each message at once.

    A tile follows on the small message that says "busy". By Nagle's algorithm it waits until the browser has confirmed
    that one, which browsers put off by 40 ms.

    Parameters
    ----------
    connection
        Class of the connection, as the server's setting ``kernel_websocket_connection_class`` names it.
    """

    class PromptConnection(connection):  # type: ignore[misc] # the server has no types
        def connect(self) -> Any:
            self.websocket_handler.set_nodelay(True)
            return super().connect()

    return PromptConnection
