"""dhlab's own notebooks: which there are, and a copy of one in a person's folder."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from tornado import web

from dhlab_lab.access import Refused
from dhlab_lab.handlers import Handler

__all__ = ["HANDLERS", "Notebook", "NotebooksHandler", "list_notebooks"]

CHECKOUT = Path(__file__).parents[3] / "notebooks"
INSTALLED = Path(sys.prefix) / "share" / "dhlab" / "notebooks"


@dataclass(frozen=True)
class Notebook:
    """One of dhlab's notebooks.

    Parameters
    ----------
    name
        File name.
    title
        Its first heading.
    summary
        What it asks, in a sentence or two; may be empty.
    """

    name: str
    title: str
    summary: str


@cache
def list_notebooks(folder: Path | None = None) -> tuple[Notebook, ...]:
    """Return the notebooks of a folder in the order of their names, by default those that came with dhlab."""
    return tuple(_describe(path) for path in sorted((folder or _home()).glob("*.ipynb")))


class NotebooksHandler(Handler):
    """``GET dhlab/notebooks``: what there is. ``POST`` ``{"name", "folder"}``: copy one, below the server's root."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer ``{"notebooks": [{"name", "title", "summary"}]}``."""
        self.finish(json.dumps({"notebooks": [asdict(one) for one in list_notebooks()]}))

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Answer ``{"path"}`` of the copy; a name that is taken gets a number."""
        body = self.get_json_body() or {}
        name, folder = str(body.get("name", "")), str(body.get("folder", "")).strip("/")
        known = [one.name for one in list_notebooks()]
        if name not in known:
            raise Refused(404, f"no notebook {name!r}; expected one of {', '.join(known)}.")
        content = json.loads((_home() / name).read_text("utf-8"))
        # The contents manager knows where this person may write, and how.
        manager: Any = self.contents_manager
        if not await ensure_async(manager.dir_exists(folder)):
            raise Refused(404, f"no folder {folder!r}; expected one below the server's root. Choose another folder.")
        free = await ensure_async(manager.increment_filename(name, folder, insert="-"))
        model = {"type": "notebook", "format": "json", "content": content}
        made = await ensure_async(manager.new(model, f"{folder}/{free}".lstrip("/")))
        self.set_status(201)
        self.finish(json.dumps({"path": made["path"]}))


def _home() -> Path:
    return CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def _describe(path: Path) -> Notebook:
    cells: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    text = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), "")
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    title = next((part.removeprefix("# ") for part in parts if part.startswith("# ")), path.stem)
    # A line in italics warns; it does not tell what the notebook is about.
    summary = next((part for part in parts if part and part[0] not in "#*"), "")
    return Notebook(path.name, title, summary)


HANDLERS = ((r"dhlab/notebooks", NotebooksHandler),)
