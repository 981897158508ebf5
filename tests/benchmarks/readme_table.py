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
    """Return the rows as a Markdown table: ratios first, they are what a reader can carry to another machine."""
    lines = [
        "| what | ours | peer | times better | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, peer = (f"{row[key]:,.3g} {row['unit']}" for key in ("ours", "peer"))
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        name = f"{row['benchmark']}: {row['case']}"
        lines.append(f"| {name} | {ours} | {row['peer_name']}, {peer} | **{row['ratio']:.3g}** | {goal} |")
    device, threads = rows[0]["device"], rows[0]["threads"]
    return "\n".join([*lines, "", f"Measured side by side on {device}, {threads} thread(s), by `make bench`."])


def insert(text: str, table: str) -> str:
    """Return the README with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(insert(README.read_text("utf-8"), make_table(read_rows())), "utf-8")
