"""A document on the disk: its file and its edit log, kept in step with what other processes and programs do to them."""

from __future__ import annotations

import os
import tempfile
import time
from bisect import insort
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dhlab.annotations.edits import FILE_TOOL, Change, Edit
from dhlab.annotations.log import EditLog, check_scan
from dhlab.annotations.records import GEOMETRY, equal_geometries, geometries_of
from dhlab.annotations.registers import State
from dhlab.annotations.scanner import without_collector
from dhlab.annotations.snapshot import Snapshot, read_snapshot, write_features, write_shortcut
from dhlab.atomic import atomic_file, share, storage_error
from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dhlab.annotations.edits import Stamp
    from dhlab.annotations.log import Heads
    from dhlab.annotations.records import Records

__all__ = ["Store", "Update", "places_of"]

# Bytes of the file that are made durable at once.
SYNCED = 4 << 20
# Time of change, size and number of a file: another one differs in one of them.
FileStamp = tuple[int, int, int]


@dataclass(frozen=True)
class Update:
    """What is new in a document.

    Parameters
    ----------
    edits
        The edits that were merged.
    objects
        Ids of the objects that they changed.
    classes
        Whether they changed classes.
    revision
        The document's, with them.
    """

    edits: tuple[Edit, ...]
    objects: tuple[str, ...]
    classes: bool
    revision: int

    @classmethod
    def join(cls, parts: Iterable[Update], revision: int) -> Update:
        """Return several as one, which lead to a revision."""
        every = list(parts)
        return cls(
            tuple(edit for part in every for edit in part.edits),
            tuple(dict.fromkeys(key for part in every for key in part.objects)),
            any(part.classes for part in every),
            revision,
        )


@dataclass(frozen=True)
class Plan:
    """What is to be written into a document's file.

    Parameters
    ----------
    saved
        Clock, and number of edits of each writer.
    replaces
        What the file is known by that this one follows.
    objects, labels, member
        As of `write_features`.
    """

    saved: tuple[int, Heads]
    replaces: FileStamp | None
    objects: Records
    labels: Records
    member: dict[str, Any]


class _OvertakenError(Exception):
    """The file was changed while it was about to be replaced."""


class Store:
    """State, log and file of one document. Not safe between threads.

    Parameters
    ----------
    path
        The GeoJSON file; it need not exist.
    scan
        What `dhlab.annotations.snapshot.identify` says of the scan.
    offset
        Between the file's positions and level-0 pixels (y, x).

    Raises
    ------
    BadFileError
        If file or log are damaged, belong to another scan, or may not be read.
    """

    def __init__(self, path: Path, scan: dict[str, Any], offset: Sequence[float]) -> None:
        self.path, self.scan, self.offset = path, scan, offset
        self.log = EditLog(places_of(path)[1], scan, path)
        self._file_stamp = _stamp_of(path)
        snapshot = read_snapshot(path, offset) if self._file_stamp else Snapshot()
        if snapshot.scan is not None:
            check_scan(snapshot.scan, scan, path)
        self._base = (snapshot.objects, snapshot.classes)
        self.state = State(*self._base)
        self.edits: dict[Stamp, Edit] = {}
        self.ordered: list[Edit] = []
        self.keys: dict[str, Edit] = {}
        self.clock = 0
        self._unlogged: list[Edit] = []
        self._readable = True
        # The file holds these: so many of each writer by the clock, and what other programs have changed since.
        self._saved: tuple[int, Heads] = (0, {})
        self._outside: list[Edit] = []
        with without_collector():
            self._merge(self.log.read(strict=True))
        if self.log.unfinished:
            self.log.faults.append(
                f"{len(self.log.unfinished)} edit log(s) of {path.name} end within a line: what was not acknowledged "
                "is left out, the rest counts."
            )
        if snapshot.saved is not None:
            self._saved = snapshot.saved
        elif self._file_stamp:
            self._take_outside(snapshot, whole=False)

    def commit(self, changes: list[Change], *, author: str, tool: str, **more: Any) -> tuple[Edit, Update]:
        """Log an edit and merge it; it is on the disk when this returns. `more` is as of `Edit.make`.

        Raises
        ------
        StorageError
            If it cannot be written; nothing has changed then.
        """
        stamp = (self.clock + 1, self.log.new_writer())
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        edit = Edit.make(changes, stamp, author=author, time=now, tool=tool, **more)
        self.log.append([*self._unlogged, edit])
        self._unlogged.clear()
        return edit, self._merge([(edit, changes)])

    def poll(self) -> Update | None:
        """Look for what others have done, and merge it; what cannot be read is added to `faults`."""
        found = self.log.read()
        stamp = _stamp_of(self.path)
        outside = None
        update = self._merge(found) if found else None
        if stamp is not None and stamp != self._file_stamp:
            self._file_stamp, self._readable = stamp, True
            try:
                snapshot = read_snapshot(self.path, self.offset, whole=False)
                if snapshot.scan is not None:
                    check_scan(snapshot.scan, self.scan, self.path)
                if snapshot.saved is None:
                    outside = self._take_outside(snapshot, whole=True)
                else:
                    self._saved, self._outside = snapshot.saved, []
            except FileNotFoundError:
                pass
            except BadFileError as error:
                # Most likely it is being written: its next state is looked at again, and not overwritten before.
                self._readable = False
                self.log.faults.append(f"{error} The edits here go on without it.")
        parts = [part for part in (update, outside) if part is not None]
        return Update.join(parts, len(self.edits)) if parts else None

    def plan(self) -> Plan | None:
        """Return what the file should hold; None as long as another program is just writing it.

        Raises
        ------
        StorageError
            If what other programs have changed cannot be logged.
        """
        if not self._readable:
            return None
        if self._unlogged:
            self.log.append(self._unlogged)
            self._unlogged = []
        saved = (self.clock, self.log.heads)
        classes = [
            {"name": name, "color": fields["color"]} | write_shortcut(fields.get("shortcut"))
            for name, fields in self.state.known_classes().items()
        ]
        member = {"scan": self.scan, "clock": saved[0], "heads": saved[1], "classes": classes}
        return Plan(saved, self._file_stamp, self.state.objects.present(), self.state.labels(), member)

    def write(self, plan: Plan, pause: float = 0.0) -> FileStamp | None:
        """Write the file, and return what it is known by; None if somebody else did so meanwhile. Takes long.

        Parameters
        ----------
        plan
            What to write.
        pause
            Seconds after every few hundred objects, in which other threads have Python for themselves.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        try:
            with atomic_file(self.path) as partial:
                with partial.open("wb", buffering=SYNCED) as file:
                    begun = 0
                    for data in write_features(plan.objects, plan.labels, self.offset, plan.member):
                        file.write(data)
                        time.sleep(pause)
                        begun += len(data)
                        if begun > SYNCED:
                            # Bit by bit: a log that is made durable meanwhile need not wait for the whole.
                            os.fdatasync(file.fileno())
                            begun = 0
                share(partial)
                stamp = _stamp_of(partial)
                if _stamp_of(self.path) not in (plan.replaces, None):
                    raise _OvertakenError
        except _OvertakenError:
            return None
        return stamp

    def finish(self, plan: Plan, stamp: FileStamp) -> bool:
        """Note that the file was written, and return whether it holds all there is."""
        self._file_stamp = stamp
        self.log.mark_saved(plan.saved)
        self._saved, self._outside = plan.saved, []
        return self.log.heads == plan.saved[1] and not self._unlogged

    def take_faults(self) -> list[str]:
        """Return what could not be read since the last call."""
        faults, self.log.faults = self.log.faults, []
        return faults

    def why_read_only(self) -> str | None:
        """Return why nothing can be written here, or None; a file that leaves no trace is tried."""
        for folder in (self.path.parent, self.log.folder):
            if folder is self.log.folder and not folder.exists():
                continue
            try:
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                told = storage_error(error, folder / self.path.name, left="drawings here cannot be kept")
                return str(told) if told else f"cannot write into {folder}: {error.strerror or error}."
        return None

    def _merge(self, found: Sequence[tuple[Edit, Sequence[Change]]]) -> Update:
        touched: dict[str, None] = {}
        classes = False
        for edit, changes in found:
            ids, of_classes = self.state.merge(edit, changes)
            touched.update(dict.fromkeys(ids))
            classes |= of_classes
            self.clock = max(self.clock, edit.clock)
            if edit.stamp not in self.edits:
                self.edits[edit.stamp] = edit
                insort(self.ordered, edit, key=lambda one: one.stamp)
                if edit.key:
                    self.keys[edit.key] = edit
        return Update(tuple(edit for edit, _ in found), tuple(touched), classes, len(self.edits))

    def _take_outside(self, snapshot: Snapshot, *, whole: bool) -> Update | None:
        """Merge what another program has changed in the file as an edit that every process names alike."""
        if self.log.saved[0] > self._saved[0]:
            self._saved, self._outside = self.log.saved, []
        in_file = [edit for writer, count in self._saved[1].items() for edit in self.log.edits.get(writer, [])[:count]]
        in_file += self._outside
        known = State(*self._base) if whole else State({}, {})
        for edit in in_file:
            known.merge(edit, edit.changes)
        changes = compare(known, snapshot, whole=whole)
        if not changes:
            return None
        clock = 1 + max((edit.clock for edit in in_file), default=0)
        status = self.path.stat()
        edit = Edit.make(
            changes,
            (clock, f"{FILE_TOOL}-{snapshot.digest}"),
            author=_owner(status),
            time=datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="milliseconds"),
            tool=FILE_TOOL,
            note=self._note_removed(changes, known),
        )
        self._outside.append(edit)
        if edit.stamp not in self.edits:
            self._unlogged.append(edit)
            self.log.faults += [edit.note] if edit.note else []
        return self._merge([(edit, changes)])

    def _note_removed(self, changes: Sequence[Change], known: State) -> str:
        """Say how many objects another program left out that edits drew: it may have read the file before them."""
        drawn = [
            one for one in changes if one.after.get("exists") is False and "exists" in known.objects.stamps(one.key)
        ]
        if not drawn:
            return ""
        return (
            f"Another program wrote {self.path.name} without {len(drawn):,} of the objects drawn here. If it had "
            "read an older copy, take its edit back: in the history, or by document.revert(edit)."
        )


def places_of(path: Path) -> tuple[Path, Path]:
    """Return the file and the folder of the edit log of a document."""
    return path, path.with_name(path.name.removesuffix(".geojson") + ".edits")


def compare(known: State, snapshot: Snapshot, *, whole: bool) -> list[Change]:
    """Return the changes that lead from what a file held to what it holds.

    Parameters
    ----------
    known
        What it held.
    snapshot
        What it holds.
    whole
        Else only objects, fields and classes count that `known` knows: others were there before the first edit.

    Raises
    ------
    BadFileError
        If a new geometry is none.
    """
    changes = [
        Change("class", name, {"color": old["color"]}, {"color": new["color"]})
        for name, new in snapshot.classes.items()
        if (old := known.classes.get(name)) is not None and list(old["color"]) != list(new["color"])
    ]
    present = known.known_classes()
    changes += [
        Change("class", name, {"exists": False}, {"exists": True, "color": new["color"]})
        for name, new in snapshot.classes.items()
        if whole and name not in present
    ]
    suspects: list[str] = []
    for key, old in known.objects.values.items():
        new = snapshot.objects.get(key)
        there = old.get("exists") is not False
        if new is None:
            if there:
                changes.append(Change("object", key, old, {"exists": False}))
        elif not there:
            changes.append(Change("object", key, {"exists": False}, {**dict.fromkeys(old), **new, "exists": True}))
        elif GEOMETRY in old and old[GEOMETRY] != new[GEOMETRY]:
            suspects.append(key)
    moved = set()
    if suspects:
        pairs = [[objects[key][GEOMETRY] for key in suspects] for objects in (known.objects.values, snapshot.objects)]
        same = equal_geometries(*pairs)
        moved = {key for key, equal in zip(suspects, same.tolist(), strict=True) if not equal}
    for key, new in snapshot.objects.items():
        old = known.objects.values.get(key)
        if old is None:
            if whole:
                changes.append(Change("object", key, {"exists": False}, {**new, "exists": True}))
        elif old.get("exists") is not False:
            names = [name for name in ({**old, **new} if whole else old) if name not in ("exists", GEOMETRY)]
            names = [name for name in names if old.get(name) != new.get(name)]
            names += [GEOMETRY] if key in moved else []
            if names:
                before, after = ({name: fields.get(name) for name in names} for fields in (old, new))
                changes.append(Change("object", key, before, after))
    geometries_of([change.after[GEOMETRY] for change in changes if change.after.get(GEOMETRY)], "the file")
    return changes


def _stamp_of(path: Path) -> FileStamp | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _owner(status: os.stat_result) -> str:
    try:
        import pwd

        return pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        return str(status.st_uid)
