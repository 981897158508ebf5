"""What runs in a job's batch step: starts the workers with Horovod's rendezvous between them, watches, publishes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab import env
from dhlab.errors import JobError
from dhlab.scheduling.folder import ERROR, RESULT, JobFolder
from dhlab.scheduling.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dhlab.scheduling.request import Request

__all__ = ["Launch"]

# Workers that were asked to stop may write their state for so long.
SECONDS_TO_SAVE = 60.0
LINES_OF_ERROR = 12


class Launch:
    """Runs a job, or tasks of its array one after another; submitit calls it and begins it again after a signal.

    Parameters
    ----------
    folder
        Folder of the job.
    parts
        Tasks of an array that run here; empty if the job is none.
    """

    def __init__(self, folder: str, parts: tuple[int, ...] = ()) -> None:
        self.folder, self.parts = folder, parts
        self.teams: list[_Team] = []
        self.stopping = threading.Event()

    def __call__(self) -> None:
        """Run what is not done yet.

        Raises
        ------
        JobError
            If something failed.
        """
        from submitit.core.utils import UncompletedJobError

        # A job that Slurm stops is no failure: it was cancelled, or makes room and is begun again.
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        job = JobFolder(Path(self.folder))
        request = job.read_request()
        places = [job.task(part) for part in self.parts] or [job]
        places = [place for place in places if not place.has(RESULT)]
        try:
            if request.cluster == "local":
                self._wait_for(request)
            # On Slurm every task is a job of its own.
            at_once = max(1, env.core_count() // request.workers) if request.cluster == "local" else 1
            with ThreadPoolExecutor(at_once) as pool:
                faults = [fault for fault in pool.map(lambda place: self._run(place, request), places) if fault]
        except JobError as error:
            job.write_error(str(error))
            raise
        except UncompletedJobError:
            job.write_error(f"its time of {request.minutes:g} minutes was over {1 + request.max_requeues} times.")
            raise
        if self.stopping.is_set():
            raise SystemExit(128 + signal.SIGTERM)
        if faults:
            if self.parts and not job.has(ERROR):
                job.write_error(f"{len(faults)} of {len(places)} tasks failed; the first: {faults[0]}")
            raise JobError(faults[0])

    def checkpoint(self) -> Any:
        """Ask the workers to write their state, wait until they have, and return what shall be done next time."""
        from submitit.core.utils import DelayedSubmission

        self.stopping.set()
        print("dhlab: the time is nearly over, the workers write their state", flush=True)  # noqa: T201 - into the log
        for team in self.teams:
            team.send(signal.SIGUSR2)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for team in self.teams:
            team.wait(deadline)
            team.end()
        return DelayedSubmission(Launch(self.folder, self.parts))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _wait_for(self, request: Request) -> None:
        for place in request.after:
            other = Job(place)
            other.wait()
            if other.state != "done":
                raise JobError(f"{other.id}, which had to be done before, is {other.state}.")

    def _run(self, place: JobFolder, request: Request) -> str:
        """Run the workers of a job or task; return why it failed, or nothing."""
        if self.stopping.is_set():
            return ""
        place.begin_attempt()
        with _rendezvous(request) as addresses:
            team = _Team(place, request, addresses)
            self.teams.append(team)
            try:
                team.watch()
            finally:
                team.end()
        if self.stopping.is_set():
            return ""
        return team.publish()


class _Team:
    """The workers of one job: a process each, or one ``srun`` for all."""

    def __init__(self, place: JobFolder, request: Request, addresses: dict[str, str]) -> None:
        self.place, self.request = place, request
        self.failed: int | None = None  # the first worker that did
        program = [sys.executable, "-u", "-m", "dhlab.scheduling.worker", str(place.path)]
        common = env.copy_environment() | addresses | {"DHLAB_JOB": str(place.path)}
        common.setdefault("OMP_NUM_THREADS", str(max(1, env.core_count() * request.nodes // request.workers)))
        if request.cluster == "slurm":
            self.processes = [subprocess.Popen([*_srun(place, request), *program, "--under-srun"], env=common)]
            return
        common = _with_devices(common, request.devices)
        self.processes = []
        for rank in range(request.workers):
            with place.log_of(rank).open("ab") as log:
                own = common | (_slot(rank, request.workers) if request.workers > 1 else {})
                self.processes.append(subprocess.Popen(program, env=own, stdout=log, stderr=subprocess.STDOUT))

    def watch(self) -> None:
        """Wait until all workers have ended, and end the others when one fails."""
        while codes := [process.poll() for process in self.processes]:
            if any(codes):
                self.failed = next(rank for rank, code in enumerate(codes) if code)
                self.send(signal.SIGTERM)
                self.wait(time.monotonic() + 10)
                return
            if None not in codes:
                return
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Send a signal to every worker; ``srun`` hands it on."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, deadline: float) -> None:
        """Wait until all have ended, no longer than until a time of `time.monotonic`."""
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.05)

    def end(self) -> None:
        """End whoever still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def publish(self) -> str:
        """Make worker 0's result the job's if all went well, else write and return why not."""
        left = self.place.path / "worker-0.result"
        if self.failed is None and left.exists():
            left.replace(self.place.path / RESULT)
            return ""
        faults = sorted((self.place.read_json(p.name) for p in self.place.path.glob("worker-*.error")), key=_time)
        fault = faults[0] if faults else {"message": self._explain(), "trace": ""}
        self.place.write_error(fault["message"], fault["trace"])
        return str(fault["message"])

    def _explain(self) -> str:
        if self.failed is None:
            return "the workers ended without a result and without an error; see the log."
        code = self.processes[self.failed].returncode
        # A shell and srun report a signal as 128 and its number.
        number = -code if code < 0 else max(0, code - 128)
        how = f"was ended by signal {number} ({signal.strsignal(number)})" if number else f"ended with status {code}"
        who = "a worker" if self.request.cluster == "slurm" else f"worker {self.failed} of {len(self.processes)}"
        hint = " Nobody asked for that: was the memory full?" if number == signal.SIGKILL else ""
        return f"{who} {how} before it had a result.{hint}"


def _time(fault: dict[str, Any]) -> float:
    return float(fault.get("time", 0.0))


@contextmanager
def _rendezvous(request: Request) -> Iterator[dict[str, str]]:
    """Run the server through which workers find one another, and give what they must know of it."""
    with ExitStack() as stack:
        if request.workers == 1:
            yield {}
            return
        from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
        from horovod.runner.http.http_server import RendezvousServer

        server = RendezvousServer()
        port = server.start()
        stack.callback(server.stop)
        hosts = _node_names() if request.cluster == "slurm" else ["localhost"]
        each = request.workers // request.nodes
        server.init(get_host_assignments(parse_hosts(",".join(f"{host}:{each}" for host in hosts)), request.workers))
        addresses = {
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
        if request.cluster == "local":
            addresses |= {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_IFACE": _loopback()}
        yield addresses


def _node_names() -> list[str]:
    from submitit import JobEnvironment

    return list(JobEnvironment().hostnames)


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _slot(rank: int, size: int) -> dict[str, str]:
    """Return what Horovod tells a worker of its place among those on this machine."""
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.gloo_run import create_slot_env_vars

    slot = SlotInfo("localhost", rank, local_rank=rank, cross_rank=0, size=size, local_size=size, cross_size=1)
    return dict(create_slot_env_vars(slot))


def _srun(place: JobFolder, request: Request) -> list[str]:
    command = ["srun", f"--nodes={request.nodes}", f"--ntasks={request.workers}", "--distribution=block"]
    command += ["--unbuffered", "--open-mode=append", f"--output={place.path}/worker-%t.log", "--kill-on-bad-exit=1"]
    # A step does not inherit this since Slurm 22.05.
    if cores := env.get("SLURM_CPUS_PER_TASK"):
        command.append(f"--cpus-per-task={cores}")
    return command


def _with_devices(environment: dict[str, str], devices: str | None) -> dict[str, str]:
    """Return an environment in which the GPUs are those of where the job was submitted; submitit hides them."""
    kept = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    return kept if devices is None else kept | {"CUDA_VISIBLE_DEVICES": devices}
