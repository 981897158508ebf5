"""What the server answers below ``dhlab/``: scans opened, tiles, values, shapes; every error is JSON with a message."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import struct
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web
from tornado.iostream import StreamClosedError

from dhlab import __version__, env
from dhlab.annotations.store import places_of
from dhlab.errors import BadValueError, DHLabError, NotFoundError, UnknownNameError
from dhlab.io.pool import Stamp
from dhlab_lab.access import Access, Refused
from dhlab_lab.views import File, View, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dhlab.view.tiles import Style, TileRequest
    from dhlab_lab.documents import Documents, OpenDocument
    from dhlab_lab.workers import Pool, Workers

__all__ = ["HANDLERS", "ScansHandler", "ShapesHandler", "TileHandler", "ValuesHandler"]

Value = TypeVar("Value")
NUMBER = r"(\d{1,9})"
TOKEN = r"([A-Za-z0-9_.-]{1,200})"  # noqa: S105 - a pattern
PLACE = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
# What a browser shows at once, and before each tile's bytes: number, status, kind (of KINDS), size.
MOST_TILES, HEAD = 64, struct.Struct("<4I")
KINDS = ("application/json", "image/jpeg", "image/png")
STYLE = {"channel": int, "colors": str, "threshold": float, "low": float, "high": float}


class Handler(APIHandler):
    """What all have in common: the app's parts, the user, headers and errors."""

    auth_resource = "contents"

    def initialize(self, *, access: Access, views: Views, documents: Documents, workers: Workers) -> None:
        """Take over what `DHLab` made."""
        self.access = access
        self.views = views
        self.documents = documents
        self.workers = workers
        self._works: set[asyncio.Future[Any]] = set()

    @property
    def content_security_policy(self) -> str:
        """Nothing in these answers may run or load anything."""
        return f"{super().content_security_policy}; sandbox"

    @property
    def user(self) -> str:
        """Name of whoever is logged in."""
        return str(self.current_user.username)

    @property
    def author(self) -> str:
        """Whose edits these are: people without a name share the server of one who has a login."""
        user = self.current_user
        return env.user_name() if str(user.name).startswith("Anonymous") else str(user.username)

    async def forbidden(self) -> str | None:
        """Return why this person may not draw, or None."""
        allowed = self.authorizer.is_authorized(self, self.current_user, "write", self.auth_resource)
        return None if await ensure_async(allowed) else f"{self.author} may look here, and not write."

    def document(self, token: str) -> OpenDocument:
        """Return the document that a token is for (410 if it is not open any more)."""
        opened = self.documents.get(self.access.verify(self.user, token))
        if opened is None:
            raise Refused(410, "the server does not know this document any more. Open it again.")
        return opened

    async def work(self, work: Callable[[], Value], *, pool: Pool = "tiles") -> Value:
        """Do something slow in another thread, unless whoever asked has left before its turn."""
        future = self.workers.submit(work, pool=pool)
        self._works.add(future)
        try:
            with refusals():
                return await future
        except asyncio.CancelledError:
            raise web.Finish from None
        finally:
            # A handler lies around until the next garbage collection; an open scan must not.
            self._works.discard(future)

    def on_connection_close(self) -> None:
        """Drop work that nobody waits for any more."""
        for work in tuple(self._works):
            work.cancel()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the message of a refusal, else with what the status means."""
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, Refused):
            message = error.message
        elif error is None or isinstance(error, web.HTTPError):
            message = getattr(error, "log_message", None) or self._reason
        else:
            message = f"the server failed ({type(error).__name__}: {error}); its log says where."
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"message": message}))


class ScansHandler(Handler):
    """``POST dhlab/scans``: open a scan, annotations or a document, and give a token for its tiles or shapes."""

    @web.authenticated
    @authorized("read")
    async def post(self) -> None:
        """Answer ``{"token", "expires", "layer"}``."""
        path, stamp, on, drawn_in = self._wanted()
        if drawn_in:
            work = partial(
                self._open_document, path, on, self.author, await self.forbidden(), asyncio.get_running_loop()
            )
        else:
            work = partial(self._open, path, stamp, on)
        number, scene = await self.work(work, pool="files")
        token, expires = self.access.sign(self.user, number)
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"token": token, "expires": expires, "layer": scene}))

    def _wanted(self) -> tuple[str, Stamp | None, str | None, bool]:
        try:
            body = json.loads(self.request.body)
            path, stamp, on, drawn_in = body["path"], body.get("stamp"), body.get("on"), bool(body.get("document"))
            if not isinstance(path, str) or not isinstance(on, str | None) or (drawn_in and on is None):
                raise TypeError
            return path, None if stamp is None else Stamp(*(int(n) for n in stamp)), on, drawn_in
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Refused(
                400,
                'cannot understand what is asked; expected {"path": "…", "stamp": [size, mtime_ns] or null, "on": path '
                'of the scan that it lies on, or null, "document": whether to draw in it}.',
            ) from None

    def _open_document(
        self, path: str, on: str | None, author: str, forbidden: str | None, loop: asyncio.AbstractEventLoop
    ) -> tuple[str, dict[str, Any]]:
        assert on is not None
        real, scan = self.access.resolve(path), self._find(on)
        for place in places_of(real):
            self.access.check(Path(os.path.realpath(place)), path)
        number = self.access.identify(scan, real)
        return number, self.documents.open(number, real, scan, loop).scene(author, forbidden)

    def _open(self, path: str, stamp: Stamp | None, on: str | None) -> tuple[str, dict[str, Any]]:
        file = self._find(path)
        if stamp is not None and stamp != file.stamp:
            raise Refused(409, f"{path} has changed since it was opened. Open it again with dhlab.open.")
        if on is not None:
            file = File(file.path, file.stamp, self._find(on))
        number = self.access.identify(file)
        return number, self.views.open(number, file).scene

    def _find(self, path: str) -> File:
        real = self.access.resolve(path)
        try:
            stamp = Stamp.of(real)
        except (NotFoundError, OSError) as error:
            raise Refused(404, f"nothing at {path}; expected a scan. Check the path.") from error
        if not (real.is_file() or real.is_dir()):
            # Opening a pipe would wait for ever.
            raise Refused(415, f"{path} is neither file nor folder; expected a scan.")
        return File(real, stamp)


class ViewHandler(Handler):
    """An answer about a scan that is open under a token."""

    async def view(self, token: str) -> View:
        """Return the open scan, once it is clear that it is the right one and is shown to the right person."""
        number = self.access.verify(self.user, token)
        view = self.views.fresh(number)
        if view is None:
            opened = number in self.views
            view = await self.work(partial(self.views.reopen, number), pool="tiles" if opened else "files")
        return view

    def is_known(self, asked: object) -> bool:
        """Tell the browser to keep the answer, and return whether it has it already (and was told so).

        What stands under an address never changes: its token is for one state of one file.
        """
        self._etag = f'"{zlib.crc32(repr(asked).encode()):08x}-{__version__}"'
        self.set_header("Cache-Control", f"private, max-age={int(self.access.lifetime)}, immutable")
        self.set_etag_header()
        if self.check_etag_header():
            self.set_status(304)
            return True
        return False

    def compute_etag(self) -> str | None:
        """Return what was found without a look at the bytes."""
        return getattr(self, "_etag", None)

    def index(self) -> dict[str, int]:
        """Return the wanted position on further axes."""
        return {name: self.number(name, int) for name in "tz" if name in self.request.query_arguments}

    async def picture(self, view: View, request: TileRequest) -> tuple[bytes, str]:
        """Return a tile and its kind: at once if it is at hand, else from another thread."""
        kept = view.tiles.kept(request)
        return kept if kept is not None else await self.work(partial(view.tiles.picture, request))

    def style(self) -> Style:
        """Return how the tiles are wanted."""
        from dhlab.view.tiles import Style

        given = {name: self.number(name, kind) for name, kind in STYLE.items() if name in self.request.query_arguments}
        try:
            return Style(**given)
        except DHLabError as error:
            raise Refused(400, str(error)) from error

    def number(self, name: str, kind: Callable[[str], Value]) -> Value:
        """Return one parameter of the address as a number (or text)."""
        text = self.get_query_argument(name)
        try:
            value = kind(text)
        except ValueError:
            raise Refused(400, f"{name}={text!r}; expected a number.") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(400, f"{name}={text!r}; expected a finite number.")
        return value


class TileHandler(ViewHandler):
    """``GET dhlab/tiles/{token}/{level}/{row}/{column}``: one tile as a picture."""

    @web.authenticated
    @authorized
    async def get(self, token: str, level: str, row: str, column: str) -> None:
        """Answer the picture."""
        view = await self.view(token)
        with refusals():
            request = view.tiles.request((int(level), int(row), int(column)), self.style(), self.index())
        if self.is_known(request):
            return
        data, kind = await self.picture(view, request)
        self.finish(data, set_content_type=kind)


class TilesHandler(ViewHandler):
    """``GET dhlab/tiles/{token}?at=level.row.column,…``: several tiles in one answer, each as soon as it is there."""

    @web.authenticated
    @authorized
    async def get(self, token: str) -> None:
        """Answer a frame for each tile: number in the request, status, kind and size, four uint32; then its bytes."""
        view = await self.view(token)
        places, style, index = self._places(), self.style(), self.index()
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Cache-Control", "no-store")

        turn = asyncio.Lock()

        async def send(number: int, place: tuple[int, int, int]) -> None:
            try:
                with refusals():
                    request = view.tiles.request(place, style, index)
                data, kind = await self.picture(view, request)
                status = 200
            except Refused as error:
                data, kind = json.dumps({"message": error.message}).encode(), KINDS[0]
                status = error.status_code
            self.write(HEAD.pack(number, status, KINDS.index(kind), len(data)) + data)
            async with turn:
                await self.flush()

        try:
            await asyncio.gather(*(send(number, place) for number, place in enumerate(places)))
        except StreamClosedError:
            raise web.Finish from None

    def _places(self) -> list[tuple[int, int, int]]:
        text = self.get_query_argument("at")
        places = [PLACE.fullmatch(part) for part in text.split(",")]
        if len(places) > MOST_TILES or not all(places):
            raise Refused(400, f"at={text[:80]!r}; expected level.row.column, at most {MOST_TILES} with commas.")
        return [(int(found[1]), int(found[2]), int(found[3])) for found in places if found]


class ShapesHandler(ViewHandler):
    """``GET dhlab/shapes/{token}?cells=``: outlines of some cells; without cells, where all shapes are.

    Of a document ``revision=`` names the layer's revision whose cells are meant.
    """

    @web.authenticated
    @authorized
    async def get(self, token: str) -> None:
        """Answer numbers as `dhlab.view.shapes.pack` writes them."""
        cells = self._cells()
        if opened := self.documents.get(self.access.verify(self.user, token)):
            shapes = opened.shapes(self.number("revision", int) if "revision" in self.request.arguments else None)
            self.set_header("Cache-Control", "no-store")
        else:
            shapes = (await self.view(token)).shapes
            if self.is_known(cells):
                return
        data = await self.work(shapes.catalogue if cells is None else partial(shapes.outlines, cells))
        self.finish(data, set_content_type="application/octet-stream")

    def _cells(self) -> list[int] | None:
        text = self.get_query_argument("cells", None)
        try:
            # A cell that is asked for twice is sent once.
            return None if text is None else list(dict.fromkeys(map(int, text.split(","))))
        except ValueError:
            raise Refused(400, f"cells={text!r}; expected whole numbers with commas.") from None


class ValuesHandler(ViewHandler):
    """``GET dhlab/values/{token}?y=&x=``: what is stored at a level-0 pixel."""

    @web.authenticated
    @authorized
    async def get(self, token: str) -> None:
        """Answer ``{"values": [one number per channel, null where it is none]}``."""
        from dhlab.view.tiles import read_values

        view = await self.view(token)
        y, x = self.number("y", int), self.number("x", int)
        values = await self.work(partial(read_values, view.tiles.scan, y, x, index=self.index()))
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"values": [value if math.isfinite(value) else None for value in values]}))


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what a scan says into what the page is told."""
    try:
        yield
    except BadValueError as error:
        raise Refused(404, str(error)) from error
    except UnknownNameError as error:
        raise Refused(400, str(error)) from error
    except NotFoundError as error:
        raise Refused(410, str(error)) from error
    except (DHLabError, OSError) as error:
        raise Refused(422, str(error)) from error


HANDLERS = (
    (r"dhlab/scans", ScansHandler),
    (rf"dhlab/tiles/{TOKEN}", TilesHandler),
    (rf"dhlab/tiles/{TOKEN}/{NUMBER}/{NUMBER}/{NUMBER}", TileHandler),
    (rf"dhlab/shapes/{TOKEN}", ShapesHandler),
    (rf"dhlab/values/{TOKEN}", ValuesHandler),
)
