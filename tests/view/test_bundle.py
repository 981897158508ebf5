"""What the browser loads is small, complete and the checkout's own."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "dhlab" / "view" / "static"
LAB = ROOT / "extensions" / "jupyterlab" / "labextension"
MOST_BYTES = 250_000
ELSEWHERE = r"(?:src|href)\s*=\s*[\"']https?:|import\(?[\"']https?:|url\(https?:"


def packed(paths: list[Path]) -> int:
    return sum(len(gzip.compress(path.read_bytes(), 6)) for path in paths)


@pytest.mark.parametrize("folder", [STATIC, LAB], ids=["widget", "lab"])
def test_the_front_is_small_and_carries_its_licences(folder) -> None:
    if not folder.exists():
        pytest.skip("the front is not built (npm)")
    files = [path for path in folder.rglob("*") if path.suffix in (".js", ".css")]
    size = packed(files)
    print(f"{folder.name}: {size / 1000:.0f} kB gzipped")
    assert 50_000 < size <= MOST_BYTES
    assert "ol 10" in (folder / "LICENSES.txt").read_text()
    # Nothing is fetched from elsewhere: addresses in the scripts are names of XML vocabularies or documentation.
    for path in files:
        assert not re.search(ELSEWHERE, path.read_text("utf-8"))


@pytest.mark.parametrize("project", ["viewer", "jupyterlab"])
def test_the_lock_names_no_registry(project) -> None:
    packages = json.loads((ROOT / "extensions" / project / "package-lock.json").read_text())["packages"]
    assert not [name for name, one in packages.items() if "resolved" in one]
    assert all("integrity" in one for name, one in packages.items() if name and not one.get("inBundle"))
