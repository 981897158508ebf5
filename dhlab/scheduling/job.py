"""A job as it is now, read from its folder and from the cluster: found again by whoever knows where it lies."""

from __future__ import annotations

import dataclasses
import html
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from dhlab import env
from dhlab.errors import BadValueError, DHLabError, JobError, SchedulerError, UnknownNameError, suggest
from dhlab.scheduling.clusters import Sight, cluster_named
from dhlab.scheduling.folder import CANCELLED, ERROR, PROGRESS, REQUEST, RESULT, JobFolder
from dhlab.scheduling.table import draw_table, write_row

if TYPE_CHECKING:
    import os

    from dhlab.scheduling.request import Request

__all__ = ["ENDED", "STATES", "Job", "Jobs", "Progress", "jobs"]

STATES = ("queued", "running", "requeued", "done", "failed", "cancelled", "lost")
ENDED = ("done", "failed", "cancelled", "lost")
# An array is what is listed first among these and is the state of one of its tasks.
WEIGHT = ("running", "requeued", "queued", "failed", "lost", "cancelled", "done")
LONGEST_PAUSE_S = 2.0
# A table looks at these every few seconds.
MOST_SHOWN = 100
LONGEST_LINE_BYTES = 400


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Parameters
    ----------
    done
        Share that is done, 0 to 1.
    seconds_left
        Time until it is done, as it goes now; None if unknown.
    rate
        Samples (or what else is counted) per second; None if unknown.
    loss
        Loss of the last batches of a training; None if it is none.
    text
        Anything else in a few words.
    """

    done: float = 0.0
    seconds_left: float | None = None
    rate: float | None = None
    loss: float | None = None
    text: str = ""


class Job:
    """Something that runs outside the notebook; made by `submit`, found again by `jobs`.

    Parameters
    ----------
    folder
        Folder of the job.
    part
        Number of a task, if this is one of an array; `folder` is then the array's.

    Raises
    ------
    NotFoundError
        If there is no job.
    """

    def __init__(self, folder: str | os.PathLike[str], part: int | None = None) -> None:
        self.part = part
        self._job = JobFolder(Path(folder))
        self._folder = self._job if part is None else self._job.task(part)
        self._job.read_request()

    @property
    def folder(self) -> Path:
        """Where everything about the job lies."""
        return self._folder.path

    @property
    def request(self) -> Request:
        """What was asked."""
        return self._job.read_request()

    @property
    def id(self) -> str:
        """Name of the job, unique among yours."""
        return self.request.id if self.part is None else f"{self.request.id}[{self.part}]"

    @property
    def name(self) -> str:
        """What people call it."""
        return self.request.name

    @property
    def number(self) -> str | None:
        """What the cluster calls it: the number of Slurm's job."""
        return self.request.number_of(self.part)

    @property
    def tasks(self) -> tuple[Job, ...]:
        """The tasks of an array, each a job; empty if it is none."""
        return tuple(Job(self._job.path, part) for part in range(self.request.tasks)) if self.part is None else ()

    @property
    def state(self) -> str:
        """One of ``queued``, ``running``, ``requeued``, ``done``, ``failed``, ``cancelled`` and ``lost``.

        ``requeued`` was begun already and waits to be continued; ``lost`` ended without a result and nobody knows why.
        """
        return self._look()[0]

    @property
    def message(self) -> str:
        """Why it is as it is: what failed, or what it waits for; empty if there is nothing to say."""
        return self._look()[1]

    @property
    def progress(self) -> Progress:
        """How far it is."""
        if tasks := self.tasks:
            shares = [1.0 if task.folder.joinpath(RESULT).exists() else task.progress.done for task in tasks]
            finished = sum(share >= 1 for share in shares)
            return Progress(sum(shares) / len(shares), text=f"{finished} of {len(shares)} tasks")
        told = self._folder.read_json(PROGRESS)
        known = {field.name for field in dataclasses.fields(Progress)}
        progress = Progress(**{name: value for name, value in told.items() if name in known})
        return dataclasses.replace(progress, done=1.0, seconds_left=0.0) if self._folder.has(RESULT) else progress

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until the job has ended, and return it.

        Parameters
        ----------
        timeout
            Seconds; None waits for as long as it takes.

        Raises
        ------
        TimeoutError
            If it has not ended by then; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while self.state not in ENDED:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.id} is {self.state} after {timeout:g} s; it goes on.")
            time.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 1.5)
        return self

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the job and return what its function returned: worker 0's value, or a list for an array.

        Parameters
        ----------
        timeout
            Seconds; None waits for as long as it takes.

        Raises
        ------
        JobError
            If it failed, was cancelled or is lost; the message says where and why.
        TimeoutError
            If it has not ended by then; it goes on.
        """
        self.wait(timeout)
        state, message = self._look()
        if state != "done":
            trace = self._folder.read_json(ERROR).get("trace", "")
            raise JobError(
                f"{self.id} {'is' if state == 'lost' else 'has' if state == 'failed' else 'was'} {state}"
                f"{': ' + message if message else ''}. Its log: job.log(); to go on: job.resume()."
                + (f"\n\n{trace}" if trace else "")
            )
        if tasks := self.tasks:
            return [task.result() for task in tasks]
        return self._folder.read(RESULT)

    def log(self, lines: int = 40, *, worker: int = 0) -> str:
        """Return the end of what a worker printed.

        Parameters
        ----------
        lines
            How many lines.
        worker
            Which worker. While there is nothing of it, what the process that starts the workers said.
        """
        if (tasks := self.tasks) and worker == 0:
            begun = [task for task in tasks if task.folder.exists()]
            return "\n".join(f"[{task.part}] {task.log(max(1, lines // max(1, len(begun))))}" for task in begun)
        for place in (self._folder.log_of(worker), *self._starting_logs()):
            if place.exists() and place.stat().st_size:
                return _tail(place, lines)
        return ""

    def cancel(self) -> None:
        """Stop the job. Its workers are asked first, so that a training can write its state; `resume` continues it.

        Raises
        ------
        SchedulerError
            If the cluster does not answer, or the job runs on another machine.
        """
        if self.state in ENDED:
            return
        if self.part is not None and self.request.cluster == "local":
            raise BadValueError("a single task of a local array cannot be cancelled; cancel the array.")
        stopped = (self._folder, *(task._folder for task in self.tasks if task.state not in ENDED))
        marks = [folder.path / CANCELLED for folder in stopped if folder.path.exists()]
        for mark in marks:
            mark.touch()
        if (number := self.number) is not None:
            try:
                cluster_named(self.request.cluster).cancel(self._folder, number)
            except SchedulerError:
                # It goes on, and how it ends shall be told.
                for mark in marks:
                    mark.unlink(missing_ok=True)
                raise

    def resume(self) -> Job:
        """Begin a job again that failed, was cancelled or is lost, in its own folder, and return it.

        A training continues where it stopped; of an array only those tasks run that are not done.

        Raises
        ------
        BadValueError
            If it still runs, or is done.
        SchedulerError
            If the cluster does not answer.
        """
        from dhlab.scheduling.starting import hand_over

        if self.part is not None:
            raise BadValueError("a single task cannot be resumed; resume the array, only what is not done runs again.")
        if (state := self.state) not in ENDED or state == "done":
            raise BadValueError(f"{self.id} is {state}; expected a job that failed, was cancelled or is lost.")
        for folder in (self._job, *self._job.tasks):
            for name in (ERROR, CANCELLED):
                (folder.path / name).unlink(missing_ok=True)
        left = tuple(part for part, task in enumerate(self._job.tasks) if not task.has(RESULT))
        self._job.write_request(dataclasses.replace(self.request, parts=left))
        hand_over(self._job)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all that a table shows of it, JSON-compatible."""
        request, (state, message) = self.request, self._look()
        shown = ("name", "cluster", "workers", "nodes", "submitted", "tasks")
        return {name: getattr(request, name) for name in shown} | {
            "id": self.id,
            "number": request.number_of(self.part),
            "state": state,
            "message": message,
            "progress": dataclasses.asdict(self.progress),
        }

    def _look(self) -> tuple[str, str]:
        if tasks := self.tasks:
            return self._combine([task._look() for task in tasks])
        if self._folder.has(RESULT):
            return "done", ""
        sight = self._sight()
        # An error tells that it ends, if Slurm does not begin it again because a machine failed.
        ends = self._folder.has(ERROR) and sight.word not in ("PENDING", "REQUEUED")
        if sight.state in ("queued", "running") and not ends:
            begun = bool(self._folder.attempts())
            return ("requeued" if begun else "queued") if sight.state == "queued" else "running", sight.reason
        # It may have ended while the cluster was asked.
        if self._folder.has(RESULT):
            return "done", ""
        if self._folder.has(CANCELLED):
            return "cancelled", ""
        if self._folder.has(ERROR):
            return "failed", self._folder.read_json(ERROR).get("message", "")
        if sight.word == "CANCELLED":
            return "cancelled", "cancelled by way of Slurm"
        if sight.state == "ended" and sight.word not in ("", "COMPLETED"):
            return "failed", sight.reason
        return "lost", sight.reason or "its process is gone and left no result: killed, or the machine stopped"

    def _sight(self) -> Sight:
        """Return how the cluster sees it; as it was last known where the cluster does not answer."""
        request = self.request
        if (number := request.number_of(self.part)) is None:
            return Sight("ended", "" if request.numbers else "it was never handed over")
        try:
            return cluster_named(request.cluster).look(self._folder, number)
        except SchedulerError as error:
            return Sight("running" if self._folder.attempts() else "queued", f"Slurm does not answer: {error}")

    def _combine(self, found: list[tuple[str, str]]) -> tuple[str, str]:
        states = [state for state, _ in found]
        overall = next(state for state in WEIGHT if state in states)
        if overall == "queued" and len(set(states)) > 1:
            overall = "running"
        counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
        reason = next((message for state, message in found if state == overall and message), "")
        return overall, f"{counts}: {reason}" if reason else counts

    def _starting_logs(self) -> list[Path]:
        found = [*self._job.path.glob("*_log.out"), self._job.path / "starting.log"]
        return sorted((place for place in found if place.exists()), key=lambda place: -place.stat().st_mtime)

    def __repr__(self) -> str:
        return _write(self.to_dict())

    def _repr_html_(self) -> str:
        return draw_table([self.to_dict()])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)


class Jobs(Sequence[Job]):
    """Jobs, the latest first; in a notebook a live table with logs, cancel and resume.

    Parameters
    ----------
    folder
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = _find(folder)

    @overload
    def __getitem__(self, key: int | str) -> Job: ...
    @overload
    def __getitem__(self, key: slice) -> list[Job]: ...
    def __getitem__(self, key: int | str | slice) -> Job | list[Job]:
        """Return a job by its place, or by its id."""
        if isinstance(key, int | slice):
            return self._jobs[key]
        for job in self._jobs:
            if job.id == key:
                return job
        raise UnknownNameError(f"no job {key!r} in {self.folder}.{suggest(key, (job.id for job in self._jobs))}")

    def __len__(self) -> int:
        return len(self._jobs)

    def refresh(self) -> Jobs:
        """Look for jobs again and return them."""
        self._jobs = _find(self.folder)
        return self

    def to_dicts(self, most: int = MOST_SHOWN) -> list[dict[str, Any]]:
        """Return all that a table shows of the latest `most` of them, JSON-compatible."""
        found = []
        for job in self._jobs[:most]:
            # Somebody may remove a folder while we look; a damaged one hides no other.
            with suppress(DHLabError, OSError):
                found.append(job.to_dict())
        return found

    def __repr__(self) -> str:
        return "\n".join(map(_write, self.to_dicts())) or f"no jobs in {self.folder}"

    def draw(self, found: Sequence[dict[str, Any]]) -> str:
        """Return what `to_dicts` gave as an HTML table."""
        if not found:
            return f"<i>{html.escape(f'no jobs in {self.folder}')}</i>"
        older = len(self._jobs) - len(found)
        return draw_table(found) + (
            f"<small>and {older} older in {html.escape(str(self.folder))}</small>" if older else ""
        )

    def _repr_html_(self) -> str:
        return self.draw(self.to_dicts())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from dhlab.view.jobs import table_of

        bundle = table_of(self)._repr_mimebundle_()
        return {**bundle, "text/plain": repr(self), "text/html": self._repr_html_()}


def jobs(folder: str | os.PathLike[str] | None = None) -> Jobs:
    """Find jobs, also those of other notebooks and of kernels that are gone.

    Parameters
    ----------
    folder
        Where to look; None is ``DHLAB_JOBS``, or a folder in your home.

    Returns
    -------
    Jobs
        The latest first; the last expression of a cell shows a live table.
    """
    return Jobs(env.jobs_folder() if folder is None else Path(folder).expanduser())


def _find(folder: Path) -> list[Job]:
    found = []
    for place in folder.iterdir() if folder.is_dir() else ():
        if (place / REQUEST).exists():
            try:
                job = Job(place)
                found.append((datetime.fromisoformat(job.request.submitted), job))
            except (DHLabError, ValueError):
                # A damaged folder hides no other one.
                continue
    return [job for _, job in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _write(row: dict[str, Any]) -> str:
    return f"Job({row['id']}: {write_row(row)})"


def _tail(place: Path, lines: int) -> str:
    size = place.stat().st_size
    with place.open("rb") as file:
        file.seek(max(0, size - lines * LONGEST_LINE_BYTES))
        text = file.read().decode("utf-8", "replace")
    # A bar that draws over itself counts as one line.
    return "\n".join(line.rpartition("\r")[2] for line in text.rstrip().split("\n")[-lines:])
