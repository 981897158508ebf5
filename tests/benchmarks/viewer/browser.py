"""The real front in headless Chromium: fields of view, and tiles by every way beside the peers in notebooks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_read import TILE, write_slide
from harness import ROOT, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

TESTS = ["tests/browser/test_slides_in_lab.py"]
SIDE = 8192
# As many as the viewer asks for at once; a browser opens six connections to a server.
WANTED = 64
OPENED, MOVED, TILES = 12, 60, 600
FIRST_MS, ADJACENT_MS = {50: 500, 95: 1000}, {50: 100, 95: 250}
SHOW = "import dhlab as dh\nviewer = dh.show(dh.open({path!r}))\nviewer"
ISLIDE = """from islide import SlideViewer
view = SlideViewer({path!r}, canvas_h=500)
view.set_zoom(1.0, 1000, 1000)
view"""
ISLIDE_MOVES = """for y in range(700, 7600, 520):
    for x in range(800, 7600, 1024):
        view.center_on(x, y)"""
LARGE_IMAGE = """import large_image
from large_image.tilesource.jupyter import launch_tile_server
source = large_image.open({path!r})
print(launch_tile_server(source).port, source.levels - 1)"""
# Before anything else runs on the page: count pictures in what its connections bring.
COUNT = """
window.arrived = [];
const Plain = window.WebSocket;
window.WebSocket = class extends Plain {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", async ({ data }) => {
      const text = typeof data === "string" ? data : new TextDecoder("latin1").decode(
        data instanceof Blob ? await data.arrayBuffer() : data);
      const count = text.split("data:image/jpeg").length - 1;
      if (count) window.arrived.push([performance.now(), count]);
    });
  }
};
"""
# What a page does with many requests: some are on their way, and each that ends lets the next one start.
PULL = """
window.pull = async (count, lines, ask) => {
  let next = 0;
  const begin = performance.now();
  await Promise.all(Array.from({ length: lines }, async () => {
    while (next < count) await ask(next++);
  }));
  return count / (performance.now() - begin) * 1000;
}
"""
PULL_OURS = """async (root, [order, columns, lines]) => {
  const signal = new AbortController().signal;
  return pull(order.length, lines, (i) => {
    const place = { row: Math.floor(order[i] / columns), column: order[i] % columns };
    return root.dhlab.transport.tile({ layer: 0, revision: 0, level: 0, ...place, style: {}, index: {} }, signal);
  });
}"""
PULL_LARGE_IMAGE = """async ([port, level, order, columns, lines]) => pull(order.length, lines, async (i) => {
  const place = `z=${level}&x=${order[i] % columns}&y=${Math.floor(order[i] / columns)}`;
  const picture = new Image(); // its port is not the page's, which may show what it sends but not read it
  await new Promise((done, fail) => {
    Object.assign(picture, { onload: done, onerror: () => fail(new Error(`no tile ${place}`)) });
    // Never the same address twice: the browser would answer itself.
    picture.src = `http://127.0.0.1:${port}/tile?${place}&encoding=JPEG&_=${performance.now()}`;
  });
})"""
RATE = """() => {
  const count = window.arrived.reduce((sum, [, n]) => sum + n, 0);
  return count / (window.arrived.at(-1)[0] - window.began) * 1000;
}"""
OPEN = """async (path) => {
  const begin = performance.now();
  const before = new Set(document.querySelectorAll(".dhlab-viewer"));
  await window.jupyterapp.commands.execute("docmanager:open", { path });
  for (;;) {
    const root = [...document.querySelectorAll(".dhlab-viewer")].find((one) => !before.has(one));
    if (root?.dataset.ready) return performance.now() - begin;
    await new Promise(requestAnimationFrame);
  }
}"""
MOVE = """async (root, [y, x]) => {
  const { map, frame } = root.dhlab;
  const begin = performance.now();
  map.getView().setCenter(frame.toWorld(y, x));
  await new Promise((done) => map.once("rendercomplete", done));
  return performance.now() - begin;
}"""
SHARP = """(root) => {
  root.dhlab.map.getView().setResolution(1);
}"""


def measure(bench: Bench) -> None:
    """Drive JupyterLab below a prefix: open slides, move over one, ask for many tiles."""
    with open_lab() as (page, lab, real):
        slide = lab.folder / "slide.svs"
        measure_first_fields(bench, page, slide)
        measure_adjacent_fields(bench, page)
        with tempfile.TemporaryDirectory() as place:
            outside = Path(place) / "outside.svs"
            shutil.copyfile(slide, outside)
            measure_tiles(bench, page, lab, real, (slide, outside))


@contextmanager
def open_lab() -> Iterator[tuple[Any, Any, ModuleType]]:
    """Run JupyterLab in a folder with ``slide.svs``; give a page of it, the Lab, and the module of its tests."""
    with open_browser() as (chromium, lab, real):
        write_slide(lab.folder / "slide.svs", SIDE)
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.add_init_script(COUNT + PULL)
        page.goto(f"{lab.url}lab?reset&token={lab.token}")
        page.wait_for_selector(".jp-DirListing-item >> text=slide.svs", timeout=90_000)
        yield page, lab, real


@contextmanager
def open_browser() -> Iterator[tuple[Any, Any, ModuleType]]:
    """Run JupyterLab in an empty folder; give a browser, the Lab, and the module of its tests."""
    from playwright.sync_api import sync_playwright

    # Page, server and kernel are processes of their own, and share the machine as they do at work.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    real = load_conftest()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder, home = Path(place) / "root", Path(place) / "home"
        folder.mkdir()
        home.mkdir()
        chromium = driver.chromium.launch(executable_path=real.CHROMIUM, args=real.FLAGS)
        with real.run_lab(folder, home) as lab:
            yield chromium, lab, real
        chromium.close()


def load_conftest() -> ModuleType:
    """Return the fixtures of the browser tests, whose JupyterLab this is."""
    sys.path.append(str(ROOT / "tests" / "shared"))
    spec = importlib.util.spec_from_file_location("browser_conftest", ROOT / "tests" / "browser" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def record_percentiles(bench: Bench, case: str, milliseconds: list[float], limits: dict[int, int]) -> None:
    """Add a row for each percentile beside its limit."""
    for percent, limit in limits.items():
        value = float(np.percentile(milliseconds, percent))
        bench.record(f"{case}, p{percent}", value, limit, peer_name=f"limit: {limit} ms", unit="ms", goal=1.0)


def measure_first_fields(bench: Bench, page: Any, slide: Path) -> None:
    """From the command that a double-click gives to a field of which every tile is sharp, each time another file."""
    times = []
    for number in range(OPENED + 1):
        copy = slide.with_name(f"copy-{number}.svs")
        shutil.copyfile(slide, copy)
        times.append(page.evaluate(OPEN, copy.name))
        page.evaluate("() => window.jupyterapp.shell.currentWidget.close()")
        page.wait_for_timeout(300)
    # The first of all loads the extension's code, as it does once a session.
    record_percentiles(bench, "first sharp field of a slide", times[1:], FIRST_MS)
    bench.record("first sharp field, code of the viewer loaded too", times[0], unit="ms")


def measure_adjacent_fields(bench: Bench, page: Any) -> None:
    """Move by the width or height of the view at full resolution, over places that nobody has looked at."""
    page.evaluate(OPEN, "slide.svs")
    root = page.locator(".dhlab-viewer:visible").first
    root.evaluate(SHARP)
    height, width = root.evaluate("({ dhlab: { map } }) => map.getSize().reverse()")
    times = []
    places = [
        (y, x if row % 2 == 0 else SIDE - x)
        for row, y in enumerate(np.arange(height / 2, SIDE - height / 2, height))
        for x in np.arange(width / 2, SIDE - width / 2, width)
    ]
    for y, x in places[: MOVED + 1]:
        times.append(root.evaluate(MOVE, [float(y), float(x)]))
        page.wait_for_timeout(150)
    record_percentiles(bench, f"adjacent field of {width} × {height}", times[1:], ADJACENT_MS)


def measure_tiles(bench: Bench, page: Any, lab: Any, real: Any, slides: tuple[Path, Path]) -> None:
    """Ask for tiles of one slide as a browser does, by the server, by the kernel, and of the peers."""
    inside, outside = slides
    columns = SIDE // TILE
    order = np.random.default_rng(5).permutation(columns**2)[:TILES].tolist()
    ask = [order, columns, WANTED]
    rates: dict[str, list[float]] = {}
    for name, path in (("server", inside), ("kernel", outside)):
        cell = real.Cell(page, lab, f"{name}.ipynb", ["1", SHOW.format(path=str(path))])
        rates[name] = [cell.viewer.evaluate(PULL_OURS, ask) for _ in range(bench.arguments.rounds)]
    rates["jupyter-islide"] = islide(page, lab, str(inside), bench.arguments.rounds)
    port, level = map(int, run_cells(page, lab, "large.ipynb", [LARGE_IMAGE.format(path=str(inside))])[-1].split())
    rates["large_image"] = [page.evaluate(PULL_LARGE_IMAGE, [port, level, *ask]) for _ in range(bench.arguments.rounds)]
    for name, way in (("server", "HTTP"), ("kernel", "the kernel's connection")):
        for peer, package, goal in (("jupyter-islide", "jupyter-islide", 5.0), ("large_image", "large-image", None)):
            bench.record(
                f"tiles at the page by {way}, {WANTED} wanted at a time",
                max(rates[name]),
                max(rates[peer]),
                peer_name=peer,
                unit="tiles/s",
                goal=goal,
                package=package,
            )


def run_cells(page: Any, lab: Any, name: str, cells: list[str]) -> list[str]:
    """Run a notebook's cells and return what each printed."""
    lab.write(name, cells)
    page.goto(f"{lab.url}lab/tree/{name}?reset&token={lab.token}")
    page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    said = []
    for number in range(len(cells)):
        page.keyboard.press("Shift+Enter")
        prompt = page.locator(f".jp-Notebook .jp-Cell >> nth={number}").locator(".jp-InputPrompt")
        page.wait_for_function("prompt => /\\d/.test(prompt.textContent)", arg=prompt.element_handle(), timeout=90_000)
        output = page.locator(f".jp-Notebook .jp-Cell >> nth={number}").locator(".jp-OutputArea-output")
        said.append(output.first.inner_text().strip() if output.count() else "")
    return said


def islide(page: Any, lab: Any, path: str, rounds: int) -> list[float]:
    """Return the tiles a second that jupyter-islide brings to the page while its view moves over the slide."""
    rates = []
    for number in range(rounds):
        run_cells(page, lab, f"islide-{number}.ipynb", [ISLIDE.format(path=path)])
        page.wait_for_timeout(3000)
        page.evaluate("() => { window.arrived = []; window.began = performance.now(); }")
        cell = page.locator(".jp-Notebook .jp-Cell").last
        cell.locator(".cm-content").click()
        page.keyboard.insert_text(ISLIDE_MOVES)
        page.evaluate("() => { window.arrived = []; window.began = performance.now(); }")
        page.keyboard.press("Control+Enter")
        last = -1.0
        while (now := page.evaluate("() => window.arrived.at(-1)?.[0] ?? 0")) != last or now == 0:
            last = now
            page.wait_for_timeout(1500)
        rates.append(page.evaluate(RATE))
    return rates
