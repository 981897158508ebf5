"""Put the stored benchmark rows into the README: ``python tests/benchmarks/readme_table.py``.

The rows stand in ``results.jsonl``, written by ``make bench args="--json tests/benchmarks/results.jsonl"``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS, README = HERE / "results.jsonl", HERE.parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """Return the newest row of every benchmark, case and peer, in the order of the file."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return list({(row["benchmark"], row["case"], row["peer_name"]): row for row in rows}.values())


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
        ratio = f"**{row['ratio']:.2f}**" if row["ratio"] >= row["goal"] else f"{row['ratio']:.2f} (missed)"
        name = f"{row['benchmark']}: {row['case']}"
        lines.append(f"| {name} | {ours} | {row['peer_name']}, {peer} | {ratio} | {row['goal']:g} |")
    device, threads = rows[0]["device"], rows[0]["threads"]
    said = f"Ratio: how many times better. Side by side on one {device} core ({threads} thread), by `make bench`."
    return "\n".join([*lines, "", said])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def insert(text: str, table: str) -> str:
    """Return the README with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(insert(README.read_text("utf-8"), make_table(read_rows())), "utf-8")
