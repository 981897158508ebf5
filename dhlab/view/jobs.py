"""Jobs in a notebook cell: a table that keeps itself up to date, with logs, cancel and resume."""

from __future__ import annotations

import html
import threading
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from dhlab.errors import DHLabError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["JobsTable", "table_of"]

SECONDS_WHILE_RUNNING, SECONDS_AT_REST = 2.0, 10.0
LINES_OF_LOG = 30
ACTIVE = ("queued", "running", "requeued")
_shown: dict[Path, JobsTable] = {}


class Source(Protocol):
    """Jobs, as `dhlab.jobs` gives them."""

    folder: Path

    def refresh(self) -> Any:
        """Look again."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return what is known of each."""

    def draw(self, found: Sequence[dict[str, Any]]) -> str:
        """Return that as an HTML table."""

    def __getitem__(self, key: str) -> Any:
        """Return the job of an id."""


class JobsTable(ipywidgets.VBox):  # type: ignore[misc] # ipywidgets ships no types
    """A live table of jobs, kept by a thread until it is closed; `table_of` finds the one that is shown already.

    Parameters
    ----------
    jobs
        The jobs.
    """

    def __init__(self, jobs: Source) -> None:
        self.jobs = jobs
        self._ended = threading.Event()
        self._table = ipywidgets.HTML()
        self._choice = ipywidgets.Dropdown(description="Job", layout={"width": "34em", "max_width": "100%"})
        self._told = ipywidgets.HTML()
        self._buttons = {
            name: ipywidgets.Button(description=name, tooltip=tooltip, layout={"width": "auto"})
            for name, tooltip in (
                ("Log", "Show the end of what it printed"),
                ("Cancel", "Stop it; a training writes its state first"),
                ("Resume", "Begin it again; a training continues where it stopped"),
            )
        }
        for name, act in (("Log", self._show_log), ("Cancel", self._cancel), ("Resume", self._resume)):
            self._buttons[name].on_click(lambda _, act=act: self._try(act))
        self._choice.observe(lambda _: self._allow(), "value")
        self._known: dict[str, str] = {}
        super().__init__([self._table, ipywidgets.HBox([self._choice, *self._buttons.values()]), self._told])
        self.update()
        threading.Thread(target=self._follow, name="dhlab-jobs", daemon=True).start()

    def update(self) -> None:
        """Look at every job and draw the table again."""
        rows = self.jobs.refresh().to_dicts()
        self._known = {row["id"]: row["state"] for row in rows}
        self._table.value = self.jobs.draw(rows)
        if list(self._known) != list(self._choice.options):
            chosen = self._choice.value
            self._choice.options = list(self._known)
            self._choice.value = chosen if chosen in self._known else next(iter(self._known), None)
        self._allow()

    def close(self) -> None:
        """Stop looking; the table goes away."""
        self._ended.set()
        super().close()

    @property
    def closed(self) -> bool:
        """Whether it is gone."""
        return self._ended.is_set()

    def _follow(self) -> None:
        while not self._ended.wait(self._pause()):
            try:
                self.update()
            except (DHLabError, OSError) as error:
                self._tell(str(error))

    def _pause(self) -> float:
        return SECONDS_WHILE_RUNNING if set(self._known.values()) & set(ACTIVE) else SECONDS_AT_REST

    def _allow(self) -> None:
        state = self._known.get(self._choice.value)
        self._buttons["Log"].disabled = state is None
        self._buttons["Cancel"].disabled = state not in ACTIVE
        self._buttons["Resume"].disabled = state not in ("failed", "cancelled", "lost")

    def _try(self, act: Callable[[Any], str]) -> None:
        """Do what a button says; what goes wrong is told below the table, not lost in the kernel's log."""
        try:
            self._tell(act(self.jobs[self._choice.value]))
            self.update()
        except (DHLabError, OSError) as error:
            self._tell(str(error))

    def _show_log(self, job: Any) -> str:
        return str(job.log(LINES_OF_LOG) or "nothing printed yet")

    def _cancel(self, job: Any) -> str:
        job.cancel()
        return f"{job.id} is {job.state}"

    def _resume(self, job: Any) -> str:
        return f"{job.resume().id} is {job.state}"

    def _tell(self, text: str) -> None:
        # Turned round twice, a box that scrolls begins at its end.
        outside = "max-height:20em;overflow:auto;display:flex;flex-direction:column-reverse"
        inside = "flex:none;margin:0;white-space:pre-wrap;line-height:1.3"
        self._told.value = f"<div style='{outside}'><pre role='log' style='{inside}'>{html.escape(text)}</pre></div>"


def table_of(jobs: Source) -> JobsTable:
    """Return the table of a folder's jobs as they are now: one for all cells that show it.

    Parameters
    ----------
    jobs
        The jobs.
    """
    table = _shown.get(jobs.folder)
    if table is None or table.closed:
        table = _shown[jobs.folder] = JobsTable(jobs)
    else:
        table.update()
    return table
