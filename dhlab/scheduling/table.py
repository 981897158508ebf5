"""How jobs look in a notebook: one row each, with a bar, and what went wrong."""

from __future__ import annotations

import html
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dhlab.report import format_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["draw_table", "write_duration", "write_row"]

COLUMNS = ("job", "state", "progress", "left", "speed", "loss", "message")
# Readable on light and dark pages alike; the word is there too, for whoever sees no colours.
COLOURS = {
    "queued": "#7a7a7a",
    "running": "#0072b2",
    "requeued": "#9a6a00",
    "done": "#007a59",
    "failed": "#c0392b",
    "cancelled": "#7a7a7a",
    "lost": "#c0392b",
}
LONGEST_MESSAGE = 300
CELL = "text-align:left;vertical-align:top;padding:3px 10px;white-space:nowrap"
LAST = CELL.replace("nowrap", "normal") + ";width:100%"


def write_row(job: Mapping[str, Any]) -> str:
    """Return what there is to say of a job on one line.

    Parameters
    ----------
    job
        See `Job.to_dict`.
    """
    progress = job["progress"]
    share = f"{progress['done']:.0%}" if progress["done"] else ""
    return " ".join(filter(None, (job["state"], share, job["message"] or progress["text"])))


def draw_table(jobs: Iterable[Mapping[str, Any]]) -> str:
    """Return jobs as an HTML table.

    Parameters
    ----------
    jobs
        See `Job.to_dict`.
    """
    head = "".join(f"<th scope='col' style='{CELL}'>{name}</th>" for name in COLUMNS)
    body = "".join(f"<tr title='{html.escape(job['id'], quote=True)}'>{''.join(_cells(job))}</tr>" for job in jobs)
    # JupyterLab gives the columns of a table one width each, which cuts messages.
    style = "table-layout:auto;width:100%;border-collapse:collapse;line-height:1.4"
    return f"<table style='{style}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def write_duration(seconds: float) -> str:
    """Return a time as people say it, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _cells(job: Mapping[str, Any]) -> Iterable[str]:
    *short, message = _texts(job)
    yield from (f"<td style='{CELL}'>{cell}</td>" for cell in short)
    yield f"<td style='{LAST}'>{message}</td>"


def _texts(job: Mapping[str, Any]) -> Iterable[str]:
    progress, state = job["progress"], job["state"]
    moving = state in ("running", "requeued")
    yield f"<b>{html.escape(job['name'])}</b><br><small>{html.escape(_place(job))}</small>"
    yield f"<b style='color:{COLOURS[state]}'>{state}</b>"
    if moving or progress["done"]:
        done = progress["done"]
        yield f"<progress value='{done:.4f}' max='1' style='width:9em'>{done:.0%}</progress> {done:.0%}"
    else:
        yield ""
    yield write_duration(progress["seconds_left"]) if moving and progress["seconds_left"] is not None else ""
    yield f"{format_number(progress['rate'])}/s" if moving and progress["rate"] is not None else ""
    yield f"{progress['loss']:.3f}" if progress["loss"] is not None else ""
    yield html.escape((job["message"] or progress["text"])[:LONGEST_MESSAGE])


def _place(job: Mapping[str, Any]) -> str:
    many = f", {job['workers']} workers" if job["workers"] > 1 else ""
    many += f" on {job['nodes']} nodes" if job["nodes"] > 1 else ""
    number = f" {job['number']}" if job["cluster"] == "slurm" and job["number"] else ""
    begun = f"{datetime.fromisoformat(job['submitted']):%-d %b %H:%M}"
    return f"{begun}, {job['cluster']}{number}{many}"
