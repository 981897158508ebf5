"""Dask's engine for many slides: workers of this machine or of Slurm, which only their owner can talk to."""

from __future__ import annotations

import logging
import shlex
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import dask
from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed import Client, LocalCluster, Security, WorkerPlugin

from dhlab import env
from dhlab.errors import SchedulerError
from dhlab.scheduling.clusters import explain_refusal, run_slurm
from dhlab.scheduling.dashboard import serve_dashboard
from dhlab.scheduling.records import LONGEST_COHORT_S, private_folder, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Worker

    from dhlab.scheduling.request import Request

__all__ = ["start_workers"]

DEFAULT_MEMORY = "8G"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "DHLAB_THREADS")
# Only the owner may see what runs, so nothing is shown on ports: whoever is logged in to the machine can reach those.
SETTINGS = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.nanny.http.routes": [],
    "distributed.admin.large-graph-warning-threshold": "1TB",
    # A busy machine takes its time to restart a killed worker; Dask would give it up, and wait for ever for another.
    "distributed.deploy.lost-worker-timeout": "1h",
}
NO_PAGES = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@contextmanager
def start_workers(request: Request, cohort: Path, *, dashboard: bool = False) -> Iterator[Client]:
    """Start workers that do one slide each, give the client that talks to them, and stop them afterwards.

    Parameters
    ----------
    request
        How many workers, and where.
    cohort
        Folder of the cohort, where workers on Slurm write their logs.
    dashboard
        Whether the server of this notebook shows what they do.

    Raises
    ------
    BadValueError
        If this machine, or Slurm, has not what is asked.
    SchedulerError
        If Slurm does not answer, or the workers do not start.
    """
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        begin = _start_on_slurm if request.cluster == "slurm" else _start_here
        cluster = begin(request, cohort / "logs", stack)
        if dashboard:
            stack.enter_context(serve_dashboard(cluster, cohort))
        client = stack.enter_context(Client(cluster, set_as_default=False))
        if request.cluster == "local" and request.gpus:
            client.register_plugin(_OwnDevices(request.gpus, env.get("CUDA_VISIBLE_DEVICES")))
        yield client


def _start_here(request: Request, _logs: Path, stack: ExitStack) -> Any:
    threads = str(max(1, env.core_count() // request.workers))
    environment = {f"distributed.nanny.pre-spawn-environ.{name}": threads for name in THREAD_VARIABLES}
    # On Slurm workers may wait in a queue; here they are there, or something is wrong.
    stack.enter_context(dask.config.set({**environment, "distributed.scheduler.no-workers-timeout": "5 minutes"}))
    try:
        cluster = LocalCluster(
            n_workers=request.workers,
            threads_per_worker=1,
            host="127.0.0.1",
            # Whoever else is logged in here could otherwise run code in these workers.
            security=True,
            protocol="tls://",
            silence_logs=logging.CRITICAL,
            scheduler_kwargs=NO_PAGES,
        )
    except RuntimeError as error:
        raise SchedulerError(
            f"the workers do not start: {error} If this is a script, call it below: if __name__ == '__main__':"
        ) from error
    return stack.enter_context(cluster)


class _OwnDevices(WorkerPlugin):
    """Gives every worker of this machine GPUs of its own, before anything asks for one."""

    def __init__(self, each: int, visible: str) -> None:
        self.each, self.visible = each, visible

    def setup(self, worker: Worker) -> None:
        """Choose them by the worker's number, which a restarted one keeps."""
        first = int(worker.name) * self.each
        devices = (
            self.visible.split(",")[first : first + self.each] if self.visible else range(first, first + self.each)
        )
        env.set_variables({"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))})


class _CleanJob(SLURMJob):
    """A worker's job, without what the notebook's own job left in the environment."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[no-untyped-call] # Dask has no types
        left_out = sorted(set(env.copy_environment()) - set(env.job_environment()))
        self.submit_command = shlex.join(["env", *(f"--unset={name}" for name in left_out), "sbatch"])


class _CleanCluster(SLURMCluster):
    job_cls = _CleanJob


def _start_on_slurm(request: Request, logs: Path, stack: ExitStack) -> Any:
    options = dict(request.options)
    cores, memory = int(options.pop("cpus-per-task", 1)), str(options.pop("mem", DEFAULT_MEMORY))
    if memory.isdigit():
        memory += "M"  # as Slurm reads it
    if request.gpus:
        options["gpus-per-node"] = request.gpus
    common = env.jobs_folder()
    common.mkdir(parents=True, exist_ok=True)
    remove_abandoned(common, silence_s=LONGEST_COHORT_S)
    # The keys of the connection lie here as long as it lasts; only their owner can read them.
    keys = stack.enter_context(private_folder(common, mode=0o700))
    cluster = stack.enter_context(
        _CleanCluster(
            cores=1,
            processes=1,
            memory=memory.rstrip("Bb") + "iB",
            job_cpu=cores,
            job_mem=memory,
            queue=request.partition,
            walltime=str(max(1, round(request.minutes or 0))),
            job_extra_directives=[
                f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()
            ],
            job_script_prologue=[
                f"export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__{name}={cores}" for name in THREAD_VARIABLES
            ],
            job_name=request.name,
            log_directory=str(logs),
            local_directory="/tmp",
            security=_write_keys(keys),
            protocol="tls://",
            silence_logs=logging.CRITICAL,
            scheduler_options=NO_PAGES,
        )
    )
    _try_to_submit(cluster, request, keys)
    cluster.adapt(minimum_jobs=1, maximum_jobs=request.workers)
    return cluster


def _write_keys(folder: Path) -> Security:
    """Make keys with which only the workers of this cohort and its scheduler talk to each other, as files."""
    made = Security.temporary()
    names = [f"tls_{role}_{part}" for role in ("scheduler", "worker", "client") for part in ("cert", "key")]
    paths = {name: folder / f"{name}.pem" for name in ("tls_ca_file", *names)}
    for name, path in paths.items():
        path.write_text(getattr(made, name), "ascii")
    return Security(require_encryption=True, **{name: str(path) for name, path in paths.items()})


def _try_to_submit(cluster: Any, request: Request, keys: Path) -> None:
    """Ask Slurm whether it would take the job of a worker: Dask itself would try for ever."""
    script = keys / "test.sh"
    script.write_text(cluster.job_script(), "utf-8")
    try:
        run_slurm("sbatch", "--test-only", str(script))
    except SchedulerError as error:
        raise explain_refusal(str(error), request) from error
