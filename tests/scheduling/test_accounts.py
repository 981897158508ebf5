"""Jobs that squeue has forgotten: how they ended is read from the accounts of a real slurmdbd."""

from __future__ import annotations

import os
import time

import pytest
from waiting import wait_for

import dhlab as dh
from dhlab.scheduling import clusters

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
    programs = {"squeue": "true", "sacct": f"printf '17|{state}|0:0\\n'", "sbatch": "echo Submitted batch job 17"}
    for name, does in {**programs, "scontrol": "true", "srun": "true"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = dh.submit(int, "7", cluster="slurm")
    assert (job.state, job.message) == seen


def known(slurm) -> list[str]:
    return slurm.run("squeue", "--states=all", "--array", "--noheader", "--format=%i").split()
