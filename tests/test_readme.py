"""The README shows what was measured, and its pictures and links are there."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_the_tables_are_the_stored_rows() -> None:
    spec = importlib.util.spec_from_file_location("tables", BENCHMARKS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.read_rows()
    assert tables.read_quality()
    page = (BENCHMARKS / "README.md").read_text("utf-8")
    assert tables.write_pages(TEXT, page) == (TEXT, page), "run python tests/benchmarks/tables.py"


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", TEXT)
    assert targets
    for target, section in targets:
        assert (ROOT / target).exists(), target
        if section:
            headings = re.findall(r"^#+ (.*)", (ROOT / target).read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert section in anchors, f"{target}#{section}"


def test_the_code_names_public_things() -> None:
    import dhlab as dh

    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    used = {n.attr for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    names = {name for name in used if name in dh.__all__}
    assert {
        "open",
        "load_model",
        "predict",
        "Annotations",
        "show",
        "create_model",
        "fit",
        "evaluate",
        "export",
    } <= names


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = "\n".join(TEXT.splitlines()[:40])
    assert "make demo" in first
    assert "make test" in first
