"""Who may see which file: allowed roots, and tokens that bind a user to one file for a while."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING

from tornado import web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dhlab_lab.views import File

__all__ = ["Access", "Refused"]

DIGEST_BYTES = 18  # 24 letters in base64, no padding


class Refused(web.HTTPError):
    """An answer other than 200, with a message for people: what was got, what was expected, what to do.

    Parameters
    ----------
    status
        HTTP status.
    message
        What the page shows.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status)
        self.message = message


class Access:
    """The rules of one server.

    Parameters
    ----------
    roots
        Folders below which files may be seen.
    base
        Where relative paths begin.
    secret
        The server's cookie secret, or another that outlives the page.
    lifetime
        How long a token is good at most, in seconds; half of it at least.
    """

    def __init__(self, roots: Sequence[str], *, base: str, secret: bytes, lifetime: float) -> None:
        self.roots = tuple(Path(os.path.realpath(Path(root).expanduser())) for root in roots)
        self.base = Path(base).expanduser()
        self.lifetime = lifetime
        self._key = hmac.digest(secret, b"dhlab tiles", "sha256")

    def resolve(self, path: str) -> Path:
        """Return the real place of a file below a root, links and ``..`` followed.

        Raises
        ------
        Refused
            403 if it lies outside every root, whether it exists or not.
        """
        try:
            real = Path(os.path.realpath(self.base / path))
        except ValueError:
            raise Refused(403, f"{path!r} is no path; expected a file below the server's root.") from None
        self.check(real, path)
        if real.suffix.lower() in BESIDE and (folder := real.with_suffix("")).exists():
            self.check(Path(os.path.realpath(folder)), path)
        return real

    def check(self, real: Path, path: str) -> None:
        """Refuse a place outside the roots (403); `path` is what was asked for."""
        if not any(real.is_relative_to(root) for root in self.roots):
            raise Refused(
                403,
                f"{path} lies outside the folders that this server shows; expected a file below "
                f"{', '.join(map(str, self.roots))}. Move it there, or add its folder to DHLab.allowed_roots.",
            )

    def identify(self, file: File, document: Path | None = None) -> str:
        """Return the number under which a file, as it is now, goes in addresses; it says nothing about the path.

        A document on a file has a number of its own, in whatever state it is.
        """
        kind, thing = ("file", repr(file)) if document is None else ("document", repr((file, document)))
        return self._digest(kind, thing)

    def sign(self, user: str, file: str) -> tuple[str, int]:
        """Return a token for a user and a file's number, and when it runs out (seconds since 1970).

        It is the same for a while, so that a page that is loaded again finds its tiles in the browser's cache.
        """
        step = self.lifetime / 2
        expires = int((time.time() // step + 2) * step)
        return f"{file}.{expires}.{self._digest('view', user, file, str(expires))}", expires

    def verify(self, user: str, token: str) -> str:
        """Return the number of the file that a token is for.

        Raises
        ------
        Refused
            403 if it was not signed here for this user, 410 if it has run out.
        """
        file, _, rest = token.partition(".")
        expires, _, signature = rest.partition(".")
        if not hmac.compare_digest(signature.encode(), self._digest("view", user, file, expires).encode()):
            raise Refused(403, "this address was not made for you; expected a token of your own. Open the scan again.")
        if time.time() >= int(expires):
            raise Refused(410, "this view has expired; expected a fresh token. Open the scan again.")
        return file

    def _digest(self, *parts: str) -> str:
        text = "".join(f"{len(part)}:{part}" for part in parts)
        digest = hmac.digest(self._key, text.encode("utf-8", "surrogateescape"), hashlib.sha256)
        return urlsafe_b64encode(digest[:DIGEST_BYTES]).decode()


# Formats whose file stands beside a folder that holds the pixels.
BESIDE = {".mrxs"}
