"""Live learning in JupyterLab's own tab of a slide: in a kernel that starts when asked, and ends with the tab."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from screens import wait_until

import dhlab as dh

LABEXTENSION = Path(__file__).parents[2] / "extensions" / "jupyterlab" / "labextension"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (LABEXTENSION / "package.json").exists(), reason="the Lab extension is not built (npm)"),
]
# On the real slide, level-0 pixels (y, x): strokes, and a place on glass so near to tissue that it is taken for that
# until a stroke in the hollow of a follicle says otherwise.
TISSUE = ((1200, 960), (2300, 1180))
GLASS = ((1500, 150), (2200, 350))
HOLLOW = ((1600, 1330), (1660, 1420))
BESIDE = (2482, 1806)
BETWEEN = (2050, 1600)
# Lets a test close what a page has opened.
KEEP_SOCKETS = """
  const opened = window.opened = [];
  window.WebSocket = class extends WebSocket { constructor(...how) { super(...how); opened.push(this); } };
"""


@pytest.fixture
def folder(lab: Any, skin_slide: Path) -> Path:
    folder = lab.folder / "learning"
    folder.mkdir()
    shutil.copyfile(skin_slide, folder / "skin.svs")
    return folder


def learning_kernels(lab: Any) -> list[str]:
    """Return the ids of the kernels that learn, as the server tells them."""
    request = urllib.request.Request(f"{lab.url}api/sessions", headers={"Authorization": f"token {lab.token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        sessions = json.load(answer)
    return [one["kernel"]["id"] for one in sessions if one["name"] == "skin.svs: live learning"]


def kill(lab: Any, kernel: str) -> None:
    psutil = pytest.importorskip("psutil")
    for process in psutil.Process(lab.process.pid).children(recursive=True):
        if any(kernel in part for part in process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)


def test_strokes_in_a_tab_teach_a_kernel_that_ends_with_it(page, lab, folder, watch, open_stage) -> None:
    page.add_init_script(KEEP_SOCKETS)
    page.goto(f"{lab.url}lab/tree/{folder.name}?reset&token={lab.token}")
    page.dblclick(".jp-DirListing-item >> text=skin.svs", timeout=90_000)
    stage = open_stage()
    card = stage.viewer.locator(".dhv-learning")

    def press(name: str) -> None:
        card.get_by_role("button", name=name, exact=True).click()

    def is_in(name: str) -> None:
        card.locator(f".dhv-learning-state[data-state={name}]").wait_for(timeout=90_000)

    def draw(*places: tuple[float, float], key: str) -> None:
        stage.press(key, "l")
        stage.drag(*places)
        stage.saved()

    def center() -> list[float]:
        found: list[float] = stage.viewer.evaluate("({ dhlab: { map } }) => map.getView().getCenter()")
        return found

    def is_tissue() -> bool:
        """Whether the map shows the place beside the tissue in the colour of tissue, not in that of glass."""
        red, _, blue = stage.color(*BESIDE)
        return bool(red > blue)

    for name in ("tissue", "glass"):
        stage.viewer.get_by_role("button", name="Add a class").click()
        stage.viewer.get_by_label("Name of the class").fill(name)
        page.keyboard.press("Enter")
    draw(*TISSUE, key="1")
    draw(*GLASS, key="2")
    press("Learn from what is drawn")
    is_in("starting")
    is_in("ready")
    [kernel] = learning_kernels(lab)
    assert stage.viewer.locator(".dhv-card[aria-label=learned]").is_visible()

    # The map colours the view, and a stroke corrects it.
    stage.viewer.evaluate(
        """({ dhlab: { map, frame } }, place) => {
          map.getView().setResolution(1.2);
          map.getView().setCenter(frame.toWorld(...place));
        }""",
        BETWEEN,
    )
    wait_until(page, lambda: np.ptp(stage.color(*BESIDE)) > 40)
    assert is_tissue()
    draw(*HOLLOW, key="2")
    card.locator("li:has-text('glass2')").wait_for(timeout=20_000)
    wait_until(page, lambda: not is_tissue())
    stage.viewer.get_by_label("Show learned").uncheck(force=True)
    stage.settle()
    assert np.ptp(stage.color(*BESIDE)) < 20
    stage.viewer.get_by_label("Show learned").check(force=True)

    # It goes where it is unsure.
    before = center()
    press("Next place")
    wait_until(page, lambda: center() != before)

    # The whole slide, given up and done; then outlines, which the kernel draws under the person's own name.
    mapped = folder / "skin.learned.ome.zarr"
    press("Whole slide")
    press("Cancel")
    card.get_by_text("cancelled.").wait_for(timeout=20_000)
    assert not mapped.exists()
    press("Whole slide")
    is_in("applying")
    is_in("ready")
    assert mapped.is_dir()
    press("To polygons")
    card.get_by_text("polygons on the slide, to be accepted or rejected.").wait_for(timeout=30_000)
    with dh.Document.open(dh.open(folder / "skin.svs")) as document:
        proposed = document.annotations.where(review="proposed")
        assert len(proposed) > 3
        assert set(document.annotations.authors) == {document.author}
    stage.press("0")
    stage.viewer.locator(f".dhv-table summary:has-text('In view: {len(proposed) + 3}')").wait_for(timeout=20_000)

    # A kernel that dies is told of, and nothing of it stays; another one begins with what is drawn.
    kill(lab, kernel)
    card.get_by_text("The kernel that learned has ended.").wait_for(timeout=30_000)
    assert not stage.viewer.locator(".dhv-card[aria-label=learned]").count()
    press("Learn from what is drawn")
    is_in("ready")
    wait_until(page, lambda: len(learning_kernels(lab)) == 1)
    assert learning_kernels(lab) != [kernel]
    assert card.locator("li:has-text('glass2')").is_visible()

    # Somebody ends it among what runs.
    page.evaluate("id => window.jupyterapp.serviceManager.kernels.shutdown(id)", learning_kernels(lab)[0])
    card.get_by_text("The kernel that learned has ended.").wait_for(timeout=30_000)

    # One to which the way is lost.
    press("Learn from what is drawn")
    wait_until(page, lambda: bool(learning_kernels(lab)))
    is_in("ready")
    page.evaluate("opened.filter(({ url }) => url.includes('/channels')).at(-1).close(1000)")
    card.get_by_text("The kernel that learned has ended.").wait_for(timeout=30_000)
    wait_until(page, lambda: not learning_kernels(lab))

    # One that nobody waits for any more, and one whose page is left.
    press("Learn from what is drawn")
    press("Stop")
    card.get_by_role("button", name="Learn from what is drawn").wait_for()
    wait_until(page, lambda: not learning_kernels(lab))
    press("Learn from what is drawn")
    wait_until(page, lambda: bool(learning_kernels(lab)))
    assert watch.errors == []
    page.goto("about:blank")
    wait_until(page, lambda: not learning_kernels(lab))
    assert watch.external == []
