"""Jobs for pages of the server: which there are, what they print, and the two things that can be done to one."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from dhlab.errors import BadValueError, MissingDependencyError, SchedulerError, UnknownNameError
from dhlab_lab.access import Refused
from dhlab_lab.handlers import Handler

if TYPE_CHECKING:
    from collections.abc import Callable

    from dhlab.scheduling import Job

__all__ = ["HANDLERS", "JobsHandler", "LogHandler", "OrderHandler"]

MOST_JOBS, MOST_LINES = 200, 5000


class JobHandler(Handler):
    """What all have in common: a job is its owner's code, so whoever may not run any sees none."""

    auth_resource = "kernels"

    async def answer(self, work: Callable[[], Any]) -> None:
        """Answer what `work` returns, which may wait for a cluster."""
        found = await self.work(partial(_translated, work), pool="jobs")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(found))

    def count(self, name: str, default: int, most: int) -> int:
        """Return a number of the address, between 0 and `most`."""
        text = self.get_query_argument(name, str(default))
        if not text.isdigit() or int(text) > most:
            raise Refused(400, f"{name}={text[:40]!r}; expected a whole number up to {most}.")
        return int(text)


class JobsHandler(JobHandler):
    """``GET dhlab/jobs?most=``: the latest jobs."""

    @web.authenticated
    @authorized("execute")
    async def get(self) -> None:
        """Answer ``{"jobs": [what `Job.to_dict` returns]}``."""
        most = self.count("most", MOST_JOBS, MOST_JOBS)
        await self.answer(lambda: {"jobs": _jobs().to_dicts(most)})


class LogHandler(JobHandler):
    """``GET dhlab/jobs/{id}/log?lines=&worker=``: the end of what a worker printed."""

    @web.authenticated
    @authorized("execute")
    async def get(self, job: str) -> None:
        """Answer ``{"text"}``."""
        lines, worker = self.count("lines", 100, MOST_LINES), self.count("worker", 0, 1_000_000)
        await self.answer(lambda: {"text": _jobs()[job].log(lines, worker=worker)})


class OrderHandler(JobHandler):
    """``POST dhlab/jobs/{id}/cancel`` and ``…/resume``."""

    @web.authenticated
    @authorized("execute")
    async def post(self, job: str, order: str) -> None:
        """Answer the job as it is then, as `Job.to_dict` returns it."""
        await self.answer(lambda: _obey(_jobs()[job], order))


def _jobs() -> Any:
    from dhlab.scheduling import jobs

    return jobs()


def _obey(job: Job, order: str) -> dict[str, Any]:
    if order == "cancel":
        job.cancel()
    else:
        job.resume()
    return job.to_dict()


def _translated(work: Callable[[], Any]) -> Any:
    """Turn what jobs say into what the page is told."""
    try:
        return work()
    except UnknownNameError as error:
        raise Refused(404, str(error)) from error
    except BadValueError as error:
        raise Refused(409, str(error)) from error
    except SchedulerError as error:
        raise Refused(503, str(error)) from error
    except MissingDependencyError as error:
        raise Refused(501, str(error)) from error


# A page escapes what is not ASCII, and the pattern sees it so.
ID = r"([^/]+)"
HANDLERS = (
    (r"dhlab/jobs", JobsHandler),
    (rf"dhlab/jobs/{ID}/log", LogHandler),
    (rf"dhlab/jobs/{ID}/(cancel|resume)", OrderHandler),
)
