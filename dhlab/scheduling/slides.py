"""What a worker of a cohort does with one slide: copy it near, compute, sum up, let the results appear."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import time
import traceback
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.atomic import storage_errors
from dhlab.errors import BadValueError, DHLabError, DHLabWarning, StorageError
from dhlab.scheduling.records import CohortFolder, list_files, private_folder, remove_abandoned
from dhlab.scheduling.results import HEATMAP, save_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dhlab.models import Model

__all__ = ["Work", "process_slide", "unpack"]

# What stays free in scratch beside a slide, for its results and for others.
RESERVE_BYTES = 256 << 20
# Formats whose pixels lie in further files that only the reader can name.
APART = (".dcm", ".vms", ".vmu")


@dataclass(frozen=True)
class Work:
    """What is done with every slide.

    Parameters
    ----------
    function
        What to call.
    folder
        Folder of the cohort.
    model
        Its first argument, if it takes one.
    within
        Finds the mask on a slide that the function gets as ``within``.
    keywords
        Its other arguments.
    scratch
        Folder of the worker's own machine; None works in `folder`.
    most_files
        How many files a slide's results may have.
    """

    function: Callable[..., Any]
    folder: Path
    model: Model | None = None
    within: Callable[[Any], Any] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path | None = None
    most_files: int = 100

    def on(self, slide: Path, results: Path) -> dict[str, Any]:
        """Call the function on a slide, write what it returns and return the plain values of that."""
        from dhlab.io import open as open_scan

        scan = open_scan(slide)
        keywords = dict(self.keywords)
        if self.within is not None:
            keywords["within"] = self.within(scan)
        # Workers show no bars, and what can be written as it is made need not fit into memory.
        offered = {"out": results / HEATMAP, "progress": False}
        accepted = inspect.signature(self.function).parameters
        keywords = {name: value for name, value in offered.items() if name in accepted} | keywords
        arguments = (scan,) if self.model is None else (self.model, scan)
        return save_results(self.function(*arguments, **keywords), results)


def unpack(data: bytes, path: Sequence[str]) -> Work:
    """Return the work that was packed where the cohort was called.

    Parameters
    ----------
    data
        The packed work.
    path
        Where modules are found there: those beside the notebook, too.
    """
    import cloudpickle

    sys.path += [entry for entry in path if entry not in sys.path]
    work: Work = cloudpickle.loads(data)
    return work


def process_slide(name: str, slide: str, work: Work) -> str:
    """Do one slide and return ``"done"`` or ``"failed"``.

    Parameters
    ----------
    name
        Name of the slide in the cohort.
    slide
        Where it lies.
    work
        What is done with it.

    Raises
    ------
    Exception
        If something failed that may succeed next time: Dask calls this again.
    """
    folder = CohortFolder(work.folder)
    if folder.is_done(name):
        return "done"
    remove_abandoned(folder.unfinished)
    try:
        _process(name, Path(slide), work)
    except StorageError:
        raise
    except DHLabError as error:
        # It would fail in the same way again.
        folder.fail(name, f"{type(error).__name__}: {error}", traceback.format_exc())
        return "failed"
    return "done"


def _process(name: str, slide: Path, work: Work) -> None:
    folder, clock = CohortFolder(work.folder), _Clock()
    with private_folder(folder.unfinished) as unfinished, _stage(slide, work.scratch) as staged:
        clock.note("staging")
        results = staged.results or unfinished
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", DHLabWarning)
            values = work.on(staged.slide, results)
        clock.note("computing")
        files = list_files(results)
        if len(files) > work.most_files:
            raise BadValueError(
                f"the results have {len(files)} files; expected at most {work.most_files}, for a file system has only "
                "so many. Return scans, which are written in shards, or raise most_files."
            )
        if results is not unfinished:
            shutil.copytree(results, unfinished, dirs_exist_ok=True)
        status = slide.stat()
        record = {
            "slide": name,
            "path": str(slide),
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
            "values": values,
            "files": files,
            "warnings": list(dict.fromkeys(str(warning.message) for warning in told)),
            "staged": staged.told,
            "host": os.uname().nodename,
            "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": clock.seconds,
        }
        folder.finish(unfinished, record)


class _Clock:
    """Seconds that each part took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def note(self, part: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self.seconds[part] = round(now - self.last, 3)
        self.last = now


@dataclass(frozen=True)
class _Staged:
    """Where a slide is read from and where results are made; None is the cohort's own folder."""

    slide: Path
    results: Path | None
    told: str


@contextmanager
def _stage(slide: Path, scratch: Path | None) -> Iterator[_Staged]:
    """Copy a slide to this machine's own disk and remove it afterwards; where there is no room, read it in place."""
    with ExitStack() as stack:
        if scratch is None or not slide.exists():
            yield _Staged(slide, None, "")
            return
        if not scratch.is_dir():
            raise StorageError(f"no folder {scratch} on {os.uname().nodename}; expected the scratch of the machine.")
        remove_abandoned(scratch)
        if slide.suffix.lower() in APART:
            yield _Staged(slide, None, "read in place: its pixels lie in other files")
            return
        places = _places_of(slide)
        needed = sum(_size(place) for place in places) + RESERVE_BYTES
        if (free := shutil.disk_usage(scratch).free) < needed:
            yield _Staged(slide, None, f"read in place: {free >> 20} MiB free in {scratch}, {needed >> 20} needed")
            return
        # Slides are those of patients, and scratch is everybody's.
        private = stack.enter_context(private_folder(scratch, mode=0o700))
        results = private / "results"
        results.mkdir()
        with storage_errors(private / slide.name):
            for place in places:
                copy = shutil.copytree if place.is_dir() else shutil.copyfile
                copy(place, private / place.name)
        yield _Staged(private / slide.name, results, "copied")


def _places_of(slide: Path) -> list[Path]:
    """Return a slide's file or folder and, of a format that keeps its pixels in a folder beside it, that too."""
    beside = slide.with_suffix("")
    return [slide, *([beside] if slide.suffix.lower() == ".mrxs" and beside.is_dir() else [])]


def _size(place: Path) -> int:
    return sum(p.stat().st_size for p in place.rglob("*")) if place.is_dir() else place.stat().st_size
