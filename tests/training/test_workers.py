"""Several processes of Horovod end with the weights of one; killed, stopped and lost workers cost nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dhlab import distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not distributed.horovod_build(), reason="needs Horovod with torch: bash binder/install.sh test --horovod"
    ),
]
SCRIPT = Path(__file__).with_name("workers.py")
NO_SIGNAL = 0  # kill(pid, 0) does nothing
# Sums in another order; a network at this rate multiplies the last digit a thousandfold in 24 batches.
TOLERANCE = 2e-3


def run(*arguments: object, workers: int = 0, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the script as so many workers; 0 is a plain process."""
    launcher = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(workers), *options]
    command = [*(launcher if workers else ()), sys.executable, str(SCRIPT), *map(str, arguments)]
    setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=setting, capture_output=True, text=True, timeout=240, check=False)


def difference(first: Path, second: Path) -> float:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    return max(float((one[k].double() - other[k].double()).abs().max() / (one[k].abs().max() + 1e-2)) for k in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that one process reaches."""
    folder = tmp_path_factory.mktemp("alone")
    for arguments in (("train", folder), ("fit", folder, NO_SIGNAL)):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_ends_with_the_same_weights(alone, tmp_path, workers):
    done = run("train", tmp_path, workers=workers)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) == 6
    for name in files:
        assert difference(tmp_path / name, alone / name) < TOLERANCE, name


def test_fit_of_two_workers_that_is_stopped_goes_on_and_ends_the_same(alone, tmp_path):
    stopped = run("fit", tmp_path, int(signal.SIGTERM), workers=2)
    assert stopped.returncode != 0
    assert (tmp_path / "run" / "last.safetensors").exists()
    done = run("fit", tmp_path, int(signal.SIGTERM), workers=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert difference(tmp_path / "fit.safetensors", alone / "fit.safetensors") < TOLERANCE
    # What two workers began, one can end, and the other way round.
    again = run("fit", tmp_path, NO_SIGNAL)
    assert again.returncode == 0, again.stderr[-2000:]


def test_what_one_worker_refuses_all_are_told(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    done = run("fit", tmp_path, NO_SIGNAL, workers=2)
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "[0]<stderr>:dhlab.errors.BadFileError" in told
    assert "run.json is no JSON" in told


def test_a_worker_that_is_killed_is_replaced_and_the_run_ends_the_same(alone, tmp_path):
    hosts = tmp_path / "hosts.sh"
    hosts.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")
    hosts.chmod(0o755)
    options = ("--min-np", "1", "--max-np", "2", "--host-discovery-script", str(hosts), "--network-interfaces", "lo")
    done = run("fit", tmp_path, int(signal.SIGKILL), workers=2, options=(*options, "--elastic-timeout", "60"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "hurt").exists()
    assert difference(tmp_path / "fit.safetensors", alone / "fit.safetensors") < TOLERANCE
    told = json.loads((tmp_path / "report.json").read_text())["tables"]["Workers"]
    assert [row["workers"] for row in told][:2] == [2, 1]
    assert torch.tensor([row["from batch"] for row in told]).diff().ge(0).all()
