"""What runs in a job's batch step: has its workers run, and stops them in time."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from dhlab import env
from dhlab.errors import JobError
from dhlab.scheduling.folder import ERROR, RESULT, JobFolder
from dhlab.scheduling.heartbeat import heartbeat
from dhlab.scheduling.team import ElasticTeam, Team

if TYPE_CHECKING:
    from dhlab.scheduling.request import Request

__all__ = ["Launch"]

# Workers that were asked to stop may write their state for so long.
SECONDS_TO_SAVE = 60.0


class Launch:
    """Runs a job, or tasks of its array one after another; submitit calls it and begins it again after a signal.

    Parameters
    ----------
    folder
        Folder of the job.
    parts
        Tasks of an array that run here; empty if the job is none.
    """

    def __init__(self, folder: str, parts: tuple[int, ...] = ()) -> None:
        self.folder, self.parts = folder, parts
        self.teams: list[Team] = []
        self.stopping = threading.Event()

    def __call__(self) -> None:
        """Run what is not done yet.

        Raises
        ------
        JobError
            If something failed.
        """
        from submitit.core.utils import UncompletedJobError

        # A job that Slurm stops is no failure: it was cancelled, or makes room and is begun again.
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        job = JobFolder(Path(self.folder))
        request = job.read_request()
        places = [job.task(part) for part in self.parts] or [job]
        places = [place for place in places if not place.has(RESULT)]
        try:
            # Slurm itself knows whether a job lives.
            with heartbeat(job.path) if request.cluster == "local" else nullcontext():
                faults = [fault for fault in self._run_all(places, request) if fault]
        except UncompletedJobError:
            times = f" {1 + request.max_requeues} times" if request.max_requeues else ""
            for place in places:
                if not place.has(RESULT) and not place.has(ERROR):
                    place.write_error(f"its time of {request.minutes:g} min was over{times}.")
            raise
        if self.stopping.is_set():
            raise SystemExit(128 + signal.SIGTERM)
        if faults:
            raise JobError(faults[0])

    def checkpoint(self) -> Any:
        """Ask the workers to write their state, wait until they have, and return what shall be done next time."""
        from submitit.core.utils import DelayedSubmission

        self.stopping.set()
        print("dhlab: the time is nearly over, the workers write their state", flush=True)  # noqa: T201 - into the log
        for team in self.teams:
            team.send(signal.SIGUSR2)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for team in self.teams:
            team.wait(deadline)
            team.end()
        return DelayedSubmission(Launch(self.folder, self.parts))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc] # an object anew is what pickle makes here

    def _run_all(self, places: list[JobFolder], request: Request) -> list[str]:
        if len(places) == 1:
            return [self._run(places[0], request)]
        shares = _share_devices(request)
        free: SimpleQueue[Request] = SimpleQueue()
        for share in shares:
            free.put(share)

        def run(place: JobFolder) -> str:
            own = free.get()
            try:
                return self._run(place, own)
            finally:
                free.put(own)

        with ThreadPoolExecutor(len(shares)) as pool:
            return list(pool.map(run, places))

    def _run(self, place: JobFolder, request: Request) -> str:
        """Run the workers of a job or task; return why it failed, or nothing."""
        if self.stopping.is_set():
            return ""
        place.begin_attempt()
        team = (ElasticTeam if request.least_workers else Team)(place, request)
        self.teams.append(team)
        try:
            team.run(self.stopping)
        except OSError as error:
            # A SchedulerError is one: there are no workers that could tell it.
            if not self.stopping.is_set():
                place.write_error(f"its workers could not be started: {error}", traceback.format_exc())
            raise
        finally:
            team.end()
        if self.stopping.is_set():
            return ""
        return team.publish()


def _share_devices(request: Request) -> list[Request]:
    """Return what each task asks that runs at once: as many as there are cores for, each with GPUs of its own."""
    at_once = max(1, env.core_count() // request.workers)
    each = request.gpus * request.workers
    if not each:
        return [request] * at_once
    devices = (request.devices or "").split(",")
    firsts = range(0, len(devices) - each + 1, each)
    shares = [dataclasses.replace(request, devices=",".join(devices[first : first + each])) for first in firsts]
    return shares[:at_once]
