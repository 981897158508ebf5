"""What jupyter-server-proxy passes on, for whoever may run code here: by itself it asks only who somebody is."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler

__all__ = ["ForRunners"]


class ForRunners(JupyterHandler):
    """Comes before a handler of jupyter-server-proxy, and lets nobody pass who may not run code; web sockets too."""

    auth_resource = "kernels"

    async def prepare(self, **settings: Any) -> None:
        """Let nobody else pass."""
        await super().prepare(**settings)
        if not self._finished:
            await self.admit()

    @authorized("execute")
    async def admit(self) -> None:
        """Let somebody pass who may run code."""
        self.find()

    def find(self) -> None:
        """Look for what is asked for; a handler may refuse what is not there."""
