"""The folder of a job: what was asked, what it calls, and what its workers leave; each file always whole."""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhlab.atomic import atomic_file, atomic_write_text, process_identity, storage_errors
from dhlab.errors import BadFileError, BadValueError, ConflictError, NotFoundError
from dhlab.scheduling.request import Request

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JobFolder", "pack"]

REQUEST, CALL, ATTEMPTS, CANCELLED = "job.json", "call.pkl", "attempts.jsonl", "cancelled"
RESULT, ERROR, PROGRESS = "result.pkl", "error.json", "progress.json"


@dataclass(frozen=True)
class JobFolder:
    """The files of a job, or of one task of its array, which lies in a folder within.

    Parameters
    ----------
    path
        The folder.
    """

    path: Path

    def create(self) -> None:
        """Make the folder, for its owner alone.

        Raises
        ------
        ConflictError
            If it holds something already: two submitters never share one.
        """
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.path.mkdir(mode=0o700)
            except FileExistsError:
                raise ConflictError(
                    f"{self.path} is there already, perhaps of another job. Choose another folder, or none."
                ) from None

    def check_owner(self) -> None:
        """Raise BadFileError unless the folder is this user's and nobody else can write there: what it holds is run."""
        status = self.path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BadFileError(
                f"{self.path} belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}; expected a "
                "folder of yours that only you can write to, for what it holds is run."
            )

    @property
    def job(self) -> JobFolder:
        """The folder of the job that this is a task of, or this one."""
        return self if self.has(REQUEST) else JobFolder(self.path.parents[1])

    @property
    def tasks(self) -> tuple[JobFolder, ...]:
        """The folders of an array's tasks."""
        return tuple(self.task(part) for part in range(self.read_request().tasks))

    def task(self, part: int) -> JobFolder:
        """Return the folder of one task of an array."""
        return JobFolder(self.path / "tasks" / str(part))

    def read_request(self) -> Request:
        """Return what was asked.

        Raises
        ------
        NotFoundError
            If there is no job.
        BadFileError
            If it is damaged.
        """
        place = self.path / REQUEST
        try:
            return Request.from_dict(json.loads(place.read_text("utf-8")))
        except FileNotFoundError:
            raise NotFoundError(f"no job at {self.path}; expected a folder with {REQUEST}.") from None
        except (ValueError, TypeError) as error:
            raise BadFileError(f"{place} is damaged: {error}") from error

    def write_request(self, request: Request) -> None:
        """Write what is asked."""
        atomic_write_text(self.path / REQUEST, json.dumps(request.to_dict(), indent=1, ensure_ascii=False) + "\n")

    def write(self, name: str, value: Any) -> None:
        """Write any value that can be pickled.

        Raises
        ------
        BadValueError
            If it cannot.
        """
        data = pack(value)
        with atomic_file(self.path / name) as partial:
            partial.write_bytes(data)

    def read(self, name: str) -> Any:
        """Read what `write` wrote, once it is clear that it is this user's."""
        import cloudpickle

        self.check_owner()
        with (self.path / name).open("rb") as file:
            return cloudpickle.load(file)

    def begin_attempt(self) -> int:
        """Note that this process now watches over the job, remove what an earlier one left, return its number."""
        for stale in (self.path / ERROR, *self.path.glob("worker-*.error"), *self.path.glob("worker-*.result")):
            stale.unlink(missing_ok=True)
        before = self.attempts()
        number = len(before) + 1
        now = {"attempt": number, "process": process_identity(), "host": os.uname().nodename, "time": time.time()}
        atomic_write_text(self.path / ATTEMPTS, "".join(f"{json.dumps(row)}\n" for row in (*before, now)))
        return number

    def attempts(self) -> list[dict[str, Any]]:
        """Return a row for each time that the job was begun; damaged ones are left out."""
        rows, place = [], self.path / ATTEMPTS
        for line in place.read_text("utf-8", "replace").splitlines() if place.exists() else ():
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def write_error(self, message: str, trace: str = "") -> None:
        """Write why the job failed."""
        atomic_write_text(self.path / ERROR, json.dumps({"message": message, "trace": trace, "time": time.time()}))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what a small file says; nothing if it is not there."""
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        return (self.path / name).exists()

    def log_of(self, worker: int) -> Path:
        """Return where a worker's output goes."""
        return self.path / f"worker-{worker}.log"


def pack(value: Any) -> bytes:
    """Return a value, for instance a function of a notebook, in the form in which it travels to another process.

    Raises
    ------
    BadValueError
        If it cannot.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise BadValueError(
            f"{error}: it cannot travel to another process. Open files, connections and generators there: pass "
            "paths and settings instead."
        ) from error
