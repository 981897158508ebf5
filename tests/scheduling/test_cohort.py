"""Many slides as one call: whatever is killed, no slide is lost, none is done twice, nothing is left behind."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_for

import dhlab as dh
from dhlab.atomic import process_identity
from dhlab.errors import BadFileError, BadValueError, ConflictError, NotFoundError, SchedulerError, UnknownNameError
from dhlab.scheduling.records import CohortFolder, remove_abandoned
from dhlab.scheduling.request import Request
from dhlab.scheduling.running import _recipe
from dhlab.scheduling.slides import Work, process_slide

distributed = pytest.importorskip("distributed", reason="needs Dask distributed (the extra 'jobs')")

run_here = functools.partial(dh.run_cohort, cluster="local", progress=False)


def make_slides(folder: Path, count: int, side: int = 40) -> list[Path]:
    folder.mkdir(exist_ok=True)
    scans = [dh.Scan.from_array(np.full((side, side, 3), n, np.uint8), "yxc") for n in range(count)]
    return [dh.save(scan, folder / f"slide-{n:03}.png") for n, scan in enumerate(scans)]


def brightness(log: Path, seconds: float = 0.0, kill=None):
    """Return a function that finds the mean of a scan, and notes that it was called."""

    def measure(scan) -> dict:
        import os
        import time

        import numpy as np

        with log.open("a") as file:
            file.write(f"{scan.name}\n")
        time.sleep(seconds)
        if kill is not None and (kill == "always" or not kill.exists()):
            if kill != "always":
                kill.touch()
            os.kill(os.getpid(), 9)
        return {"mean": float(np.asarray(scan.levels[0]).mean())}

    return measure


def called(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def has_begun(log: Path, count: int) -> bool:
    return len(called(log)) >= count


def records(out: Path) -> dict[str, tuple[int, int]]:
    """Return what tells a record from one that was written again."""
    places = {path.parent.name: path.stat() for path in out.glob("slides/*/record.json")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in places.items()}


def assert_whole(cohort: dh.Cohort) -> None:
    """Nothing is missing, nothing wrong, nothing left over."""
    assert not cohort.pending
    assert not cohort.failed
    assert not cohort.verify()
    assert not list((cohort.folder / "unfinished").iterdir())
    assert [cohort[name]["mean"] for name in cohort.slides] == [int(name[-3:]) for name in cohort.slides]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Give a client of two workers that several tests share."""
    from dhlab.scheduling.engines import start_workers

    request = Request(id="", name="cohort", call="", cluster="local", workers=2)
    with start_workers(request, tmp_path_factory.mktemp("logs"), dashboard=False) as found:
        yield found


def test_a_second_call_does_only_what_is_left(tmp_path) -> None:
    slides, log = make_slides(tmp_path / "in", 5), tmp_path / "log"
    whole = slides[2].read_bytes()
    slides[2].write_bytes(b"damaged")
    told = []
    cohort = run_here(
        brightness(log), slides, out=tmp_path / "out", workers=2, progress=lambda *done: told.append(done)
    )
    assert told[-1] == (5, 5)
    assert repr(cohort).startswith("Cohort(4 of 5 slides done, 1 failed;")
    assert "is not a picture" in cohort.failures["slide-002"]
    with pytest.raises(UnknownNameError, match="'slide-002' failed"):
        cohort["slide-002"]
    assert "slide-002" in cohort._repr_html_()
    before = records(tmp_path / "out")
    slides[2].write_bytes(whole)
    again = run_here(brightness(log), tmp_path / "in", out=tmp_path / "out", workers=1)
    assert_whole(again)
    assert sorted(called(log)) == sorted(again.slides), "the reader refused the damaged slide, others were done once"
    assert records(tmp_path / "out").items() >= before.items()
    # What has nothing to do starts nothing.
    assert_whole(run_here(brightness(log), slides, out=tmp_path / "out"))
    report = again.report()
    assert report.values["done"] == 5
    assert report.provenance["function"].endswith("brightness.<locals>.measure")
    assert dh.Cohort(tmp_path / "out").slides == again.slides
    header, *rows = again.to_csv(tmp_path / "table.csv").read_text().splitlines()
    assert header.split(",")[:2] == ["slide", "state"]
    assert len(rows) == 5


def test_one_folder_never_holds_the_results_of_two_settings(tmp_path, client) -> None:
    def scale(scan, by: int) -> int | None:
        return by * scan.shape[0] or None

    slides = make_slides(tmp_path / "in", 1)
    run = functools.partial(dh.run_cohort, slides=slides, cluster=client, progress=False)
    assert run(functools.partial(scale, by=2), out=tmp_path / "twice")["slide-000"] == 80
    with pytest.raises(ConflictError, match="'by': 2.*now.*'by': 3"):
        run(functools.partial(scale, by=3), out=tmp_path / "twice")
    assert run(scale, out=tmp_path / "nothing", by=0)["slide-000"] is None


def small_model(seed: int) -> dh.Model:
    return dh.create_model("cnn", ("a", "b"), tile=32, spacing=1.0, width=4, depth=2, seed=seed)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: functools.partial(len, functools.partial(len, [n]), batch_size=n),
        lambda n: {"a": [np.full(3, n)]},
        lambda n: np.float32(n),
        lambda n: Path(f"/points/{n}"),
        lambda n: dh.Scan.from_array(np.full((4, 4), n, np.uint8), "yx"),
        small_model,
    ],
)
def test_arguments_are_told_from_others(tmp_path, make) -> None:
    folder = CohortFolder(tmp_path)
    for _ in range(2):
        folder.prepare(_recipe(Work(len, tmp_path, keywords={"value": make(1)})))
    with pytest.raises(ConflictError, match="results of other work"):
        folder.prepare(_recipe(Work(len, tmp_path, keywords={"value": make(2)})))


@pytest.fixture
def thread():
    """Give a client of one worker in this process, which has loaded torch already."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as found,
    ):
        yield found


def test_a_model_on_every_slide(tmp_path, thread) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (2, 96, 128, 3)).astype(np.uint8)
    scans = [dh.Scan.from_array(picture, "yxc", spacing=1.0, unit="µm") for picture in pictures]
    slides = [dh.save(scan, tmp_path / f"{n}.ome.zarr") for n, scan in enumerate(scans)]
    model = dh.create_model("cnn", ("a", "b"), tile=32, spacing=1.0, width=4, depth=2, seed=0)

    def left_half(scan):
        import dhlab as dh

        mask = np.zeros(scan.shape[:2], np.uint8)
        mask[:, : mask.shape[1] // 2] = 1
        return dh.Scan.from_array(mask, "yx", spacing=scan.spacing, unit=scan.unit, kind="mask")

    run = functools.partial(dh.run_cohort, cluster=thread, progress=False)
    heat = run(dh.predict, slides, model=model, within=left_half, out=tmp_path / "heat", overlap=0.0)
    assert not heat.failures
    alone = dh.predict(model, dh.open(slides[1]), within=left_half(scans[1]), overlap=0.0, progress=False)
    assert np.array_equal(heat["1"].levels[0][...], alone.levels[0])
    assert len(list((tmp_path / "heat" / "slides" / "1").rglob("*"))) < 20, "shards, not a file per chunk"
    bags = run(dh.mil.embed, slides, model=model, out=tmp_path / "bags", scratch=tmp_path)
    assert np.array_equal(bags["0"].features, dh.mil.embed(model, dh.open(slides[0]), progress=False).features)
    other = dh.create_model("cnn", ("a", "b"), tile=32, spacing=1.0, width=4, depth=2, seed=1)
    with pytest.raises(ConflictError, match="results of other work"):
        run(dh.mil.embed, slides, model=other, out=tmp_path / "bags")


def test_a_killed_worker_costs_nothing_but_time(tmp_path) -> None:
    slides, log = make_slides(tmp_path / "in", 4), tmp_path / "log"
    cohort = run_here(brightness(log, kill=tmp_path / "killed"), slides, out=tmp_path / "out", workers=2)
    assert (tmp_path / "killed").exists()
    assert_whole(cohort)
    assert len(called(log)) <= 6, "the one that was killed, and what another worker held"


def test_a_slide_that_ends_every_worker_is_told(tmp_path, client) -> None:
    slides = make_slides(tmp_path / "in", 1)
    cohort = dh.run_cohort(
        brightness(tmp_path / "log", kill="always"), slides, out=tmp_path / "out", cluster=client, progress=False
    )
    assert "is there enough memory" in cohort.failures["slide-000"]
    assert not list((tmp_path / "out" / "unfinished").iterdir())


def test_an_error_of_the_moment_is_tried_again(tmp_path, client) -> None:
    def once(scan) -> int:
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise RuntimeError("the disk was busy")
        return 1

    def never(scan) -> int:
        raise RuntimeError("the disk is gone")

    slides = make_slides(tmp_path / "in", 1)
    run = functools.partial(dh.run_cohort, cluster=client, progress=False)
    assert run(once, slides, out=tmp_path / "once")["slide-000"] == 1
    failed = run(never, slides, out=tmp_path / "never", retries=1)
    assert failed.failures == {"slide-000": "RuntimeError: the disk is gone"}
    assert "in never" in json.loads((tmp_path / "never" / "failures" / "slide-000.json").read_text())["trace"]


PROGRAM = """
import sys, time
from pathlib import Path
import dhlab as dh

def measure(scan):
    import numpy as np
    with (Path(sys.argv[2]).with_suffix(".log")).open("a") as file:
        file.write(f"{scan.name}\\n")
    time.sleep(0.1 if Path(sys.argv[2]).with_suffix(".quick").exists() else 1)
    return {"mean": float(np.asarray(scan.levels[0]).mean())}

if __name__ == "__main__":
    here, out = sys.argv[1:]
    dh.run_cohort(measure, here, out=out, cluster="local", workers=2, progress=False)
"""


def start_caller(slides: Path, out: Path) -> subprocess.Popen:
    program = out.with_name("caller.py")
    program.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(program), str(slides), str(out)], start_new_session=True)


def test_a_killed_caller_leaves_nothing_behind(tmp_path) -> None:
    make_slides(tmp_path / "in", 20)
    out, log = tmp_path / "out", tmp_path / "out.log"
    caller = start_caller(tmp_path / "in", out)
    wait_for(lambda: len(CohortFolder(out).done()) > 2)
    children = distributed_children(caller.pid)
    caller.kill()
    caller.wait()
    assert children
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children))
    before, first = records(out), called(log)
    assert len(before) < 20
    out.with_suffix(".quick").touch()
    caller = start_caller(tmp_path / "in", out)
    assert caller.wait(120) == 0
    assert_whole(dh.Cohort(out))
    assert records(out).items() >= before.items()
    assert not set(called(log)[len(first) :]) & set(before), "what was done is not begun again"


def distributed_children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def test_two_callers_share_the_work(tmp_path) -> None:
    make_slides(tmp_path / "in", 30)
    out = tmp_path / "out"
    out.with_suffix(".quick").touch()
    callers = [start_caller(tmp_path / "in", out) for _ in range(2)]
    assert [caller.wait(180) for caller in callers] == [0, 0]
    assert_whole(dh.Cohort(out))
    calls = called(tmp_path / "out.log")
    assert set(calls) == set(dh.Cohort(out).slides)
    assert len(calls) <= 45, "each begins only what is not done; a few are begun by both, and the first counts"


def test_a_killed_scheduler_is_told_and_what_is_done_is_kept(tmp_path) -> None:
    slides, log, out = make_slides(tmp_path / "in", 12), tmp_path / "log", tmp_path / "out"
    place = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(place), "--no-dashboard"]
    python = [sys.executable, "-m"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", *common, "--host", "127.0.0.1", "--port", "0"], **quiet
    )
    try:
        wait_for(place.exists)
        worker = subprocess.Popen(
            [*python, "distributed.cli.dask_worker", *common, "--nthreads", "1", "--death-timeout", "30", "--no-nanny"],
            **quiet,
        )
        with distributed.Client(scheduler_file=str(place), set_as_default=False, timeout="30s") as client:
            killed = []

            def kill(done: int, _total: int) -> None:
                if done == 3 and not killed:
                    killed.append(scheduler.kill())

            with pytest.raises(SchedulerError, match=r"What is done is kept.*call again"):
                dh.run_cohort(brightness(log, 0.05), slides, out=out, cluster=client, progress=kill)
        worker.terminate()
        worker.wait(30)
    finally:
        scheduler.kill()
        scheduler.wait()
    before = records(out)
    assert 3 <= len(before) < 12
    cohort = run_here(brightness(log, 0.05), slides, out=out, workers=1)
    assert_whole(cohort)
    assert records(out).items() >= before.items()


def test_no_worker_is_told(tmp_path) -> None:
    import dask

    settings = {"distributed.scheduler.no-workers-timeout": "500 ms"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        pytest.raises(SchedulerError, match="no worker is left"),
    ):
        dh.run_cohort(len, make_slides(tmp_path / "in", 2), out=tmp_path / "out", cluster=client, progress=False)


def work_through(slides: dict[str, str], work: Work, seed: int) -> None:
    """Do slides in a process that is killed at any moment."""
    names = list(slides)
    random.Random(seed).shuffle(names)
    for name in names:
        process_slide(name, slides[name], work)


def test_a_hundred_kills(tmp_path) -> None:
    """Two processes at a time do the same slides and are killed at random moments, a hundred times."""
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    slides = {}
    for path in make_slides(tmp_path / "in", 6, side=4):
        for n in range(150):
            link = path.with_name(f"{n}-{path.name}")
            link.symlink_to(path)
            slides[link.stem] = str(link)
    last = dict([slides.popitem()])
    log = tmp_path / "log"
    folder = CohortFolder(out)
    folder.prepare({"function": "measure"})
    chance = random.Random(0)
    fork = get_context("fork")
    seen: dict[str, tuple[int, int]] = {}
    kills = 0
    # On a fast machine the slides may be done before the last kill.
    while kills < 100 and len(known := folder.done()) < len(slides):
        begun = len(called(log))
        work = Work(brightness(log), out, scratch=chance.choice([None, scratch]))
        pair = [fork.Process(target=work_through, args=(slides, work, chance.random())) for _ in range(2)]
        for process in pair:
            process.start()
        enough = functools.partial(has_begun, log, begun + chance.randrange(8))
        wait_for(lambda pair=pair, enough=enough: enough() or not any(process.is_alive() for process in pair))
        time.sleep(chance.uniform(0.0, 0.01))
        for process in pair:
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        assert not set(called(log)[begun:]) & known, "none that is done is begun again"
        now = records(out)
        assert now.items() >= seen.items(), "no record changes"
        assert now.keys() == folder.done(), "nothing appears without its record"
        seen = now
    assert kills >= 40
    print(f"{kills} kills, {len(seen)} slides done, {len(called(log))} begun")
    # Who begins a slide tidies first: what the last to be killed left is removed.
    work_through(slides | last, Work(brightness(log), out, scratch=scratch), 0)
    cohort = dh.Cohort(out)
    assert set(cohort.slides) == set(slides | last)
    assert_whole(cohort)
    assert not list(scratch.iterdir())


def test_scratch(tmp_path, client) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    small = dh.save(dh.Scan.from_array(np.zeros((64, 64, 3), np.uint8), "yxc"), tmp_path / "small.ome.tif")
    huge = dh.save(dh.Scan.from_array(np.zeros((64, 64, 3), np.uint8), "yxc"), tmp_path / "huge.ome.tif")
    # It takes no room here, and more than there is where it is copied.
    os.truncate(huge, 8 << 40)

    def where(scan) -> dict:
        mode = [p.stat().st_mode & 0o777 for p in scratch.iterdir()]
        return {"path": str(scan.meta["path"]), "near": sorted(p.name for p in scratch.glob("*/*")), "mode": mode}

    cohort = dh.run_cohort(
        where, [small, huge], out=tmp_path / "out", cluster=client, scratch=scratch, workers=2, progress=False
    )
    assert not cohort.failures
    assert cohort["small"]["path"].startswith(str(scratch))
    assert {"results", "small.ome.tif"} <= set(cohort["small"]["near"])
    assert cohort["small"]["mode"] == [0o700], "slides of patients, on a disk that others use too"
    assert cohort["huge"]["path"] == str(huge)
    assert not list(scratch.iterdir())
    assert "1 of 2 slides were not copied to scratch; the first: read in place" in cohort.report().notes[0]
    nowhere = dh.run_cohort(
        where, [small], out=tmp_path / "no", cluster=client, scratch=tmp_path / "none", retries=0, progress=False
    )
    assert "expected the scratch of the machine" in nowhere.failures["small"]


def test_what_a_dead_process_left_is_removed(tmp_path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f"dhlab-{process_identity(dead.pid)}-0").mkdir()
    job = tmp_path / "dhlab-training-0801-101500-4711"
    job.mkdir()
    elsewhere = tmp_path / "dhlab-0123456789-1-2-0"
    written = elsewhere / "result.ome.zarr" / "0"
    written.mkdir(parents=True)
    long_ago = time.time() - 90_000
    for place in (job, elsewhere, written.parent):
        os.utime(place, (0, long_ago))
    remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {job, elsewhere}, "its process has just written deep within"
    os.utime(written, (0, long_ago))
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [job]


def test_damage_is_found_and_mended(tmp_path, client) -> None:
    slides, log = make_slides(tmp_path / "in", 3), tmp_path / "log"

    def invert(scan):
        with log.open("a") as file:
            file.write(f"{scan.name}\n")
        return scan.replace(levels=(255 - scan.levels[0][...],))

    run = functools.partial(dh.run_cohort, invert, slides, out=tmp_path / "out", cluster=client, progress=False)
    cohort = run()
    assert np.all(cohort["slide-001"].levels[0][...] == 254)
    files = [path for path in (tmp_path / "out" / "slides" / "slide-001").rglob("c/**/*") if path.is_file()]
    chunk = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert list(cohort.verify()) == ["slide-001"]
    cohort.forget(cohort.verify())
    assert cohort.pending == ("slide-001",)
    assert not run().verify()
    assert sorted(called(log)) == ["slide-000", "slide-001", "slide-001", "slide-002"]


def test_too_many_files_are_refused(tmp_path, client) -> None:
    def scatter(scan) -> dict:
        return {f"part {n}": scan for n in range(4)}

    slides = make_slides(tmp_path / "in", 1)
    cohort = dh.run_cohort(scatter, slides, out=tmp_path / "out", cluster=client, most_files=3, progress=False)
    assert "expected at most 3" in cohort.failures["slide-000"]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"slides": []}, BadValueError, "no slides"),
        ({"slides": ["/a/1.svs", "/b/1.svs"]}, BadValueError, "have one name; pass a dict"),
        ({"slides": {"a/b": "/a/1.svs"}}, BadValueError, "without '/'"),
        ({"slides": "/nowhere"}, NotFoundError, "no folder /nowhere"),
        ({"workers": 0}, BadValueError, "workers=0"),
        ({"gpus": 99}, BadValueError, "expected at most this machine's"),
        ({"retries": -1}, BadValueError, "retries=-1"),
        ({"minutes": 5}, BadValueError, "no wall-time"),
        ({"partition": "gpu"}, BadValueError, "partition and options are for Slurm"),
        ({"cluster": "cloud"}, BadValueError, "cluster='cloud'"),
        ({"function": (n for n in "ab")}, BadValueError, "cannot travel"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, asked, error, message) -> None:
    given = {"function": len, "slides": [tmp_path / "1.svs"], "out": tmp_path / "out", "cluster": "local", **asked}
    with pytest.raises(error, match=message):
        dh.run_cohort(given.pop("function"), given.pop("slides"), **given)


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConflictError, match="holds something else"):
        run_here(len, ["/a.svs"], out=tmp_path)
    with pytest.raises(NotFoundError, match="no cohort at"):
        dh.Cohort(tmp_path)
    folder = CohortFolder(tmp_path / "out")
    folder.prepare({"function": "len"})
    (folder.slides / "a").mkdir()
    (folder.slides / "a" / "record.json").write_text('{"slide": ')
    with pytest.raises(BadFileError, match="is damaged"):
        dh.Cohort(folder.path)["a"]


def test_slurm_workers_come_and_go(tmp_path, slurm, jobs_folder) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue (the extra 'jobs')")
    keys_of_a_killed_one = jobs_folder / f"dhlab-{process_identity(2**22)}-0"
    keys_of_a_killed_one.mkdir(parents=True)
    slides, log = make_slides(tmp_path / "in", 6), tmp_path / "log"
    run = functools.partial(dh.run_cohort, brightness(log, 0.2), slides, out=tmp_path / "out", progress=False)
    with pytest.raises(BadValueError, match="no partition 'gpux'"):
        run(cluster="slurm", partition="gpux")
    cohort = run(cluster="slurm", workers=2, minutes=5, options={"mem": 500, "exclusive": True})
    assert_whole(cohort)
    assert not list(jobs_folder.iterdir())
    assert "dhlab-cohort" in slurm.run("squeue", "--states=all", "-h", "-o", "%j")
    wait_for(lambda: "RUNNING" not in slurm.run("squeue", "-h", "-o", "%T"))
