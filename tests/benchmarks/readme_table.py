"""Put the stored rows into the README: ``python tests/benchmarks/readme_table.py``.

Benchmark rows stand in ``results.jsonl``, written by ``make bench args="--json tests/benchmarks/results.jsonl"``; those
of quality on real data in ``quality.jsonl``, written by ``quality.py --json tests/benchmarks/quality.jsonl``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS, QUALITY, README = HERE / "results.jsonl", HERE / "quality.jsonl", HERE.parents[1] / "README.md"


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
    lines = ["| what | ours | peer | ratio | goal |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ours, peer = (f"{_short(row[key])} {row['unit']}" for key in ("ours", "peer"))
        # A limit's name holds its value.
        peer = row["peer_name"] if row["peer_name"].startswith("limit: ") else f"{row['peer_name']}, {peer}"
        ratio = f"**{row['ratio']:.2f}**" if row["ratio"] >= row["goal"] else f"{row['ratio']:.2f} (missed)"
        name = f"{row['benchmark']}: {row['case']}"
        lines.append(f"| {name} | {ours} | {peer} | {ratio} | {row['goal']:g} |")
    device, threads = rows[0]["device"], rows[0]["threads"]
    said = f"Ratio: how many times better. Side by side on one {device} core ({threads} thread), what has a"
    said += "\nbrowser, napari or several processes in it on two, by `make bench`."
    return "\n".join([*lines, "", said])


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
    """Return the README with a table between its two marks.

    Parameters
    ----------
    text
        The README.
    table
        The table.
    name
        Name in the marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    page = insert(README.read_text("utf-8"), make_table(read_rows()))
    README.write_text(insert(page, make_quality_table(read_quality()), name="quality"), "utf-8")
