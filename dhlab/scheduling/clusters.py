"""Where jobs run: processes of this machine, or Slurm; submitit hands them over, and begins them again in time."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from dhlab.atomic import is_alive, process_identity
from dhlab.errors import BadValueError, SchedulerError
from dhlab.scheduling.folder import CANCELLED, ERROR, REQUEST
from dhlab.scheduling.heartbeat import is_beating

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dhlab.scheduling.folder import JobFolder
    from dhlab.scheduling.launching import Launch
    from dhlab.scheduling.request import Request

__all__ = ["Cluster", "Sight", "choose_cluster", "cluster_named"]

SECONDS_TO_STOP = 10.0
SECONDS_BETWEEN_QUESTIONS, SECONDS_AFTER_REFUSAL = 1.0, 10.0
SECONDS_THAT_CLOCKS_DIFFER = 60.0
DAYS_WITHOUT_LIMIT = 3650
QUEUED = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "SUSPENDED",
}
RUNNING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}
WAITINGS = {
    "BeginTime": "Slurm begins it again in a while",
    "Dependency": "waits for another job",
    "Priority": "others come first",
    "Resources": "waits for free machines",
}
ENDINGS = {
    "BOOT_FAIL": "its machine did not start",
    "COMPLETED": "it ended by itself and left no result",
    "DEADLINE": "it could not end before its deadline",
    "NODE_FAIL": "its machine failed",
    "OUT_OF_MEMORY": "it needed more memory than it had asked for: options={'mem': …}",
    "PREEMPTED": "it had to make room for another job",
    "TIMEOUT": "its time was over before it could write its state: minutes=…",
}
# What sacct says on sites that keep no accounts, or have no such program.
NO_ACCOUNTS = ("accounting storage is disabled", "No such file or directory: 'sacct'")


@dataclass(frozen=True)
class Sight:
    """How a cluster sees a job: ``queued``, ``running``, ``ended`` or ``unknown``, why, and its own word for that."""

    state: str
    reason: str = ""
    word: str = ""


class Cluster(Protocol):
    """What both kinds can do."""

    def start(self, folder: JobFolder, request: Request, launches: Sequence[Launch]) -> str:
        """Hand a job over and return the cluster's number for it."""

    def look(self, folder: JobFolder, number: str) -> Sight:
        """Return how the cluster sees a job."""

    def cancel(self, folder: JobFolder, number: str) -> None:
        """Stop a job; its workers are asked first, and can write their state."""


class Local:
    """Processes of this machine, in a session of their own: they outlive the notebook."""

    def start(self, folder: JobFolder, request: Request, launches: Sequence[Launch]) -> str:
        """Start the process that watches over a job."""
        import submitit

        executor = submitit.LocalExecutor(folder.path, max_num_timeout=request.max_requeues)
        minutes = request.minutes if request.minutes is not None else DAYS_WITHOUT_LIMIT * 1440
        wait = shlex.join([sys.executable, "-m", "dhlab.scheduling.waiting", str(folder.path)])
        executor.update_parameters(
            timeout_min=minutes,
            signal_delay_s=request.signal_s,
            stderr_to_stdout=True,
            # A shell that traps something stays: by its number submitit knows the job.
            setup=["trap : EXIT", wait] if request.after else [],
        )
        return process_identity(int(executor.submit(launches[0]).job_id))

    def look(self, folder: JobFolder, number: str) -> Sight:
        """Return whether the watching process lives, or the one that it started."""
        attempts, alive = folder.attempts(), is_alive(number)
        if alive is None:
            # Of another machine, or of this one before it was started again.
            begun = "running" if attempts else "queued"
            return Sight(begun if is_beating(folder.job.path) else "ended")
        if attempts and is_alive(attempts[-1]["process"]):
            return Sight("running")
        return Sight("queued" if alive else "ended")

    def cancel(self, folder: JobFolder, number: str) -> None:
        """Ask every process of the job to stop, and end those that have not after ten seconds."""
        if is_alive(number) is None:
            raise SchedulerError(f"the job runs on another machine ({number}). Cancel it there.")
        known = (number, *(attempt["process"] for attempt in folder.attempts()))
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for group in _groups(known):
                with suppress(ProcessLookupError):
                    os.killpg(group, kind)
            deadline = time.monotonic() + SECONDS_TO_STOP
            while self.look(folder, number).state != "ended" and time.monotonic() < deadline:
                time.sleep(0.05)


class Question:
    """A command of Slurm; when nobody answers it is not run again at once, for it takes long to find that out.

    Parameters
    ----------
    command
        The command, and those of its arguments that are always the same.
    """

    def __init__(self, *command: str) -> None:
        self.command = command
        self.asked = -math.inf
        self.refusal: SchedulerError | None = None

    @property
    def age_s(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self.asked

    def is_fresh(self) -> bool:
        """Return whether the last answer is good enough."""
        return self.refusal is None and self.age_s < SECONDS_BETWEEN_QUESTIONS

    def ask(self, *arguments: str) -> str:
        """Run it and return what it prints."""
        if self.refusal is not None and self.age_s < SECONDS_AFTER_REFUSAL:
            raise self.refusal
        self.refusal = None
        try:
            return run_slurm(*self.command, *arguments)
        except SchedulerError as error:
            self.refusal = error
            raise
        finally:
            self.asked = time.monotonic()


class Slurm:
    """Slurm, through its own commands; no ssh, no MPI."""

    def __init__(self) -> None:
        self.seen: dict[str, Sight] = {}
        self.forgotten: dict[str, Sight] = {}
        self.queue = Question("squeue", "--me", "--states=all", "--array", "--noheader", "--format=%i|%T|%r")
        self.accounts = Question("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode")

    def start(self, folder: JobFolder, request: Request, launches: Sequence[Launch]) -> str:
        """Run ``sbatch``."""
        import submitit

        # The shell becomes Python, so that Slurm's signal reaches it.
        python = f"exec {shlex.quote(sys.executable)}"
        executor = submitit.SlurmExecutor(folder.path, max_num_timeout=request.max_requeues, python=python)
        workers = request.workers // request.nodes
        optional = {
            "partition": request.partition,
            "gpus_per_node": workers * request.gpus or None,
            "dependency": self._dependency(request),
        }
        executor.update_parameters(
            job_name=request.name,
            time=math.ceil(request.minutes or 0),
            nodes=request.nodes,
            ntasks_per_node=workers,
            stderr_to_stdout=True,
            use_srun=False,
            # Slurm may warn a minute early, before Python listens: that would end a short job at its start.
            setup=["trap '' USR2"],
            additional_parameters={
                "signal": f"B:USR2@{request.signal_s}",
                "requeue": True,
                "kill-on-invalid-dep": "yes",
                **({"no-kill": True} if request.least_workers else {}),
                **request.options,
            },
            **{name: value for name, value in optional.items() if value},
        )
        jobs = executor.submit_array(launches)
        return str(jobs[0].job_id).partition("_")[0]

    def look(self, folder: JobFolder, number: str) -> Sight:
        """Return what ``squeue`` says of a job; when it has forgotten it, its folder, or else ``sacct``."""
        if number in self.forgotten:
            return self.forgotten[number]
        handed_over = (folder.job.path / REQUEST).stat().st_mtime
        is_new = time.time() - handed_over < self.queue.age_s + SECONDS_THAT_CLOCKS_DIFFER
        if not self.queue.is_fresh() or (is_new and number not in self.seen):
            self.seen = {name: _sight(state, why) for name, state, why in _rows(self.queue.ask(), 3)}
        if number in self.seen:
            return self.seen[number]
        return Sight("ended") if folder.has(ERROR) or folder.has(CANCELLED) else self._recall(number)

    def cancel(self, folder: JobFolder, number: str) -> None:
        """Run ``scancel``."""
        run_slurm("scancel", number)
        self.queue.asked = -math.inf

    def _recall(self, number: str) -> Sight:
        try:
            # With it all other tasks of its array.
            listing = self.accounts.ask("-j", number.partition("_")[0])
        except SchedulerError as error:
            if not any(words in str(error) for words in NO_ACCOUNTS):
                raise
            listing = ""
        found = {name: _sight(state, f"exit code {code}") for name, state, code in _rows(listing, 3)}
        sight = found.setdefault(number, Sight("unknown", "Slurm has forgotten it"))
        # Accounts may lag behind: what still runs by them is asked for again.
        over = {name: sight for name, sight in found.items() if sight.state in ("ended", "unknown")}
        self.forgotten |= {name: sight for name, sight in over.items() if name not in self.seen}
        return sight

    def _dependency(self, request: Request) -> str:
        from pathlib import Path

        from dhlab.scheduling.folder import JobFolder

        before = [JobFolder(Path(place)).read_request() for place in request.after]
        return ",".join(f"afterok:{other.numbers[-1]}" for other in before)


@cache
def cluster_named(name: str) -> Cluster:
    """Return the cluster of a job's request."""
    return Slurm() if name == "slurm" else Local()


def choose_cluster(name: str) -> str:
    """Return ``"slurm"`` or ``"local"``; for ``"auto"``, Slurm where this machine belongs to one."""
    if name != "auto":
        return name
    if shutil.which("scontrol") is None:
        return "local"
    told = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    # Slurm's programs without any settings are no cluster; one that is down is.
    return "local" if "configuration source" in told.stderr else "slurm"


def run_slurm(*command: str) -> str:
    """Run a command of Slurm and return what it prints.

    Raises
    ------
    SchedulerError
        If it is not there, or says no.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{command[0]}: {error}. Is this a machine of the cluster?") from error
    if done.returncode:
        raise SchedulerError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def explain_refusal(message: str, request: Request) -> Exception:
    """Return the error for what ``sbatch`` or submitit said when a job was handed over."""
    said = " ".join(line.removeprefix("sbatch: error: ") for line in message.strip().splitlines())
    if "contact slurm controller" in said:
        return SchedulerError(f"Slurm does not answer: {said}. Try again later, or pass cluster='local'.")
    if "nvalid partition" in said:
        known = " ".join(sorted(set(run_slurm("sinfo", "--noheader", "--format=%R").split())))
        return BadValueError(f"no partition {request.partition!r}; Slurm has: {known}.")
    if "node configuration is not available" in said:
        nodes = run_slurm("sinfo", "--format=%R %D %c %m %G").strip()
        return BadValueError(
            f"no node can give {request.workers // request.nodes} workers with {request.gpus} GPUs each "
            f"({request.nodes} nodes asked for). Slurm has:\n{nodes}"
        )
    return BadValueError(f"the job was refused: {said}")


def _groups(processes: Iterable[str]) -> set[int]:
    """Return the groups of those processes that live; one may end while we ask."""
    found = set()
    for process in filter(is_alive, processes):
        with suppress(ProcessLookupError):
            found.add(os.getpgid(int(process.split("-")[1])))
    return found


def _rows(text: str, columns: int) -> Iterable[list[str]]:
    return (line.split("|") for line in text.splitlines() if line.count("|") == columns - 1)


def _sight(state: str, reason: str) -> Sight:
    word = state.partition(" ")[0]
    if word in QUEUED:
        why = word if reason == "None" else reason
        return Sight("queued", f"{WAITINGS[why]} ({why})" if why in WAITINGS else why, word)
    if word in RUNNING:
        return Sight("running", "", word)
    return Sight("ended", ENDINGS.get(word, f"Slurm ended it: {word}, {reason}"), word)
