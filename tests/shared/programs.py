"""Programs of a site that say what a test wants, where the real ones cannot be brought to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def put_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Let programs be shell scripts of a folder; those of Slurm that submit take everything unless they are given."""
    folder.mkdir(exist_ok=True)
    others = {"sbatch": "echo Submitted batch job 17", "scontrol": "true", "srun": "true"}
    for name, does in {**others, **programs}.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
