"""Many slides as one call: what Dask and the record cost per slide, how fast finished slides are passed over, kills."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Bench, main

SLIDES, FINISHED, KILLS = 400, 10_000, 100

# What is killed again and again, with its workers; the function notes when it begins and ends a slide.
CALLER = """
import os, sys, time
from pathlib import Path
import dhlab as dh

def measure(scan):
    with Path(sys.argv[3]).open("a") as log:
        log.write(f"{os.getpid()} {scan.shape}\\n")
    time.sleep(0.2)
    return scan.shape[0]

if __name__ == "__main__":
    slide, out, log, count = sys.argv[1:]
    slides = {f"slide-{n:04}": slide for n in range(int(count))}
    dh.run_cohort(measure, slides, out=out, workers=2, cluster="local", progress=False)
"""


def measure(bench: Bench) -> None:
    """Time a function that does nothing on a small picture, so that all that is left is overhead."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        slide = make_slide(place)
        measure_overhead(bench, slide, place)
        measure_resume(bench, slide, place)
        kill_at_random(bench, slide, place)


def make_slide(place: Path) -> Path:
    """Return a small picture."""
    import numpy as np

    import dhlab as dh

    return dh.save(dh.Scan.from_array(np.zeros((64, 64, 3), np.uint8), "yxc"), place / "slide.png")


def measure_overhead(bench: Bench, slide: Path, place: Path) -> None:
    """Time one worker that runs already: wall-clock per slide, which is what one core pays."""
    import distributed

    import dhlab as dh

    def nothing(_scan: Any) -> int:
        return 0

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        times = []
        for number in range(bench.arguments.rounds + 1):
            slides = {f"slide-{n:04}": slide for n in range(SLIDES)}
            begin = time.perf_counter()
            cohort = dh.run_cohort(nothing, slides, out=place / f"out-{number}", cluster=client, progress=False)
            times.append(time.perf_counter() - begin)
            assert len(cohort.done) == SLIDES
    best = min(times[1:])
    bench.record("overhead per slide", 1e3 * best / SLIDES, 50.0, peer_name="goal", unit="ms", goal=1.0)
    bench.record("overhead per slide, median", 1e3 * statistics.median(times[1:]) / SLIDES, unit="ms")


def measure_resume(bench: Bench, slide: Path, place: Path) -> None:
    """Time a call that has nothing left to do."""
    import dhlab as dh
    from dhlab.scheduling.records import CohortFolder

    def nothing(_scan: Any) -> int:
        return 0

    slides = {f"slide-{n:05}": slide for n in range(FINISHED)}
    out = place / "finished"
    dh.run_cohort(nothing, dict([next(iter(slides.items()))]), out=out, workers=1, cluster="local", progress=False)
    folder = CohortFolder(out)
    record = (folder.slides / "slide-00000" / "record.json").read_text("utf-8")
    for name in list(slides)[1:]:
        (folder.slides / name).mkdir()
        (folder.slides / name / "record.json").write_text(record.replace("slide-00000", name), "utf-8")

    def again() -> Any:
        return dh.run_cohort(nothing, slides, out=out, cluster="local", progress=False)

    assert len(again().done) == FINISHED
    seconds = bench.compare(f"{FINISHED:,} finished slides passed over", again, unit="s")["dhlab"]
    bench.record("the same, against the goal", seconds, 5.0, peer_name="goal", unit="s", goal=1.0)
    begin = time.perf_counter()
    assert len(again().table) == FINISHED
    bench.record(f"table of {FINISHED:,} slides", time.perf_counter() - begin, unit="s")


def kill_at_random(bench: Bench, slide: Path, place: Path) -> None:
    """Kill workers, and sometimes the caller with its scheduler, until it has happened a hundred times."""
    import dhlab as dh
    from dhlab.scheduling.records import CohortFolder

    program, out, log = place / "caller.py", place / "killed", place / "log"
    program.write_text(CALLER, "utf-8")
    chance, folder = random.Random(0), CohortFolder(out)
    seen: dict[str, tuple[int, int]] = {}
    kills = callers = repeated = 0
    count = 5 * KILLS
    command = [sys.executable, str(program), str(slide), str(out), str(log), str(count)]
    caller = subprocess.Popen(command, start_new_session=True)
    while kills < KILLS:
        if caller.poll() is not None:
            count += KILLS
            command[-1] = str(count)
            caller = subprocess.Popen(command, start_new_session=True)
        wait_for_work(log, caller)
        time.sleep(chance.uniform(0.0, 0.4))
        if chance.random() < 0.1:
            caller.kill()
            caller.wait()
            callers += 1
            kills += 1
        elif workers := workers_of(caller.pid):
            try:
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                continue
        now = {name: identity(folder.slides / name) for name in folder.done()}
        repeated += sum(now.get(name) != known for name, known in seen.items())
        seen = now
    caller.wait()
    # A slide whose workers were killed four times in a row counts as failed; the next call tries it again.
    subprocess.run(command, check=True)
    cohort = dh.Cohort(out)
    print(f"  {kills} kills ({callers} of the caller), {count} slides: {cohort!r}")
    bench.record(f"{kills} random kills: slides lost", float(count - len(cohort.done)), unit="slides")
    bench.record(f"{kills} random kills: slides done twice", float(repeated), unit="slides")
    left = len(list(folder.unfinished.iterdir())) + len(cohort.verify())
    bench.record(f"{kills} random kills: left over or damaged", float(left), unit="slides")
    begun = len(log.read_text("utf-8").splitlines())
    bench.record(f"{kills} random kills: slides begun again", float(begun - count), unit="slides")


def wait_for_work(log: Path, caller: subprocess.Popen[bytes]) -> None:
    """Wait until a slide is begun, so that the kill that follows hits one, or until the caller has ended."""
    before = log.stat().st_size if log.exists() else 0
    while caller.poll() is None and (log.stat().st_size if log.exists() else 0) == before:
        time.sleep(0.01)


def identity(place: Path) -> tuple[int, int]:
    """Return what tells a record from one that was written again."""
    status = (place / "record.json").stat()
    return status.st_ino, status.st_mtime_ns


def workers_of(caller: int) -> list[int]:
    """Return the processes that do slides: those that the caller spawned."""
    import psutil

    try:
        children = psutil.Process(caller).children(recursive=True)
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main("cohort", measure, tests=["tests/scheduling/test_cohort.py"], rounds=3)
