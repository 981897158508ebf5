"""What is seen on a screen that a browser shows."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

# The ground of napari's windows in its dark theme.
NAPARI = (38, 41, 48)


def need_napari_in_browser() -> None:
    """Skip the test where something is missing that shows napari in a browser."""
    for program, package in (("vncserver", "tigervnc-standalone-server"), ("xauth", "xauth"), ("openbox", "openbox")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (apt-get install {package})")
    for module in ("napari", "jupyter_remote_desktop_proxy"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module.replace('_', '-')} (pip install)")


def open_napari(page: Any) -> Any:
    """Click on the card in JupyterLab's launcher, and return the page of the screen on which napari is."""
    need_napari_in_browser()
    with page.context.expect_page(timeout=90_000) as opened:
        page.locator('.jp-LauncherCard[title^="napari"]').click(timeout=90_000)
    screen = opened.value
    wait_until(screen, lambda: share_of(canvas_of(screen), NAPARI) > 0.2)
    return screen


def canvas_of(screen: Any) -> Any:
    """Return the picture of a screen, once it is there."""
    canvas = screen.locator("#screen canvas")
    canvas.wait_for(timeout=60_000)
    return canvas


def take_picture(place: Any) -> np.ndarray:
    """Return an element of a page, or the page, as RGB."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).astype(int)


def take_still(place: Any) -> np.ndarray:
    """Return an element of a page as RGB, once it shows the same for half a second."""
    pictures: list[np.ndarray] = []

    def is_still() -> bool:
        pictures.append(take_picture(place))
        return len(pictures) > 1 and np.array_equal(*pictures[-2:])

    wait_until(place.page, is_still)
    return pictures[-1]


def share_of(place: Any, color: tuple[int, int, int], tolerance: int = 6) -> float:
    """Return how much of an element has a colour."""
    return float((np.abs(take_picture(place) - color).max(-1) <= tolerance).mean())


def wait_until(page: Any, condition: Callable[[], bool]) -> None:
    """Wait until something is seen, for at most two minutes."""
    for _ in range(240):
        if condition():
            return
        page.wait_for_timeout(500)
    keep_picture(page, "waited_in_vain")
    pytest.fail("waited in vain")


def workspace_kept(page: Any, text: str) -> Any:
    """Return a context that ends when JupyterLab, which does so now and then, has stored a workspace with a text."""

    def is_it(answer: Any) -> bool:
        asked = answer.request
        return asked.method == "PUT" and "/api/workspaces/" in asked.url and text in (asked.post_data or "")

    return page.expect_response(is_it, timeout=60_000)


def keep_picture(page: Any, name: str) -> None:
    """Keep a picture of a page for people, in the folder that ``DHLAB_PICTURES`` names."""
    if folder := os.environ.get("DHLAB_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png")
