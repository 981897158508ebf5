"""Whole slides in JupyterLab: the server's part, which sends tiles of files below allowed roots."""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from dhlab_lab.app import DHLab

    return [{"module": "dhlab_lab", "app": DHLab}]
