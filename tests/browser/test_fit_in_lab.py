"""`fit` in a real JupyterLab: the picture in the cell moves while the network learns, and stays when it is done."""

from __future__ import annotations

import re

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LEARN = """
import numpy as np, time
import dhlab as dh
rng = np.random.default_rng(0)
targets = np.arange(64) % 2
images = rng.integers(60, 160, (64, 32, 32, 3)); images[..., 0] += 40 * targets[:, None, None]
about = {"classes": ("no", "yes"), "task": "classification", "groups": [str(i // 2) for i in range(64)]}
data = dh.Dataset.from_arrays(images.astype(np.uint8), targets, **about)
model = dh.create_model("cnn", data.classes, tile=32, spacing=1.0, width=8, depth=3)
report = dh.fit(model, data.subset(range(48)), data.subset(range(48, 64)), epochs=30, batch_size=8,
                learning_rate=1e-3, on_event=lambda event: time.sleep(0.05))
"""


def test_the_picture_moves_and_stays(page, lab, watch, tmp_path):
    lab.write("fit.ipynb", [LEARN, "report"])
    page.goto(f"{lab.url}lab/tree/fit.ipynb?reset&token={lab.token}")
    page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    page.keyboard.press("Shift+Enter")
    cell = page.locator(".jp-Notebook .jp-Cell >> nth=0")
    status = cell.locator("[role=status]")
    status.wait_for(timeout=90_000)
    seen: dict[float, tuple[str, str]] = {}
    while "done" not in status.inner_text():
        share = float(status.locator("progress").get_attribute("value"))
        seen[share] = (status.inner_text(), status.locator("img").get_attribute("src"))
        page.wait_for_timeout(200)
    text = status.inner_text()
    page.screenshot(path=str(tmp_path / "done.png"))
    assert len(seen) >= 4, "the bar moves"
    assert list(seen) == sorted(seen), "and only forwards"
    assert len({picture for _, picture in seen.values()}) >= 4, "so does the curve"
    assert re.search(r"\d s left", "".join(words for words, _ in seen.values()))
    assert "epoch 30" in text
    assert "balanced accuracy" in text
    width, height = status.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert (width, height) == (640, 300)
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-Notebook .jp-Cell >> nth=1 >> text=Training of cnn").wait_for(timeout=60_000)
    assert not watch.external
    assert not [error for error in watch.errors if "favicon" not in error]
