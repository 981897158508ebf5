"""napari in the browser: from the launcher of a real JupyterLab to a window that answers, behind the server's login."""

from __future__ import annotations

import io
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dhlab.annotations import Annotations

pytestmark = [pytest.mark.browser, pytest.mark.napari, pytest.mark.slow]

# The ground of napari's windows in its dark theme.
NAPARI = (38, 41, 48)
VIOLET = (150, 70, 160)


@pytest.fixture
def desktop(page: Any, lab: Any) -> Any:
    """Open napari from the launcher, and return the frame that shows it; it ends with the server."""
    for program, plan in (("vncserver", "tigervnc-standalone-server"), ("xauth", "xauth"), ("openbox", "openbox")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (apt-get install {plan})")
    for module in ("napari", "jupyter_remote_desktop_proxy"):
        if find_spec(module) is None:
            pytest.skip(f"needs {module.replace('_', '-')} (pip install)")
    page.goto(f"{lab.url}lab?reset&token={lab.token}")
    page.locator('.jp-LauncherCard[title="napari"]').click(timeout=90_000)
    return page.frame_locator("iframe[src*='dhlab/napari']")


def picture(canvas: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def share(canvas: Any, color: tuple[int, int, int], tolerance: int = 6) -> float:
    """Return how much of the screen has a colour."""
    return float((np.abs(picture(canvas) - color).max(-1) <= tolerance).mean())


def wait(page: Any, condition: Callable[[], bool]) -> None:
    for _ in range(80):
        if condition():
            return
        page.wait_for_timeout(500)
    if pictures := os.environ.get("DHLAB_PICTURES"):
        page.screenshot(path=f"{pictures}/waited_in_vain.png")
    pytest.fail("waited in vain")


def test_a_slide_opens_in_napari_from_the_launcher_and_what_is_drawn_is_saved(
    desktop: Any, page: Any, lab: Any, watch: Any, tmp_path: Path
) -> None:
    canvas = desktop.locator("#screen canvas")
    canvas.wait_for(timeout=60_000)
    wait(page, lambda: share(canvas, NAPARI) > 0.2)
    folder = lab.folder / tmp_path.name
    folder.mkdir()
    glass = np.full((1024, 1024, 3), 244, np.uint8)
    glass[300:700, 300:700] = VIOLET
    tifffile.imwrite(
        folder / "slide.tif", glass, photometric="rgb", tile=(256, 256), resolution=(20000, 20000), resolutionunit=3
    )
    page.goto(f"{lab.url}dhlab/napari/?path={tmp_path.name}/slide.tif")
    canvas = page.locator("#screen canvas")
    canvas.wait_for(timeout=60_000)
    wait(page, lambda: share(canvas, VIOLET) > 0.02)
    page.wait_for_timeout(1000)
    rows, columns = np.nonzero(np.abs(picture(canvas) - VIOLET).max(-1) <= 6)
    box = canvas.bounding_box()
    middle = box["x"] + columns.mean(), box["y"] + rows.mean()
    page.mouse.click(*middle)
    page.keyboard.press("r")  # napari's key for rectangles
    page.wait_for_timeout(500)
    page.mouse.move(*middle)
    page.mouse.down()
    for step in (20, 40, 60):
        page.mouse.move(middle[0] + step, middle[1] + step)
        page.wait_for_timeout(100)
    page.mouse.up()
    wait(page, lambda: (folder / "slide.geojson").exists())
    if pictures := os.environ.get("DHLAB_PICTURES"):
        page.wait_for_timeout(500)
        page.screenshot(path=f"{pictures}/napari_in_lab.png")
    [drawn] = Annotations.from_geojson(folder / "slide.geojson")
    left, top, right, bottom = drawn.geometry.bounds
    assert (left, top) == pytest.approx((500, 500), abs=15)
    assert right - left == pytest.approx(bottom - top, rel=0.1)
    assert not watch.external


def test_strangers_see_neither_the_page_nor_the_screen(lab: Any) -> None:
    for address in ("dhlab/napari/", "dhlab/desktop-websockify/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.build_opener(NoRedirect).open(f"{lab.url}{address}", timeout=20)
        assert refused.value.code in (302, 403)
        refused.value.close()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
