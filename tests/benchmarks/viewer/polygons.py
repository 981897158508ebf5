"""Outlines of real nuclei by the hundred thousand, over the kernel's connection, in a real JupyterLab and browser."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from harness import Bench
from viewer.browser import open_browser

from dhlab.annotations import Annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = ["tests/view/test_shapes.py", "tests/browser/test_layers_in_lab.py"]
SHOWN_MS, RECOLOURED_MS = {50: 2000}, {50: 100}
# Half of a screen's frames at least come in time, and none keeps a hand waiting.
FRAME_MS = {50: 33, 95: 100}
# Slides on which so many nuclei lie as densely as in tissue: one on 40 µm², at 0.25 µm a pixel.
SIDES = {100_000: 8000, 1_000_000: 25_300}
SLIDE = """
import numpy as np
import dhlab as dh
class Glass:
    dtype = np.dtype("u1")
    def __init__(self, side):
        self.shape = (side, side, 3)
    def __getitem__(self, key):
        return np.full([k.stop - k.start for k in key], 240, np.uint8)
def glass(side):
    levels = [Glass(side >> (2 * i)) for i in range(4)]
    scales = tuple((4.0**i,) * 2 for i in range(4))
    return dh.Scan(tuple(levels), "yxc", (0.25, 0.25), "µm", name="glass", scales=scales)
"""
SHOW = "viewer = dh.show(glass({side}), height=700)\nviewer"
ADD = "print('added', viewer.add(zones).name)"
# From the key that runs the cell to the frame that shows every shape in view.
LOAD = """async (root) => {
  const { map } = root.dhlab;
  while (map.getLayers().getLength() < 2) await new Promise(requestAnimationFrame);
  const source = map.getLayers().item(1).getSource();
  while (source.loading || !root.querySelector(".dhv-shapes canvas")?.width) await new Promise(requestAnimationFrame);
  await new Promise((done) => { map.once("rendercomplete", done); map.render(); });
  return performance.now() - window.began;
}"""
PLACE = """async (root, [y, x, resolution]) => {
  const { map, frame } = root.dhlab;
  map.getView().setCenter(frame.toWorld(y, x));
  map.getView().setResolution(resolution);
  await new Promise((done) => { map.once("rendercomplete", done); map.render(); });
}"""
# A colour is chosen in the list of classes; the time ends with the frame after the one that draws it.
RECOLOUR = """async (root, color) => {
  const { map } = root.dhlab;
  const input = root.querySelector(".dhv-classes input[type=color]");
  const begin = performance.now();
  input.value = color;
  input.dispatchEvent(new Event("input"));
  await new Promise((done) => map.once("postrender", () => requestAnimationFrame(done)));
  return performance.now() - begin;
}"""
PAN = """async (root, pixels) => {
  const { map } = root.dhlab;
  const view = map.getView();
  const [x, y] = view.getCenter();
  const frames = [];
  let last = performance.now();
  let moving = true;
  view.animate({ center: [x + pixels * view.getResolution(), y], duration: 1500 }, () => { moving = false; });
  while (moving) {
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - last);
    last = performance.now();
  }
  view.setCenter([x, y]);
  return frames.slice(2);
}"""


def measure(bench: Bench) -> None:
    """Load, recolour and pan, with all in view and close by."""
    with open_browser() as (chromium, lab, real):
        for count, side in SIDES.items():
            page = chromium.new_page(viewport={"width": 1400, "height": 1000})
            measure_one(bench, real, page, lab, count=count, side=side)
            page.close()


def measure_one(bench: Bench, real: Any, page: Any, lab: Any, *, count: int, side: int) -> None:
    """Measure one number of polygons, all in view and where single nuclei are small or large on the screen."""
    make = f"{SLIDE}\n{inspect.getsource(nuclei)}"
    make = f"from pathlib import Path\nimport shapely\nfrom dhlab.annotations import Annotations\n{make}\n"
    cells = [f"{make}zones = nuclei({count}, {side}, 0)", SHOW.format(side=side), ADD]
    cell = real.Cell(page, lab, f"polygons-{count}.ipynb", cells)
    page.locator(".jp-Notebook .jp-Cell >> nth=2").locator(".cm-content").click()
    page.evaluate("() => { window.began = performance.now(); }")
    page.keyboard.press("Control+Enter")
    limit(bench, f"{count:,} polygons, all in view", "load", [cell.viewer.evaluate(LOAD)], SHOWN_MS)
    for where, resolution in ((", all in view", None), (", nuclei of 8 px", 3.0), (", nuclei of 24 px", 1.0)):
        if resolution is not None:
            cell.viewer.evaluate(PLACE, [side / 2, side / 2, resolution])
            page.wait_for_timeout(500)
        name = f"{count:,} polygons{where}"
        colors = [f"#{random:06x}" for random in np.random.default_rng(1).integers(0, 1 << 24, 12)]
        limit(bench, name, "recolour", [cell.viewer.evaluate(RECOLOUR, c) for c in colors], RECOLOURED_MS)
        limit(bench, name, "frame while panning", cell.viewer.evaluate(PAN, 600), FRAME_MS)


def limit(bench: Bench, case: str, what: str, milliseconds: Sequence[float], limits: dict[int, int]) -> None:
    """Add a row for each percentile beside what is allowed."""
    for percent, most in limits.items():
        value = float(np.percentile(milliseconds, percent))
        suffix = f", p{percent}" if len(limits) > 1 else ""
        bench.record(f"{case}: {what}{suffix}", value, most, peer_name=f"limit: {most} ms", unit="ms", goal=1.0)


def nuclei(count: int, side: int, seed: int) -> Annotations:
    """Return outlines of real nuclei (DSB2018), turned, scaled a little, and laid out over a slide with jitter."""
    import cv2

    from dhlab.samples import sample_path

    rng = np.random.default_rng(seed)
    labels = Path(sample_path("nuclei-stained")).parents[1] / "labels"
    models = []
    for path in sorted(labels.glob("*.png")):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for value in np.unique(picture)[1:]:
            outlines, _ = cv2.findContours(
                (picture == value).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            outline = max(outlines, key=len)[:, 0].astype(float)
            if len(outline) >= 12:
                models.append((outline - outline.mean(0))[:: max(1, len(outline) // 24)])
    step = side / np.ceil(np.sqrt(count))
    y, x = (v.ravel()[:count] * step for v in np.mgrid[: side / step, : side / step])
    centers = np.stack([x, y], 1) + rng.uniform(0.2, 0.8, (count, 2)) * step
    parts, owner = [], []
    which = rng.integers(0, len(models), count)
    angles = rng.uniform(0, 2 * np.pi, count)
    # Nuclei are about 6 µm wide whatever the picture's pixel was.
    sizes = rng.uniform(0.8, 1.2, count) * 12
    for model in range(len(models)):
        rows = np.flatnonzero(which == model)
        shape = models[model] / np.abs(models[model]).max()
        turn = np.stack([np.cos(angles[rows]), -np.sin(angles[rows]), np.sin(angles[rows]), np.cos(angles[rows])], -1)
        turned = np.einsum("vi,nij->nvj", shape, turn.reshape(-1, 2, 2)) * sizes[rows, None, None]
        parts.append(shapely.polygons(turned + centers[rows, None]))
        owner.append(rows)
    geometries = np.empty(count, object)
    geometries[np.concatenate(owner)] = np.concatenate(parts)
    return Annotations(
        geometries=geometries,
        classes=rng.integers(0, 4, count).astype(np.int32),
        class_names=("tumour", "stroma", "immune", "other"),
        ids=np.arange(count).astype(str).astype(object),
        scores=rng.uniform(0, 1, count),
    )
