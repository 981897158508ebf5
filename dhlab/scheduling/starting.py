"""Hands a job over: ``python -m dhlab.scheduling.starting FOLDER``, in a session and an environment of its own.

The notebook may itself run inside a job of Slurm and be stopped with all that it started; what is submitted shall know
nothing of the one and outlive the other.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dhlab import env
from dhlab.scheduling.clusters import cluster_named, explain_refusal
from dhlab.scheduling.folder import ERROR, JobFolder
from dhlab.scheduling.launching import Launch

if TYPE_CHECKING:
    from dhlab.scheduling.request import Request

__all__ = ["hand_over"]


def hand_over(folder: JobFolder) -> Request:
    """Start a job and return its request with the number that the cluster gave it.

    Raises
    ------
    BadValueError
        If the cluster cannot give what is asked.
    SchedulerError
        If it does not answer.
    """
    before = folder.read_request()
    log = folder.path / "starting.log"
    with log.open("ab") as output:
        # The watching process inherits the output, so it must be no pipe.
        subprocess.run(
            [sys.executable, "-m", "dhlab.scheduling.starting", str(folder.path)],
            env=env.job_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=False,
        )
    request = folder.read_request()
    if request.numbers == before.numbers:
        raise explain_refusal(folder.read_json(ERROR).get("message") or log.read_text("utf-8", "replace"), request)
    return request


def main(path: str) -> None:
    """Start the job in a folder; write its number there, or why it was refused."""
    folder = JobFolder(Path(path))
    request = folder.read_request()
    if request.tasks and request.cluster == "slurm":
        launches = [Launch(path, (part,)) for part in request.parts]
    else:
        launches = [Launch(path, request.parts)]
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        number = cluster_named(request.cluster).start(folder, request, launches)
    except (FailedJobError, FailedSubmissionError, OSError, RuntimeError) as error:
        folder.write_error(str(error))
        return
    folder.write_request(dataclasses.replace(request, numbers=(*request.numbers, number)))


if __name__ == "__main__":
    main(sys.argv[1])
