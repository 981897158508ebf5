"""Slides, cohorts and napari behind a real JupyterHub: below the person's prefix, and closed to everybody else."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from screens import canvas_of, keep_picture, open_napari, take_picture, wait_until, workspace_kept
from servers import EXTENSION, free_ports, install_extension, running, with_checkout, write_notebook

PROXY = Path(__file__).parent / "hub" / "node_modules" / ".bin" / "configurable-http-proxy"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not PROXY.exists(), reason="the hub's proxy is not installed (npm ci --prefix tests/browser/hub)"
    ),
    pytest.mark.skipif(
        not (EXTENSION / "labextension" / "package.json").exists(), reason="the Lab extension is not built"
    ),
]
# Places on the real slide, level-0 pixels (y, x).
TISSUE = [(1780 + 15 * i, 1240) for i in range(4)]
GLASS = (1000, 200)
CELL = 'import dhlab as dh\ndh.show(dh.open("skin.svs"))'


@dataclass(frozen=True)
class Hub:
    """A running JupyterHub: its address with prefix, everybody's password, and where people's homes are."""

    url: str
    password: str
    homes: Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, skin_slide: Path) -> Iterator[Hub]:
    """Start JupyterHub with its proxy, and stop both and all servers of people in the end."""
    pytest.importorskip("jupyterhub", reason="needs JupyterHub")
    folder = tmp_path_factory.mktemp("hub")
    for name in ("alice", "bob"):
        (folder / "home" / name).mkdir(parents=True)
    shutil.copyfile(skin_slide, folder / "home" / "alice" / "skin.svs")
    install_extension(data=folder / "data", config=folder / "config")
    ports, password = free_ports(3), secrets.token_hex(16)
    environment = with_checkout(
        {
            "HUB_FOLDER": str(folder),
            "HUB_PORTS": " ".join(map(str, ports)),
            "HUB_PASSWORD": password,
            "JUPYTER_PATH": str(folder / "data"),
            "JUPYTER_CONFIG_PATH": str(folder / "config"),
        }
    )
    command = [sys.executable, "-m", "jupyterhub", "-f", str(Path(__file__).parent / "hub" / "jupyterhub_config.py")]
    url, log = f"http://127.0.0.1:{ports[0]}/research/", folder / "hub.log"
    with running(command, folder=folder, environment=environment, log=log, address=lambda _: f"{url}hub/api/"):
        yield Hub(url, password, folder / "home")


@pytest.fixture(scope="module")
def people(browser, hub: Hub) -> dict[str, Any]:
    """Give the browsers of alice and bob, who are logged in, and of a stranger."""
    names = ("alice", "bob", "stranger")
    contexts = {name: browser.new_context(viewport={"width": 1400, "height": 1000}) for name in names}
    for name in ("alice", "bob"):
        page = contexts[name].new_page()
        page.goto(f"{hub.url}hub/login")
        page.fill("#username_input", name)
        page.fill("#password_input", hub.password)
        page.click("#login_submit")
        page.wait_for_url(f"**/user/{name}/lab**", timeout=120_000)
        page.close()
    return contexts


@pytest.fixture
def page(people, hub: Hub, watch) -> Iterator[Any]:
    """Open alice's JupyterLab on a fresh page that is watched."""
    page = people["alice"].new_page()
    page.on("pageerror", lambda error: watch.errors.append(str(error)))

    def look(response) -> None:
        if "/dhlab/" in response.url:
            watch.own.append(f"{response.request.method} {response.status} {response.url.removeprefix(hub.url)}")
        elif not response.url.startswith((hub.url, "data:", "blob:")):
            watch.external.append(response.url)

    page.on("response", look)
    page.goto(f"{hub.url}user/alice/lab?reset")
    page.wait_for_selector(".jp-DirListing", timeout=90_000)
    yield page
    page.close()


def run_cell(page: Any, hub: Hub, source: str) -> None:
    """Begin a new notebook of alice with a cell, and run that."""
    name = f"{secrets.token_hex(4)}.ipynb"
    write_notebook(hub.homes / "alice" / name, [source])
    page.goto(f"{hub.url}user/alice/lab/tree/{name}?reset")
    page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    page.keyboard.press("Shift+Enter")


def assert_closed(people: dict[str, Any], address: str) -> None:
    """Somebody else and somebody without a name get nothing, neither by a request nor by a web socket."""
    for name in ("bob", "stranger"):
        for headers in ({}, {"Upgrade": "websocket"}):
            answer = people[name].request.get(address, max_redirects=0, headers=headers)
            assert answer.status in (302, 403), (name, headers, answer.status)


def test_a_slide_is_opened_shown_and_found_again_and_nobody_else_sees_it(page, people, hub, watch, open_stage) -> None:
    page.dblclick(".jp-DirListing-item >> text=skin.svs")
    stage = open_stage()
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert stage.color(*GLASS).min() > 225
    assert any(entry.startswith("POST 200 user/alice/dhlab/scans") for entry in watch.own)
    tiles = [entry for entry in watch.own if entry.startswith("GET 200 user/alice/dhlab/tiles/")]
    assert tiles

    stage.move(*TISSUE[0])
    for _ in range(3):
        page.mouse.wheel(0, -240)
        page.wait_for_timeout(120)
    stage.settle()
    with workspace_kept(page, '"opacity":0.5'):
        stage.viewer.get_by_label("Opacity of skin", exact=True).fill("0.5")
    resolution = stage.viewer.evaluate("({ dhlab: { map } }) => map.getView().getResolution()")
    page.goto(f"{hub.url}user/alice/lab")
    stage = open_stage()
    found = stage.viewer.evaluate("({ dhlab: { map } }) => map.getView().getResolution()")
    assert found == pytest.approx(resolution, rel=1e-3)
    assert stage.viewer.get_by_label("Opacity of skin", exact=True).input_value() == "0.5"

    # In a cell the tiles come by the same way, not from the kernel.
    before = len([entry for entry in watch.own if "/dhlab/tiles/" in entry])
    run_cell(page, hub, CELL)
    stage = open_stage(".jp-Notebook .dhlab-viewer")
    violet = np.mean([stage.color(*at) for at in TISSUE], 0)
    assert violet[2] > violet[1] + 15
    assert len([entry for entry in watch.own if "/dhlab/tiles/" in entry]) > before
    refused = [entry for entry in watch.own if entry.split()[1] not in ("200", "304")]
    assert refused == []
    assert watch.errors == []
    assert watch.external == []

    address = hub.url + tiles[-1].split(" ", 2)[2]
    assert page.request.get(address).status == 200
    assert_closed(people, address)
    assert people["bob"].request.get(address.replace("/user/alice/", "/user/bob/")).status == 403


COHORT = """
import time
from pathlib import Path
import numpy as np
import dhlab as dh

go = Path("go").absolute()

def measure(scan):
    while not go.exists():
        time.sleep(0.1)
    return {"mean": 1.0}

slides = [dh.save(dh.Scan.from_array(np.zeros((8, 8, 3), np.uint8), "yxc"), f"slide{n}.png") for n in range(6)]
dh.run_cohort(measure, slides, out="cohort", cluster="local", workers=2, dashboard=True)
"""
# Dask's page has heard by its web socket what the workers do.
TASKS = """() => window.Bokeh && Bokeh.documents.some((document) => [...document._all_models.values()].some(
    (model) => model.type === "ColumnDataSource" && JSON.stringify(Object.values(model.data)).includes("slide")))"""


def test_the_workers_of_a_cohort_are_watched_by_who_runs_it_and_nobody_else(page, people, hub, watch) -> None:
    pytest.importorskip("distributed", reason="needs Dask distributed (the extra 'jobs')")
    pytest.importorskip("bokeh", reason="needs bokeh (the extra 'jobs')")
    run_cell(page, hub, COHORT)
    link = page.locator(".jp-OutputArea a", has_text="Dask dashboard")
    link.wait_for(timeout=60_000)
    with page.context.expect_page() as opened:
        link.click()
    dashboard = opened.value
    assert dashboard.url.startswith(f"{hub.url}user/alice/dhlab/dask/")
    dashboard.wait_for_function(TASKS, timeout=60_000)
    keep_picture(dashboard, "dask_behind_hub")
    keep_picture(page, "cohort_behind_hub")
    address = dashboard.url
    dashboard.close()
    assert_closed(people, address)
    (hub.homes / "alice" / "go").touch()
    page.locator(".jp-OutputArea", has_text="6 of 6 slides done").wait_for(timeout=60_000)
    assert page.request.get(address).status == 404
    assert watch.external == []


def test_napari_is_shown_to_who_opened_it_and_nobody_else(page, people, hub, watch) -> None:
    screen = open_napari(page)
    screen.goto(f"{hub.url}user/alice/dhlab/napari/?path=skin.svs")
    canvas = canvas_of(screen)
    wait_until(screen, lambda: float((take_picture(canvas).min(-1) > 225).mean()) > 0.05)
    keep_picture(screen, "napari_behind_hub")
    for address in ("dhlab/napari/", "dhlab/desktop-websockify/"):
        assert_closed(people, f"{hub.url}user/alice/{address}")
    assert watch.external == []
