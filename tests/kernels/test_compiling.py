"""Every Triton kernel compiles for sm_80 and sm_90 without a GPU, spills nothing and has not grown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "sass"
OPERATIONS = sorted(path.stem for path in (HERE / "compiled").glob("*.py"))
# A new Triton may schedule a little differently; more than this and somebody should look.
SLACK = 1.05


@pytest.fixture(scope="module", params=OPERATIONS)
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return the counts of one operation, compiled in a process outside the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "compiling.py"), request.param, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_spills(rows: list[dict[str, Any]]) -> None:
    spilling = [(row["case"], row["capability"], row["spilled"]) for row in rows if row["spilled"]]
    assert not spilling


def test_no_kernel_has_grown(rows: list[dict[str, Any]]) -> None:
    golden = json.loads((GOLDEN / f"{rows[0]['operation']}.json").read_text())
    known = {(row["case"], row["capability"]): row for row in golden}
    assert known.keys() == {(row["case"], row["capability"]) for row in rows}, (
        "python tests/kernels/compiling.py --write"
    )
    if golden[0]["triton"] != metadata.version("triton"):
        pytest.skip(f"counted with Triton {golden[0]['triton']}")
    grown = [
        f"{row['case']} sm_{row['capability']}: {row['per_item']} instructions an item, was {before['per_item']}"
        for row in rows
        if row["per_item"] > (before := known[row["case"], row["capability"]])["per_item"] * SLACK
    ]
    assert not grown, grown


def test_every_kernel_is_counted() -> None:
    written = {path.stem for path in (HERE.parents[1] / "dhlab/kernels/_triton").glob("*.py")}
    assert written - {"__init__", "arithmetic", "density"} == set(OPERATIONS)
