"""Documents that pages draw in: kept open, edited under the name of whoever is logged in, and told to all who look."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from dhlab.errors import DHLabError
from dhlab_lab.access import Refused
from dhlab_lab.handlers import TOKEN, Handler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dhlab.annotations import Document
    from dhlab.view.shapes import ShapeSource
    from dhlab_lab.views import File

__all__ = ["HANDLERS", "Documents", "OpenDocument"]

LOG = logging.getLogger(__name__)
LONGEST_WAIT_S = 25.0
# Shapes as of the last so many times that they were packed: a page may still be asking for those that it began with.
BASES = 4
MOST_CHANGED = 200


class OpenDocument:
    """A document that pages look at. Safe between threads, except for `wait`.

    Parameters
    ----------
    document
        The document.
    loop
        Where pages wait for news.
    """

    def __init__(self, document: Document, loop: asyncio.AbstractEventLoop) -> None:
        from dhlab.view.editing import Editor
        from dhlab.view.viewer import Layer

        self.document = document
        self.turn = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._editor = Editor(document, lambda _: None)
        self._lock = Lock()
        self._bases = [Layer.of(document, id=0, name=document.path.name)]
        self._loop = loop
        document.observe(self._hear)

    @property
    def is_watched(self) -> bool:
        """Whether a page waits for news."""
        return bool(self._waiting)

    def scene(self, author: str, forbidden: str | None) -> dict[str, Any]:
        """Return what a page must know before it asks for shapes; packs them anew if many have changed.

        Parameters
        ----------
        author
            Who looks.
        forbidden
            Why this person may not draw, or None.
        """
        from dhlab.view.scene import describe_layer

        with self._lock:
            layer = self._bases[-1]
            update = self.document.changes_since(layer.packed)
            if update is None or len(update.objects) > MOST_CHANGED:
                layer = layer.showing(self.document)
                self._bases = [*self._bases[1 - BASES :], layer]
        scene = describe_layer(layer, self.document.scan)
        own = {"author": author} | ({"readOnly": forbidden} if forbidden else {})
        return scene | {"document": scene["document"] | own}

    def shapes(self, revision: int | None) -> ShapeSource:
        """Return the shapes as they were packed for a revision of the layer, or last.

        Raises
        ------
        Refused
            410 if that was too long ago.
        """
        with self._lock:
            for layer in reversed(self._bases):
                if revision in (None, layer.revision):
                    assert layer.shapes is not None
                    return layer.shapes
        raise Refused(410, f"the shapes of revision {revision} are gone; ask for the document anew.")

    def answer(self, message: dict[str, Any], author: str, forbidden: str | None) -> dict[str, Any]:
        """Do what a message asks for, and give the shapes anew if very many have changed."""
        answer = self._editor.answer(message, author)
        return answer | ({"layer": self.scene(author, forbidden)} if answer.get("reload") else {})

    async def wait(self, revision: int, waiting: Callable[[asyncio.Future[None]], None]) -> None:
        """Wait until the document is at another revision, but not for ever.

        Parameters
        ----------
        revision
            What the page knows.
        waiting
            Is given what to cancel if the page leaves.
        """
        end = time.monotonic() + LONGEST_WAIT_S
        while self.document.revision == revision and time.monotonic() < end:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(news)
            waiting(news)
            try:
                await asyncio.wait_for(news, end - time.monotonic())
            except TimeoutError:
                return
            finally:
                self._waiting.discard(news)

    def close(self) -> None:
        """Write the file and let go of it; if that fails, the log says why, and the edits are safe beside it."""
        self._editor.end()
        try:
            self.document.close()
        except (DHLabError, OSError) as error:
            LOG.warning("%s is closed and was not written: %s", self.document.path, error)

    def _hear(self, _: object) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for news in self._waiting:
            if not news.done():
                news.set_result(None)


class Documents:
    """The documents that the server has open, by their numbers. Safe between threads.

    Parameters
    ----------
    most_open
        So many are kept open; beyond, those that nobody looks at are closed, the one used longest ago first.
    """

    def __init__(self, most_open: int) -> None:
        self.most_open = most_open
        self._open: OrderedDict[str, OpenDocument] = OrderedDict()
        self._lock = Lock()

    def open(self, number: str, path: Path, on: File, loop: asyncio.AbstractEventLoop) -> OpenDocument:
        """Return a document, to be known by a number from now on; pages wait for its news in `loop`; reads from disk.

        Raises
        ------
        Refused
            415 if it cannot be opened.
        """
        import dhlab

        with self._lock:
            if number not in self._open:
                try:
                    document = dhlab.Document.open(dhlab.open(on.path), path)
                    self._open[number] = OpenDocument(document, loop)
                except (DHLabError, OSError) as error:
                    raise Refused(415, str(error)) from error
            self._open.move_to_end(number)
            idle = [other for other, one in self._open.items() if not one.is_watched and other != number]
            surplus = [self._open.pop(other) for other in idle[: max(0, len(self._open) - self.most_open)]]
            opened = self._open[number]
        # What is slow to close holds up nobody else.
        for one in surplus:
            one.close()
        return opened

    def get(self, number: str) -> OpenDocument | None:
        """Return a document that is open, or None."""
        return self._open.get(number)

    def close(self) -> None:
        """Close all."""
        with self._lock:
            every = list(self._open.values())
            self._open.clear()
        for one in every:
            one.close()


class DocumentHandler(Handler):
    """``POST dhlab/documents/{token}``: ask something of a document, or edit it, which not everybody may."""

    @web.authenticated
    @authorized("read")
    async def post(self, token: str) -> None:
        """Answer what `dhlab.view.editing.Editor.answer` gives; an edit is on the disk by then."""
        from dhlab.view.editing import EDITS

        opened = self.document(token)
        try:
            message = json.loads(self.request.body)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Refused(400, 'cannot understand what is asked; expected {"action": "…", …}.')
        forbidden = await self.forbidden()
        if forbidden and str(message.get("action")) in EDITS:
            raise Refused(403, forbidden)
        # One after the other, as they came.
        async with opened.turn:
            answer = await self.work(partial(opened.answer, message, self.author, forbidden))
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(answer))


class ChangesHandler(Handler):
    """``GET dhlab/documents/{token}/changes?since=``: what is new, as soon as something is."""

    @web.authenticated
    @authorized
    async def get(self, token: str) -> None:
        """Answer what `news_since` gives; if that is too much to tell, ``layer``, and ``anew`` if it counts anew."""
        from dhlab.view.editing import news_since

        opened = self.document(token)
        try:
            since = int(self.get_query_argument("since"))
        except ValueError:
            raise Refused(400, "since is no number; expected the revision that the page knows.") from None
        try:
            await opened.wait(since, self._works.add)
        except asyncio.CancelledError:
            raise web.Finish from None
        news = await self.work(partial(news_since, opened.document, since))
        if news.get("reload"):
            news |= {"layer": await self.work(partial(opened.scene, self.author, await self.forbidden()))}
            # A document that was closed meanwhile and opened again counts its revisions anew.
            news |= {"anew": since > news["revision"]}
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(news))


HANDLERS = ((rf"dhlab/documents/{TOKEN}", DocumentHandler), (rf"dhlab/documents/{TOKEN}/changes", ChangesHandler))
