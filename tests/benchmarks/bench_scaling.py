"""Two workers that train one network: Horovod as dhlab uses it beside torch's DDP, both on gloo, a core each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, Bench, main

WORKERS = 2
SCRIPT = ROOT / "tests" / "benchmarks" / "scaling" / "workers.py"


def measure(bench: Bench) -> None:
    """Alternate the kinds in the same processes, so that a busy machine hurts all alike; record the best of each."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        launcher = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(WORKERS)]
        arguments = [str(target), str(3 * bench.arguments.rounds), ",".join(map(str, cores))]
        setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([*launcher, sys.executable, str(SCRIPT), *arguments], check=True, env=setting)
        found = json.loads(target.read_text())
    for name, seconds in found["seconds"].items():
        rates = {kind: 1 / min(times) for kind, times in seconds.items()}
        case = f"{name}, {WORKERS} workers on {len(cores)} cores"
        bench.record(case, rates["Horovod"], rates["DDP"], peer_name="torch DDP (gloo)", unit="steps/s", goal=1.0)
        bench.record(case, rates["Horovod"], rates["none"], peer_name="no communication (limit)", unit="steps/s")
    print("  Sums of ResNet-18's gradients over the workers, layer by layer:")
    for row in found["layers"]:
        print(f"    {row['layer']:<8} {row['MB']:7.2f} MB {row['ms']:8.2f} ms")


if __name__ == "__main__":
    main("scaling", measure, tests=["tests/test_distributed.py"], rounds=7)
