"""Jobs seen, stopped and begun again by way of the server, by whoever may run code there."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")

from dhlab.scheduling import jobs, submit

NO_CODE = """
from jupyter_server.auth import Authorizer
class ReadOnly(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return action == "read"
c.ServerApp.authorizer_class = ReadOnly
"""


def wait_for(condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.1)
    return value


def test_a_job_is_listed_read_stopped_and_begun_again(start_server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DHLAB_JOBS", str(tmp_path / "jobs"))
    (tmp_path / "root").mkdir()
    with start_server(tmp_path / "root", tmp_path) as server, server.person() as person:
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
        with type(person)(base_url=server.url) as stranger:
            assert stranger.get("dhlab/jobs").status_code in (302, 403)
            assert stranger.post(f"dhlab/jobs/{job.id}/resume").status_code in (302, 403)


def test_who_may_not_run_code_sees_no_jobs(start_server, tmp_path) -> None:
    (tmp_path / "root").mkdir()
    with start_server(tmp_path / "root", tmp_path, NO_CODE) as server, server.person() as person:
        assert person.get("dhlab/notebooks").status_code == 200
        assert person.get("dhlab/jobs").status_code == 403
        assert person.get("dhlab/jobs/any/log").status_code == 403
        assert person.post("dhlab/jobs/any/cancel").status_code == 403
