"""Messages of a front about a document: what it wants edited or told, and the answers; the same for every transport."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import shapely

from dhlab.annotations.edits import FILE_TOOL, describe
from dhlab.annotations.tools import Stroke, draw
from dhlab.cards import RANGES
from dhlab.errors import BadValueError, DHLabError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dhlab.annotations import Annotations, Document, Edit
    from dhlab.scan import Scan

__all__ = ["EDITS", "MOST_CHANGES", "Editor", "describe_document", "news_since"]

# Beyond this a front is given the shapes anew rather than one by one.
MOST_CHANGES = 2000
MOST_HISTORY, MOST_NAMED = 500, 100


class Editor:
    """Answers a front's messages about one document, and tells it what others do. Safe between threads.

    Parameters
    ----------
    document
        The document.
    push
        Called with a message for the front after every edit that was not made through `answer`.
    """

    def __init__(self, document: Document, push: Callable[[dict[str, Any]], None]) -> None:
        self.document = document
        self._push = push
        self._turn, self._own = threading.Lock(), threading.local()
        self._told = document.revision
        self.end = document.observe(lambda _: self._hear())

    def answer(self, message: Mapping[str, Any], author: str | None = None) -> dict[str, Any]:
        """Do what a message asks for; an edit is on the disk when this returns.

        Parameters
        ----------
        message
            ``action`` and what belongs to it.
        author
            Who asks, if not the document's own author.

        Returns
        -------
        dict
            JSON-compatible. After an edit ``edit`` (None if it was so already), what `news_since` gives, and ``told``
            if the person should know something.

        Raises
        ------
        UnknownNameError
            If there is no such action, tool or object.
        BadValueError
            If something in the message is not what it may be.
        BadShapeError
            If a tool cannot draw on what it is given.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        document, action = self.document, message.get("action")
        try:
            if action == "objects":
                return {"features": [_feature(document, str(key)) for key in message["ids"]]}
            if action == "history":
                return {"edits": _history(document, message)}
            if action == "find":
                return {"ids": find(document.annotations, message.get("filter") or {})}
            if action == "changes":
                return news_since(document, int(message["since"]))
            if action in EDITS:
                return self._edit(message, author)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DHLabError):
                raise
            raise BadValueError(f"cannot understand {str(message)[:80]} ({error!r}).") from error
        raise UnknownNameError(f"no action {action!r}.{suggest(str(action), [*EDITS, *QUESTIONS])}")

    def _edit(self, message: Mapping[str, Any], author: str | None) -> dict[str, Any]:
        document = self.document
        with self._turn:
            since = document.revision
            if (edit := document.made(str(message.get("key") or ""))) is not None:
                # The front did not get the answer and sent it again.
                changes = [{"object": key, "feature": _feature(document, key)} for key in edit.objects]
                news: dict[str, Any] = {"revision": since, "changes": changes, "classes": _classes(document)}
            else:
                self._own.busy = True
                try:
                    edit = EDITS[message["action"]](document, message, author)
                finally:
                    self._own.busy = False
                news = news_since(document, since)
        told = {"told": edit.note} if edit is not None and edit.note else {}
        return {"edit": None if edit is None else _name(edit), **news, **told}

    def _hear(self) -> None:
        since, self._told = self._told, self.document.revision
        if not getattr(self._own, "busy", False):
            self._push(news_since(self.document, since))


def describe_document(document: Document, revision: int) -> dict[str, Any]:
    """Return what a front must know of a document whose shapes it gets as of a revision; JSON-compatible."""
    return {
        "readOnly": document.read_only,
        "classes": _classes(document),
        "author": document.author,
        "revision": revision,
        "path": str(document.path),
        "can": ["learn"] if _can_be_learned(document.scan) else [],
    }


def news_since(document: Document, revision: int) -> dict[str, Any]:
    """Return what has changed in a document since a revision, JSON-compatible.

    Parameters
    ----------
    document
        The document.
    revision
        What the front knows.

    Returns
    -------
    dict
        ``revision``; ``changes``, of each object its id and its ``feature``, None if it is gone; ``classes`` if they
        changed; ``author`` of the last edit; ``told`` if another program removed what was drawn. With ``reload``
        instead of changes where these are too many, or too long ago: the front asks for the shapes anew.
    """
    update = document.changes_since(revision)
    notes = [edit.note for edit in update.edits if edit.tool == FILE_TOOL and edit.note] if update else []
    told = {"told": notes[-1]} if notes else {}
    if update is None or len(update.objects) > MOST_CHANGES:
        return {"revision": document.revision, "changes": [], "classes": _classes(document), "reload": True, **told}
    news: dict[str, Any] = {
        "revision": update.revision,
        "changes": [{"object": key, "feature": _feature(document, key)} for key in update.objects],
    }
    news |= {"classes": _classes(document)} if update.classes else {}
    return news | told | ({"author": update.edits[-1].author} if update.edits else {})


def find(annotations: Annotations, wanted: Mapping[str, Any]) -> list[str]:
    """Return the ids of the objects that meet all conditions.

    Parameters
    ----------
    annotations
        Where to look.
    wanted
        ``class`` (None: without), ``review``, ``author``, ``text`` (in name, comments or id), ``min_area`` and
        ``max_area`` in square level-0 pixels, ``extent`` (left, top, right, bottom) in level-0 pixels.
    """
    keep = np.ones(len(annotations), bool)
    if "class" in wanted:
        names = annotations.class_names
        keep &= annotations.classes == (names.index(wanted["class"]) if wanted["class"] in names else -1)
        keep &= wanted["class"] is None or wanted["class"] in names
    if wanted.get("author"):
        keep &= annotations.authors == wanted["author"]
    areas = shapely.area(annotations.geometries)
    keep &= (areas >= float(wanted.get("min_area") or 0)) & (areas <= float(wanted.get("max_area") or np.inf))
    if wanted.get("extent"):
        left, top, right, bottom = map(float, wanted["extent"])
        inside = np.zeros(len(annotations), bool)
        inside[annotations.indices_in_window((top, left), (bottom - top, right - left))] = True
        keep &= inside
    if wanted.get("review"):
        keep &= annotations.reviews == wanted["review"]
    found = annotations[keep]
    ids: list[str] = found.ids.tolist()
    if text := str(wanted.get("text") or "").casefold():
        names = found.names.tolist()
        ids = [key for row, key in enumerate(ids) if text in _words(key, names[row], found.metadata(row))]
    return ids


def _words(key: str, name: str | None, metadata: Mapping[str, Any]) -> str:
    comments = [str(value) for field, value in metadata.items() if field.startswith("comment ")]
    return "\n".join([name or "", key, *comments]).casefold()


def _feature(document: Document, key: str) -> dict[str, Any] | None:
    text = document.feature(key)
    if text is None:
        return None
    found: dict[str, Any] = orjson.loads(text)
    return found


def _can_be_learned(scan: Scan) -> bool:
    """Return whether the pixels of a scan can be learned: those of a plane, in a type that has a range."""
    return scan.window_axes == "yx" and scan.dtype.name in RANGES


def _classes(document: Document) -> list[dict[str, Any]]:
    return [{"name": c.name, "color": list(c.color), "shortcut": c.shortcut} for c in document.classes]


def _name(edit: Edit) -> dict[str, Any]:
    named = {name: getattr(edit, name) for name in ("clock", "writer", "author", "time", "tool")}
    references = {name: list(stamp) for name in ("undoes", "redoes") if (stamp := getattr(edit, name)) is not None}
    return named | references


def _history(document: Document, message: Mapping[str, Any]) -> list[dict[str, Any]]:
    edits = list(document.history(message.get("object")))
    if message.get("before") is not None:
        clock, writer = message["before"]
        edits = [edit for edit in edits if edit.stamp < (int(clock), str(writer))]
    found = []
    for edit in edits[: -MOST_HISTORY - 1 : -1]:
        changes = edit.changes
        objects = [change.key for change in changes if change.kind == "object"]
        found.append(_name(edit) | {"objects": objects[:MOST_NAMED], "count": len(objects), "what": describe(changes)})
    return found


def _apply(document: Document, message: Mapping[str, Any], author: str | None) -> Edit | None:
    return document.apply(
        message["changes"], tool=str(message["tool"]), author=author, key=str(message.get("key") or "")
    )


def _draw(document: Document, message: Mapping[str, Any], author: str | None) -> Edit | None:
    stroke = Stroke(
        str(message["tool"]),
        path=message.get("path") or (),
        objects=[str(key) for key in message.get("objects") or ()],
        radius=float(message.get("radius") or 1.0),
        tolerance=float(message.get("tolerance") or 0.0),
        pixel=2.0 ** int(message.get("level") or 0),
        index=message.get("index"),
        class_name=message.get("class"),
        create=message.get("create"),
    )
    return draw(document, stroke, author=author, key=str(message.get("key") or ""))


def _step(document: Document, message: Mapping[str, Any], author: str | None) -> Edit | None:
    step = document.undo if message["action"] == "undo" else document.redo
    return step(author, key=str(message.get("key") or ""))


def _revert(document: Document, message: Mapping[str, Any], author: str | None) -> Edit | None:
    clock, writer = message["reverts"]
    for edit in document.history():
        if edit.stamp == (int(clock), str(writer)):
            return document.revert(edit, author=author, key=str(message.get("key") or ""))
    raise UnknownNameError(f"no edit {clock} of {writer!r}; expected one of the history.")


def _class(document: Document, message: Mapping[str, Any], author: str | None) -> Edit | None:
    name = str(message["name"])
    if message.get("remove"):
        return document.remove_class(name, message.get("to"), author=author)
    look: dict[str, Any] = {"color": message.get("color"), "shortcut": message.get("shortcut")}
    if message.get("rename"):
        return document.rename_class(name, str(message["rename"]), **look, author=author)
    return document.set_class(name, **look, author=author)


EDITS: dict[str, Callable[[Document, Mapping[str, Any], str | None], Edit | None]] = {
    "apply": _apply,
    "draw": _draw,
    "undo": _step,
    "redo": _step,
    "revert": _revert,
    "class": _class,
}
QUESTIONS = ("objects", "history", "find", "changes")
