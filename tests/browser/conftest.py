"""A real JupyterLab below a prefix, and Debian's Chromium to look at it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import PREFIX, Jupyter, run_jupyter, write_notebook

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Lab(Jupyter):
    """A running JupyterLab."""

    def write(self, name: str, cells: list[str]) -> None:
        """Put a notebook into the folder."""
        write_notebook(self.folder / name, cells)


@dataclass
class Watch:
    """What a page did besides showing itself: errors in its console, requests to others, requests to its own server."""

    errors: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)


class Stage:
    """A viewer on a page, seen and handled as a person would."""

    def __init__(self, page: Any, viewer: Any) -> None:
        self.page = page
        self.viewer = viewer
        self.stage = viewer.locator(".dhv-stage")
        self.page.wait_for_function("root => root.dataset.ready", arg=viewer.element_handle(timeout=90_000))
        self.viewer.scroll_into_view_if_needed()
        self.settle()

    def settle(self) -> None:
        """Wait until nothing moves and every tile is there."""
        for _ in range(100):
            moving = self.viewer.evaluate(
                """async (root) => {
                  const { map } = root.dhlab;
                  await new Promise((done) => { map.once("rendercomplete", done); map.render(); });
                  return map.getView().getAnimating();
                }"""
            )
            if not moving:
                break
        self.page.wait_for_timeout(350)

    def picture(self) -> np.ndarray:
        """Return the stage as RGB."""
        return np.asarray(Image.open(io.BytesIO(self.stage.screenshot())).convert("RGB")).astype(int)

    def place(self, y: float, x: float) -> tuple[float, float]:
        """Return where a level-0 pixel is on the stage, as (y, x) in screen pixels."""
        found = self.viewer.evaluate(
            "({ dhlab: { map, frame } }, [y, x]) => map.getPixelFromCoordinate(frame.toWorld(y, x))", [y, x]
        )
        return found[1], found[0]

    def color(self, y: float, x: float) -> np.ndarray:
        """Return the colour shown at a level-0 pixel."""
        row, column = (round(v) for v in self.place(y, x))
        picture = self.picture()
        assert 0 <= row < picture.shape[0], "not in view"
        assert 0 <= column < picture.shape[1], "not in view"
        return picture[row, column]

    def drag(self, *places: tuple[float, float], steps: int = 8) -> None:
        """Drag the mouse from level-0 pixel to level-0 pixel, each (y, x)."""
        self.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            box, (row, column) = self.stage.bounding_box(), self.place(*place)
            self.page.mouse.move(box["x"] + column, box["y"] + row, steps=steps)
        self.page.mouse.up()

    def click(self, y: float, x: float, **how: Any) -> None:
        """Click on a level-0 pixel."""
        self.page.mouse.click(*self.move(y, x), **how)

    def press(self, *keys: str) -> None:
        """Press keys on the picture, one after the other."""
        self.stage.focus()
        for key in keys:
            self.page.keyboard.press(key)

    def paste(self, thing: Any) -> None:
        """Paste text, JSON of a thing, as from another program."""
        self.stage.evaluate(
            """(stage, text) => {
              const clipboardData = new DataTransfer();
              clipboardData.setData("text/plain", text);
              stage.dispatchEvent(new ClipboardEvent("paste", { clipboardData, cancelable: true }));
            }""",
            json.dumps(thing),
        )

    def saved(self) -> None:
        """Wait until every edit is saved."""
        self.viewer.locator(".dhv-saving[data-state=saved]").wait_for(timeout=20_000)

    def move(self, y: float, x: float) -> tuple[float, float]:
        """Move the mouse to a level-0 pixel and return its place on the page, as (x, y)."""
        box, (row, column) = self.stage.bounding_box(), self.place(y, x)
        where = box["x"] + column, box["y"] + row
        self.page.mouse.move(*where)
        return where


class Cell(Stage):
    """The viewer in the second cell of a notebook."""

    def __init__(self, page: Any, lab: Lab, name: str, cells: list[str]) -> None:
        lab.write(name, cells)
        page.goto(f"{lab.url}lab/tree/{name}?reset&token={lab.token}")
        page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
        page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
        for _ in cells[:2]:
            page.keyboard.press("Shift+Enter")
        super().__init__(page, page.locator(".dhlab-viewer").first)

    def run(self, number: int) -> str:
        """Run a further cell and return what it printed."""
        cell = self.page.locator(f".jp-Notebook .jp-Cell >> nth={number}")
        cell.locator(".cm-content").click()
        before = cell.locator(".jp-InputPrompt").inner_text()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function(
            """([number, before]) => {
              const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[number];
              const now = cell.querySelector(".jp-InputPrompt").textContent;
              return now !== before && /\\d/.test(now) && cell.querySelector(".jp-OutputArea-output");
            }""",
            arg=[number, before],
            timeout=60_000,
        )
        text: str = cell.locator(".jp-OutputArea-output").first.inner_text().strip()
        self.viewer.scroll_into_view_if_needed()
        self.settle()
        return text


@contextmanager
def run_lab(folder: Path, home: Path, **settings: Any) -> Iterator[Lab]:
    """Run JupyterLab as `run_jupyter` does, with these of its settings."""
    arguments = ["--LabApp.news_url=", "--LabApp.expose_app_in_browser=True"]
    arguments += [f"--LabServerApp.app_settings_dir={home / 'data'}"]
    with run_jupyter(folder, home, program="jupyterlab", arguments=arguments, **settings) as server:
        yield Lab(**vars(server))


@pytest.fixture(scope="session")
def start_lab() -> Callable[..., AbstractContextManager[Lab]]:
    """Return what runs a JupyterLab of one's own."""
    pytest.importorskip("jupyterlab", reason="needs JupyterLab (the extra 'lab')")
    return run_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab for all tests, and stop it in the end."""
    pytest.importorskip("jupyterlab", reason="needs JupyterLab (the extra 'lab')")
    with run_lab(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")  # Playwright's event loop is not left running under the tests of other files
def browser() -> Iterator[object]:
    """Start Chromium for the tests of a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def watch() -> Watch:
    """Collect console errors and requests to other places."""
    return Watch()


@pytest.fixture
def page(browser, lab: Lab, watch: Watch) -> Iterator[object]:
    """Open a fresh page that is watched."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    home = lab.url.split(PREFIX)[0]
    page.on("console", lambda message: watch.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watch.errors.append(str(error)))

    def look(request) -> None:
        own = (home, home.replace("http", "ws", 1), "data:", "blob:")
        if request.url.startswith(lab.url):
            watch.own.append(f"{request.method} {request.url.removeprefix(lab.url)}")
        elif not request.url.startswith(own):
            watch.external.append(request.url)

    page.on("request", look)
    yield page
    page.close()


@pytest.fixture
def open_cell(page, lab, tmp_path) -> Callable[..., Cell]:
    """Open a notebook, run its first two cells, and return the viewer that the second one shows."""
    number = iter(range(100))
    return lambda *cells: Cell(page, lab, f"{tmp_path.name}-{next(number)}.ipynb", list(cells))


@pytest.fixture
def open_stage(page) -> Callable[..., Stage]:
    """Return the viewer that is in front, of the usual page or another."""
    return lambda selector=".dhlab-viewer", page=page: Stage(page, page.locator(f"{selector}:visible").first)
