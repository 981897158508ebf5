"""Whom a sample is of: the patient, who must never be on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dhlab.errors import BadValueError

__all__ = ["Patient", "find_patients", "refuse_shared", "relative"]

# A regular expression on the path, or a function of it.
Patient = str | Callable[[str], str]
SHOWN = 5


def find_patients(paths: Sequence[str], patient: Patient | None) -> tuple[str, ...]:
    """Return the patient of each file, or nothing if none are to be known.

    Parameters
    ----------
    paths
        Paths below the dataset's folder, with ``/``.
    patient
        Regular expression that is searched in the path: its first group, else the whole match, is the patient; or a
        function from path to patient.

    Returns
    -------
    tuple of str
        One per file, or empty.

    Raises
    ------
    BadValueError
        If the expression is none, or finds nothing in a path, or the function gives no text.
    """
    if patient is None:
        return ()
    if callable(patient):
        given: list[object] = [patient(path) for path in paths]
        for path, who in zip(paths, given, strict=True):
            if not isinstance(who, str) or not who:
                raise BadValueError(f"patient of {path} is {who!r}; expected a text that is not empty.")
        return tuple(map(str, given))
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise BadValueError(f"patient {patient!r} is no regular expression: {error}.") from error
    names = []
    for path in paths:
        match = pattern.search(path)
        name = str(match[min(1, pattern.groups)] or "") if match else ""
        if not name:
            raise BadValueError(
                f"the expression {patient!r} finds no patient in {path}; expected one in every path. Mend it, or give "
                "a function."
            )
        names.append(name)
    return tuple(names)


def refuse_shared(
    groups: Sequence[str], splits: Mapping[str, Sequence[int]], *, what: str, allow_leakage: bool
) -> None:
    """Raise if two splits hold samples of the same group.

    Parameters
    ----------
    groups
        Group of each sample.
    splits
        Indices of samples by split.
    what
        What a group is: patient, block, sample.
    allow_leakage
        Do not raise.

    Raises
    ------
    BadValueError
        Names splits, groups and counts.
    """
    if allow_leakage:
        return
    owners: dict[str, dict[str, int]] = {}
    for name, indices in splits.items():
        for index in indices:
            counts = owners.setdefault(groups[index], {})
            counts[name] = counts.get(name, 0) + 1
    shared = {group: counts for group, counts in owners.items() if len(counts) > 1}
    if shared:
        told = "; ".join(
            f"{group} ({', '.join(f'{count} in {name}' for name, count in counts.items())})"
            for group, counts in list(shared.items())[:SHOWN]
        )
        noun = f"{what}s are" if len(shared) > 1 else f"{what} is"
        raise BadValueError(
            f"{len(shared)} {noun} in more than one split: {told}{' …' if len(shared) > SHOWN else ''}. Figures on "
            "such splits are too good. Split again with dataset.split(…), or pass allow_leakage=True to keep them."
        )


def relative(path: str, root: Path) -> str:
    """Return a path below a folder with ``/`` between its parts; others stay whole."""
    place = Path(path)
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.as_posix()
