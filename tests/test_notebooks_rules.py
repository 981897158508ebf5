"""Every notebook keeps the rules that make it a test with prose (CONTRIBUTING.md, "Notebooks")."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = ["Question", "Data", "Method", "Result", "Limits"]
LONGEST_CELL, LONGEST_FUNCTION, LARGEST_FILE = 12, 8, 200_000

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parsed(source: str) -> ast.Module:
    plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    return ast.parse(plain)


def test_opens_with_a_title_and_has_the_five_sections(path: Path) -> None:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown").splitlines()
    titles = [line[2:] for line in prose if line.startswith("# ")]
    assert read(path).cells[0].source.startswith("# "), "the first cell is the H1 title"
    assert len(titles) == 1, f"one H1 title, not {titles}"
    headings = [line[3:].strip() for line in prose if line.startswith("## ")]
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS, f"{SECTIONS} in this order: {headings}"


def test_says_that_it_is_for_research(path: Path) -> None:
    text = " ".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown").lower()
    assert "research use only" in text


def test_has_one_cell_of_parameters(path: Path) -> None:
    (cell,) = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
    for statement in parsed(cell.source).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign), "papermill replaces plain assignments only"


def test_cells_are_short_and_define_little(path: Path) -> None:
    for cell in code_cells(path):
        first, length = cell.source.split("\n", 1)[0], len(cell.source.splitlines())
        assert length <= LONGEST_CELL, f"{length} lines from {first!r}: what is long belongs in the library"
        for node in ast.walk(parsed(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines: it belongs in the library"


def test_a_result_is_really_compared(path: Path) -> None:
    compared = [cell for cell in code_cells(path) if "nbval-check-output" in tags(cell)]
    assert compared, "tag the cell that prints the rounded result: nbval-check-output"
    for cell in compared:
        first = cell.source.split("\n", 1)[0]
        assert cell.outputs, f"{first!r} has no stored output to compare with"
        assert cell.execution_count, f"{first!r} has no execution_count, so nbval would not compare it"
        assert "keep_output" in tags(cell), f"{first!r} needs the tag keep_output, or nbstripout empties it"
        assert not any(output.output_type == "error" for output in cell.outputs), f"{first!r} stores an error"


def test_stores_no_widgets_and_little_else(path: Path) -> None:
    notebook: dict[str, Any] = read(path)
    assert "widgets" not in notebook["metadata"], "nbstripout --keep-count --extra-keys metadata.widgets"
    assert path.stat().st_size <= LARGEST_FILE, f"{path.stat().st_size} bytes: strip outputs that are not compared"


def test_names_no_path_of_one_machine(path: Path) -> None:
    for cell in code_cells(path):
        for word in ("/home/", "/Users/", "/tmp/", "C:\\"):
            assert word not in cell.source, f"{word} in a cell: use dh.sample(...) or tempfile"
