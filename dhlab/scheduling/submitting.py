"""`submit`: hands a function with its arguments to processes that outlive the notebook, here or on Slurm."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import secrets
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab import env
from dhlab.errors import BadValueError, MissingDependencyError, NotFoundError
from dhlab.scheduling.clusters import choose_cluster
from dhlab.scheduling.continuing import NotebookCall, TrainingCall
from dhlab.scheduling.folder import CALL, JobFolder
from dhlab.scheduling.job import Job
from dhlab.scheduling.request import Request, check_installed, count_gpus
from dhlab.scheduling.starting import hand_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["submit"]


def submit(
    function: Callable[..., Any] | str | os.PathLike[str],
    *arguments: Any,
    workers: int = 1,
    nodes: int = 1,
    least_workers: int = 0,
    gpus: int = 0,
    minutes: float | None = None,
    partition: str | None = None,
    cluster: str = "auto",
    folder: str | os.PathLike[str] | None = None,
    name: str | None = None,
    after: Job | Iterable[Job] = (),
    array: Iterable[Any] | None = None,
    max_requeues: int = 3,
    options: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Job:
    """Run a function, or a notebook, outside this process: it goes on when the notebook is closed.

    Function and arguments travel through the job's folder, which only you can read. With several workers each calls
    the function with the same arguments, and Horovod joins them: `fit` trains one model together. A training keeps its
    state in the job's folder: one whose time is over, or that is resumed, continues where it stopped. Any other
    function begins anew then, unless it looks for files of its own.

    Parameters
    ----------
    function
        What to call: a verb such as `fit` or `predict`, or a function of yours. Or the path of a notebook, whose
        result is the path of its executed copy.
    arguments
        Its positional arguments.
    workers
        Processes that compute together; more than one needs Horovod.
    nodes
        Machines that they are spread over evenly.
    least_workers
        With how many of them a training still goes on when others are lost, until those are back; 0 if with no fewer
        than all.
    gpus
        GPUs for each worker. On this machine 0 leaves those visible that are visible here.
    minutes
        After this time the job writes its state, makes room for others and is begun again. None is 60 on Slurm, and no
        limit on this machine.
    partition
        Slurm's partition; None is the site's default.
    cluster
        ``"local"``, ``"slurm"``, or ``"auto"``: Slurm where this machine belongs to one.
    folder
        Where the job is kept, a folder that is not there yet; None makes one below ``DHLAB_JOBS``.
    name
        What to call it; None takes the function's name.
    after
        Jobs that must be done before, on the same cluster.
    array
        A job for each of these values, which becomes the function's first argument; the result is a list.
    max_requeues
        How often the job may be begun again because its time was over; on this machine five times at most.
    options
        Further long options of ``sbatch``, for instance ``{"account": "lab", "cpus-per-task": 8, "mem": "32G"}``.
    keywords
        The function's keyword arguments (for a notebook ``parameters={…}``). One that is called as an argument here,
        such as ``folder``, reaches the function by `functools.partial`.

    Returns
    -------
    Job
        Its state, progress, log and result; `jobs` finds it again.

    Raises
    ------
    BadValueError
        If a number is out of range, the cluster has no such partition or not as much, or something cannot travel.
    ConflictError
        If `folder` is there already.
    MissingDependencyError
        If submitit is not installed, or Horovod for several workers, or papermill for a notebook.
    SchedulerError
        If Slurm does not answer.
    """
    check_installed("submitit", "jobs")
    call, keywords = _call_of(function, arguments, keywords)
    called = call
    while isinstance(called, functools.partial):
        called = called.func
    cluster = choose_cluster(cluster)
    request = Request(
        id="",
        name=_clean(name or str(getattr(called, "__name__", type(called).__name__))),
        call=_describe(called),
        cluster=cluster,
        workers=workers,
        nodes=nodes,
        least_workers=least_workers,
        gpus=gpus,
        minutes=minutes,
        partition=partition,
        max_requeues=max_requeues,
        after=tuple(str(job.folder) for job in ((after,) if isinstance(after, Job) else after)),
        options=dict(options or {}),
        submitted=datetime.now().astimezone().isoformat(timespec="milliseconds"),
    )
    items = None if array is None else list(array)
    if items == []:
        raise BadValueError("array is empty; expected a value for each task.")
    number = len(items or ())
    identity = f"{request.name}-{datetime.now().astimezone():%m%d-%H%M%S}-{secrets.token_hex(2)}"
    request = dataclasses.replace(request, id=identity, tasks=number, parts=tuple(range(number)))
    request.check()
    if isinstance(called, NotebookCall) and workers > 1:
        raise BadValueError(
            f"a notebook with workers={workers}; expected 1, for all would write one copy. Let a cell submit the "
            "function that needs them."
        )
    request = dataclasses.replace(request, devices=_visible_devices(request))
    _check_possible(request)
    place = JobFolder(_place(folder, identity))
    place.create()
    try:
        _fill(place, request, (call, arguments, keywords), items)
        hand_over(place)
    except BaseException:
        shutil.rmtree(place.path, ignore_errors=True)
        raise
    _list_among_jobs(place, identity)
    return Job(place.path)


def _call_of(
    function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    if isinstance(function, str | os.PathLike):
        check_installed("papermill", "jobs")
        notebook = Path(function).expanduser().absolute()
        if not notebook.is_file():
            raise NotFoundError(f"no notebook at {notebook}; expected a function, or the path of a notebook.")
        if arguments or set(keywords) - {"parameters"}:
            raise BadValueError("a notebook takes parameters={…} and nothing else.")
        return NotebookCall(notebook.read_text("utf-8"), notebook.stem, str(notebook.parent)), keywords
    if not callable(function):
        raise BadValueError(f"{function!r} cannot be called; expected a function, or the path of a notebook.")
    # By name, so that nothing heavy is imported to see that it is something else.
    is_fit = (function.__module__, getattr(function, "__name__", "")) == ("dhlab.training.fitting", "fit")
    if not is_fit:
        return function, keywords
    if keywords.get("overwrite"):
        raise BadValueError(
            "overwrite=True begins the training anew whenever its job goes on. Leave it out: a job's folder is new."
        )
    return TrainingCall(), keywords


def _fill(place: JobFolder, request: Request, call: tuple[Any, ...], items: list[Any] | None) -> None:
    place.write_request(request)
    place.write(CALL, call)
    (place.path / "path.json").write_text(json.dumps({"path": [str(Path(entry).absolute()) for entry in sys.path]}))
    for part, item in enumerate(items or ()):
        (place.path / "tasks").mkdir(mode=0o700, exist_ok=True)
        task = place.task(part)
        task.create()
        task.write("item.pkl", item)


def _place(folder: str | os.PathLike[str] | None, identity: str) -> Path:
    place = env.jobs_folder() / identity if folder is None else Path(folder).expanduser().absolute()
    if "%" in str(place):
        raise BadValueError(f"{place}: Slurm reads % in a name as a pattern; choose another folder.")
    return place


def _list_among_jobs(place: JobFolder, identity: str) -> None:
    """Let `jobs` find a job that lies elsewhere."""
    common = env.jobs_folder()
    if place.path.parent != common:
        common.mkdir(parents=True, exist_ok=True)
        (common / identity).symlink_to(place.path)


def _check_possible(request: Request) -> None:
    for folder in request.after:
        if (other := JobFolder(Path(folder)).read_request()).cluster != request.cluster:
            raise BadValueError(f"after={other.id}, which is on {other.cluster!r}; expected jobs on one cluster.")
    if request.workers > 1:
        from dhlab.distributed import horovod_build

        if "gloo" not in (horovod_build() or ()):
            raise MissingDependencyError(
                f"{request.workers} workers need Horovod with torch support: bash binder/install.sh --horovod"
            )


def _clean(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "job"


def _describe(call: Any) -> str:
    name = getattr(call, "__qualname__", type(call).__qualname__)
    return f"{getattr(call, '__module__', '')}.{name}"


def _visible_devices(request: Request) -> str | None:
    if visible := env.get("CUDA_VISIBLE_DEVICES"):
        return visible
    # By their numbers, so that the tasks of an array can share them out.
    return ",".join(map(str, range(count_gpus()))) if request.gpus and request.cluster == "local" else None
