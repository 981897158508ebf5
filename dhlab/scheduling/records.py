"""The folder of a cohort: a folder per slide that is done, a small file per slide that failed, and no lock.

What is done appears by one rename that never replaces anything, the same on network file systems: two callers cannot
both finish a slide, and a killed one leaves nothing that counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.atomic import FOREIGN_STALE_S, is_abandoned, process_identity, remove, storage_errors, sync, sync_tree
from dhlab.errors import BadFileError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LONGEST_COHORT_S", "RECORD", "CohortFolder", "list_files", "private_folder", "remove_abandoned"]

RECIPE, RECORD, FORMAT = "recipe.json", "record.json", 1
# What a cohort keeps beside its folder does not change while it lasts: from another machine it looks abandoned.
LONGEST_COHORT_S = 90 * 86_400.0
_PRIVATE = re.compile(r"dhlab-([0-9a-f]{10}-\d+-\w+)-\d+")
_counter = count()


@dataclass(frozen=True)
class CohortFolder:
    """Which slides are done, which failed and why.

    Parameters
    ----------
    path
        The folder.
    """

    path: Path

    @property
    def slides(self) -> Path:
        """Where every slide that is done has a folder with its results and its record."""
        return self.path / "slides"

    @property
    def failures(self) -> Path:
        """Where every slide that failed has a file that says why."""
        return self.path / "failures"

    @property
    def unfinished(self) -> Path:
        """Where results lie until they are whole."""
        return self.path / "unfinished"

    def prepare(self, recipe: Mapping[str, Any]) -> None:
        """Make the folder, or see that it holds results of the same work; remove what dead processes left.

        Parameters
        ----------
        recipe
            What the results depend on, JSON-compatible.

        Raises
        ------
        ConflictError
            If it holds results of other work, or something else.
        StorageError
            If it cannot be made.
        """
        if self.path.is_dir() and not self.slides.is_dir() and any(self.path.iterdir()):
            raise ConflictError(f"{self.path} holds something else; choose a folder of its own for the cohort.")
        with storage_errors(self.path):
            for place in (self.slides, self.failures, self.unfinished):
                place.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.unfinished)
        with private_folder(self.unfinished) as private:
            (private / RECIPE).write_text(json.dumps(recipe, indent=1, ensure_ascii=False), "utf-8")
            self._publish(private, self.path / "recipe")
        known = self.read_recipe()
        if differing := sorted(key for key in {*recipe, *known} if recipe.get(key) != known.get(key)):
            told = "; ".join(f"{key} {known.get(key)!r}, now {recipe.get(key)!r}" for key in differing)
            raise ConflictError(f"{self.path} holds results of other work ({told}). Choose another folder.")

    def read_recipe(self) -> dict[str, Any]:
        """Return what the results depend on.

        Raises
        ------
        NotFoundError
            If this is no cohort.
        BadFileError
            If it is damaged.
        """
        return _read(self.path / "recipe" / RECIPE, f"no cohort at {self.path}; expected what run_cohort made.")

    def done(self) -> set[str]:
        """Return the names of the slides that are done: one listing, whatever their number."""
        return {entry.name for entry in os.scandir(self.slides)} if self.slides.is_dir() else set()

    def failed(self) -> set[str]:
        """Return the names of the slides that failed and are not done since."""
        found = os.scandir(self.failures) if self.failures.is_dir() else ()
        return {entry.name.removesuffix(".json") for entry in found} - self.done()

    def is_done(self, name: str) -> bool:
        """Return whether a slide is done."""
        return (self.slides / name).is_dir()

    def read_record(self, name: str) -> dict[str, Any]:
        """Return what was noted when a slide was done.

        Raises
        ------
        NotFoundError
            If it is not done.
        BadFileError
            If the record is damaged.
        """
        return _read(self.slides / name / RECORD, f"slide {name!r} is not done.")

    def read_failure(self, name: str) -> dict[str, Any]:
        """Return why a slide failed: ``reason`` and ``trace``."""
        return _read(self.failures / f"{name}.json", f"slide {name!r} has not failed.")

    def finish(self, results: Path, record: Mapping[str, Any]) -> bool:
        """Let the results of a slide appear with their record, both at once; False if another was first.

        Parameters
        ----------
        results
            A `private_folder` of `unfinished`.
        record
            What to note; ``slide`` is its name.
        """
        name = str(record["slide"])
        (results / RECORD).write_text(json.dumps({"format": FORMAT, **record}, ensure_ascii=False), "utf-8")
        first = self._publish(results, self.slides / name)
        (self.failures / f"{name}.json").unlink(missing_ok=True)
        return first

    def fail(self, name: str, reason: str, trace: str = "") -> None:
        """Note why a slide failed."""
        told = {"format": FORMAT, "slide": name, "reason": reason, "trace": trace, "time": time.time()}
        with private_folder(self.unfinished) as private, storage_errors(self.path):
            place = private / RECORD
            place.write_text(json.dumps(told, ensure_ascii=False), "utf-8")
            sync(place)
            place.replace(self.failures / f"{name}.json")

    def forget(self, name: str) -> None:
        """Remove the results of a slide, so that it is done again."""
        with private_folder(self.unfinished) as private:
            (self.slides / name).rename(private / "old")

    def _publish(self, folder: Path, target: Path) -> bool:
        with storage_errors(target):
            sync_tree(folder)
            try:
                # A folder that is not empty is never replaced.
                folder.rename(target)
            except OSError:
                # Also where a network file system did it and lost the answer.
                if not target.is_dir():
                    raise
                return False
            sync(target.parent)
        return True


@contextmanager
def private_folder(parent: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Give an empty folder that is removed afterwards, or by `remove_abandoned` if this process is killed.

    Parameters
    ----------
    parent
        Where it is made.
    mode
        Who may enter it, less what the umask takes; 0o700 is its owner alone.

    Yields
    ------
    Path
        The folder; it may be renamed away.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    place = parent / f"dhlab-{process_identity()}-{next(_counter)}"
    with storage_errors(place):
        place.mkdir(mode)
    try:
        yield place
    finally:
        remove(place)


def remove_abandoned(parent: Path, *, silence_s: float = FOREIGN_STALE_S) -> None:
    """Remove the private folders of processes that are gone.

    Parameters
    ----------
    parent
        Where `private_folder` made them.
    silence_s
        After how long without a change those of other machines are.
    """
    for entry in os.scandir(parent):
        match = _PRIVATE.fullmatch(entry.name)
        if match and is_abandoned(Path(entry.path), match[1], silence_s=silence_s):
            remove(Path(entry.path))


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file below a folder, by its path within; not of the record itself."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != RECORD:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = {"bytes": path.stat().st_size, "sha256": digest}
    return found


def _read(path: Path, missing: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(missing) from None
    except ValueError as error:
        raise BadFileError(f"{path} is damaged: {error}") from error
    return found
