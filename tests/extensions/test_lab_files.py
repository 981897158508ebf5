"""JupyterLab opens what the library opens."""

from __future__ import annotations

import re

from servers import EXTENSION

from dhlab.io import READERS


def test_every_suffix_of_a_reader_opens_in_a_tab() -> None:
    source = (EXTENSION / "src" / "files.ts").read_text("utf-8")
    lists = dict(re.findall(r"const (SLIDES|VOLUMES|PICTURES) = \[(.*)\]", source))
    slides, volumes, pictures = (re.findall(r'"(.*?)"', lists[name]) for name in ("SLIDES", "VOLUMES", "PICTURES"))
    # JupyterLab's own type jpeg has both suffixes; .zarr is a folder, and .ome.tif a .tif.
    opened = {*slides, *volumes, *(f".{name}" for name in pictures), ".jpg", ".zarr"}
    assert opened == {suffix for suffix in READERS if not suffix.startswith(".ome.")}
