"""Dask's pages of a running cohort, by way of the server: for whoever may run code there, and on no port."""

from __future__ import annotations

import stat

import httpx
import psutil
import pytest
from servers import PEOPLE, listening

pytest.importorskip("distributed", reason="needs Dask distributed (the extra 'jobs')")
pytest.importorskip("bokeh", reason="needs bokeh (the extra 'jobs')")

from distributed import LocalCluster

from dhlab.scheduling.cohort import Cohort
from dhlab.scheduling.dashboard import find_dashboards, serve_dashboard, socket_of
from dhlab.scheduling.engines import start_workers
from dhlab.scheduling.records import CohortFolder
from dhlab.scheduling.request import Request


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Give the folder of a cohort whose worker waits, and the ports it opened."""
    folder = tmp_path_factory.mktemp("dashboards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DHLAB_JOBS", str(folder / "jobs"))
        request = Request(id="", name="cohort", call="", cluster="local", workers=1)
        before = find_ports()
        with start_workers(request, folder / "cohort", dashboard=True):
            yield folder / "cohort", find_ports() - before


def find_ports() -> set[tuple[str, int]]:
    """Find where this process and its children listen: what other tests left running too."""
    return set(listening([psutil.Process(), *psutil.Process().children(recursive=True)]))


def test_the_owner_sees_the_pages_and_nobody_else(start_server, cohort, tmp_path) -> None:
    (dashboard,) = find_dashboards(cohort[0])
    page = f"dhlab/dask/{dashboard.name}"
    (tmp_path / "root").mkdir()
    with start_server(tmp_path / "root", tmp_path, PEOPLE) as server, server.named("anna") as anna:
        for name in ("status", "workers", "info/main/workers.html", "statics/css/base.css"):
            answer = anna.get(f"{page}/{name}")
            assert answer.status_code == 200, name
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert anna.post(f"{page}/status").status_code == 405
        for other in (f"{page}x/status", "dhlab/dask/..%2f..%2fjobs/status", "dhlab/dask/jobs/status"):
            assert anna.get(other).status_code == 404, other
        socket = {"Upgrade": "websocket"}
        with server.named("guest") as guest, type(anna)(base_url=server.url) as stranger:
            assert guest.get("dhlab/notebooks").status_code == 200
            for person in (guest, stranger):
                assert person.get(f"{page}/status").status_code in (302, 403)
                assert person.get(f"{page}/status/ws", headers=socket).status_code == 403


def test_others_of_the_machine_find_nothing(cohort) -> None:
    folder, ports = cohort
    place = socket_of(find_dashboards(folder)[0].name)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert {address for address, _ in ports} == {"127.0.0.1"}
    for address, port in ports:
        for page in ("status", "info/main/workers.html"):
            with pytest.raises((httpx.TransportError, httpx.HTTPStatusError)):
                httpx.get(f"http://{address}:{port}/{page}", timeout=5).raise_for_status()


def test_pages_end_with_their_cluster(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DHLAB_JOBS", str(tmp_path / "jobs"))
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        CohortFolder(tmp_path).prepare({"function": "measure"})
        with serve_dashboard(cluster, tmp_path) as dashboard:
            assert f"href='{dashboard.address}'" in Cohort(tmp_path)._repr_html_()
            private = socket_of(dashboard.name).parent
        assert "href" not in Cohort(tmp_path)._repr_html_()
        assert socket_of(dashboard.name) is None
        assert not private.exists()
