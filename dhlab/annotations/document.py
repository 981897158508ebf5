"""`Document`: the annotations of one scan on the disk, which several people and programs edit at once."""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
import uuid
import warnings
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import shapely

from dhlab import env
from dhlab.annotations import classes
from dhlab.annotations.checking import check_changes, to_geometry_bytes
from dhlab.annotations.classes import DocumentClass
from dhlab.annotations.collection import RGB, Annotations
from dhlab.annotations.coordinates import object_array
from dhlab.annotations.edits import FILE_TOOL, Change, Edit, History
from dhlab.annotations.geojson import geojson_bytes, geojson_offset
from dhlab.annotations.records import (
    CLASS,
    GEOMETRY,
    METADATA,
    PROPERTIES,
    REVIEW,
    annotate,
    feature_bytes,
    geometries_of,
)
from dhlab.annotations.scanner import without_collector
from dhlab.annotations.snapshot import identify, read_features
from dhlab.annotations.store import Store, Update
from dhlab.annotations.undoing import next_step, reverse
from dhlab.errors import BadValueError, DHLabError, DHLabWarning, StorageError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from dhlab.scan import Scan

__all__ = ["Document", "DocumentClass"]

SUFFIX = ".geojson"
PAUSE_S = 0.2
# The file follows an edit after this time, or after so many times what writing it takes.
SAVE_AFTER_S, SAVE_SHARE = 0.5, 10.0
SAVE_PAUSE_S = 0.005
LONGEST_SAVE_S = 60.0
# Revisions that a front may lag behind before it asks for everything.
JOURNAL = 10_000
_open: weakref.WeakSet[Document] = weakref.WeakSet()


class Document:
    """The annotations of one scan, on the disk: GeoJSON as QuPath writes it, and beside it a log of every edit.

    Open it with `Document.open`. An edit is in the log, and thereby safe, when the method that makes it returns; the
    GeoJSON follows within moments and at `close`. Any number of processes may have the same document open: edits are
    merged field by field, the last one counts, and no lock is used. Undo and redo have no limit and survive closing.
    Safe between threads.

    What another program writes into the GeoJSON is taken for an edit, too, which `undo` passes over and `revert` takes
    back. Such a program knows nothing of what was saved after it had read the file: what was drawn meanwhile is missing
    in what it writes, and thereby removed, which is told. Let it read the file again before it saves.

    Parameters
    ----------
    scan
        The scan.
    path
        The GeoJSON.
    author
        Who edits here, unless a method is told otherwise.

    Attributes
    ----------
    read_only
        Why nothing can be edited, or None.
    scan_identity
        Name, shape, spacing and unit of the scan, JSON-compatible.
    """

    def __init__(self, scan: Scan, path: Path, author: str) -> None:
        self.scan, self.path, self.author = scan, path, author
        self.scan_identity = identify(scan)
        self._parent = scan.as_parent()
        self._store = Store(path, self.scan_identity, geojson_offset(scan))
        self.read_only = self._store.why_read_only()
        self._lock, self._saving = threading.RLock(), threading.Lock()
        self._observers: list[Callable[[Update], None]] = []
        self._journal: list[Update] = []
        self._journal_start = self.revision
        self._annotations: Annotations | None = None
        self._stale: set[str] = set()
        self._unsaved_since: float | None = None
        self._saving_takes = 0.0
        self._watched = self._closed = False
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        _open.add(self)
        self._warn()

    @classmethod
    def open(cls, scan: Scan, path: str | os.PathLike[str] | None = None, author: str | None = None) -> Document:
        """Open the document of a scan; nothing is written before the first edit.

        Parameters
        ----------
        scan
            The scan.
        path
            The GeoJSON, ``….geojson``, which need not exist; by default that beside the scan's file.
        author
            Who edits; by default the user at JupyterHub, or the login name.

        Returns
        -------
        Document
            With the edits of everybody so far.

        Raises
        ------
        BadFileError
            If the file is damaged, or file or log belong to another scan or may not be read.
        BadValueError
            If the scan has no file and no `path` is given.

        Warns
        -----
        DHLabWarning
            If a line of the log is damaged or truncated; it is left out.
        """
        place = Path(path).expanduser() if path is not None else _beside(scan)
        if not place.name.endswith(SUFFIX):
            raise BadValueError(f"{place.name!r} as a document; expected a name that ends in {SUFFIX}.")
        # Whoever comes by another name must find the same log.
        return cls(scan, Path(os.path.realpath(place)), author or env.user_name())

    @property
    def revision(self) -> int:
        """Grows with every edit, whoever made it."""
        return len(self._store.edits)

    @property
    def classes(self) -> tuple[DocumentClass, ...]:
        """The classes, with a digit as the shortcut of each that was not given one."""
        with self._lock:
            return classes.list_classes(self._store.state)

    @property
    def annotations(self) -> Annotations:
        """What is drawn now; the same value until the next edit.

        Raises
        ------
        BadFileError
            If an object's geometry is malformed.
        """
        return self.at_revision()[0]

    def at_revision(self) -> tuple[Annotations, int]:
        """Return `annotations` and the `revision` that they are of."""
        with self._lock:
            if self._annotations is None or self._stale:
                self._annotations = self._annotate(self._annotations)
                self._stale.clear()
            return self._annotations, self.revision

    def feature(self, key: str) -> bytes | None:
        """Return an object as a GeoJSON feature, UTF-8, in level-0 pixels (x, y); None if there is none.

        Parameters
        ----------
        key
            Its id.
        """
        with self._lock:
            record = self._store.state.objects.get(key)
            return None if record is None else feature_bytes(key, record, self._store.state.labels())

    def fields(self, key: str) -> dict[str, Any]:
        """Return the fields of an object, as `Change` names them; the geometry is JSON.

        Parameters
        ----------
        key
            Its id.

        Raises
        ------
        UnknownNameError
            If there is no such object.
        """
        with self._lock:
            record = self._store.state.objects.get(key)
        if record is None:
            raise UnknownNameError(f"no object {key!r}; somebody may have removed it.")
        return dict(record)

    def geometries(self, ids: Sequence[str]) -> NDArray[np.object_]:
        """Return ``(N,)`` shapely geometries of objects, in level-0 pixels (x, y).

        Parameters
        ----------
        ids
            Their ids.

        Raises
        ------
        UnknownNameError
            If there is no such object.
        """
        return geometries_of([self.fields(key)[GEOMETRY] for key in ids], self.path.name)

    def touching(self, geometry: BaseGeometry) -> list[str]:
        """Return the ids of the objects that touch a geometry.

        Parameters
        ----------
        geometry
            In level-0 pixels (x, y).
        """
        left, top, right, bottom = geometry.bounds
        with self._lock:
            # The index of the last annotations still serves for what has not changed since.
            known = self.annotations if self._annotations is None else self._annotations
            near = known.in_window((top, left), (bottom - top, right - left)).ids.tolist()
            keys = [key for key in near if key not in self._stale]
            keys += [key for key in self._stale if self._store.state.objects.get(key) is not None]
            touching = shapely.intersects(self.geometries(keys), geometry)
        return [key for key, touches in zip(keys, touching.tolist(), strict=True) if touches]

    def add(
        self,
        annotations: Annotations | BaseGeometry,
        class_name: str | None = None,
        *,
        tool: str = "script",
        review: str | None = None,
    ) -> Edit | None:
        """Add shapes as one edit.

        Parameters
        ----------
        annotations
            Annotations, which keep their ids, or one geometry in level-0 pixels (x, y).
        class_name
            Class of all, where it is not theirs.
        tool
            What they were made with.
        review
            ``"proposed"``, ``"accepted"`` or ``"rejected"``, of all.

        Returns
        -------
        Edit or None
            None if all was there already.

        Raises
        ------
        BadValueError
            If a shape is none, such as a polygon without area.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        if isinstance(annotations, Annotations):
            objects = read_features(geojson_bytes(annotations), "the annotations")[0]
            colors = dict(zip(annotations.class_names, annotations.class_colors, strict=True))
        else:
            objects = {str(uuid.uuid4()): {GEOMETRY: to_geometry_bytes(object_array([annotations]))[0]}}
            colors = {}
        extra: dict[str, Any] = {"exists": True}
        extra |= {CLASS: class_name} if class_name is not None else {}
        extra |= {REVIEW: review} if review is not None else {}
        changes = []
        for key, record in objects.items():
            after = {**record, **extra}
            if (name := after.get(CLASS)) in colors:
                after[CLASS] = {"name": name, "color": list(colors[name])}
            changes.append(Change("object", key, {}, after))
        return self.apply(changes, tool=tool)

    def remove(self, ids: str | Iterable[str], *, tool: str = "script") -> Edit | None:
        """Remove objects, as one edit.

        Parameters
        ----------
        ids
            One id or several.
        tool
            What it is done with.
        """
        return self.apply([Change("object", key, {}, {"exists": False}) for key in _listed(ids)], tool=tool)

    def change(self, ids: str | Iterable[str], *, tool: str = "script", **fields: Any) -> Edit | None:
        """Change objects by their ids, as one edit.

        Parameters
        ----------
        ids
            One id or several.
        tool
            What it is made with.
        fields
            ``class_name``, ``name``, ``review``: the same for all, None for none. ``geometry``: a geometry in level-0
            pixels (x, y), or one for each id.

        Returns
        -------
        Edit or None
            None if it was so already.

        Raises
        ------
        UnknownNameError
            If there is no such object or field.
        BadValueError
            If a value is none that the field can have.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        keys = _listed(ids)
        after: dict[str, Any] = {}
        known = ("class_name", "geometry", "name", "review")
        if unknown := set(fields) - set(known):
            raise UnknownNameError(f"no field {min(unknown)!r}.{suggest(min(unknown), known)}")
        if "class_name" in fields:
            after[CLASS] = fields["class_name"]
        after |= {PROPERTIES + "name": fields["name"]} if "name" in fields else {}
        after |= {REVIEW: fields["review"]} if "review" in fields else {}
        each: list[dict[str, Any]] = [dict(after) for _ in keys]
        if (geometry := fields.get("geometry")) is not None:
            shapes = [geometry] if hasattr(geometry, "geom_type") else list(geometry)
            if len(shapes) != len(keys):
                raise BadValueError(f"{len(shapes)} geometries for {len(keys)} objects; expected one for each.")
            for mine, text in zip(each, to_geometry_bytes(object_array(shapes)), strict=True):
                mine[GEOMETRY] = text
        return self.apply([Change("object", k, {}, mine) for k, mine in zip(keys, each, strict=True)], tool=tool)

    def comment(self, ids: str | Iterable[str], text: str, *, author: str | None = None) -> Edit | None:
        """Add a comment to objects; it stands in their metadata, beside those of others.

        Parameters
        ----------
        ids
            One id or several.
        text
            What to say.
        author
            Who says it, if not `author`.
        """
        key = f"{METADATA}comment {_now()} {author or self.author}"
        return self.apply(
            [Change("object", one, {}, {key: text}) for one in _listed(ids)], tool="comment", author=author
        )

    def apply(
        self,
        changes: Sequence[Change | Mapping[str, Any]],
        *,
        tool: str,
        author: str | None = None,
        key: str = "",
    ) -> Edit | None:
        """Make changes of objects, as one edit.

        Parameters
        ----------
        changes
            Of any number of objects: `Change`, or mappings ``{"object": id, "after": {field: value}}`` with the fields
            of `Change`. A new object has ``exists`` and ``geometry``, which is GeoJSON in level-0 pixels.
        tool
            What they are made with.
        author
            Who makes them, if not `author`.
        key
            Text by which `made` finds the edit, whichever process makes it.

        Returns
        -------
        Edit or None
            None if it was so already. Its `note` says what was mended.

        Raises
        ------
        BadValueError
            If a change is malformed or a geometry is no shape; nothing is changed then.
        UnknownNameError
            If there is no such object.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        who = author or self.author
        created = {METADATA + "author": who, METADATA + "time": _now()}
        with self._lock, without_collector():
            wanted, note = check_changes(changes, self._store.state, created)
            return self._commit(wanted, author=who, tool=tool, note=note, key=key) if wanted else None

    def undo(self, author: str | None = None, *, key: str = "") -> Edit | None:
        """Take back the last edit of an author that stands; return None if there is none.

        Values that others have changed since stay as they are; `note` of the edit says whose they are.

        Parameters
        ----------
        author
            Whose edit; by default that of `author`.
        key
            As of `apply`.

        Raises
        ------
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        return self._step(author or self.author, again=False, key=key)

    def redo(self, author: str | None = None, *, key: str = "") -> Edit | None:
        """Make the edit again that an author took back last; return None if there is none.

        Parameters
        ----------
        author, key
            As of `undo`.
        """
        return self._step(author or self.author, again=True, key=key)

    def made(self, key: str) -> Edit | None:
        """Return the edit that was made with a `key`, or None: so that what is sent twice is done once."""
        with self._lock:
            return self._store.keys.get(key)

    def revert(self, edit: Edit, *, author: str | None = None, key: str = "") -> Edit:
        """Take back any edit, whoever or whatever program made it. See `undo`.

        Parameters
        ----------
        edit
            One of `history`.
        author
            Who takes it back, if not `author`.
        key
            As of `apply`.
        """
        with self._lock:
            return self._reverse(edit, author or self.author, again=False, key=key)

    def can_undo(self, author: str | None = None) -> tuple[bool, bool]:
        """Return whether there is something to undo, and to redo.

        Parameters
        ----------
        author
            For whom; by default for `author`.
        """
        with self._lock:
            undo, redo = (
                next_step(reversed(self._store.ordered), author or self.author, again=again) for again in (False, True)
            )
        return undo is not None, redo is not None

    def history(self, key: str | None = None) -> History:
        """Return all edits, in order, or those of one object.

        Parameters
        ----------
        key
            Id of the object.
        """
        with self._lock:
            edits = list(self._store.ordered)
        if key is not None:
            edits = [edit for edit in edits if edit.touches(key)]
        return History(edits)

    def set_class(
        self, name: str, *, color: RGB | None = None, shortcut: str | None = None, author: str | None = None
    ) -> Edit | None:
        """Make a class, or change its colour or shortcut.

        Parameters
        ----------
        name
            Its name; parts of a derived class are joined by ``": "`` as in QuPath.
        color
            RGB; None keeps it, or chooses one.
        shortcut
            One character that no other class has; None keeps it, an empty text means none at all.
        author
            Who makes the edit, if not `author`.

        Raises
        ------
        BadValueError
            If the colour is none, or the shortcut is longer or taken.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        with self._lock:
            changes = classes.set_class(self._store.state, name, color=color, shortcut=shortcut)
            return self._commit(changes, author=author or self.author, tool="class") if changes else None

    def rename_class(
        self,
        name: str,
        to: str,
        *,
        color: RGB | None = None,
        shortcut: str | None = None,
        author: str | None = None,
    ) -> Edit | None:
        """Rename a class together with all its objects, as one edit.

        What somebody else gives the old name at the same time keeps it: the class is then there under both names.

        Parameters
        ----------
        name
            Its name.
        to
            Its new name, which no other class has.
        color, shortcut
            As of `set_class`; None keeps them.
        author
            Who makes the edit, if not `author`.

        Returns
        -------
        Edit or None
            None if it was so already.

        Raises
        ------
        UnknownNameError
            If there is no such class.
        BadValueError
            If another class has the new name, or colour or shortcut are none.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        with self._lock:
            changes = classes.rename_class(self._store.state, name, to, color=color, shortcut=shortcut)
            return self._commit(changes, author=author or self.author, tool="class") if changes else None

    def remove_class(self, name: str, to: str | None = None, *, author: str | None = None) -> Edit:
        """Remove a class.

        Parameters
        ----------
        name
            Its name.
        to
            Class that its objects get instead.
        author
            Who makes the edit, if not `author`.

        Raises
        ------
        UnknownNameError
            If there is no such class.
        BadValueError
            If objects have it, and `to` does not say what becomes of them.
        StorageError
            If the document is read-only or the edit cannot be written.
        """
        with self._lock:
            changes = classes.remove_class(self._store.state, name, to)
            return self._commit(changes, author=author or self.author, tool="class")

    def observe(self, callback: Callable[[Update], None]) -> Callable[[], None]:
        """Call ``callback(update)`` after every edit, whoever made it, and keep looking for those of others.

        Parameters
        ----------
        callback
            Called with an `Update`, in the thread that made or found the edit; it must be quick.

        Returns
        -------
        callable
            Ends it.
        """
        with self._lock:
            self._observers.append(callback)

        def end() -> None:
            with self._lock:
                if callback in self._observers:
                    self._observers.remove(callback)

        self.watch()
        return end

    def changes_since(self, revision: int) -> Update | None:
        """Return what has changed since a revision, at once; None if that is too long ago to know.

        Parameters
        ----------
        revision
            A former `revision` of this object.
        """
        with self._lock:
            if not self._journal_start <= revision <= self.revision:
                return None
            later = [update for update in self._journal if update.revision > revision]
            return Update.join(later, self.revision)

    def watch(self) -> None:
        """Look for edits of others several times a second, in a thread of its own, until `close`."""
        self._watched = True
        self._start()

    def poll(self) -> bool:
        """Look once for edits of others, merge them, and return whether there were any.

        Warns
        -----
        DHLabWarning
            If something cannot be read, or another program has removed objects that were drawn here.
        """
        with self._lock:
            update = self._store.poll()
            if update is not None:
                self._tell(update)
                if any(edit.tool == FILE_TOOL for edit in update.edits):
                    self._mark_unsaved()
        self._warn()
        return update is not None

    def save(self) -> None:
        """Write the GeoJSON now.

        Raises
        ------
        StorageError
            If it cannot be written. The edits are safe in the log.
        """
        self._save(0.0)

    def _save(self, pause: float) -> None:
        with self._saving:
            if pause and self._unsaved_since is None:
                return  # somebody saved while this waited
            started = time.monotonic()
            with self._lock:
                self.poll()
                plan = None if self._store.log.writer is None else self._store.plan()
            if plan is None:
                return
            # Others go on editing while the file is written.
            stamp = self._store.write(plan, pause)
            with self._lock:
                whole = stamp is not None and self._store.finish(plan, stamp)
                self._unsaved_since = None if whole else time.monotonic()
                self._saving_takes = time.monotonic() - started

    def close(self) -> None:
        """Write the GeoJSON if need be, and stop looking for edits of others."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._observers.clear()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LONGEST_SAVE_S)
        try:
            if self._unsaved_since is not None:
                self.save()
        finally:
            self._store.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._store.state.objects.present())

    def __repr__(self) -> str:
        state = f", read-only: {self.read_only}" if self.read_only else ""
        return f"Document {self.path.name!r}: {len(self):,} objects on {self.scan_identity['name']!r}{state}"

    def _repr_html_(self) -> str:
        return self.annotations._repr_html_()

    def _commit(self, changes: list[Change], *, author: str, tool: str, **more: Any) -> Edit:
        if self.read_only is None and self._closed:
            raise StorageError(f"{self.path.name} is closed; open it again: dh.Document.open(…).")
        if self.read_only is not None:
            raise StorageError(f"this document cannot be edited: {self.read_only}")
        edit, update = self._store.commit(changes, author=author, tool=tool, **more)
        self._mark_unsaved()
        self._tell(update)
        return edit

    def _step(self, author: str, *, again: bool, key: str) -> Edit | None:
        with self._lock, without_collector():
            stamp = next_step(reversed(self._store.ordered), author, again=again)
            return None if stamp is None else self._reverse(self._store.edits[stamp], author, again=again, key=key)

    def _reverse(self, edit: Edit, author: str, *, again: bool, key: str) -> Edit:
        changes, note = reverse(edit, self._store.state, self._store.edits, again=again)
        tool, reference = ("redo", "redoes") if again else ("undo", "undoes")
        return self._commit(changes, author=author, tool=tool, note=note, key=key, **{reference: edit.stamp})

    def _tell(self, update: Update) -> None:
        self._stale.update(update.objects)
        if update.classes:
            self._annotations = None
        self._journal.append(update)
        if len(self._journal) > JOURNAL:
            self._journal_start = self._journal[JOURNAL // 2].revision
            del self._journal[: JOURNAL // 2 + 1]
        for callback in tuple(self._observers):
            callback(update)

    def _annotate(self, last: Annotations | None) -> Annotations:
        """Make annotations of all objects; those that did not change are taken from the last ones."""
        state = self._store.state
        records, labels = state.objects.present(), state.labels()
        parts = []
        changed = records
        if last is not None:
            parts.append(last[np.array([key not in self._stale for key in last.ids.tolist()], bool)])
            changed = {key: records[key] for key in self._stale if key in records}
        with without_collector():
            parts += [annotate(changed, labels).on(self._parent)] if changed else []
        whole = Annotations.concat(parts).on(self._parent)
        places = {key: place for place, key in enumerate(records)}
        whole = whole[np.argsort([places[key] for key in whole.ids.tolist()], kind="stable")]
        names = tuple(labels)
        index = np.array([*(names.index(name) for name in whole.class_names), -1], np.int32)
        colors = tuple(label["color"] for label in labels.values())
        return whole.replace(classes=index[whole.classes], class_names=names, class_colors=colors)

    def _warn(self) -> None:
        for fault in self._store.take_faults():
            warnings.warn(fault, DHLabWarning, stacklevel=4)

    def _mark_unsaved(self) -> None:
        if self._store.log.writer is not None and self._unsaved_since is None:
            self._unsaved_since = time.monotonic()
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=_follow, args=(weakref.ref(self), self._wake), name="dhlab-document", daemon=True
                )
                self._thread.start()

    def _look(self) -> None:
        """Do what is due: look for edits of others, write the file."""
        if self._watched:
            self.poll()
        waited = time.monotonic() - (self._unsaved_since or time.monotonic())
        if waited > max(SAVE_AFTER_S, SAVE_SHARE * self._saving_takes):
            self._save(SAVE_PAUSE_S)


def _follow(reference: weakref.ref[Document], ended: threading.Event) -> None:
    """Look after a document as long as somebody has it."""
    while not ended.wait(PAUSE_S):
        document = reference()
        if document is None:
            return
        try:
            document._look()
        except (DHLabError, DHLabWarning, OSError):
            pass  # it is tried again; whoever edits or closes is told
        except Exception as error:  # noqa: BLE001 - told once; what comes later must still be saved
            warnings.warn(f"{document.path} could not be saved or read: {error!r}.", DHLabWarning, stacklevel=1)
        del document


@atexit.register
def _close_all() -> None:
    for document in tuple(_open):
        # The log holds all edits, whatever becomes of the file.
        with suppress(DHLabError, OSError):
            document.close()


def _beside(scan: Scan) -> Path:
    path = scan.meta.get("path")
    if not path:
        raise BadValueError(f"{scan.name!r} has no file to keep a document beside; expected path=….geojson.")
    place = Path(path)
    return place.with_name(re.sub(r"(\.ome)?\.[^.]+$", "", place.name, flags=re.IGNORECASE) + SUFFIX)


def _listed(ids: str | Iterable[str]) -> list[str]:
    return [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
