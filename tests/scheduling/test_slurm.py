"""Jobs on a real Slurm: submitted, seen, stopped, begun again."""

from __future__ import annotations

import ast
import importlib
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from trainings import some_data, some_model
from waiting import wait_for

import dhlab as dh
from dhlab import distributed
from dhlab.errors import BadValueError, JobError, SchedulerError
from dhlab.training import load_run

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")


def test_a_function_runs_and_gives_its_result(slurm) -> None:
    def add(a: int, b: int) -> tuple[int, str, str]:
        print("on the way")
        return a + b, os.environ["SLURM_JOB_ID"], os.environ["DHLAB_JOB"]

    job = dh.submit(add, 3, b=4)
    total, number, folder = job.result(60)
    assert (total, number, folder) == (7, job.number, str(job.folder))
    assert job.state == "done"
    assert job.log() == "on the way"
    assert job.request.cluster == "slurm"
    assert [found.id for found in dh.jobs()] == [job.id]


def test_what_fails_says_why(slurm) -> None:
    def fail() -> None:
        raise ValueError("no such stain")

    job = dh.submit(fail)
    with pytest.raises(JobError, match=r"(?s)has failed: ValueError: no such stain.*Traceback"):
        job.result(60)
    assert job.state == "failed"
    assert job.message == "ValueError: no such stain"
    wait_for(lambda: "FAILED" in slurm.run("squeue", "--states=all", "-h", "-j", job.number, "-o", "%T"))


def test_a_task_for_each_value(slurm) -> None:
    def double(value: int, *, plus: int) -> int:
        if value == 2 and not Path(os.environ["DHLAB_JOB"], "attempts.jsonl").read_text().count("\n") > 1:
            raise ValueError("not two")
        return 2 * value + plus

    job = dh.submit(double, array=[1, 2, 3], plus=1)
    with pytest.raises(JobError, match="not two"):
        job.result(60)
    assert [task.state for task in job.tasks] == ["done", "failed", "done"]
    assert "2 done, 1 failed" in job.message
    # Only the one that failed is begun again.
    assert job.resume().result(60) == [3, 5, 7]
    assert [len(task._folder.attempts()) for task in job.tasks] == [1, 2, 1]


def test_one_after_the_other(slurm, tmp_path) -> None:
    def write(name: str, *, fail: bool = False) -> list[str]:
        (tmp_path / name).touch()
        if fail:
            raise RuntimeError("stop here")
        return sorted(path.name for path in tmp_path.iterdir() if path.is_file())

    first = dh.submit(write, "a")
    second = dh.submit(write, "b", after=first)
    assert second.result(60) == ["a", "b"]
    broken = dh.submit(write, "c", fail=True)
    never = dh.submit(write, "d", after=broken)
    assert never.wait(60).state == "cancelled"
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"partition": "gpux"}, "no partition 'gpux'; Slurm has: cpu gpu"),
        ({"gpus": 3}, r"(?s)no node can give 1 workers with 3 GPUs each.*gpu:2"),
        ({"options": {"account": "nobody", "nodelist": "n9"}}, "refused"),
        ({"workers": 0}, "workers=0; expected a whole number of at least 1"),
        ({"minutes": -1}, "minutes=-1"),
        ({"cluster": "cloud"}, "cluster='cloud'"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused(slurm, jobs_folder, asked, message) -> None:
    with pytest.raises(BadValueError, match=message):
        dh.submit(print, **asked)
    assert not list(jobs_folder.glob("*")), "nothing is left of a job that never was"


def test_gpus_are_given(slurm) -> None:
    job = dh.submit(lambda: os.environ["CUDA_VISIBLE_DEVICES"], gpus=2, partition="gpu")
    assert job.result(60) == "0,1"


def test_a_cancelled_job_stops_and_can_be_resumed(slurm, tmp_path) -> None:
    def wait_once(place: Path) -> str:
        if place.exists():
            return "again"
        place.touch()
        time.sleep(60)
        return "never"

    job = dh.submit(wait_once, tmp_path / "begun")
    wait_for((tmp_path / "begun").exists)
    assert job.state == "running"
    with pytest.raises(TimeoutError, match="is running after 0 s"):
        job.result(0)
    job.cancel()
    assert job.wait(30).state == "cancelled"
    with pytest.raises(JobError, match="was cancelled"):
        job.result()
    assert job.resume().result(60) == "again"
    with pytest.raises(BadValueError, match="is done"):
        job.resume()


def test_a_job_waits_for_its_turn(slurm) -> None:
    held = dh.submit(print, options={"hold": True})
    assert wait_for(lambda: held.message) == "JobHeldUser"
    assert held.state == "queued"
    held.cancel()
    assert held.wait(30).state == "cancelled"


def test_a_killed_worker_is_told(slurm) -> None:
    job = dh.submit(os.kill, 0, signal.SIGKILL, name="killed")
    assert job.wait(60).state == "failed"
    assert "a worker was ended by signal 9" in job.message


def test_a_job_outlives_the_daemons_of_its_nodes(slurm, tmp_path) -> None:
    """It ends while nobody on its node could say so, and is done when they are back."""
    begun, go = tmp_path / "begun", tmp_path / "go"

    def work() -> str:
        begun.touch()
        while not go.exists():
            time.sleep(0.05)
        return "done"

    job = dh.submit(work)
    wait_for(begun.exists)
    for node in ("n1", "n2"):
        slurm.kill(f"slurmd-{node}", signal.SIGKILL)
    go.touch()
    assert job.result(60) == "done"
    for node in ("n1", "n2"):
        slurm.start_node(node)
    slurm.wait_until_idle()
    assert dh.jobs()[0].state == "done"


def test_a_job_that_dies_at_its_start_is_told(slurm, tmp_path, monkeypatch) -> None:
    (tmp_path / "only_here.py").write_text("def call():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("only_here")
    (tmp_path / "only_here.py").unlink()
    job = dh.submit(module.call)
    assert job.wait(60).state == "failed"
    assert "No module named 'only_here'" in job.message


def test_workers_know_their_place(slurm) -> None:
    """Slurm's numbers become Horovod's: two nodes, two workers on each."""
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")

    def tell() -> None:
        print({name.lower()[8:]: value for name, value in os.environ.items() if name.startswith("HOROVOD_")})

    job = dh.submit(tell, workers=4, nodes=2)
    job.result(60)
    places = [ast.literal_eval(job.log(worker=worker)) for worker in range(4)]
    names = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size", "hostname")
    assert [tuple(place[name] for name in names) for place in places] == [
        ("0", "4", "0", "2", "0", "2", "n1"),
        ("1", "4", "1", "2", "0", "2", "n1"),
        ("2", "4", "0", "2", "1", "2", "n2"),
        ("3", "4", "1", "2", "1", "2", "n2"),
    ]


def test_elastic_workers_of_two_nodes_meet(slurm) -> None:
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")

    def add() -> list[int]:
        from dhlab import distributed

        sums: list[int] = []
        numbers = np.array([1, 1 << distributed.rank()])
        distributed.run_elastic(
            lambda _: sums.extend(distributed.allreduce(numbers).tolist()), keep=int, take=int, on_change=int
        )
        return sums

    assert dh.submit(add, workers=2, nodes=2, least_workers=1).result(120) == [2, 3]


def test_elastic_workers_go_on_without_a_node_until_it_is_back(slurm, tmp_path) -> None:
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")
    told = tmp_path / "told"

    def work() -> list[int]:
        sizes: list[int] = []

        def learn(commit) -> None:
            while sizes != [2, 1, 2]:
                if sizes[-1:] != [distributed.size()]:
                    sizes.append(distributed.size())
                distributed.allreduce(np.ones(1))
                commit()
                if distributed.is_main():
                    told.write_text(str(sizes))
                time.sleep(0.05)

        def take(kept: list[int]) -> None:
            sizes[:] = kept

        distributed.run_elastic(learn, keep=lambda: list(sizes), take=take, on_change=int)
        return sizes

    job = dh.submit(work, workers=2, nodes=2, least_workers=1)
    wait_for(lambda: told.exists() and told.read_text() == "[2]", 90)
    slurm.kill("slurmd-n2", signal.SIGKILL)
    wait_for(lambda: told.read_text() == "[2, 1]", 60)
    slurm.start_node("n2")
    assert job.result(90) == [2, 1, 2]
    slurm.wait_until_idle()


def test_a_training_goes_on_after_its_time(slurm, tmp_path) -> None:
    """At the signal before the wall-time both workers stop after the same batch; the job is requeued and continues."""
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")
    told, warned = tmp_path / "told", tmp_path / "warned"

    def slowly(event) -> None:
        if event.kind == "step":
            with told.open("a") as file:
                file.write("x")
            time.sleep(0 if warned.exists() else 0.5)

    settings = {"epochs": 5, "batch_size": 4, "optimizer": "sgd", "precision": "float32", "progress": False}
    job = dh.submit(dh.fit, some_model(), some_data(), on_event=slowly, workers=2, nodes=2, **settings)
    wait_for(lambda: told.exists() and len(told.read_text()) > 6)
    # What --signal=B:USR2@… does; waiting for the wall-time would take minutes.
    slurm.run("scancel", "--batch", "--signal=USR2", job.number)
    wait_for(lambda: job.state == "requeued")
    warned.touch()
    done = len(told.read_text())
    assert done < 30
    assert 0 < job.progress.done < 1
    # Slurm waits two minutes before it begins a requeued job.
    slurm.run("scontrol", "update", f"JobId={job.number}", "StartTime=now")
    report = job.result(120)
    assert len(told.read_text()) == 30, "no batch is learnt from twice"
    assert len(job._folder.attempts()) == 2
    assert len(report.tables["Learning curve"]) == 5
    alone = some_model()
    dh.fit(alone, some_data(), **settings)
    learnt = load_run(job.folder / "run").state_dict()
    for name, weight in alone.state_dict().items():
        np.testing.assert_allclose(learnt[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_warning_before_python_listens_ends_nothing(slurm, tmp_path, monkeypatch) -> None:
    """Slurm may send its signal a minute early: a job of a minute gets it at its start."""
    begun, warned = tmp_path / "begun", tmp_path / "warned"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, time\n"
        f"begun = pathlib.Path({str(begun)!r})\n"
        "if 'SLURM_JOB_ID' in os.environ and not begun.exists():\n"
        "    begun.touch()\n"
        f"    while not pathlib.Path({str(warned)!r}).exists():\n"
        "        time.sleep(0.1)\n"
        "    time.sleep(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    job = dh.submit(int, "7")
    wait_for(begun.exists)
    slurm.run("scancel", "--batch", "--signal=USR2", job.number)
    warned.touch()
    assert job.result(60) == 7


def test_slurm_that_is_down_is_told(slurm, jobs_folder) -> None:
    job = dh.submit(time.sleep, 0)
    job.result(60)
    waiting = dh.submit(print, options={"hold": True})
    slurm.kill("slurmctld")
    try:
        wait_for(lambda: "does not answer" in waiting.message)
        assert job.state == "done", "what is known is still known"
        assert waiting.state == "queued"
        with pytest.raises(SchedulerError, match="Slurm does not answer"):
            dh.submit(print)
        assert len(dh.jobs()) == 2
    finally:
        slurm.run("slurmctld")
        wait_for(lambda: "UP" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout)
    waiting.cancel()
    assert waiting.wait(30).state == "cancelled"


def test_doctor_knows_the_cluster(slurm) -> None:
    (found,) = [row for row in dh.doctor().tables["checks"] if row["check"] == "Slurm"]
    assert (found["state"], found["detail"]) == ("ok", "partitions cpu, gpu")


def test_a_notebook_inside_a_job_is_no_worker(slurm, monkeypatch) -> None:
    """What JupyterHub's own job says of itself does not reach the jobs that its notebook submits."""
    for name, value in {
        "SLURM_JOB_ID": "99",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "3",
        "SLURM_MEM_PER_CPU": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")

    def tell() -> tuple[str, bool, str]:
        return os.environ["SLURM_PROCID"], "JUPYTERHUB_API_TOKEN" in os.environ, os.environ["SLURM_NTASKS"]

    assert dh.submit(tell).result(60) == ("0", False, "1")
    local = dh.submit(lambda: [name for name in os.environ if name.startswith("SLURM_")], cluster="local")
    assert local.result(60) == ["SLURM_CONF"]
