"""Four real workers: gradients of any kind become the sum of all, groups of workers train side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dhlab import distributed
from dhlab.training import load_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not distributed.horovod_build(), reason="needs Horovod with torch: bash binder/install.sh test --horovod"
    ),
]
SCRIPT = Path(__file__).with_name("collectives.py")


def test_four_workers_agree(tmp_path):
    command = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "4", sys.executable, str(SCRIPT)]
    setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, str(tmp_path)], env=setting, capture_output=True, text=True, timeout=240, check=False
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert told.count("all is well") == 4
    assert [load_run(tmp_path / f"fold-{group}").card.task for group in (0, 1)] == ["classification"] * 2
