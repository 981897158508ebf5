"""The workers of a job: processes that Horovod joins, or one ``srun`` for all; elastic ones come and go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dhlab import env
from dhlab.errors import SchedulerError
from dhlab.scheduling.clusters import run_slurm
from dhlab.scheduling.folder import RESULT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dhlab.scheduling.folder import JobFolder
    from dhlab.scheduling.request import Request

__all__ = ["ElasticTeam", "Team", "interface_to"]

LOOPBACK = "127.0.0.1"
SECONDS_TO_END = 10.0
# What Horovod raises in a worker that misses another.
GONE = "HorovodInternalError"
# A machine on which a worker was lost is tried again after so long, at least and at most.
COOLDOWN_S = (5, 120)
SECONDS_FOR_LEAST = 600
# When one is lost the others ask for their places; who has not after so long hangs.
SECONDS_TO_ASK = 120.0
# Horovod avoids a whole machine after a loss, so each elastic worker has a name of this one for itself.
LOCAL_NAMES = tuple(f"127.0.0.{number}" for number in range(1, 255))


class Team:
    """The workers of one job, of which none may be lost.

    Parameters
    ----------
    place
        Folder of the job, or of one task of its array.
    request
        What was asked.
    """

    def __init__(self, place: JobFolder, request: Request) -> None:
        self.place, self.request = place, request
        self.processes: list[subprocess.Popen[bytes]] = []
        self.shortage = ""
        self.failed: int | None = None  # the process that did, and made others fail
        self.program = [sys.executable, "-u", "-m", "dhlab.scheduling.worker", str(place.path)]
        self.environment = env.copy_environment() | {"DHLAB_JOB": str(place.path)}
        threads = max(1, env.core_count() * request.nodes // request.workers)
        self.environment.setdefault("OMP_NUM_THREADS", str(threads))
        if request.cluster == "local":
            self.environment["DHLAB_WATCHER"] = str(os.getpid())
            # The GPUs are those of where the job was submitted; submitit hides them.
            self.environment.pop("CUDA_VISIBLE_DEVICES", None)
            if request.devices is not None:
                self.environment["CUDA_VISIBLE_DEVICES"] = request.devices

    def run(self, stopping: threading.Event) -> None:
        """Start all workers, wait until they have ended, and end the others when one fails."""
        with _rendezvous(self.request) as addresses:
            self._start(addresses)
            while codes := [process.poll() for process in self.processes]:
                if any(codes):
                    self.failed = _culprit(codes)
                    self.send(signal.SIGTERM)
                    self.wait(time.monotonic() + SECONDS_TO_END)
                    return
                if None not in codes:
                    return
                time.sleep(0.05)

    def _start(self, addresses: dict[str, str]) -> None:
        request, common = self.request, self.environment | addresses
        if request.cluster == "slurm":
            options = [f"--nodes={request.nodes}", f"--ntasks={request.workers}", "--distribution=block"]
            command = _srun(*options, "--kill-on-bad-exit=1", f"--output={self.place.path}/worker-%t.log")
            self.processes = [subprocess.Popen([*command, *self.program, "--under-srun"], env=common)]
            return
        for rank in range(request.workers):
            own = common | (_slot(rank, request.workers) if request.workers > 1 else {})
            with self.place.log_of(rank).open("ab") as log:
                self.processes.append(subprocess.Popen(self.program, env=own, stdout=log, stderr=subprocess.STDOUT))

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
        if self.failed is not None and _signal_of(self.processes[self.failed].returncode):
            # That one is gone is no reason when it is known why.
            faults = [fault for fault in faults if fault.get("type") != GONE]
        if self.shortage:
            # Errors were those of workers that others took the place of.
            faults = []
        fault = faults[0] if faults else {"message": self._explain(), "trace": ""}
        told = fault.get("worker") or fault.get("type") == GONE
        message = f"worker {fault['worker']}: {fault['message']}" if told else str(fault["message"])
        self.place.write_error(message, fault["trace"])
        return message

    def _explain(self) -> str:
        if self.failed is None:
            return "the workers ended without a result and without an error; see the log."
        code = self.processes[self.failed].returncode
        number = _signal_of(code)
        how = f"was ended by signal {number} ({signal.strsignal(number)})" if number else f"ended with status {code}"
        alone = self.request.cluster == "local" and not self.request.least_workers
        who = f"worker {self.failed} of {len(self.processes)}" if alone else "a worker"
        hint = " Nobody asked for that: was the memory full?" if number == signal.SIGKILL else ""
        return f"{who} {how} before it had a result.{hint}"


class ElasticTeam(Team):
    """Workers that come and go: Horovod's elastic driver starts them, and others in place of those that are lost.

    Parameters
    ----------
    place
        Folder of the job, or of one task of its array.
    request
        What was asked.
    """

    def __init__(self, place: JobFolder, request: Request) -> None:
        super().__init__(place, request)
        self.stopped: list[subprocess.Popen[bytes]] = []
        self.faults: dict[tuple[str, str], float] = {}
        self.hopeless = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        """Start as many as there is room for, and go on while there are enough."""
        from horovod.runner.common.util.timeout import TimeoutException
        from horovod.runner.elastic.rendezvous import create_rendezvous_handler

        from dhlab.scheduling.rendezvous import Driver, Rendezvous

        request = self.request
        server = Rendezvous(_own_address(request))
        driver = Driver(
            server,
            _Places(request),
            request.least_workers,
            request.workers,
            timeout=SECONDS_FOR_LEAST,
            cooldown_range=COOLDOWN_S,
        )

        def execute(slot: Any, events: Sequence[threading.Event]) -> tuple[int, float]:
            process = self._start_one(slot, server.variables())
            self.processes.append(process)
            while process.poll() is None:
                # While all write their state, none is ended.
                if any(event.is_set() for event in (*events, self.hopeless)) and not stopping.is_set():
                    self._stop(process)
                elif driver.seconds_awaited(slot.hostname, slot.local_rank) > SECONDS_TO_ASK:
                    print(f"dhlab: a worker on {slot.hostname} hangs and is killed", flush=True)  # noqa: T201 - into the log
                    process.kill()
                time.sleep(0.1)
            driver.forget(slot.hostname, slot.local_rank)
            if process not in self.stopped:
                self._look_for_fault(slot.rank, process.returncode)
            return process.returncode, time.time()

        server.start(create_rendezvous_handler(driver))
        try:
            driver.start(request.least_workers, execute)
            driver.get_results()
        except (RuntimeError, TimeoutException) as error:
            print(f"dhlab: {error}", flush=True)  # noqa: T201 - into the log
        finally:
            driver.stop()
        self.shortage = driver.shortage
        codes = [None if process in self.stopped else process.poll() for process in self.processes]
        if 0 not in codes and any(codes):
            self.failed = _culprit(codes)

    def _explain(self) -> str:
        return self.shortage or super()._explain()

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        self.stopped.append(process)
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()

    def _look_for_fault(self, rank: int, code: int) -> None:
        """End all if a worker ended by an error that ended one before: it is their work's, and would come again."""
        fault = self.place.read_json(f"worker-{rank}.error")
        if not code or _signal_of(code) or fault.get("type", GONE) == GONE:
            return
        told = fault["type"], fault["message"]
        # What an earlier worker of this number left there is no second one.
        if self.faults.setdefault(told, _time(fault)) != _time(fault):
            self.hopeless.set()

    def _start_one(self, slot: Any, addresses: dict[str, str]) -> subprocess.Popen[bytes]:
        from horovod.runner.gloo_run import create_slot_env_vars

        place = self.place.log_of(slot.rank)
        # Not on the command line, which others can read.
        own = self.environment | addresses | create_slot_env_vars(slot) | {"HOROVOD_ELASTIC": "1"}
        if self.request.cluster == "slurm":
            alone = ("--nodes=1", "--ntasks=1", "--overlap", f"--nodelist={slot.hostname}", f"--output={place}")
            return subprocess.Popen([*_srun(*alone), *self.program], env=own)
        own["DHLAB_LOCAL_RANK"] = str(LOCAL_NAMES.index(slot.hostname))
        with place.open("ab") as log:
            return subprocess.Popen(self.program, env=own, stdout=log, stderr=subprocess.STDOUT)


class _Places:
    """Where elastic workers may run now; Horovod asks every second."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.listing = ""

    def find_available_hosts_and_slots(self) -> dict[str, int]:
        """Return how many workers each machine takes."""
        if self.request.cluster == "local":
            return dict.fromkeys(LOCAL_NAMES[: self.request.workers], 1)
        each = self.request.workers // self.request.nodes
        # Where Slurm does not answer, what it said last holds.
        with suppress(SchedulerError):
            names = ",".join(_node_names())
            self.listing = run_slurm("sinfo", "--noheader", "--Node", f"--nodes={names}", "--format=%N %T")
        states = dict(line.split() for line in self.listing.splitlines())
        # A star is a machine that does not answer.
        return {name: each for name, state in states.items() if not state.endswith("*") and "down" not in state}


def _culprit(codes: Sequence[int | None]) -> int:
    """Return which process failed: rather one that a signal ended than one that then missed it."""
    failed = [number for number, code in enumerate(codes) if code]
    return next((number for number in failed if _signal_of(codes[number])), failed[0])


def _signal_of(code: int | None) -> int:
    """Return which signal ended a process, 0 if none; a shell and srun report it as 128 and its number."""
    return 0 if code is None else -code if code < 0 else max(0, code - 128)


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

        from dhlab.scheduling.rendezvous import Rendezvous

        server = Rendezvous(_own_address(request))
        server.start()
        stack.callback(server.stop)
        hosts = _node_names() if request.cluster == "slurm" else ["localhost"]
        each = request.workers // request.nodes
        server.init(get_host_assignments(parse_hosts(",".join(f"{host}:{each}" for host in hosts)), request.workers))
        yield server.variables()


def _node_names() -> list[str]:
    from submitit import JobEnvironment

    return list(JobEnvironment().hostnames)


def _slot(rank: int, size: int) -> dict[str, str]:
    """Return what Horovod tells a worker of its place among those on this machine."""
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.gloo_run import create_slot_env_vars

    slot = SlotInfo("localhost", rank, local_rank=rank, cross_rank=0, size=size, local_size=size, cross_size=1)
    return dict(create_slot_env_vars(slot))


def _srun(*options: str) -> list[str]:
    command = ["srun", "--unbuffered", "--open-mode=append", *options]
    # A step does not inherit this since Slurm 22.05.
    if cores := env.get("SLURM_CPUS_PER_TASK"):
        command.append(f"--cpus-per-task={cores}")
    return command


def _own_address(request: Request) -> str:
    """Return the address of this machine at which the machines of a job reach it."""
    if request.cluster == "local":
        return LOOPBACK
    shown = run_slurm("scontrol", "show", "node", _node_names()[-1], "--oneliner")
    return _address_towards(next(word.partition("=")[2] for word in shown.split() if word.startswith("NodeAddr=")))


def interface_to(address: str) -> str:
    """Return the network interface over which an address is reached."""
    import psutil

    own, addresses = _address_towards(address), psutil.net_if_addrs().items()
    return next(name for name, found in addresses if any(one.address == own for one in found))


def _address_towards(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        # Nothing is sent; the system only chooses the way.
        route.connect((address, 9))
        return str(route.getsockname()[0])
