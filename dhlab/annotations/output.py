"""Files that appear whole or not at all, for a layer below `dhlab.io`."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dhlab.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["written_beside"]


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a hidden name beside `path` to write to; it takes its place when the block ends well, else it is removed.

    Parameters
    ----------
    path
        Where the file shall appear; what is there is replaced.

    Yields
    ------
    Path
        The hidden name, ending in ``.partial``.

    Raises
    ------
    NotFoundError
        If the folder does not exist.
    StorageError
        If the disk is full, or the folder cannot be written.
    """
    target = Path(path).expanduser()
    partial = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError) and not target.parent.is_dir():
            raise NotFoundError(f"no folder {target.parent} to write {target.name} to; make it first.") from error
        if isinstance(error, OSError) and not isinstance(error, StorageError | NotFoundError):
            raise StorageError(
                f"cannot write {target}: {error.strerror or error}. Free space, or choose a place you may write to."
            ) from error
        raise
