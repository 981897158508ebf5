"""What the server answers below ``dhlab/``: scans opened, tiles, values; every error as JSON with a message."""

from __future__ import annotations

import asyncio
import json
import math
from functools import partial
from queue import Full
from typing import TYPE_CHECKING, Any

from jupyter_server.base.handlers import APIHandler
from tornado import web

from dhlab.errors import BadFileError, BadValueError, DHLabError, NotFoundError, UnknownNameError
from dhlab.io.pool import Stamp
from dhlab_lab.access import Access, Refused
from dhlab_lab.views import File, View, Views

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from dhlab.view.workers import TileWorkers

__all__ = ["HANDLERS", "ScansHandler", "TileHandler"]

NUMBER = r"(\d{1,9})"
TOKEN = r"([A-Za-z0-9_.-]{1,200})"  # noqa: S105
STYLE = {"channel": int, "colors": str, "threshold": float, "low": float, "high": float}


class Handler(APIHandler):
    """What all have in common: the app's parts, the user, headers and errors."""

    auth_resource = "contents"

    def initialize(self, *, access: Access, views: Views, workers: TileWorkers) -> None:
        """Take over what `DHLab` made."""
        self.access = access
        self.views = views
        self.workers = workers
        self._future: Future[Any] | None = None

    @property
    def content_security_policy(self) -> str:
        """Nothing that this answers may run or load anything."""
        return f"{super().content_security_policy}; sandbox"

    @property
    def user(self) -> str:
        """Name of whoever is logged in."""
        return str(self.current_user.username)

    def on_connection_close(self) -> None:
        """Drop work that nobody waits for any more."""
        if self._future is not None:
            self._future.cancel()

    async def work(self, work: Callable[[], Any]) -> Any:
        """Do something slow in another thread."""
        try:
            self._future = self.workers.submit(work)
        except Full:
            raise Refused(503, "the server is busy with other tiles; try again in a moment.") from None
        return await asyncio.wrap_future(self._future)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002
        """Answer with the message of a refusal, else with the status alone."""
        error = kwargs.get("exc_info", (None, None))[1]
        message = error.message if isinstance(error, Refused) else self._reason
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"message": message}))


class ScansHandler(Handler):
    """``POST dhlab/scans``: open a file and give a token for its tiles."""

    @web.authenticated
    async def post(self) -> None:
        """Answer ``{"token", "expires", "layer"}``."""
        path, stamp = self._wanted()
        # Opening may wait for a slow disk: not in the threads that tiles wait for.
        file, view = await asyncio.to_thread(self._open, path, stamp)
        number = self.access.identify(file.path, (file.stamp.size, file.stamp.changed_ns))
        self.views.remember(number, file)
        token, expires = self.access.sign(self.user, number)
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"token": token, "expires": expires, "layer": view.scene}))

    def _wanted(self) -> tuple[str, Stamp | None]:
        try:
            body = json.loads(self.request.body)
            path, stamp = body["path"], body.get("stamp")
            if not isinstance(path, str):
                raise TypeError
            return path, None if stamp is None else Stamp(*(int(n) for n in stamp))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Refused(
                400, 'cannot understand what is asked; expected {"path": "…", "stamp": [size, mtime_ns] or null}.'
            ) from None

    def _open(self, path: str, stamp: Stamp | None) -> tuple[File, View]:
        real = self.access.resolve(path)
        try:
            file = File(real, Stamp.of(real))
        except (NotFoundError, OSError) as error:
            raise Refused(404, f"nothing at {path}; expected a scan. Check the path.") from error
        if stamp is not None and stamp != file.stamp:
            raise Refused(409, f"{path} has changed since the scan was opened. Open it again with dhlab.open.")
        return file, self.views.open(file)


class TileHandler(Handler):
    """``GET dhlab/tiles/{token}/{level}/{row}/{column}``: one tile as a picture."""

    @web.authenticated
    async def get(self, token: str, *place: str) -> None:
        """Answer the picture."""
        number = self.access.verify(self.user, token)
        file = self.views.file(number)
        style, index = self._style()
        try:
            data, mime = await self.work(partial(self._make, file, tuple(map(int, place)), style, index))
        except asyncio.CancelledError:
            return
        self.set_header("Cache-Control", f"private, max-age={int(self.access.lifetime)}, immutable")
        self.finish(data, set_content_type=mime)

    def _make(
        self, file: File, place: tuple[int, ...], style: dict[str, Any], index: dict[str, int]
    ) -> tuple[bytes, str]:
        file.check()
        try:
            return self.views.open(file).source.encode(*place, **style, index=index)
        except BadValueError as error:
            raise Refused(404, str(error)) from error
        except UnknownNameError as error:
            raise Refused(400, str(error)) from error
        except (BadFileError, DHLabError, OSError) as error:
            raise Refused(422, str(error)) from error

    def _style(self) -> tuple[dict[str, Any], dict[str, int]]:
        style: dict[str, Any] = {}
        index: dict[str, int] = {}
        for name in self.request.query_arguments:
            text = self.get_query_argument(name)
            try:
                if name in STYLE:
                    style[name] = STYLE[name](text)
                elif name in "tz":
                    index[name] = int(text)
            except ValueError:
                raise Refused(400, f"{name}={text!r}; expected a number.") from None
            if isinstance(style.get(name), float) and not math.isfinite(style[name]):
                raise Refused(400, f"{name}={text!r}; expected a finite number.")
        return style, index


HANDLERS = (
    (r"dhlab/scans", ScansHandler),
    (rf"dhlab/tiles/{TOKEN}/{NUMBER}/{NUMBER}/{NUMBER}", TileHandler),
)
