"""From a stroke in a notebook's viewer to its saved state there, and to a tab of JupyterLab; and the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from annotation.saving import SAVED_MS, SEEN_MS, limit
from harness import Bench
from viewer.browser import open_browser

import dhlab as dh

if TYPE_CHECKING:
    from pathlib import Path

TESTS = ["tests/browser/test_drawing_in_lab.py"]
STROKES = 30
CELLS = [
    'import dhlab as dh\nslide = dh.open("slide.png")\ndocument = dh.Document.open(slide, author="anna")',
    "viewer = dh.show(slide, document)\nviewer",
]
# When the button was let go, when all was saved, and when there was one object more: by the clock of all pages.
CLOCKS = """(root) => {
  const saving = root.querySelector(".dhv-saving");
  const stage = root.querySelector(".dhv-stage");
  const sources = root.dhlab.map.getAllLayers().map((layer) => layer.getSource());
  const features = () => sources.flatMap((source) => source?.getFeatures?.() ?? []);
  const count = () => features().filter((one) => one.get("object")).length;
  const clocks = (root.clocks = { up: [], saved: [], seen: [] });
  stage.addEventListener("pointerup", () => clocks.up.push(Date.now()), { capture: true });
  let state = saving.dataset.state;
  new MutationObserver(() => {
    if (saving.dataset.state === "saved" && state !== "saved") clocks.saved.push(Date.now());
    state = saving.dataset.state;
  }).observe(saving, { attributes: true });
  let known = count();
  const look = () => {
    if (count() > known) clocks.seen.push(Date.now());
    known = count();
    requestAnimationFrame(look);
  };
  look();
}"""


def measure(bench: Bench) -> None:
    """Draw in one front, look at the other."""
    with open_browser() as (chromium, lab, real):
        make_slide(lab.folder)
        size = {"width": 1400, "height": 1000}
        notebook, other = (chromium.new_page(viewport=size) for _ in range(2))
        cell = real.Cell(notebook, lab, "draw.ipynb", CELLS)
        other.goto(f"{lab.url}lab?reset&token={lab.token}")
        other.wait_for_selector(".jp-DirListing-item >> text=slide.png", timeout=90_000)
        other.evaluate("window.jupyterapp.commands.execute('docmanager:open', { path: 'slide.png', factory: 'Slide' })")
        tab = real.Stage(other, other.locator(".dhlab-viewer:visible").first)
        for stage in (cell, tab):
            stage.viewer.evaluate(CLOCKS)
        for name, one, another in (("notebook", cell, "tab"), ("tab", tab, "notebook")):
            clocks = draw(one, other=tab if one is cell else cell)
            saved, seen = (np.subtract(clocks[what], clocks["up"]).tolist() for what in ("saved", "seen"))
            limit(bench, f"stroke in a {name} saved, as its viewer says", saved, SAVED_MS)
            limit(bench, f"stroke in a {name} on the screen of a {another}", seen, SEEN_MS)


def make_slide(folder: Path) -> None:
    """Write a picture that stands for a slide."""
    dh.save(dh.Scan.from_array(np.full((2000, 2600, 3), 240, np.uint8), "yxc", name="slide"), folder / "slide.png")


def draw(one: Any, *, other: Any) -> dict[str, list[float]]:
    """Draw rectangles in one front, one after the other; when each was drawn, saved, and seen in the other."""
    for stage in (one, other):
        stage.viewer.evaluate("(root) => Object.values(root.clocks).forEach((times) => (times.length = 0))")
    one.press("r")
    for number in range(STROKES):
        y, x = 400 + 200 * (number % 6), 300 + 300 * (number // 6)
        one.drag((y, x), (y + 150, x + 200), steps=4)
        one.saved()
        other.page.wait_for_function(
            "([root, count]) => root.clocks.seen.length >= count", arg=[other.viewer.element_handle(), number + 1]
        )
    own = one.viewer.evaluate("(root) => root.clocks")
    return {"up": own["up"], "saved": own["saved"], "seen": other.viewer.evaluate("(root) => root.clocks.seen")}
