"""Jobs seen, stopped and begun again by way of the server, by whoever may run code there."""

from __future__ import annotations

import time

import pytest
from servers import PEOPLE

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")

from dhlab.scheduling import jobs, submit


def wait_for(condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.1)
    return value


def test_a_job_is_listed_read_stopped_and_begun_again_by_who_may_run_code(start_server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DHLAB_JOBS", str(tmp_path / "jobs"))
    (tmp_path / "root").mkdir()
    with start_server(tmp_path / "root", tmp_path, PEOPLE) as server, server.named("anna") as person:
        assert person.get("dhlab/jobs").json() == {"jobs": []}

        def work() -> None:
            print("on the way", flush=True)
            time.sleep(60)

        job = submit(work, cluster="local")
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
