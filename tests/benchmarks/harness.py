"""Side-by-side benchmarks: correctness first, then ours and every installed peer on the same inputs, interleaved.

A benchmark is a script::

    from harness import Bench, Peer, main

    def measure(bench: Bench) -> None:
        image = ...                                    # made once, the same for everyone

        def peer() -> Callable[[], Any]:               # imports inside: an ImportError names the peer as absent
            import openslide
            return lambda: openslide.OpenSlide(path).read_region(...)

        bench.compare("aligned", ours, [Peer("openslide", peer, goal=3.3, package="openslide-python")],
                      work=1024, unit="tiles/s")

    if __name__ == "__main__":
        main("read", measure, tests=["tests/io/test_tiff.py"])

and takes ``--threads``, ``--rounds``, ``--clock`` and ``--json``. Timings are printed and stored, never asserted.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["ROOT", "Bench", "Peer", "main", "main_of_cases"]

ROOT = Path(__file__).resolve().parents[2]
THREAD_VARIABLES = (
    "DHLAB_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VIPS_CONCURRENCY",
)
PINNED = "DHLAB_BENCH_PINNED"
LEAST_ROUND_S = 0.02
MOST_CALLS = 10_000
SCALE = {"s": 1.0, "ms": 1e3, "µs": 1e6}


@dataclass(frozen=True)
class Peer:
    """Another way to do the same work.

    Parameters
    ----------
    name
        What the table calls it.
    make
        Imports the peer, prepares it and returns the function to time; an ImportError marks the peer as absent.
    goal
        The goal: how many times better ours should be (or which share of a physical limit).
    package
        Distribution whose version is recorded; else none.
    check
        Called once with our result and the peer's before anything is timed; raises AssertionError if they disagree.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    goal: float | None = None
    package: str = ""
    check: Callable[[Any, Any], None] | None = None


@dataclass
class Bench:
    """One run of one benchmark: measures, prints and collects rows."""

    name: str
    arguments: argparse.Namespace
    device: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self,
        case: str,
        ours: Callable[[], Any],
        peers: Sequence[Peer] = (),
        *,
        work: float = 1,
        unit: str = "ms",
        sync: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        """Time ours and the peers in interleaved rounds and add one row per peer.

        Parameters
        ----------
        case
            What is measured, as the table shows it.
        ours
            The function to time; it takes nothing.
        peers
            What to compare with.
        work
            Units of work that one call does; counts where `unit` ends in ``/s``.
        unit
            ``"s"``, ``"ms"``, ``"µs"`` (time per call, less is better) or a rate such as ``"tiles/s"``.
        sync
            Called before the clock stops, for work that is only queued (``torch.cuda.synchronize``).

        Returns
        -------
        dict of str to float
            Least seconds of every runner, ours under ``"dhlab"``.
        """
        runners: dict[str, Callable[[], Any]] = {"dhlab": ours}
        for peer in peers:
            try:
                runners[peer.name] = peer.make()
            except ImportError as error:
                print(f"  {peer.name}: absent ({error})")
        results = {name: run() for name, run in runners.items()}  # also the warm-up
        for peer in peers:
            if peer.check is not None and peer.name in results:
                peer.check(results["dhlab"], results[peer.name])
        results.clear()
        # A short call is timed many times in a row: alone it would measure cold caches and the clock.
        calls = {name: _calls(run, sync) for name, run in runners.items()}
        clock = time.process_time if self.arguments.clock == "cpu" else time.perf_counter
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(self.arguments.rounds):
            for name, run in runners.items():
                gc.collect()
                begin = clock()
                for _ in range(calls[name]):
                    run()
                if sync is not None:
                    sync()
                seconds[name].append(max(clock() - begin, 1e-9) / calls[name])
        for peer in peers or [Peer("", lambda: ours)]:
            self.record(
                case,
                _value(min(seconds["dhlab"]), work, unit),
                _value(min(seconds[peer.name]), work, unit) if peer.name in seconds else None,
                peer_name=peer.name,
                unit=unit,
                goal=peer.goal,
                package=peer.package,
                spread={
                    name: [_value(v, work, unit) for v in _quantiles(seconds[key])]
                    for name, key in (("ours", "dhlab"), ("peer", peer.name))
                    if key in seconds
                },
            )
        return {name: min(values) for name, values in seconds.items()}

    def record(
        self,
        case: str,
        ours: float,
        peer: float | None = None,
        *,
        peer_name: str = "",
        unit: str = "",
        goal: float | None = None,
        package: str = "",
        spread: dict[str, list[float]] | None = None,
        better: str = "",
    ) -> None:
        """Add one measured row, for example memory or a size that `compare` cannot time.

        Parameters
        ----------
        case
            What is measured.
        ours
            Our value in `unit`.
        peer
            The peer's value in `unit`; None if it is absent or there is none.
        peer_name
            Name of the peer or of the physical limit.
        unit
            Unit of both values.
        goal
            Wanted ratio.
        package
            Distribution whose version is recorded.
        spread
            Least, lower quartile, median and upper quartile of the times, as values, of ours and of the peer.
        better
            ``"more"`` or ``"less"``; else rates (``…/s``) are better when larger, everything else when smaller.
        """
        more = better == "more" or (not better and unit.endswith("/s"))
        ratio = None if peer is None else (ours / peer if more else peer / ours)
        row = {
            "benchmark": self.name,
            "case": case,
            "ours": ours,
            "peer": peer,
            "peer_name": peer_name,
            "unit": unit,
            "ratio": ratio,
            "goal": goal,
            "device": self.device or _processor(),
            "threads": self.arguments.threads,
            "versions": _versions(["numpy", *([package] if package else [])]),
            "commit": _commit(),
            "clock": self.arguments.clock,
            "spread": spread or {},
        }
        self.rows.append(row)

    def print_table(self) -> None:
        """Print all rows as one table."""
        head = ("case", "ours", "peer", "", "unit", "ratio", "goal", "median ratio")
        lines = [head]
        for row in self.rows:
            ratio, goal = row["ratio"], row["goal"]
            verdict = "" if ratio is None or goal is None else (" ✓" if ratio >= goal else " ✗")
            medians = [row["spread"][k][2] for k in ("ours", "peer") if k in row["spread"]]
            between = ""
            if len(medians) == 2:
                between = f"{medians[0] / medians[1] if row['unit'].endswith('/s') else medians[1] / medians[0]:.2f}×"
            lines.append(
                (
                    row["case"],
                    _short(row["ours"]),
                    row["peer_name"],
                    _short(row["peer"]) if row["peer"] is not None else ("absent" if row["peer_name"] else ""),
                    row["unit"],
                    "" if ratio is None else f"{ratio:.2f}×",
                    "" if goal is None else f"{goal:g}×{verdict}",
                    between,
                )
            )
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        print(
            f"\n{self.name}: {self.device or _processor()}, {self.arguments.threads} thread(s), "
            f"{self.arguments.clock} clock, minimum of {self.arguments.rounds} interleaved rounds, {_commit()}"
        )
        for number, line in enumerate(lines):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            if number == 0:
                print("  ".join("-" * width for width in widths))

    def append_json(self, path: Path) -> None:
        """Append all rows to a file, one JSON object per line."""
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def main(
    name: str,
    measure: Callable[[Bench], None],
    *,
    tests: Iterable[str] = (),
    rounds: int = 7,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Run a benchmark from the command line: pin threads, run its tests, measure, print, store.

    Parameters
    ----------
    name
        Short name, as in ``bench_<name>.py``.
    measure
        Does the work with `Bench.compare` and `Bench.record`.
    tests
        pytest targets relative to the repository that prove what is timed; nothing is timed if one fails.
    rounds
        Interleaved rounds unless ``--rounds`` says otherwise.
    options
        Adds arguments of its own; found in ``bench.arguments``.
    """
    parser = argparse.ArgumentParser(description=measure.__doc__ or f"benchmark {name}")
    parser.add_argument("--threads", type=int, default=1, help="cores to use (default: 1)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"interleaved rounds (default: {rounds})")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others use")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object per line")
    if options is not None:
        options(parser)
    arguments = parser.parse_args()
    _pin(arguments.threads)
    targets = list(tests)
    if targets and subprocess.call([sys.executable, "-m", "pytest", "-q", "-x", *targets], cwd=ROOT) != 0:
        sys.exit(f"{name}: the tests of what is timed fail; nothing was measured.")
    bench = Bench(name, arguments)
    measure(bench)
    bench.print_table()
    if arguments.json is not None:
        bench.append_json(arguments.json)


def main_of_cases(name: str, *, before: Callable[[Bench], None] | None = None, rounds: int = 7) -> None:
    """Run a benchmark whose cases lie in ``<name>/<case>.py``, all of them or those named with ``--only``.

    A module of cases has ``TESTS`` (pytest targets that prove what it times) and ``measure(bench)``.

    Parameters
    ----------
    name
        Short name, of the folder too.
    before
        Called once before the first case.
    rounds
        As in `main`.
    """
    folder = Path(__file__).parent / name
    known = sorted(path.stem for path in folder.glob("*.py"))

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", default="", help=f"with commas: {', '.join(known)}")

    def modules(only: str) -> list[Any]:
        names = only.split(",") if only else known
        if unknown := sorted(set(names) - set(known)):
            sys.exit(f"no cases named {', '.join(unknown)}; there are {', '.join(known)}")
        return [importlib.import_module(f"{name}.{one}") for one in names]

    def measure(bench: Bench) -> None:
        if before is not None:
            before(bench)
        for module in modules(bench.arguments.only):
            print(module.__name__, flush=True)
            module.measure(bench)

    first = argparse.ArgumentParser(add_help=False)
    options(first)
    wanted = modules(first.parse_known_args()[0].only)
    main(name, measure, tests=sorted({t for module in wanted for t in module.TESTS}), options=options, rounds=rounds)


def _pin(threads: int) -> None:
    """Restart once with thread counts and affinity set, for libraries that read them when loaded."""
    if os.environ.get(PINNED) == str(threads):
        return
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)) | {PINNED: str(threads), "PYTHONPATH": paths})
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv])


def _calls(run: Callable[[], Any], sync: Callable[[], None] | None) -> int:
    """Return how many calls in a row make a round long enough to time."""
    begin = time.perf_counter()
    run()
    if sync is not None:
        sync()
    return max(1, min(MOST_CALLS, math.ceil(LEAST_ROUND_S / max(time.perf_counter() - begin, 1e-9))))


def _value(seconds: float, work: float, unit: str) -> float:
    return work / seconds if unit.endswith("/s") else seconds * SCALE[unit]


def _quantiles(seconds: list[float]) -> list[float]:
    if len(seconds) < 2:
        return seconds * 4
    return [min(seconds), *statistics.quantiles(seconds, n=4, method="inclusive")]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions(packages: list[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"
