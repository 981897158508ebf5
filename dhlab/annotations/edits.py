"""Edits of an annotation document: who changed what, when, from which value to which; one line of JSON each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, overload

import orjson

from dhlab.annotations.records import CLASS, METADATA, REVIEW, unpack_fields
from dhlab.errors import BadFileError

__all__ = ["FILE_TOOL", "Change", "Edit", "History", "Stamp"]

# When a value was written: Lamport's clock, and the writer where two clocks are equal. Never the time of day.
Stamp = tuple[int, str]
Fields = Mapping[str, Any]
# What an edit is made with that another program wrote into the file.
FILE_TOOL = "file"
ROWS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit did to one object or class.

    Parameters
    ----------
    kind
        ``"object"`` or ``"class"``.
    key
        Id of the object, or name of the class.
    before, after
        Values by field, None where there is none. Fields are ``exists``, ``geometry``, ``properties/<key>`` and
        ``properties/metadata/<key>`` of objects; ``exists``, ``color`` and ``shortcut`` of classes.
    """

    kind: str
    key: str
    before: Fields
    after: Fields


@dataclass(frozen=True, eq=False)
class Edit:
    """One line of the edit log: changes that were made together.

    Parameters
    ----------
    clock
        Lamport's clock: larger than that of every edit its writer knew of.
    writer
        Name of the open document that wrote it.
    author
        Who made it.
    time
        When, by that person's clock (ISO 8601); for people only, nothing is ordered by it.
    tool
        What it was made with.
    line
        The whole edit as JSON, as it stands in the log.
    undoes, redoes
        Stamp of the edit that this one takes back, or makes again.
    key
        What a front calls it, so that one that is sent twice is made once.
    note
        What the person who makes it should know; it is not logged.
    """

    clock: int
    writer: str
    author: str
    time: str
    tool: str
    line: bytes = field(repr=False)
    undoes: Stamp | None = None
    redoes: Stamp | None = None
    key: str = ""
    note: str = ""

    @property
    def stamp(self) -> Stamp:
        """What orders edits, and names them."""
        return self.clock, self.writer

    @property
    def changes(self) -> tuple[Change, ...]:
        """What was changed; read from `line` each time, because a bulk edit is large."""
        return _changes(orjson.loads(self.line)["changes"])

    @property
    def objects(self) -> tuple[str, ...]:
        """Ids of the objects that were changed."""
        return tuple(change.key for change in self.changes if change.kind == "object")

    def touches(self, key: str) -> bool:
        """Return whether an object was changed, by its id."""
        return orjson.dumps(key) in self.line and key in self.objects

    @classmethod
    def make(
        cls,
        changes: Sequence[Change],
        stamp: Stamp,
        *,
        author: str,
        time: str,
        tool: str,
        undoes: Stamp | None = None,
        redoes: Stamp | None = None,
        key: str = "",
        note: str = "",
    ) -> Edit:
        """Make an edit and its line."""
        head = {"clock": stamp[0], "writer": stamp[1], "author": author, "time": time, "tool": tool}
        head |= {"undoes": undoes} if undoes else {}
        head |= {"redoes": redoes} if redoes else {}
        head |= {"key": key} if key else {}
        line = orjson.dumps({**head, "changes": _items(changes)})
        return cls(*stamp, author, time, tool, line, undoes, redoes, key, note)

    @classmethod
    def read(cls, line: bytes) -> tuple[Edit, tuple[Change, ...]]:
        """Read a line of a log, and what it changed.

        Raises
        ------
        BadFileError
            If it is no edit.
        """
        try:
            data = orjson.loads(line)
            writer, author, time, tool = (str(data[key]) for key in ("writer", "author", "time", "tool"))
            undoes, redoes = ((int(s[0]), str(s[1])) if (s := data.get(key)) else None for key in ("undoes", "redoes"))
            edit = cls(int(data["clock"]), writer, author, time, tool, line, undoes, redoes, str(data.get("key", "")))
            return edit, _changes(data["changes"])
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise BadFileError(f"no edit ({error!r}): {line[:60]!r}") from error


class History(Sequence[Edit]):
    """Edits from the first to the last; shows as a table of who changed what.

    Parameters
    ----------
    edits
        The edits, in order.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = tuple(edits)

    def __len__(self) -> int:
        return len(self._edits)

    @overload
    def __getitem__(self, key: int) -> Edit: ...
    @overload
    def __getitem__(self, key: slice) -> History: ...
    def __getitem__(self, key: int | slice) -> Edit | History:
        return History(self._edits[key]) if isinstance(key, slice) else self._edits[key]

    def __iter__(self) -> Iterator[Edit]:
        return iter(self._edits)

    def by(self, author: str) -> History:
        """Return the edits of one author."""
        return History([edit for edit in self if edit.author == author])

    def table(self) -> list[dict[str, str]]:
        """Return a row per edit: time, author, tool and what changed."""
        return [
            {"time": edit.time, "author": edit.author, "tool": edit.tool, "what": describe(edit.changes)}
            for edit in self
        ]

    def __repr__(self) -> str:
        authors = dict.fromkeys(edit.author for edit in self)
        return f"History: {len(self):,} edits by {', '.join(authors) or 'nobody'}"

    def _repr_html_(self) -> str:
        rows = self[-ROWS_SHOWN:].table()[::-1]
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("time", "author", "tool", "what"))
        body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row.values())}</tr>" for row in rows)
        hidden = len(self) - len(rows)
        more = f"<div>and {hidden:,} earlier</div>" if hidden else ""
        return f"<b>{escape(repr(self))}</b><table><tr>{head}</tr>{body}</table>{more}"


def describe(changes: Sequence[Change]) -> str:
    """Say in words what changes do: ``"3 objects drawn (tumour)"``."""
    counts: dict[str, int] = {}
    # A class that came with objects is named with them.
    for change in [change for change in changes if change.kind == "object"] or changes:
        words = _words(change)
        counts[words] = counts.get(words, 0) + 1
    return "; ".join(f"{count:,} × {words}" if count > 1 else words for words, count in counts.items())


def _words(change: Change) -> str:
    after = change.after
    if change.kind == "class":
        return f"class {change.key} {'removed' if after.get('exists') is False else 'set'}"
    name = (after.get(CLASS) or {}).get("name", "no class")
    if after.get("exists") is not None:
        return f"drawn ({name})" if after["exists"] else "removed"
    parts = []
    for key in after:
        if key == CLASS:
            parts.append(f"class {name}")
        elif key == REVIEW:
            parts.append(str(after[key] or "review withdrawn"))
        else:
            parts.append("comment" if key.startswith(METADATA + "comment ") else key.rpartition("/")[2])
    return ", ".join(dict.fromkeys(parts))


def _items(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Return changes as JSON; what is done alike to many objects is said once, with the list of their ids."""
    items: list[dict[str, Any]] = []
    alike: dict[bytes, list[str]] = {}
    for change in changes:
        item: dict[str, Any] = {"before": unpack_fields(change.before), "after": unpack_fields(change.after)}
        if change.kind == "object" and "geometry" not in change.after and "geometry" not in change.before:
            keys = alike.setdefault(orjson.dumps(item), [])
            keys.append(change.key)
            if len(keys) > 1:
                continue
            item["object"] = keys
        else:
            item[change.kind] = change.key
        items.append(item)
    return items


def _changes(items: list[Any]) -> tuple[Change, ...]:
    """Return the changes that `_items` wrote."""
    found: list[Change] = []
    for item in items:
        kind = "object" if "object" in item else "class"
        keys, before, after = item[kind], item.get("before") or {}, item["after"]
        keys = keys if isinstance(keys, list) else [keys]
        if not (isinstance(before, dict) and isinstance(after, dict) and all(isinstance(key, str) for key in keys)):
            raise TypeError(f"a change of {str(item)[:60]}")
        found += [Change(kind, key, before, after) for key in keys]
    return tuple(found)
