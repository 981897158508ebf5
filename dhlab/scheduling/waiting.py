"""Waits for the jobs that must be done before one on this machine: ``python -m dhlab.scheduling.waiting FOLDER``.

It runs before the clock of the job's own time does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dhlab.scheduling.folder import JobFolder
from dhlab.scheduling.heartbeat import heartbeat
from dhlab.scheduling.job import Job

__all__ = ["main"]


def main(path: str) -> int:
    """Return 0 when all are done; 1 if one cannot be any more, which is then the error of the job or of its tasks.

    Parameters
    ----------
    path
        Folder of the job.
    """
    folder = JobFolder(Path(path))
    with heartbeat(folder.path):
        for place in folder.read_request().after:
            other = Job(place).wait()
            if other.state != "done":
                for task in folder.tasks or (folder,):
                    task.write_error(f"{other.id}, which had to be done before, is {other.state}.")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
