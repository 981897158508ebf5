"""Errors that say what was got, what was expected and what to do.

Every error that dhlab raises on purpose is a `DHLabError`; each leaf also inherits the builtin that a caller
would expect, so ``except FileNotFoundError`` keeps working.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BadFileError",
    "BadShapeError",
    "BadValueError",
    "ConflictError",
    "DHLabError",
    "DHLabWarning",
    "JobError",
    "MissingDependencyError",
    "NotFoundError",
    "SchedulerError",
    "StorageError",
    "UnknownNameError",
    "describe",
    "suggest",
]


class DHLabError(Exception):
    """Base of every error that dhlab raises on purpose."""


class NotFoundError(DHLabError, FileNotFoundError):
    """A file, sample or package that should be there is not."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BadFileError(DHLabError, ValueError):
    """A file is damaged, truncated, or not what its name says."""


class BadShapeError(DHLabError, ValueError):
    """An array or a window has the wrong shape, axes or dtype."""


class BadValueError(DHLabError, ValueError):
    """An argument lies outside what it may be."""


class UnknownNameError(DHLabError, KeyError):
    """A name (class, sample, model, suffix) that dhlab does not know."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConflictError(DHLabError, FileExistsError):
    """The output exists already, or holds part of another run."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StorageError(DHLabError, OSError):
    """The output cannot be written: disk full, read-only folder, quota."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class JobError(DHLabError, RuntimeError):
    """A job has no result: it failed, was cancelled, or is lost."""


class SchedulerError(DHLabError, ConnectionError):
    """The cluster that runs jobs does not answer, or refuses what is asked."""


class MissingDependencyError(DHLabError, ImportError):
    """An optional library is needed and not installed."""


class DHLabWarning(UserWarning):
    """Something was assumed; the message says what, and how to set it."""


def describe(error: BaseException) -> str:
    """Return what an error says, for people; one that dhlab did not raise on purpose is named, too."""
    return str(error) if isinstance(error, DHLabError) else f"{type(error).__name__}: {error}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean …?' with the closest of `known`, or all of them if few, for an error message."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(map(repr, close))}?"
    if not known:
        return ""
    return f" Known: {', '.join(known[:12])}{' …' if len(known) > 12 else ''}."
