"""The edit log of a document: a folder with one append-only file for each writer, so that nobody needs a lock."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import orjson

from dhlab.annotations.edits import Change, Edit
from dhlab.atomic import keep_permissions, share, storage_errors, sync
from dhlab.errors import BadFileError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["EditLog", "Heads"]

FORMAT, VERSION = "dhlab edits", 1
SUFFIX = ".jsonl"
# How many edits of each writer's file a state holds.
Heads = dict[str, int]


class EditLog:
    """Edits of all writers, read as they come; those of this one are durable before they count.

    Parameters
    ----------
    folder
        Where the files of the writers lie; made with the first edit.
    scan
        Name and shape of the scan, as `dhlab.annotations.snapshot.identify` gives them.
    file
        The document's file; whoever may read it may read the log, too.
    """

    def __init__(self, folder: Path, scan: dict[str, Any], file: Path) -> None:
        self.folder, self.scan, self.file = folder, scan, file
        self.edits: dict[str, list[Edit]] = {}
        self.saved: tuple[int, Heads] = (0, {})
        self.unfinished: set[str] = set()
        self.faults: list[str] = []
        self.writer: str | None = None
        self._file: int | None = None
        self._sizes: dict[str, int] = {}
        # Files that cannot be read are tried again when they have grown beyond this.
        self._refused: dict[str, int] = {}

    @property
    def heads(self) -> Heads:
        """How many edits of every writer are known."""
        return {writer: len(edits) for writer, edits in self.edits.items()}

    def read(self, *, strict: bool = False) -> list[tuple[Edit, tuple[Change, ...]]]:
        """Return the edits that others have added since the last look; `faults` says what could not be read.

        Parameters
        ----------
        strict
            Raise if a file is no edit log or cannot be read; else it is left out.

        Raises
        ------
        BadFileError
            If a file is no edit log, or one of another scan or a later version, or may not be read.
        """
        found = []
        try:
            with read_errors(self.folder), os.scandir(self.folder) as entries:
                grown = [
                    (entry.name.removesuffix(SUFFIX), entry.stat().st_size)
                    for entry in entries
                    if entry.name.endswith(SUFFIX)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        for writer, size in sorted(grown):
            if writer != self.writer and size > max(self._sizes.get(writer, 0), self._refused.get(writer, 0)):
                try:
                    found += self._read_file(writer)
                except BadFileError as error:
                    if strict:
                        raise
                    self._refused[writer] = size
                    self.faults.append(str(error))
        return sorted(found, key=lambda item: item[0].stamp)

    def append(self, edits: list[Edit]) -> None:
        """Write edits at the end of this writer's file; they are on the disk when this returns.

        Raises
        ------
        StorageError
            If they cannot be written; none of them counts then.
        """
        self._write(b"".join(edit.line + b"\n" for edit in edits))
        assert self.writer is not None
        self.edits[self.writer] += edits

    def mark_saved(self, saved: tuple[int, Heads]) -> None:
        """Note that the document's file holds these edits now: clock, and number of each writer's."""
        if self.writer is not None:
            self._write(orjson.dumps({"saved": saved[1], "clock": saved[0]}) + b"\n")
        self.saved = saved

    def close(self) -> None:
        """Let go of this writer's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def new_writer(self) -> str:
        """Return this writer's name; with the first call its file is made."""
        if self.writer is None:
            writer = secrets.token_hex(8)
            path = self.folder / (writer + SUFFIX)
            with storage_errors(path):
                with suppress(FileExistsError):
                    self.folder.mkdir()
                    share(self.folder)
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
                share(path)
                keep_permissions(path, self.file)
                sync(self.folder.parent)
                sync(self.folder)
            self.writer, self.edits[writer], self._sizes[writer] = writer, [], 0
            header = {"format": FORMAT, "version": VERSION, "writer": writer, "scan": self.scan}
            try:
                self._write(orjson.dumps(header) + b"\n")
            except StorageError:
                self._abandon()
                path.unlink(missing_ok=True)
                raise
        return self.writer

    def _abandon(self) -> None:
        """Leave this writer's file as it is; the next edit begins another."""
        self.close()
        self.writer = None

    def _write(self, data: bytes) -> None:
        assert self.writer is not None
        assert self._file is not None, "the document is closed"
        size = self._sizes[self.writer]
        with storage_errors(self.folder / (self.writer + SUFFIX)):
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file, view) :]
                os.fsync(self._file)
            except OSError:
                # What is half written must not stand before the next edit.
                try:
                    os.ftruncate(self._file, size)
                except OSError:
                    self._abandon()
                raise
        self._sizes[self.writer] = size + len(data)

    def _read_file(self, writer: str) -> list[tuple[Edit, tuple[Change, ...]]]:
        path = self.folder / (writer + SUFFIX)
        start = self._sizes.get(writer, 0)
        with read_errors(path), path.open("rb") as file:
            file.seek(start)
            data = file.read()
        # A line without an end is being written, or was never acknowledged.
        end = data.rfind(b"\n") + 1
        lines = data[:end].splitlines()
        if start == 0 and lines:
            self._check_header(lines.pop(0), path)
        # Only now: of a log that was refused nothing is read when it grows.
        (self.unfinished.discard if end == len(data) else self.unfinished.add)(writer)
        self._sizes[writer] = start + end
        known, found = self.edits.setdefault(writer, []), []
        for line in lines:
            if line.startswith(b'{"saved"'):
                self._read_mark(line)
                continue
            try:
                edit, changes = Edit.read(line)
            except BadFileError as error:
                self.faults.append(
                    f"edit {len(known) + 1} of {path} is damaged and left out, the others count: {error}. Restore the "
                    "file from a backup if you miss something."
                )
                edit, changes = Edit(0, writer, "", "", "damaged", b'{"changes":[]}'), ()
            else:
                found.append((edit, changes))
            known.append(edit)
        return found

    def _read_mark(self, line: bytes) -> None:
        try:
            mark = orjson.loads(line)
            self.saved = max(self.saved, (int(mark["clock"]), dict(mark["saved"])), key=lambda saved: saved[0])
        except (ValueError, TypeError, KeyError):
            pass  # the file itself says what it holds, as long as nobody else rewrites it

    def _check_header(self, line: bytes, path: Path) -> None:
        try:
            header = orjson.loads(line)
            ours, version, scan = header["format"] == FORMAT, int(header["version"]), header["scan"]
        except (ValueError, TypeError, KeyError):
            ours, version, scan = False, 0, None
        if not ours:
            raise BadFileError(f"{path} is no edit log; expected what dhlab writes. Move it elsewhere.")
        if version > VERSION:
            raise BadFileError(f"{path} has version {version}; expected at most {VERSION}. Update dhlab.")
        check_scan(scan, self.scan, path)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn a refusal of the operating system to read a document's file or folder into a `BadFileError`."""
    try:
        yield
    except PermissionError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror}. Ask its owner to let you.") from error


def check_scan(found: Any, expected: dict[str, Any], path: Path) -> None:
    """Raise unless a document's scan is the one it is opened with.

    Raises
    ------
    BadFileError
        If name or shape differ.
    """
    if not isinstance(found, dict) or any(found.get(key) != expected[key] for key in ("name", "shape")):
        name, shape = (found.get("name"), found.get("shape")) if isinstance(found, dict) else (None, None)
        raise BadFileError(
            f"{path} belongs to the scan {name!r} of {shape} pixels; expected {expected['name']!r} of "
            f"{expected['shape']}. Open it with its own scan, or give this one another path=; if the scan was only "
            "renamed, open it under its old name: dh.open(…, name=…)."
        )
