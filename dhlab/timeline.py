"""`Timeline`: the append-only ledger of time to model in production, one JSON file per event."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import uuid
import warnings
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, Self

from dhlab import env
from dhlab.errors import BadFileError, BadValueError, DHLabWarning, StorageError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["STAGES", "Event", "Timeline", "stage"]

STAGES = ("need", "data", "annotated", "trained", "validated", "packaged", "deployed")
FORMAT = 1
LONGEST = 1e10
# Keys under which a patient would be named; a ledger travels with reports, so it never holds them.
FORBIDDEN = re.compile(
    r"(^|_)(mrn|birth_?date|date_of_birth|dob|patient_?(id|name)?|accession(_?number)?)$", re.IGNORECASE
)
ABSOLUTE = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|[a-z][a-z0-9+.-]*://)")

_active: ContextVar[Timeline | None] = ContextVar("dhlab_timeline", default=None)
_inside: ContextVar[bool] = ContextVar("dhlab_inside_stage", default=False)
# Together they order one process's events whatever its clock does.
_writer, _numbers = (os.getpid(), uuid.uuid4().hex[:12]), count()


@dataclass(frozen=True)
class Event:
    """One entry of the ledger.

    Parameters
    ----------
    stage
        One of `STAGES`.
    finished
        When the work ended, UTC.
    seconds
        Machine time, in seconds.
    human_minutes
        Time a person spent, in minutes, as given.
    success
        False if the work failed.
    error
        Class name of the exception, if it failed.
    facts
        JSON-compatible values: what was done with what.
    writer
        Random name of the process that wrote the event.
    number
        Position among the events of its writer.
    """

    stage: str
    finished: datetime
    seconds: float = 0.0
    human_minutes: float = 0.0
    success: bool = True
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    writer: str = ""
    number: int = 0

    @property
    def started(self) -> datetime:
        """When the machine work began, UTC: its end less its measured length, so it never lies after the end."""
        return self.finished - timedelta(seconds=self.seconds)


class Timeline:
    """Append-only ledger of the way from a need to a model in production.

    Each event is one JSON file that appears whole or not at all, so several processes and nodes may write to one
    folder. ``with Timeline(folder):`` makes a ledger active: public verbs then record themselves. The environment
    variable ``DHLAB_TIMELINE`` does the same for a whole process. Facts keep file names only, never whole paths.

    Parameters
    ----------
    folder
        Where the events are kept; made with the first event.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self._tokens: list[Token[Timeline | None]] = []

    def mark(
        self,
        stage: str,
        /,
        *,
        seconds: float = 0.0,
        human_minutes: float = 0.0,
        success: bool = True,
        error: str = "",
        **facts: Any,
    ) -> Path:
        """Record one event that has just ended.

        Parameters
        ----------
        stage
            One of `STAGES`.
        seconds
            Machine time, in seconds.
        human_minutes
            Time a person spent, in minutes.
        success
            False if the work failed; its time counts nevertheless.
        error
            Class name of the exception, if it failed.
        **facts
            What was done with what: numbers, texts, lists and mappings of them. Paths shrink to file names.

        Returns
        -------
        Path
            The event's file.

        Raises
        ------
        UnknownNameError
            If there is no such stage.
        BadValueError
            If a time is negative or not finite, or a fact is not JSON-compatible or names a patient.
        StorageError
            If the ledger cannot be written.
        """
        return self._record(stage, seconds, human_minutes, "" if success else error or "failed", facts)

    def human(self, stage: str, /, *, minutes: float, **facts: Any) -> Path:
        """Record time that a person spent on a stage; nothing measures it, so it has to be said.

        Parameters
        ----------
        stage
            One of `STAGES`.
        minutes
            Time in minutes.
        **facts
            As in `mark`.

        Returns
        -------
        Path
            The event's file.
        """
        return self._record(stage, 0.0, minutes, "", facts)

    def events(self) -> list[Event]:
        """Return the events that can be read, oldest first."""
        return self._read()[0]

    def problems(self) -> list[str]:
        """Return what is wrong with the ledger: torn or foreign files, a clock that went back."""
        events, problems = self._read()
        latest: dict[str, Event] = {}
        for event in sorted(events, key=lambda e: (e.writer, e.number)):
            before = latest.get(event.writer)
            if before is not None and event.finished < before.finished:
                back = (before.finished - event.finished).total_seconds()
                problems.append(f"the clock went back by {back:.3g} s before {event.stage!r}: wall times are uncertain")
            latest[event.writer] = event
        return problems

    def production(self) -> Event | None:
        """Return the event that put a model into production, or None if there is none yet.

        It is the first success at ``deployed`` after the first success at ``packaged`` (or, in a ledger without
        packages, the first success at ``deployed``): a trial prediction before packaging is not production.
        """
        good = [event for event in self.events() if event.success]
        packaged = next((i for i, event in enumerate(good) if event.stage == "packaged"), -1)
        return next((event for event in good[packaged + 1 :] if event.stage == "deployed"), None)

    def table(self) -> list[dict[str, Any]]:
        """Return a row per stage that has events, and the total: the time to model in production.

        Returns
        -------
        list of dict
            Rows with ``stage``, ``events``, ``failures``, ``machine_minutes``, ``human_minutes``, ``first``, ``last``
            (UTC, ISO 8601) and ``wall_minutes`` (from the first start to the last end). Machine work after the model
            went into production is use, not development: it stands in a row ``"afterwards"`` and outside the total.
            The last row, ``"time to model in production"``, runs to the moment of production, or to the last event
            as long as there is none (its ``reached`` is then False).
        """
        events, reached = self.events(), self.production()
        end = reached.finished if reached else None
        later = [end is not None and e.finished > end and (e.seconds > 0 or not e.human_minutes) for e in events]
        before, use = ([e for e, is_use in zip(events, later, strict=True) if is_use == side] for side in (False, True))
        rows = [row for name in STAGES if (row := _row(name, [e for e in before if e.stage == name]))]
        if row := _row("afterwards", use):
            rows.append(row)
        if total := _row("time to model in production", before):
            if end is not None:
                total["last"] = _iso(end)
                first = min(event.started for event in before)
                total["wall_minutes"] = max(0.0, (end - first).total_seconds()) / 60
            rows.append({**total, "reached": reached is not None})
        return rows

    def __enter__(self) -> Self:
        self._make_folder()
        self._tokens.append(_active.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        _active.reset(self._tokens.pop())
        return False

    def __repr__(self) -> str:
        events, problems = self._read()
        stages = " → ".join(name for name in STAGES if any(e.stage == name and e.success for e in events))
        bad = f", {len(problems)} unreadable" if problems else ""
        return f"Timeline {self.folder.name!r}: {len(events)} events{bad}, {stages or 'nothing recorded yet'}"

    def _repr_html_(self) -> str:
        from html import escape

        head = ("stage", "events", "failures", "machine min", "human min", "wall min", "first (UTC)", "last (UTC)")
        keys = ("stage", "events", "failures", "machine_minutes", "human_minutes", "wall_minutes", "first", "last")
        lines = ["".join(f"<th style='text-align:left'>{title}</th>" for title in head)]
        for row in self.table():
            mark = "" if row.get("reached", True) else " (not reached yet)"
            cells = [f"{row[key]:,.1f}" if isinstance(row[key], float) else escape(str(row[key])) for key in keys]
            cells[0] += mark
            cells[-2:] = [text[:19].replace("T", " ") for text in cells[-2:]]
            lines.append("".join(f"<td style='text-align:left'>{cell}</td>" for cell in cells))
        notes = "".join(f"<li>{escape(problem)}</li>" for problem in self.problems())
        return (
            f"<div><b>Timeline {escape(self.folder.name)}</b><table>"
            + "".join(f"<tr>{line}</tr>" for line in lines)
            + "</table>"
            + (f"<ul>{notes}</ul>" if notes else "")
            + "</div>"
        )

    def _record(self, stage: str, seconds: float, human_minutes: float, failure: str, facts: Mapping[str, Any]) -> Path:
        check_stage(stage)
        for name, value in (("seconds", seconds), ("human_minutes", human_minutes)):
            if not math.isfinite(value) or not 0 <= value < LONGEST:
                raise BadValueError(f"{name} {value}; expected a finite number that is not negative.")
        finished, writer = datetime.now(UTC), writer_name()
        number = next(_numbers)
        body = {
            "format": FORMAT,
            "stage": stage,
            "finished": finished.isoformat(timespec="microseconds"),
            "seconds": round(float(seconds), 6),
            "human_minutes": float(human_minutes),
            "success": not failure,
            "error": failure,
            "facts": plain_facts(facts),
            "writer": writer,
            "number": number,
        }
        name = f"{finished:%Y%m%dT%H%M%S.%fZ}-{stage}-{writer}-{number}.json"
        return self._write(name, json.dumps(body, ensure_ascii=False, indent=1, allow_nan=False))

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the ledger's folder {self.folder}: {error.strerror or error}. Choose a folder that you "
                "may write to."
            ) from error

    def _write(self, name: str, text: str) -> Path:
        self._make_folder()
        target, partial = self.folder / name, self.folder / f".{name}.partial"
        try:
            with partial.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StorageError(
                f"cannot write to the ledger {self.folder}: {error.strerror or error}. Free space, or choose a folder "
                "that you may write to."
            ) from error
        return target

    def _read(self) -> tuple[list[Event], list[str]]:
        events: list[Event] = []
        problems: list[str] = []
        if not self.folder.is_dir():
            return events, problems
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith("."):
                continue
            try:
                events.append(_event(path))
            except BadFileError as error:
                problems.append(str(error))
        return sorted(events, key=lambda e: (e.finished, e.writer, e.number)), problems


@contextlib.contextmanager
def stage(name: str, /, **facts: Any) -> Iterator[dict[str, Any]]:
    """Record the enclosed work as one event of the active ledger; without one, do nothing.

    Within another `stage` it records nothing: a verb that calls verbs counts once.

    Parameters
    ----------
    name
        One of `STAGES`.
    **facts
        What is done with what, as in `Timeline.mark`.

    Yields
    ------
    dict
        The facts; add to it what is known only at the end.

    Raises
    ------
    UnknownNameError
        If there is no such stage.

    Warns
    -----
    DHLabWarning
        If the ledger cannot be written: a lost entry must not cost the work that it describes.
    """
    check_stage(name)
    timeline = _active_timeline()
    if timeline is None or _inside.get():
        yield facts
        return
    token = _inside.set(True)
    failure, begun = "", time.perf_counter()
    try:
        yield facts
    except BaseException as error:
        failure = type(error).__name__
        raise
    finally:
        _inside.reset(token)
        seconds = time.perf_counter() - begun
        try:
            timeline._record(name, seconds, 0.0, failure, facts)
        except (StorageError, BadValueError) as error:
            warnings.warn(f"the ledger lacks {name!r}: {error}", DHLabWarning, stacklevel=3)


def check_stage(name: str) -> None:
    """Raise UnknownNameError unless `name` is one of `STAGES`."""
    if name not in STAGES:
        raise UnknownNameError(f"no stage {name!r}; expected one of {', '.join(STAGES)}.{suggest(name, STAGES)}")


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as JSON-compatible values in which paths are shrunk to file names and non-finite numbers are None.

    Parameters
    ----------
    facts
        Texts, numbers (NumPy's too), paths, and lists and mappings of them.

    Raises
    ------
    BadValueError
        If a value is of another kind, or a key names a patient.
    """
    found = {}
    for key, value in facts.items():
        if FORBIDDEN.search(str(key)):
            raise BadValueError(f"fact {key!r} names a patient; a ledger holds none. Leave it out, or give a count.")
        found[str(key)] = _plain(str(key), value)
    return found


def writer_name() -> str:
    """Return the random name of this process among the writers of a ledger; a fork gets a new one."""
    global _writer, _numbers
    if _writer[0] != os.getpid():
        _writer, _numbers = (os.getpid(), uuid.uuid4().hex[:12]), count()
    return _writer[1]


def _active_timeline() -> Timeline | None:
    active = _active.get()
    folder = env.get("DHLAB_TIMELINE")
    return Timeline(folder) if active is None and folder else active


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain_facts(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(key, item) for item in value]
    if isinstance(value, os.PathLike):
        return _file_name(os.fspath(value))
    if not isinstance(value, (str, int, float, bool, type(None))) and hasattr(value, "tolist"):
        return _plain(key, value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _file_name(value) if ABSOLUTE.match(value) else value
    if isinstance(value, (int, float, bool, type(None))):
        return value
    raise BadValueError(
        f"fact {key!r} is a {type(value).__name__}; expected texts, numbers, lists or mappings of them."
    )


def _file_name(path: str | bytes) -> str:
    text = os.fsdecode(path)
    return PurePosixPath(PureWindowsPath(text).as_posix()).name


def _event(path: Path) -> Event:
    try:
        data = json.loads(path.read_bytes())
        if data["format"] > FORMAT:
            raise BadFileError(f"{path.name} has format {data['format']}, newer than {FORMAT}; update dhlab.")
        finished = datetime.fromisoformat(data["finished"])
        event = Event(
            stage=data["stage"],
            finished=finished if finished.tzinfo else finished.replace(tzinfo=UTC),
            seconds=float(data["seconds"]),
            human_minutes=float(data["human_minutes"]),
            success=bool(data["success"]),
            error=str(data["error"]),
            facts=dict(data["facts"]),
            writer=str(data["writer"]),
            number=int(data["number"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, BadFileError):
            raise
        raise BadFileError(
            f"{path.name} is not an event of this ledger ({type(error).__name__}); remove it, or leave it: it is not "
            "counted."
        ) from error
    times = (event.seconds, event.human_minutes)
    if (
        event.stage not in STAGES
        or event.finished.year < 1970
        or not all(math.isfinite(t) and 0 <= t < LONGEST for t in times)
    ):
        raise BadFileError(f"{path.name} holds an unknown stage or an impossible time; it is not counted.")
    return event


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _row(name: str, events: list[Event]) -> dict[str, Any] | None:
    if not events:
        return None
    first, last = min(e.started for e in events), max(e.finished for e in events)
    return {
        "stage": name,
        "events": len(events),
        "failures": sum(not e.success for e in events),
        "machine_minutes": math.fsum(e.seconds for e in events) / 60,
        "human_minutes": math.fsum(e.human_minutes for e in events),
        "first": _iso(first),
        "last": _iso(last),
        "wall_minutes": (last - first).total_seconds() / 60,
    }
