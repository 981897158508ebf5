"""A cohort as it is now: which slides are done, which failed and why, one table and one report of all."""

from __future__ import annotations

import csv
import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.atomic import atomic_file
from dhlab.errors import UnknownNameError, suggest
from dhlab.report import Report, software_versions
from dhlab.scheduling.dashboard import find_dashboards
from dhlab.scheduling.records import CohortFolder, list_files
from dhlab.scheduling.results import load_results

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

__all__ = ["Cohort"]

ROWS_SHOWN = 20
COLUMNS = ("slide", "state", "reason", "seconds", "files", "MB", "host", "staged", "warnings")


@dataclass(frozen=True)
class Cohort:
    """The slides of a cohort and what was found on them; made by `run_cohort`, and read again from its folder.

    Parameters
    ----------
    folder
        Folder of the cohort.
    slides
        Names of the slides that were asked for; None are those that are done or failed.
    """

    folder: Path
    slides: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).expanduser().absolute())
        self._folder.read_recipe()
        if self.slides is None:
            object.__setattr__(self, "slides", tuple(sorted(self._folder.done() | self._folder.failed())))

    @property
    def _folder(self) -> CohortFolder:
        return CohortFolder(self.folder)

    @property
    def done(self) -> tuple[str, ...]:
        """Names of the slides that are done."""
        return self._those(self._folder.done())

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the slides that failed; the next call tries them again."""
        return self._those(self._folder.failed())

    @property
    def pending(self) -> tuple[str, ...]:
        """Names of the slides that were asked for and are neither done nor failed."""
        known = self._folder.done() | self._folder.failed()
        return tuple(name for name in self._names if name not in known)

    @property
    def failures(self) -> dict[str, str]:
        """Why each slide failed that did."""
        return {name: str(self._folder.read_failure(name)["reason"]) for name in self.failed}

    @cached_property
    def table(self) -> tuple[dict[str, Any], ...]:
        """A row per slide, as they were when it was first asked for: `COLUMNS`, and the plain values that it gave."""
        done, failed = self._folder.done(), self._folder.failed()
        return tuple(self._row(name, name in done, name in failed) for name in self._names)

    def __getitem__(self, name: str) -> Any:
        """Return what was found on a slide: what the function returned there.

        Parameters
        ----------
        name
            Name of the slide.

        Raises
        ------
        UnknownNameError
            If it is not done.
        """
        if name not in self._folder.done():
            state = "failed" if name in self.failed else "is not done"
            raise UnknownNameError(f"slide {name!r} {state}.{suggest(name, self.done)}")
        return load_results(self._folder.slides / name, self._folder.read_record(name)["values"])

    def verify(self) -> dict[str, str]:
        """Read all results again and return what is wrong with those that are no longer as they were written."""
        faults = {}
        for name in self.done:
            written, now = self._folder.read_record(name)["files"], list_files(self._folder.slides / name)
            differing = sorted(file for file in {*written, *now} if written.get(file) != now.get(file))
            if differing:
                faults[name] = f"{', '.join(differing[:3])}: missing, changed or damaged"
        return faults

    def forget(self, names: Iterable[str]) -> None:
        """Remove the results of slides, so that the next call does them again.

        Parameters
        ----------
        names
            Which slides, such as those that `verify` found.
        """
        for name in names:
            self._folder.forget(name)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table.

        Parameters
        ----------
        path
            Where to; it appears whole or not at all.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        location = Path(path).expanduser()
        columns = dict.fromkeys([*COLUMNS, *(column for row in self.table for column in row)])
        with atomic_file(location) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), restval="")
            writer.writeheader()
            writer.writerows(self.table)
        return location

    def report(self) -> Report:
        """Return counts, times, the slides that failed and why, the table, and what the results depend on."""
        rows = [row for row in self.table if row["state"] == "done"]
        in_place = [row["staged"] for row in rows if row["staged"].startswith("read in place")]
        warned = [f"{row['slide']}: {row['warnings']}" for row in rows if row["warnings"]]
        notes = {"were not copied to scratch": in_place, "came with a warning": warned}
        values = {
            "slides": len(self._names),
            "done": len(rows),
            "failed": len(self.failed),
            "pending": len(self.pending),
            "hours of work": sum(row["seconds"] for row in rows) / 3600,
            "GB of results": sum(row["MB"] for row in rows) / 1e3,
            "files": sum(row["files"] for row in rows),
        }
        failed = [{"slide": name, "reason": reason} for name, reason in self.failures.items()]
        return Report(
            title=f"Cohort {self.folder.name}",
            summary=self._describe(),
            values=values,
            tables={**({"Slides that failed": failed} if failed else {}), "Slides": [dict(row) for row in self.table]},
            notes=[
                f"{len(told)} of {len(rows)} slides {what}; the first: {told[0]}"
                for what, told in notes.items()
                if told
            ],
            provenance={**self._folder.read_recipe(), **software_versions()},
        )

    @property
    def _names(self) -> tuple[str, ...]:
        assert self.slides is not None
        return self.slides

    def _those(self, found: set[str]) -> tuple[str, ...]:
        return tuple(name for name in self._names if name in found)

    def _row(self, name: str, done: bool, failed: bool) -> dict[str, Any]:
        row = dict.fromkeys(COLUMNS, "") | {"slide": name, "state": "pending"}
        if failed:
            return row | {"state": "failed", "reason": self._folder.read_failure(name)["reason"]}
        if not done:
            return row
        record = self._folder.read_record(name)
        files: Mapping[str, Any] = record["files"]
        known = {
            "state": "done",
            "seconds": round(sum(record["seconds"].values()), 3),
            "files": len(files),
            "MB": sum(file["bytes"] for file in files.values()) / 1e6,
            "host": record["host"],
            "staged": record["staged"],
            "warnings": " ".join(record["warnings"]),
        }
        return {**record["values"], **row, **known}

    def _describe(self) -> str:
        done, failed, pending = len(self.done), len(self.failed), len(self.pending)
        parts = [f"{done:,} of {len(self._names):,} slides done"]
        parts += [f"{count:,} {word}" for count, word in ((failed, "failed"), (pending, "pending")) if count]
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"Cohort({self._describe()}; {self.folder})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td style='text-align:left'>{html.escape(reason[:400])}</td></tr>"
            for name, reason in list(self.failures.items())[:ROWS_SHOWN]
        )
        head = "<tr><th style='text-align:left'>failed</th><th style='text-align:left'>why</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ""
        links = "".join(f" · {dashboard._repr_html_()}" for dashboard in find_dashboards(self.folder))
        return (
            f"<div><b>{html.escape(self.folder.name)}</b> · cohort · {self._describe()}{links}"
            f"<br><code>{html.escape(str(self.folder))}</code>{table}</div>"
        )
