"""Compile every Triton kernel to machine code without a GPU, and count what it costs.

Run it as a script, outside Triton's interpreter::

    python tests/kernels/compiling.py            # the table
    python tests/kernels/compiling.py --write    # and keep it as what tests guard, in tests/golden/sass

Each ``compiled/<operation>.py`` lists the cases of one operation in ``CASES``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CAPABILITIES", "GOLDEN", "Case", "compile_all"]

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "sass"
CAPABILITIES = (80, 90)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", re.MULTILINE)
UNCOUNTED = {"NOP", "BRA", "EXIT"}


@dataclass(frozen=True)
class Case:
    """One way in which a kernel is compiled.

    Parameters
    ----------
    name
        What the table calls it.
    kernel
        The function that ``triton.jit`` made.
    signature
        Triton's type of every argument, ``"constexpr"`` for those in `constants`.
    constants
        Value of every constexpr argument.
    items
        Pixels (or logits, or instances) that one program handles: instructions are reported per item.
    warps
        Warps of a program.
    aligned
        Names of arguments that are multiples of 16, as Triton finds out at a launch.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    items: int
    warps: int = 4
    aligned: tuple[str, ...] = field(default=())


def compile_all(operation: str = "") -> list[dict[str, Any]]:
    """Return one row per case and capability: instructions per item, registers, spilled bytes, kinds of access."""
    rows = []
    for path in sorted((HERE / "compiled").glob(f"{operation or '*'}.py")):
        spec = importlib.util.spec_from_file_location(f"compiled_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        rows += [_compile(path.stem, case, capability) for case in module.CASES for capability in CAPABILITIES]
    return rows


def _compile(operation: str, case: Case, capability: int) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {name: index for index, name in enumerate(case.signature)}
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=case.constants,
        attrs={(places[name],): [["tt.divisibility", 16]] for name in case.aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": case.warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        answers = [
            subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-sass", "--dump-resource-usage")
        ]
    found = [i for i in INSTRUCTION.findall(answers[0]) if i not in UNCOUNTED]
    kinds = Counter(i.split(".")[0] for i in found)
    per_thread = case.items / (case.warps * 32)
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", answers[1])}
    return {
        "operation": operation,
        "case": case.name,
        "capability": capability,
        "instructions": len(found),
        "per_item": round(len(found) / per_thread, 2),
        "special_per_item": round(kinds["MUFU"] / per_thread, 2),
        "matrix": kinds["HMMA"] + kinds["HGMMA"],
        "registers": used.get("REG", 0),
        "spilled": kinds["STL"] + kinds["LDL"],
        "shared": compiled.metadata.shared,
        "triton": triton.__version__,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    head = (
        "operation",
        "case",
        "capability",
        "per_item",
        "special_per_item",
        "matrix",
        "registers",
        "spilled",
        "shared",
    )
    lines = [head, *(tuple(str(row[name]) for name in head) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile the Triton kernels for sm_80 and sm_90.")
    parser.add_argument("operation", nargs="?", default="", help="one file of compiled/; else all")
    parser.add_argument("--write", action="store_true", help="keep the counts as what tests guard")
    parser.add_argument("--json", action="store_true", help="print rows instead of a table")
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    found = compile_all(arguments.operation)
    if arguments.json:
        print(json.dumps(found))
    else:
        _print(found)
    if arguments.write:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for name in sorted({row["operation"] for row in found}):
            rows = [row for row in found if row["operation"] == name]
            (GOLDEN / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
