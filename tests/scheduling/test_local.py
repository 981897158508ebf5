"""Jobs in processes of this machine: they outlive whoever submitted them, and say what became of them."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import put_programs
from trainings import some_data, some_model
from waiting import wait_for

import dhlab as dh
from dhlab import distributed
from dhlab.errors import BadFileError, BadValueError, JobError, NotFoundError, SchedulerError, UnknownNameError
from dhlab.scheduling import heartbeat, team
from dhlab.scheduling.folder import JobFolder
from dhlab.scheduling.launching import Launch
from dhlab.scheduling.request import Request
from dhlab.scheduling.team import ElasticTeam
from dhlab.view import jobs as view_jobs

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")

submit = functools.partial(dh.submit, cluster="local")


def test_a_job_is_found_again_when_its_submitter_is_killed(jobs_folder, tmp_path) -> None:
    go = tmp_path / "go"
    program = f"""
import os, signal, time, dhlab as dh
def work():
    while not os.path.exists({str(go)!r}):
        time.sleep(0.05)
    print("still here")
    return os.getpgid(0)
job = dh.submit(work, cluster="local", name="long work")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    (job,) = dh.jobs()
    assert job.name == "long-work"
    assert job.state in ("queued", "running")
    go.touch()
    assert job.result(30) != os.getpgid(0), "it is in a group of its own"
    assert job.log() == "still here"


def test_what_cannot_travel_is_refused(jobs_folder) -> None:
    lock = threading.Lock()
    with pytest.raises(BadValueError, match=r"cannot pickle '_thread.lock' object: it cannot travel"):
        submit(lambda: lock)
    with pytest.raises(BadValueError, match="it cannot travel"):
        submit(print, (value for value in "abc"))
    assert not list(jobs_folder.iterdir())


def test_a_result_that_cannot_travel_is_told() -> None:
    with pytest.raises(JobError, match="it cannot travel"):
        submit(threading.Lock).result(30)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 0}, "workers=0; expected a whole number of at least 1"),
        ({"workers": True}, "workers=True"),
        ({"gpus": 99}, "expected at most this machine's"),
        ({"nodes": 2, "workers": 2}, "nodes=2 on this machine"),
        ({"workers": 3, "nodes": 2}, "3 workers cannot be spread evenly over 2 nodes"),
        ({"minutes": 0}, "minutes=0"),
        ({"minutes": 1, "max_requeues": 6}, "max_requeues=6 on this machine; expected at most 5"),
        ({"partition": "gpu"}, "partition and options are for Slurm"),
        ({"array": []}, "array is empty"),
        ({"folder": "/tmp/100%j"}, "Slurm reads %"),
    ],
)
def test_what_is_out_of_range_is_refused(asked, message) -> None:
    with pytest.raises(BadValueError, match=message):
        submit(print, **asked)


def test_a_training_that_would_begin_anew_each_time_is_refused() -> None:
    with pytest.raises(BadValueError, match="Leave it out: a job's folder is new"):
        submit(dh.fit, cluster="local", overwrite=True)


def test_two_submitters_never_share_a_folder(tmp_path, jobs_folder) -> None:
    program = f"""
import sys, dhlab as dh
try:
    dh.submit(print, "by", sys.argv[1], cluster="local", folder={str(tmp_path / "shared")!r})
except dh.DHLabError as error:
    print(type(error).__name__)
else:
    print("mine")
"""
    both = [
        subprocess.Popen([sys.executable, "-c", program, who], stdout=subprocess.PIPE, text=True) for who in ("a", "b")
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["ConflictError", "mine"]
    (job,) = dh.jobs()
    assert job.wait(30).state == "done"
    assert job.folder.samefile(tmp_path / "shared")


def test_nobody_elses_folder_is_read(tmp_path) -> None:
    job = submit(int, "7", folder=tmp_path / "mine")
    assert job.result(30) == 7
    assert job.folder.stat().st_mode & 0o777 == 0o700
    job.folder.chmod(0o770)
    with pytest.raises(BadFileError, match="mode 770; expected a folder of yours"):
        job.result()
    with pytest.raises(NotFoundError, match="no job at"):
        dh.Job(tmp_path / "nothing")
    with pytest.raises(UnknownNameError, match="no job 'nothing'"):
        dh.jobs()["nothing"]


def test_a_killed_worker_is_told() -> None:
    job = submit(lambda: os.kill(os.getpid(), signal.SIGKILL), name="killed")
    assert job.wait(30).state == "failed"
    assert job.message.startswith("worker 0 of 1 was ended by signal 9 (Killed) before it had a result.")


def test_a_killed_watcher_leaves_nothing_behind(tmp_path) -> None:
    def work(place: Path) -> str:
        if place.exists():
            return "again"
        place.write_text(str(os.getpid()))
        time.sleep(60)
        return "never"

    job = submit(work, tmp_path / "worker")
    worker = int(wait_for(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text()))
    session = int(job.number.split("-")[1])
    watcher = int(job._folder.attempts()[-1]["process"].split("-")[1])
    for process in (session, watcher):
        os.kill(process, signal.SIGKILL)
    assert job.wait(30).state == "lost"
    assert "left no result" in job.message
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text())
    assert job.resume().result(30) == "again"


def test_after_a_reboot_a_job_is_lost_and_can_be_resumed(tmp_path) -> None:
    def work(place: Path) -> str:
        if place.exists():
            return "again"
        place.touch()
        time.sleep(60)
        return "never"

    job = submit(work, tmp_path / "begun")
    wait_for((tmp_path / "begun").exists)
    assert (job.folder / "alive").exists()
    job.cancel()
    (job.folder / "cancelled").unlink()
    # As it looks from another machine, and from this one after a reboot.
    for name in ("job.json", "attempts.jsonl"):
        place = job.folder / name
        place.write_text(re.sub(r'"\w{10}(-\d+-\d+")', r'"0123456789\1', place.read_text()))
    assert job.state == "running", "it gave a sign of life a moment ago"
    with pytest.raises(SchedulerError, match="runs on another machine"):
        job.cancel()
    assert not (job.folder / "cancelled").exists()
    for name in ("job.json", "alive"):
        os.utime(job.folder / name, (0, time.time() - 130))
    assert job.state == "lost"
    assert job.resume().result(30) == "again"


def test_a_job_gives_signs_of_life(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_BEATS", 0.01)
    assert not heartbeat.is_beating(tmp_path)
    with heartbeat.heartbeat(tmp_path):
        for _ in range(2):
            wait_for(lambda: heartbeat.is_beating(tmp_path))
            os.utime(tmp_path / "alive", (0, 0))


def test_a_damaged_list_of_attempts_hides_nothing() -> None:
    job = submit(int, "x")
    job.wait(30)
    with (job.folder / "attempts.jsonl").open("ab") as file:
        file.write(b'{"attempt": 2, "proc\xff\0')
    (job.folder / "worker-0.result").touch()
    assert [row["state"] for row in dh.jobs().to_dicts()] == ["failed"]
    assert job.resume().wait(30).state == "failed"
    assert len(job._folder.attempts()) == 2
    assert not (job.folder / "worker-0.result").exists(), "of an earlier attempt"


def test_the_end_of_the_time_saves_and_continues(tmp_path) -> None:
    def count(place: Path) -> str:
        begun = len(place.read_text()) if place.exists() else 0
        place.write_text("|" * (begun + 1))
        if begun < 1:
            time.sleep(300)
        return place.read_text()

    # Python must have begun before the time is over, on a busy machine too.
    job = submit(count, tmp_path / "state", minutes=0.3)
    endless = submit(time.sleep, 300, minutes=0.3, max_requeues=0)
    assert job.result(120) == "||"
    assert len(job._folder.attempts()) == 2
    assert endless.wait(120).state == "failed"
    assert endless.message == "its time of 0.3 min was over."


def test_a_cancelled_training_saved_its_state_and_continues(tmp_path) -> None:
    told, stopped = tmp_path / "told", tmp_path / "stopped"

    def slowly(event) -> None:
        if event.kind == "step":
            with told.open("a") as file:
                file.write("x")
            time.sleep(0 if stopped.exists() else 0.5)

    job = submit(dh.fit, some_model(), some_data(), epochs=4, batch_size=4, on_event=slowly, progress=False)
    progress = wait_for(lambda: job.progress if job.progress.done > 0.2 else None)
    assert min(progress.rate, progress.loss, progress.seconds_left) > 0
    assert progress.text.startswith("epoch")
    assert job.state == "running"
    job.cancel()
    assert job.state == "cancelled"
    stopped.touch()
    steps = len(told.read_text())
    assert steps < 24
    report = job.resume().result(120)
    # What was done is not done again.
    assert len(told.read_text()) == 24
    alone = some_model()
    dh.fit(alone, some_data(), epochs=4, batch_size=4, progress=False)
    from dhlab.training import load_run

    assert load_run(job.folder / "run").digest() == alone.digest()
    assert report.values["training loss"] > 0
    assert job.progress.done == 1


def test_one_after_the_other(tmp_path) -> None:
    def wait() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.05)

    first = submit(wait)
    second = submit(time.time, after=[first])
    wait_for((second.folder / "alive").exists)
    assert second.state == "queued"
    assert not list(second.folder.glob("*_log.out")), "submitit's clock begins with its log"
    (tmp_path / "go").touch()
    assert second.result(30) >= first.folder.joinpath("result.pkl").stat().st_mtime
    broken = submit(int, "x")
    for settings in ({}, {"array": [1, 2]}):
        never = submit(print, after=broken, **settings)
        assert never.wait(30).state == "failed"
        assert f"{broken.id}, which had to be done before, is failed" in never.message


def test_an_array_fails_and_resumes_by_its_tasks(tmp_path) -> None:
    def divide(value: int, by: Path) -> float:
        return value / int(by.read_text())

    (tmp_path / "by").write_text("0")
    job = submit(divide, tmp_path / "by", array=[4, 8])
    with pytest.raises(JobError, match="2 failed: ZeroDivisionError"):
        job.result(30)
    (tmp_path / "by").write_text("2")
    assert job.resume().result(30) == [2.0, 4.0]
    assert job.progress.text == "2 of 2 tasks"


def test_tasks_share_out_the_gpus(tmp_path, monkeypatch) -> None:
    """As on a machine of two GPUs, or more: what counts here is only what each task is told."""

    def hold(_task: int) -> str:
        devices = os.environ["CUDA_VISIBLE_DEVICES"]
        held = tmp_path / devices
        held.touch(exist_ok=False)
        time.sleep(0.3)
        held.unlink()
        return devices

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert set(submit(hold, gpus=1, array=range(4)).result(60)) <= {"3", "5"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert submit(hold, gpus=2, array=range(2)).result(60) == ["0,1", "0,1"]


def test_workers_know_their_place() -> None:
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")

    def tell() -> str:
        print(os.environ["HOROVOD_RANK"], os.environ["HOROVOD_SIZE"], os.environ["HOROVOD_LOCAL_RANK"])
        return f"result of worker {os.environ['HOROVOD_RANK']}"

    job = submit(tell, workers=2)
    assert job.result(60) == "result of worker 0"
    assert [job.log(worker=worker) for worker in (0, 1)] == ["0 2 0", "1 2 1"]


def test_a_training_goes_on_without_a_lost_worker(tmp_path) -> None:
    """The first of two elastic workers is killed: the other becomes the first, reports, and gives the result."""
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")
    told, killed = tmp_path / "told", tmp_path / "killed"

    def slowly(event) -> None:
        if event.kind == "step":
            with told.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0 if killed.exists() else 0.5)

    settings = {"epochs": 5, "batch_size": 4, "progress": False, "on_event": slowly}
    job = submit(dh.fit, some_model(), some_data(), workers=2, least_workers=1, **settings)
    first = wait_for(lambda: told.read_text().split()[-1] if told.exists() and len(told.read_text()) > 50 else None)
    os.kill(int(first), signal.SIGKILL)
    killed.touch()
    report = job.result(120)
    assert len(report.tables["Learning curve"]) == 5
    by = told.read_text().split()
    assert len(set(by)) == 2, "another worker told of the rest"
    assert 30 <= len(by) <= 41, "what was learnt since the last commit, ten batches at most, is learnt again"
    assert job.progress.text.startswith("epoch 5")


@pytest.mark.parametrize("least_workers", [0, 1])
def test_two_workers_that_are_cancelled_saved_their_state(least_workers) -> None:
    """The second ends at once, while the first still writes a state of many megabytes."""
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")
    model = dh.create_model("cnn", ("a", "b"), tile=20, spacing=1.0, width=256, depth=2, seed=0)
    settings = {"epochs": 1000, "batch_size": 4, "optimizer": "adamw", "progress": False}
    job = submit(dh.fit, model, some_data(), workers=2, least_workers=least_workers, **settings)
    wait_for(lambda: job.progress.done > 0, 90)
    (job.folder / "run" / "last.safetensors").unlink(missing_ok=True)
    job.cancel()
    assert job.state == "cancelled"
    assert (job.folder / "run" / "last.safetensors").exists()
    assert not job._folder.has("error.json")


def test_one_of_two_workers_is_killed() -> None:
    """The other says within milliseconds that one is gone, which is not why the job failed."""
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")

    def hurt(logits, targets):
        if os.environ["HOROVOD_RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(logits, targets)

    job = submit(dh.fit, some_model(), some_data(), workers=2, epochs=2, batch_size=4, loss=hurt, progress=False)
    assert job.wait(90).state == "failed"
    assert "worker 1 of 2 was ended by signal 9" in job.message


@pytest.fixture
def elastic(tmp_path, monkeypatch) -> Callable[..., ElasticTeam]:
    """Give what runs a call with two elastic workers, or one, watched by this process."""
    pytest.importorskip("horovod", reason="needs Horovod: bash binder/install.sh --horovod")
    monkeypatch.setattr(team, "COOLDOWN_S", (1, 1))

    def run(call: Callable[..., object]) -> ElasticTeam:
        place = JobFolder(tmp_path / "job")
        place.create()
        place.write("call.pkl", (call, (), {}))
        one = ElasticTeam(place, Request(id="j", name="j", call="c", cluster="local", workers=2, least_workers=1))
        one.run(threading.Event())
        return one

    return run


def test_an_elastic_job_without_room_is_told(elastic, monkeypatch) -> None:
    monkeypatch.setattr(team, "SECONDS_FOR_LEAST", 1)
    monkeypatch.setattr(team, "LOCAL_NAMES", ())
    assert elastic(print).publish() == "there was no room for 1 workers within 1 s; see the log."


def test_an_error_that_was_overcome_is_no_reason(tmp_path) -> None:
    place = JobFolder(tmp_path / "job")
    place.create()
    one = ElasticTeam(place, Request(id="j", name="j", call="c", cluster="local", workers=2, least_workers=1))

    def fail(when: float) -> bool:
        fault = {"worker": 1, "type": "OSError", "message": "stale handle", "trace": "", "time": when}
        (place.path / "worker-1.error").write_text(json.dumps(fault))
        one._look_for_fault(1, 1)
        return one.hopeless.is_set()

    assert not fail(1.0)
    assert not fail(1.0), "another worker ended without a word"
    one.shortage = "there was no room"
    assert one.publish() == "there was no room"
    assert fail(2.0)


def test_workers_that_cannot_be_started_are_told(tmp_path, monkeypatch) -> None:
    away = "echo 'Unable to contact slurm controller' >&2; exit 1"
    put_programs(tmp_path, monkeypatch, scontrol=away, squeue=away, sacct=away)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", **slurm}.items():
        monkeypatch.setenv(name, value)
    place = JobFolder(tmp_path / "job")
    place.create()
    place.write_request(Request(id="j", name="j", call="c", cluster="slurm", workers=2, nodes=2))
    with pytest.raises(SchedulerError, match="Unable to contact"):
        Launch(str(place.path))()
    assert "could not be started" in place.read_json("error.json")["message"]


def test_what_elastic_workers_cannot_do_is_told(elastic) -> None:
    """One meets an error, comes back and meets it again; the other could go on for ever."""

    def work() -> None:
        def learn(commit) -> None:
            while True:
                if os.environ["DHLAB_LOCAL_RANK"] == "1":
                    raise ValueError("no such stain")
                time.sleep(0.1)
                commit()

        distributed.run_elastic(learn, keep=int, take=int, on_change=int)

    assert elastic(work).publish().endswith("ValueError: no such stain")


def test_an_elastic_worker_that_hangs_is_replaced(elastic, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(team, "SECONDS_TO_ASK", 2.0)
    hung = tmp_path / "hung"

    def work() -> list[int]:
        distributed.ANSWER_S = 3.0
        sizes: list[int] = []

        def learn(commit) -> None:
            while sizes != [2, 1, 2]:
                if sizes == [2] and distributed.rank() == 1 and not hung.exists():
                    hung.touch()
                    time.sleep(60)
                    os._exit(0)
                if sizes[-1:] != [distributed.size()]:
                    sizes.append(distributed.size())
                distributed.allreduce(np.ones(1))
                commit()
                time.sleep(0.05)

        def take(kept: list[int]) -> None:
            sizes[:] = kept

        distributed.run_elastic(learn, keep=lambda: list(sizes), take=take, on_change=int)
        return sizes

    ended = elastic(work)
    assert not ended.publish()
    assert ended.place.read("result.pkl") == [2, 1, 2]


def test_a_worker_whose_watcher_is_gone_does_nothing(tmp_path) -> None:
    place = JobFolder(tmp_path / "job")
    place.create()
    place.write("call.pkl", ((tmp_path / "done").touch, (), {}))
    command = [sys.executable, "-m", "dhlab.scheduling.worker", str(place.path)]
    ended = subprocess.run(command, env=os.environ | {"DHLAB_WATCHER": "1"}, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "done").exists()


def test_a_notebook_runs_with_parameters(tmp_path) -> None:
    pytest.importorskip("papermill", reason="needs papermill (the extra 'jobs')")
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("size = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print('size', size)"),
    ]
    nbformat.write(notebook, tmp_path / "sizes.ipynb")
    executed = submit(tmp_path / "sizes.ipynb", parameters={"size": 5}).result(60)
    assert executed.name == "sizes.ipynb"
    assert nbformat.read(executed, 4).cells[-1].outputs[0].text == "size 5\n"
    with pytest.raises(BadValueError, match="takes parameters"):
        submit(tmp_path / "sizes.ipynb", size=5)
    with pytest.raises(BadValueError, match="a notebook with workers=2; expected 1"):
        submit(tmp_path / "sizes.ipynb", workers=2)
    with pytest.raises(NotFoundError, match="no notebook"):
        submit("nowhere.ipynb")


def test_the_table_shows_what_there_is() -> None:
    done, failed = submit(int, "7", name="a<b"), submit(functools.partial(int, "x"))
    done.wait(30), failed.wait(30)
    table = dh.jobs()
    assert [row["state"] for row in table.to_dicts()] == ["failed", "done"]
    assert (table[0], table[done.id]) == (failed, done)
    assert failed.name == "int"
    page = table._repr_html_()
    assert "ValueError: invalid literal" in page
    assert "a-b" in page
    assert "and 1 older" in table.draw(table.to_dicts(most=1))
    slow = {**table.to_dicts()[0], "state": "running"}
    slow["progress"]["rate"] = 0.25
    assert "0.250/s" in table.draw([slow])
    assert json.loads((done.folder / "job.json").read_text())["call"].endswith("int")
    # In the night in which the clocks go back.
    for job, submitted in ((done, "2025-10-26T02:50:00+02:00"), (failed, "2025-10-26T02:10:00+01:00")):
        told = json.loads((job.folder / "job.json").read_text()) | {"submitted": submitted}
        (job.folder / "job.json").write_text(json.dumps(told))
    assert [job.id for job in dh.jobs()] == [failed.id, done.id]


def test_cells_share_one_live_table(monkeypatch, jobs_folder) -> None:
    def threads() -> int:
        return [thread.name for thread in threading.enumerate()].count("dhlab-jobs")

    def broken(*_: object) -> None:
        raise OSError("Stale file handle")

    monkeypatch.setattr(view_jobs, "SECONDS_AT_REST", 0.01)
    before = threads()
    views = [dh.jobs()._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"] for _ in range(3)]
    assert len({view["model_id"] for view in views}) == 1
    assert threads() == before + 1
    table = view_jobs.table_of(dh.jobs())
    with monkeypatch.context() as patched:
        patched.setattr(table.jobs, "refresh", broken)
        wait_for(lambda: "Stale file handle" in table.children[-1].value)
    assert str(jobs_folder) in wait_for(lambda: table.children[0].value)
    table.close()
    wait_for(lambda: threads() == before)
    again = view_jobs.table_of(dh.jobs())
    assert again is not table
    again.close()
