"""Put the stored rows into their pages: ``python tests/benchmarks/tables.py``.

All rows that have a goal go to the README beside this file, one per task to that of the project.

Benchmark rows stand in ``results.jsonl``, written by ``make bench args="--json tests/benchmarks/results.jsonl"``; those
of quality on real data in ``quality.jsonl``, written by ``quality.py --json tests/benchmarks/quality.jsonl``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS, QUALITY = HERE / "results.jsonl", HERE / "quality.jsonl"
README, PAGE = HERE.parents[1] / "README.md", HERE / "README.md"
HEAD = ("| what | ours | peer | ratio | goal |", "| --- | --- | --- | --- | --- |")
# What a person does, as the README names it, and the row that says how fast that is.
HEADLINES = {
    "tiles from a slide, random order": ("read", "aligned tiles, random order", "openslide"),
    "tiles from OME-Zarr, unaligned": ("omezarr", "unaligned, zstd", "zarr-python"),
    "tissue of a slide": ("tissue", "mask of 2048² px, H&E", "CLAM (OpenCV)"),
    "slide file to augmented batch": (
        "kernels",
        "from SVS to augmented batch",
        "OpenSlide, albumentations + HEStain",
    ),
    "augmentation with stain": ("kernels", "whole pipeline, 16 × 256²", "torchvision v2 + HED"),
    "stain jitter alone": ("kernels", "stain jitter and normalise, 32 × 256²", "OpenCV tables"),
    "Macenko normalisation": ("kernels", "Macenko 1 × 1024²", "torchstain torch"),
    "Dice + cross-entropy": ("kernels", "Dice + cross-entropy, 4 × 6 × 512²", "MONAI DiceCE"),
    "loader of JPEG files": ("training", "loader: JPEG files of 256 px", "torchvision ImageFolder"),
    "steps of ResNet-18": ("training", "steps of ResNet-18, 96 px, batch 16", "Lightning"),
    "ResNet-18 with 2 workers": ("scaling", "ResNet-18, 2 workers on 2 cores", "torch DDP (gloo)"),
    "slide to heat map": ("predict", "slide to heat map", "MONAI"),
    "tiles in the browser": ("viewer", "tiles at the page by HTTP, 64 wanted at a time", "jupyter-islide"),
    "features of a pixel classifier": ("annotation", "scikit-image's features, 4 scales, RGB 1024²", "scikit-image"),
}


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """Return the newest row of every benchmark, case and peer, in the order of the file."""
    return list({(row["benchmark"], row["case"], row["peer_name"]): row for row in _read(path)}.values())


def read_quality(path: Path = QUALITY) -> list[dict[str, Any]]:
    """Return the newest row of every question, in the order of the file."""
    return list({row["name"]: row for row in _read(path)}.values())


def make_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows that have a goal as a Markdown table, missed goals among them.

    Parameters
    ----------
    rows
        What the benchmarks wrote.
    """
    rows = [row for row in rows if row["goal"] is not None]
    lines = [_cells(f"{row['benchmark']}: {row['case']}", row) for row in rows]
    return "\n".join([*HEAD, *lines])


def make_headlines(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `HEADLINES` as a Markdown table, and how many goals were reached over all rows.

    Parameters
    ----------
    rows
        What the benchmarks wrote.
    """
    known = {(row["benchmark"], row["case"], row["peer_name"]): row for row in rows}
    lines = [_cells(name, known[key]) for name, key in HEADLINES.items()]
    goals = [row["ratio"] >= row["goal"] for row in rows if row["goal"] is not None]
    said = (
        f"{sum(goals)} of {len(goals)} goals are reached; [all rows](tests/benchmarks/README.md) name the missed ones."
    )
    return "\n".join([*HEAD, *lines, "", said])


def make_quality_table(rows: list[dict[str, Any]]) -> str:
    """Return what training reaches on real data as a Markdown table.

    Parameters
    ----------
    rows
        What ``quality.py`` wrote.
    """
    lines = [
        "| question (`quality.py …`) | data | figure | held out | 95 % interval | rival | others |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (
            f"{row['what']} (`{row['name']}`)",
            row["source"],
            row["figure"],
            f"**{row['value']:.3f}**",
            f"{row['low']:.3f} to {row['high']:.3f}, {row['n']} {row['unit']}",
            f"{row['baseline']:.3f}",
            row["published"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def insert(text: str, table: str, *, name: str = "benchmarks") -> str:
    """Return a page with a table between its two marks.

    Parameters
    ----------
    text
        The page.
    table
        The table.
    name
        Name in the marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def write_pages(readme: str, page: str) -> tuple[str, str]:
    """Return the README and the page of the benchmarks with the tables of the stored rows.

    Parameters
    ----------
    readme
        The README.
    page
        The page of the benchmarks.
    """
    rows = read_rows()
    readme = insert(readme, make_headlines(rows))
    readme = insert(readme, make_quality_table(read_quality()), name="quality")
    return readme, insert(page, make_table(rows))


def _cells(name: str, row: dict[str, Any]) -> str:
    ours, peer = (f"{_short(row[key])} {row['unit']}" for key in ("ours", "peer"))
    # A limit's name holds its value.
    peer = row["peer_name"] if row["peer_name"].startswith("limit: ") else f"{row['peer_name']}, {peer}"
    ratio = f"**{row['ratio']:.2f}**" if row["ratio"] >= row["goal"] else f"{row['ratio']:.2f} (missed)"
    return f"| {name} | {ours} | {peer} | {ratio} | {row['goal']:g} |"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    pages = write_pages(README.read_text("utf-8"), PAGE.read_text("utf-8"))
    for place, text in zip((README, PAGE), pages, strict=True):
        place.write_text(text, "utf-8")
