"""Jobs seen, stopped and begun again by way of the server, by whoever may run code there."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from programs import put_programs
from servers import PEOPLE
from waiting import wait_for

import dhlab as dh

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")

from dhlab.scheduling import jobs, submit


def test_a_job_is_listed_read_stopped_and_begun_again_by_who_may_run_code(start_server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DHLAB_JOBS", str(tmp_path / "jobs"))
    (tmp_path / "root").mkdir()
    with start_server(tmp_path / "root", tmp_path, PEOPLE) as server, server.named("anna") as person:
        assert person.get("dhlab/jobs").json() == {"jobs": []}

        def work() -> None:
            print("on the way", flush=True)
            time.sleep(60)

        job = submit(work, cluster="local", name="größe")
        wait_for(lambda: job.state == "running" and job.log() == "on the way")
        (listed,) = person.get("dhlab/jobs").json()["jobs"]
        assert (listed["id"], listed["state"], listed["workers"]) == (job.id, "running", 1)
        assert listed["progress"]["done"] == 0
        assert person.get(f"dhlab/jobs/{job.id}/log?lines=5").json() == {"text": "on the way"}
        assert person.post(f"dhlab/jobs/{job.id}/resume").status_code == 409
        assert person.post(f"dhlab/jobs/{job.id}/cancel").json()["state"] == "cancelled"
        assert person.post(f"dhlab/jobs/{job.id}/resume").json()["state"] in ("queued", "requeued", "running")
        assert person.post(f"dhlab/jobs/{job.id}/cancel").json()["state"] == "cancelled"
        for address, status in {
            "dhlab/jobs/nothing/log": 404,
            "dhlab/jobs/..%2F..%2Froot/log": 404,
            "dhlab/jobs/%FF/log": 400,
            f"dhlab/jobs/{job.id}/log?lines=-1": 400,
            "dhlab/jobs?most=many": 400,
        }.items():
            answer = person.get(address)
            assert answer.status_code == status, address
        assert [found.id for found in jobs()] == [job.id]
        # A guest may look, and run no code; a stranger has no name.
        with server.named("guest") as guest, type(person)(base_url=server.url) as stranger:
            assert guest.get("dhlab/notebooks").status_code == 200
            for nobody in (guest, stranger):
                assert nobody.get("dhlab/jobs").status_code in (302, 403)
                assert nobody.get(f"dhlab/jobs/{job.id}/log").status_code in (302, 403)
                assert nobody.post(f"dhlab/jobs/{job.id}/resume").status_code in (302, 403)
        assert job.state == "cancelled"


def test_a_cluster_that_does_not_answer_keeps_no_slide_closed(start_server, tmp_path, monkeypatch) -> None:
    go, asked = tmp_path / "go", tmp_path / "asked"
    squeue = f"touch {asked}; until [ -e {go} ]; do sleep 0.1; done"
    put_programs(tmp_path / "bin", monkeypatch, squeue=squeue)
    monkeypatch.setenv("DHLAB_JOBS", str(tmp_path / "jobs"))
    submit(int, "7", cluster="slurm")
    (tmp_path / "root").mkdir()
    dh.save(dh.Scan.from_array(np.zeros((8, 8, 3), np.uint8), "yxc"), tmp_path / "root" / "slide.png")
    with start_server(tmp_path / "root", tmp_path) as server, server.person() as person:
        found: list[int] = []
        panels = [threading.Thread(target=lambda: found.append(person.get("dhlab/jobs").status_code)) for _ in range(4)]
        for panel in panels:
            panel.start()
        try:
            wait_for(asked.exists)
            person.open_scan("slide.png")
            assert not found
        finally:
            go.touch()
            for panel in panels:
                panel.join()
        assert found == [200] * 4
