"""napari in the browser: from the launcher of a real JupyterLab to a window that answers, behind the server's login."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from screens import canvas_of, keep_picture, open_napari, share_of, take_picture, take_still, wait_until

from dhlab.annotations import Annotations

pytestmark = [pytest.mark.browser, pytest.mark.napari, pytest.mark.slow]

VIOLET = (150, 70, 160)


def test_a_slide_opens_in_napari_from_its_menu_and_what_is_drawn_is_saved(
    page: Any, lab: Any, watch: Any, tmp_path: Path
) -> None:
    page.goto(f"{lab.url}lab?reset&token={lab.token}")
    open_napari(page).close()
    folder = lab.folder / tmp_path.name
    folder.mkdir()
    glass = np.full((1024, 1024, 3), 244, np.uint8)
    glass[300:700, 300:700] = VIOLET
    tifffile.imwrite(
        folder / "slide.tif", glass, photometric="rgb", tile=(256, 256), resolution=(20000, 20000), resolutionunit=3
    )
    page.goto(f"{lab.url}lab/tree/{tmp_path.name}?reset")
    page.click(".jp-DirListing-item >> text=slide.tif", button="right", timeout=90_000)
    with page.context.expect_page() as opened:
        page.click(".lm-Menu-item >> text=Open in napari")
    page = opened.value
    canvas = canvas_of(page)
    wait_until(page, lambda: share_of(canvas, VIOLET) > 0.02)
    rows, columns = np.nonzero(np.abs(take_still(canvas) - VIOLET).max(-1) <= 6)
    box = canvas.bounding_box()
    middle = box["x"] + columns.mean(), box["y"] + rows.mean()
    page.mouse.click(*middle)
    before = take_still(canvas)
    page.keyboard.press("r")  # napari's key for rectangles
    wait_until(page, lambda: bool((take_picture(canvas) != before).any()))
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 60, steps=20)
    page.mouse.up()
    wait_until(page, lambda: (folder / "slide.geojson").exists())
    keep_picture(page, "napari_in_lab")
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
