"""Jobs that squeue has forgotten: how they ended is read from the accounts of a real slurmdbd."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from programs import put_programs
from waiting import wait_for

import dhlab as dh
from dhlab.scheduling import clusters
from dhlab.scheduling.folder import JobFolder
from dhlab.scheduling.request import Request

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")
pytestmark = pytest.mark.slow


def test_how_jobs_ended_is_read_from_the_accounts(slurm_with_accounts, tmp_path) -> None:
    slurm = slurm_with_accounts

    def wait(name: str) -> None:
        (tmp_path / name).touch()
        time.sleep(300)

    def submit(name: str, **settings) -> dh.Job:
        return dh.submit(wait, name, name=name, **settings)

    jobs = {name: submit(name) for name in ("stopped", "killed", "requeued")}
    jobs["orphaned"] = submit("orphaned", options={"nodelist": "n2"})
    wait_for(lambda: {path.name for path in tmp_path.iterdir()} >= {*jobs})
    jobs |= {"array": dh.submit(lambda value: 1 // value, array=[0, 1]), "done": dh.submit(int, "7")}
    for name in ("array", "done"):
        jobs[name].wait(60)
        # Its result is there a moment before it has ended: whatever is on a node that is lost then is begun again.
        wait_for(lambda name=name: jobs[name].number not in slurm.run("squeue", "--noheader", "--format=%F").split())
    slurm.run("scancel", jobs["stopped"].number)
    slurm.run("scancel", "--batch", "--signal=KILL", jobs["killed"].number)
    slurm.run("scontrol", "requeue", jobs["requeued"].number)
    slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    ended = {jobs[name].number for name in ("stopped", "killed", "array", "done")}
    wait_for(lambda: not ended & {line.partition("_")[0] for line in known(slurm)})

    found = {name: (job.state, job.message) for name, job in jobs.items()}
    assert found["stopped"] == ("cancelled", "cancelled by way of Slurm")
    assert found["killed"] == ("failed", "Slurm ended it: FAILED, exit code 0:9")
    assert found["array"] == ("failed", "1 done, 1 failed: ZeroDivisionError: integer division or modulo by zero")
    assert found["done"] == ("done", "")
    # Slurm begins these two again.
    assert found["requeued"] == ("requeued", "Slurm begins it again in a while (BeginTime)")
    wait_for(lambda: jobs["orphaned"].state == "requeued")

    # The same, asked of accounts that do not answer for a while.
    clusters.cluster_named.cache_clear()
    slurm.kill("slurmdbd")
    wait_for(lambda: "does not answer" in jobs["killed"].message)
    assert jobs["killed"].state == "running", "as it was last known"
    assert jobs["done"].state == "done"
    slurm.start_slurmdbd()
    wait_for(lambda: jobs["killed"].state == "failed")


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        ("OUT_OF_MEMORY", ("failed", "it needed more memory than it had asked for: options={'mem': …}")),
        ("TIMEOUT", ("failed", "its time was over before it could write its state: minutes=…")),
        ("NODE_FAIL", ("failed", "its machine failed")),
        ("CANCELLED by 0", ("cancelled", "cancelled by way of Slurm")),
        ("COMPLETED", ("lost", "it ended by itself and left no result")),
    ],
)
def test_what_accounts_say_is_told_in_words(tmp_path, monkeypatch, state, seen) -> None:
    """What this cluster cannot do, such as a group of processes without memory, by a program that says the same."""
    put_programs(tmp_path, monkeypatch, squeue="true", sacct=f"printf '17|{state}|0:0\\n'")
    job = dh.submit(int, "7", cluster="slurm")
    assert (job.state, job.message) == seen


def test_many_old_jobs_are_two_questions(tmp_path, jobs_folder, monkeypatch) -> None:
    calls, queue = tmp_path / "calls", tmp_path / "queue"
    queue.touch()
    lost = "printf '7_0|NODE_FAIL|0:0\\n7_1|NODE_FAIL|0:0\\n'"
    put_programs(
        tmp_path, monkeypatch, squeue=f"echo squeue >> {calls}; cat {queue}", sacct=f"echo sacct >> {calls}; {lost}"
    )
    monkeypatch.setattr(clusters, "SECONDS_BETWEEN_QUESTIONS", 600)
    for number in range(8):
        folder = JobFolder(jobs_folder / f"job-{number}")
        folder.create()
        tasks = {"tasks": 2, "parts": (0, 1)} if number == 7 else {}
        asked = Request(id=folder.path.name, name="job", call="", cluster="slurm", numbers=(str(number),), **tasks)
        folder.write_request(replace(asked, submitted=f"2026-01-01T00:00:0{number}+00:00"))
        os.utime(folder.path / "job.json", (0, time.time() - 3600))
        if number < 7:
            folder.write_error("it failed")
    told = [(row["state"], row["message"]) for row in dh.jobs().to_dicts()]
    assert told == [("failed", "2 failed: its machine failed")] + 7 * [("failed", "it failed")]
    assert calls.read_text().split() == ["squeue", "sacct"]
    # One that was handed over since is asked for.
    queue.write_text("17|PENDING|Priority\n")
    assert dh.submit(int, "7", cluster="slurm").message == "others come first (Priority)"


def known(slurm) -> list[str]:
    return slurm.run("squeue", "--states=all", "--array", "--noheader", "--format=%i").split()
