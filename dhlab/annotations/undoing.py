"""Undo and redo from the log alone: which edit is next for an author, and what taking it back changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from dhlab.annotations.edits import FILE_TOOL, Change
from dhlab.annotations.records import CLASS, pack_fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from dhlab.annotations.edits import Edit, Stamp
    from dhlab.annotations.registers import State

__all__ = ["next_step", "reverse"]


def next_step(newest_first: Iterable[Edit], author: str, *, again: bool = False) -> Stamp | None:
    """Return the stamp of the edit that an author takes back next, or makes again; None if there is none.

    Parameters
    ----------
    newest_first
        All edits, the last one first.
    author
        Whose; what another program wrote into the file belongs to nobody.
    again
        Make one again that was taken back, which is possible until the next edit.
    """
    # Of each edit that was taken back or made again, only the last time counts.
    settled: set[Stamp] = set()
    for edit in newest_first:
        if edit.author != author or edit.tool == FILE_TOOL:
            continue
        stamp = edit.undoes or edit.redoes
        if stamp is None:
            if again:
                return None
            if edit.stamp not in settled:
                return edit.stamp
        elif stamp not in settled:
            if again is (edit.undoes is not None):
                return stamp
            settled.add(stamp)
    return None


def reverse(edit: Edit, state: State, edits: Mapping[Stamp, Edit], *, again: bool = False) -> tuple[list[Change], str]:
    """Return the changes that take an edit back, and what stays because others have changed it since.

    Parameters
    ----------
    edit
        The edit.
    state
        What there is now.
    edits
        All edits by their stamps.
    again
        Make it once more instead.

    Returns
    -------
    changes, note
        The changes; a sentence for the person, or nothing.
    """
    found: list[Change] = []
    kept: Counter[str] = Counter()

    def author_of(stamp: Stamp | None) -> str:
        edit = None if stamp is None else edits.get(stamp)
        return "" if edit is None else edit.author

    for change in edit.changes:
        registers = state.objects if change.kind == "object" else state.classes
        old, new = map(pack_fields, (change.before, change.after) if again else (change.after, change.before))
        present = registers.values.get(change.key, {})
        stamps = registers.stamps(change.key)
        others = set()
        if new.get("exists") is False:
            changed = [name for name in stamps if not _same(present.get(name), old.get(name))]
            others = {author_of(stamps[name]) for name in changed} - {edit.author}
        there = registers.get(change.key) is not None
        if change.kind == "object" and new.get("exists") is False:
            if there and not others:
                found.append(Change(change.kind, change.key, dict(present), {"exists": False}))
            elif there:
                kept.update(others)
        elif change.kind == "object" and old.get("exists") is False:
            if not there:
                # All fields, because the file may not hold them any more; as they are now, where others wrote them.
                after = {**new, **present, "exists": True}
                found.append(Change(change.kind, change.key, {"exists": False}, after))
        elif not there and change.kind == "object":
            kept[author_of(stamps.get("exists"))] += 1
        elif (
            change.kind == "class"
            and new.get("exists") is False
            and (edit.tool != "class" or in_use(state, change.key, apart_from={one.key for one in found}))
        ):
            pass  # it came with objects, or has some: an unused class harms nobody
        else:
            names = [name for name in {**new, **old} if not _same(present.get(name), new.get(name))]
            free = [name for name in names if _same(present.get(name), old.get(name))]
            kept.update({author_of(stamps[name]) for name in names if name not in free and name in stamps})
            if free:
                before, after = ({name: fields.get(name) for name in free} for fields in (present, new))
                found.append(Change(change.kind, change.key, before, after))
    return found, _tell(kept)


def in_use(state: State, name: str, *, apart_from: Collection[str] = ()) -> bool:
    """Return whether an object has a class, apart from some objects."""
    objects = state.objects.present()
    return any(fields.get(CLASS) == name and key not in apart_from for key, fields in objects.items())


def _same(one: Any, other: Any) -> bool:
    if one == other:
        return True
    # The text of a geometry is what its file made of the numbers.
    return isinstance(one, bytes) and isinstance(other, bytes) and orjson.loads(one) == orjson.loads(other)


def _tell(kept: Counter[str]) -> str:
    if not kept:
        return ""
    whose = " and ".join(name or "somebody" for name in kept)
    return f"{kept.total():,} {'change stays' if kept.total() == 1 else 'changes stay'}: {whose} changed it since."
