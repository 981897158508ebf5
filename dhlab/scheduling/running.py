"""`run_cohort`: a function over thousands of slides as one call; a second call does only what is left."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import random
import secrets
import sys
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab import env
from dhlab.errors import BadValueError, NotFoundError, SchedulerError
from dhlab.io import READERS, suffix_of
from dhlab.progress import progress_bar
from dhlab.scheduling.clusters import choose_cluster
from dhlab.scheduling.cohort import Cohort
from dhlab.scheduling.dashboard import find_dashboards
from dhlab.scheduling.folder import pack
from dhlab.scheduling.records import CohortFolder, remove_abandoned
from dhlab.scheduling.request import Request, check_installed, count_gpus
from dhlab.scheduling.slides import Work, process_slide, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from distributed import Client
    from tqdm import tqdm

    from dhlab.models import Model
    from dhlab.progress import Progress
    from dhlab.scan import Scan

__all__ = ["run_cohort"]

WORKERS_ON_SLURM = 8
LONGEST_NAME = 150
# Arguments that change how something is computed, and not what.
HOW = ("batch_size", "device", "progress")


def run_cohort(
    function: Callable[..., Any],
    slides: Mapping[str, str | os.PathLike[str]] | Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    model: Model | None = None,
    within: Callable[[Scan], Scan] | None = None,
    workers: int | None = None,
    cluster: str | Client = "auto",
    gpus: int = 0,
    minutes: float | None = None,
    partition: str | None = None,
    options: Mapping[str, Any] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    retries: int = 2,
    most_files: int = 100,
    dashboard: bool = False,
    progress: Progress = True,
    **keywords: Any,
) -> Cohort:
    """Run a function such as `predict` or `mil.embed` over many slides, on all cores here or on Slurm.

    Every slide that is done has a folder in `out` with its results, their checksums and how they came about. It appears
    as a whole or not at all, so the call may be ended in any way: the same call again does only what is left, and tries
    those slides again that failed. Two calls at once share the work; a slide that both have begun counts once.

    Parameters
    ----------
    function
        Called as ``function(model, scan, …)``, or ``function(scan, …)`` without a model. What it returns is kept: a
        scan, bag, `Annotations`, report, number or text, or a dict of them.
    slides
        Paths; or a dict of names and paths where two files have one name; or a folder, for all scans in it.
    out
        Folder of the cohort.
    model
        First argument of the function, if it takes one.
    within
        A function such as `find_tissue` that finds on each slide the mask that `function` gets as ``within``.
    workers
        Slides that are done at once, each by a process of its own. None is one per core, or per `gpus`, here; on Slurm
        up to eight, which come and go with the work.
    cluster
        ``"local"``, ``"slurm"``, ``"auto"`` (Slurm where this machine belongs to one), or a client of a Dask cluster
        that runs already.
    gpus
        GPUs for each worker.
    minutes
        Wall-time of a worker on Slurm, longer than the largest slide takes; another follows it. None is 60.
    partition
        Slurm's partition; None is the site's default.
    options
        Further long options of ``sbatch`` for a worker; ``mem`` is else 8G, ``cpus-per-task`` 1.
    scratch
        A folder on each worker's own disk: slides are copied there before they are read. Where there is no room for one
        it is read in place, and the report says so.
    retries
        How often a slide is tried again after an error that is not the slide's own.
    most_files
        How many files the results of a slide may have: file systems hold only so many.
    dashboard
        Show what the workers do: the notebook gets a link to Dask's pages, which the notebook's own server shows behind
        its login, and nobody else.
    progress
        Show a progress bar; or a function that is called with the slides that are done and of all that were left.
    keywords
        Further arguments of the function.

    Returns
    -------
    Cohort
        What is done, what failed and why.

    Raises
    ------
    BadValueError
        If there are no slides, two have one name, a number is out of range, something cannot travel, or a dashboard is
        wanted of a Dask cluster that runs already.
    ConflictError
        If `out` holds the results of other work: another function, by its name, another model or other arguments.
    MissingDependencyError
        If Dask is not installed.
    NotFoundError
        If `slides` is a folder that is not there.
    SchedulerError
        If Slurm or Dask does not answer; what is done is kept.
    StorageError
        If `out` cannot be written.
    """
    for package in ("distributed", "dask_jobqueue", "cryptography"):
        check_installed(package, "jobs")
    if dashboard:
        check_installed("bokeh", "jobs")
        check_installed("jupyter_server_proxy", "lab")
        if not isinstance(cluster, str):
            raise BadValueError(
                f"dashboard=True of {cluster!r}, whose own is at {cluster.dashboard_link}; leave it out."
            )
    if retries < 0 or most_files < 1:
        raise BadValueError(f"retries={retries}, most_files={most_files}; expected at least 0 and 1.")
    named = _name_slides(slides)
    folder = CohortFolder(Path(out).expanduser().absolute())
    near = None if scratch is None else Path(scratch).expanduser().absolute()
    work = Work(function, folder.path, model, within, keywords, near, most_files)
    # What cannot travel is told before anything is made.
    packed = pack(work)
    folder.prepare(_recipe(work))
    done = folder.done()
    left = [name for name in named if name not in done]
    if left:
        # Two calls at once begin at different slides.
        random.shuffle(left)
        engine: AbstractContextManager[Client]
        if isinstance(cluster, str):
            from dhlab.scheduling.engines import start_workers

            asked = _request(cluster, len(left), workers, gpus, minutes, partition, options)
            engine = start_workers(asked, folder.path, dashboard=dashboard)
        else:
            engine = nullcontext(cluster)
        with engine as client:
            if dashboard:
                from IPython.display import display

                display(*find_dashboards(folder.path))
            with progress_bar(len(left), "cohort", shown=progress, unit="slide") as bar:
                _do(client, folder, packed, {name: named[name] for name in left}, retries=retries, bar=bar)
        remove_abandoned(folder.unfinished)
    return Cohort(folder.path, tuple(named))


def _do(
    client: Client, folder: CohortFolder, packed: bytes, slides: dict[str, str], *, retries: int, bar: tqdm[Any]
) -> None:
    """Let Dask do the slides, and note why it gave up those that failed."""
    from distributed import KilledWorker, as_completed
    from distributed.scheduler import NoWorkerError

    token = secrets.token_hex(4)
    # A task of its own: it reaches each worker once, and one that comes later too.
    work = client.submit(unpack, packed, [str(Path(entry).absolute()) for entry in sys.path], key=f"work-{token}")
    keys = {(f"slide-{token}", name): name for name in slides}
    futures = client.map(process_slide, list(slides), list(slides.values()), key=list(keys), work=work, retries=retries)
    try:
        for future in as_completed(futures, loop=client.loop):
            if future.status == "error":
                error = future.exception()
                if isinstance(error, NoWorkerError):
                    raise SchedulerError(f"no worker is left: {error}. What is done is kept; call again.") from error
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error, KilledWorker):
                    reason = "its worker was ended each time while it did this slide: is there enough memory for it?"
                trace = "".join(traceback.format_exception(error.with_traceback(future.traceback())))
                folder.fail(keys[future.key], reason, trace)
            elif future.status != "finished":
                raise SchedulerError(
                    f"Dask's scheduler is gone (the slide's task is {future.status}). What is done is kept in "
                    f"{folder.path}; call again to do what is left."
                )
            bar.update()
    finally:
        client.cancel([future for future in futures if not future.done()], force=True)


def _request(
    cluster: str,
    slides: int,
    workers: int | None,
    gpus: int,
    minutes: float | None,
    partition: str | None,
    options: Mapping[str, Any] | None,
) -> Request:
    """Return what is asked of the cluster, which is checked before anything is started."""
    cluster = choose_cluster(cluster)
    if cluster == "local" and minutes is not None:
        raise BadValueError(f"minutes={minutes!r} on this machine, where workers have no wall-time; leave it out.")
    request = Request(
        id="",
        name="dhlab-cohort",
        call="run_cohort",
        cluster=cluster,
        workers=1 if workers is None else workers,
        gpus=gpus,
        minutes=minutes,
        partition=partition,
        options=dict(options or {}),
    )
    request.check()
    most = WORKERS_ON_SLURM
    if cluster == "local":
        most = count_gpus() // gpus if gpus else env.core_count()
    return dataclasses.replace(request, workers=min(slides, most if workers is None else workers))


def _name_slides(slides: Any) -> dict[str, str]:
    """Return the absolute path of each slide by its name."""
    if isinstance(slides, str | os.PathLike):
        place = Path(slides).expanduser()
        if not place.is_dir():
            raise NotFoundError(f"no folder {place}; expected a folder of slides, a list of paths, or a dict.")
        slides = sorted(path for path in place.iterdir() if suffix_of(path, READERS) and path.name[0] != ".")
    pairs = slides.items() if isinstance(slides, Mapping) else [(_name_of(Path(path)), path) for path in slides]
    named: dict[str, str] = {}
    for name, path in pairs:
        location = str(Path(path).expanduser().absolute())
        if named.setdefault(name, location) != location:
            raise BadValueError(f"{named[name]} and {location} have one name; pass a dict of names and paths.")
        if not name or name[0] == "." or "/" in name or len(os.fsencode(name)) > LONGEST_NAME:
            raise BadValueError(f"a slide is called {name!r}; expected at most {LONGEST_NAME} bytes without '/'.")
    if not named:
        raise BadValueError(f"no slides; expected paths of scans, such as {', '.join(sorted(READERS)[:6])}.")
    return named


def _name_of(path: Path) -> str:
    """Return a file's name without its suffix, as `open` names a scan."""
    suffix = suffix_of(path, READERS) or ""
    return path.name[: len(path.name) - len(suffix)] or path.name


def _recipe(work: Work) -> dict[str, Any]:
    """Return what results depend on, so that one folder never holds those of two models."""
    recipe: dict[str, Any] = {"function": _describe(work.function)}
    if work.model is not None:
        recipe |= {"model": work.model.card.name, "weights": work.model.digest()}
    if work.within is not None:
        recipe["within"] = _describe(work.within)
    return recipe | {name: _describe(value) for name, value in work.keywords.items() if name not in HOW}


def _describe(value: Any) -> Any:
    """Return what tells an argument from others, JSON-compatible.

    Functions count by their names, and what is none of the things below by its type alone: two lambdas of a module, or
    two objects of a class, are not told from each other.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case functools.partial():
            keywords = {name: item for name, item in value.keywords.items() if name not in HOW}
            parts = {"function": value.func, "arguments": value.args, "keywords": keywords}
            return {name: _describe(part) for name, part in parts.items()}
        case Mapping():
            return {str(name): _describe(item) for name, item in value.items()}
        case list() | tuple():
            return [_describe(item) for item in value]
        case os.PathLike():
            return os.fspath(value)
        case np.ndarray() | np.generic() if not value.dtype.hasobject:
            content = f"{value.dtype} {value.shape} ".encode() + value.tobytes()
            return {"array": hashlib.sha256(content).hexdigest()}
        case _ if hasattr(value, "card") and hasattr(value, "digest"):
            return {"model": value.card.name, "weights": value.digest()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"type": _name(type(value)), **fields}
    return _name(value)


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', '')}.{name}"
