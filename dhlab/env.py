"""Every environment variable that dhlab reads: name, default and meaning. Nothing else reads `os.environ`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "VARIABLES",
    "Variable",
    "cache_folder",
    "copy_environment",
    "core_count",
    "data_folder",
    "get",
    "has_screen",
    "hub_prefix",
    "job_environment",
    "jobs_folder",
    "set_variables",
    "thread_count",
    "user_name",
]

# What a job must not inherit: a notebook of JupyterHub may itself be a job of Slurm, or a worker, and its keys are not
# the job's. Where Slurm's settings are, it must know.
NOT_FOR_JOBS = (
    *("SLURM", "SRUN_", "SUBMITIT_", "PMI", "OMPI_", "JUPYTERHUB_", "JPY_", "DHLAB_LOCAL_RANK", "DHLAB_WATCHER"),
    *(f"HOROVOD_{name}" for name in ("RANK", "SIZE", "LOCAL_", "CROSS_", "GLOO_", "HOSTNAME", "ELASTIC")),
)
FOR_JOBS = ("SLURM_CONF", "SLURM_CLUSTERS", "JUPYTERHUB_USER")


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, default, allowed values (empty: any) and meaning."""

    name: str
    default: str
    choices: tuple[str, ...]
    meaning: str


VARIABLES = {
    v.name: v
    for v in (
        Variable("DHLAB_CACHE", "", (), "folder for caches; else the user's cache folder"),
        Variable("DHLAB_DATA", "", (), "folder with real sample data; else ../shared/data beside the checkout"),
        Variable("DHLAB_JOB", "", (), "set by a job for its workers: its folder, where they tell how far they are"),
        Variable("DHLAB_JOBS", "", (), "folder of your jobs; else dhlab/jobs in your data folder"),
        Variable("DHLAB_KERNELS", "auto", ("auto", "triton", "cpu", "torch"), "which form of the fused kernels runs"),
        Variable(
            "DHLAB_LOCAL_RANK", "", (), "set by a job for its elastic workers on one machine: which of them this is"
        ),
        Variable("DHLAB_THREADS", "", (), "threads that decode tiles; else the cores this process may use"),
        Variable("DHLAB_TIMELINE", "", (), "folder of the time-to-model ledger; else no ledger is kept"),
        Variable("DHLAB_WATCHER", "", (), "set by a job for its workers on one machine: who ends them, a process"),
        Variable("CUDA_VISIBLE_DEVICES", "", (), "which of the machine's GPUs may be used"),
        Variable("DISPLAY", "", (), "set by X11: the screen on which windows open"),
        Variable("HOROVOD_DYNAMIC_PROCESS_SETS", "", (), "1 lets workers form groups whenever they like"),
        Variable("HOROVOD_ELASTIC", "", (), "set by Horovod's launcher: workers may come and go"),
        Variable("HOROVOD_FUSION_THRESHOLD", "", (), "bytes of gradients that Horovod copies together to send them"),
        Variable("HOROVOD_GLOO_RENDEZVOUS_ADDR", "", (), "set by a job for its workers: where they meet, and a secret"),
        Variable("HOROVOD_RANK", "", (), "set by Horovod's launcher: which worker this is"),
        Variable("HOROVOD_SIZE", "", (), "set by Horovod's launcher: how many workers there are"),
        Variable("JUPYTERHUB_SERVICE_PREFIX", "", (), "set by JupyterHub: the URL prefix of this server"),
        Variable("JUPYTERHUB_USER", "", (), "set by JupyterHub: who is logged in; the author of annotations"),
        Variable("JPY_PARENT_PID", "", (), "set by Jupyter: number of the process that started this kernel"),
        Variable("OMPI_COMM_WORLD_SIZE", "", (), "set by mpirun: how many workers there are"),
        Variable("QT_QPA_PLATFORM", "", (), "where Qt draws its windows, if not on a screen: offscreen, minimal, vnc"),
        Variable("SLURMD_NODENAME", "", (), "set by Slurm: which machine of a job this is"),
        Variable("SLURM_CPUS_PER_TASK", "", (), "set by Slurm: cores that a worker asked for"),
        Variable("SLURM_LOCALID", "", (), "set by Slurm: which worker of its machine this is"),
        Variable("SLURM_NODEID", "", (), "set by Slurm: number of this machine among the job's"),
        Variable("SLURM_PROCID", "", (), "set by Slurm: which worker this is"),
        Variable("SLURM_STEP_NUM_NODES", "", (), "set by Slurm: how many machines the workers are on"),
        Variable("SLURM_STEP_NUM_TASKS", "", (), "set by Slurm: how many workers there are"),
        Variable("WAYLAND_DISPLAY", "", (), "set by Wayland: the screen on which windows open"),
        Variable("XDG_CACHE_HOME", "", (), "the user's cache folder, as on any Linux desktop"),
        Variable("XDG_DATA_HOME", "", (), "the user's data folder, as on any Linux desktop"),
    )
}


def get(name: str) -> str:
    """Return the value of a variable listed in `VARIABLES`, or its default.

    Raises
    ------
    BadValueError
        If the variable has fixed choices and holds none of them.
    """
    variable = VARIABLES[name]
    value = os.environ.get(name, "") or variable.default
    if variable.choices and value not in variable.choices:
        raise BadValueError(f"{name}={value!r}; expected one of {', '.join(variable.choices)}. Unset it or mend it.")
    return value


def data_folder() -> Path | None:
    """Return the folder with real sample data, or None if there is none."""
    if value := get("DHLAB_DATA"):
        return Path(value).expanduser()
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def cache_folder() -> Path:
    """Return the folder for caches (not created)."""
    if value := get("DHLAB_CACHE"):
        return Path(value).expanduser()
    return Path(get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dhlab"


def user_name() -> str:
    """Return who works here: the name at JupyterHub, else that of the login."""
    if value := get("JUPYTERHUB_USER"):
        return value
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # a container may give its process a number without a name
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "user"


def has_screen() -> bool:
    """Return whether Qt can open a window on Linux; where it cannot, it ends the process."""
    return any(map(get, ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")))


def jobs_folder() -> Path:
    """Return the folder of jobs (not created)."""
    if value := get("DHLAB_JOBS"):
        return Path(value).expanduser().absolute()
    return Path(get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "dhlab" / "jobs"


def copy_environment() -> dict[str, str]:
    """Return all variables, to start a process with."""
    return dict(os.environ)


def job_environment() -> dict[str, str]:
    """Return the variables that a job starts with: all but those of the notebook's own job, session and keys."""
    return {name: value for name, value in os.environ.items() if name in FOR_JOBS or not name.startswith(NOT_FOR_JOBS)}


def set_variables(values: Mapping[str, str]) -> None:
    """Set variables of this process, for libraries that are loaded later."""
    os.environ.update(values)


def hub_prefix() -> str:
    """Return the URL prefix under JupyterHub, or an empty string outside a hub."""
    return get("JUPYTERHUB_SERVICE_PREFIX")


def thread_count() -> int:
    """Return how many threads may decode tiles at once: DHLAB_THREADS, else the cores this process may use."""
    value = get("DHLAB_THREADS")
    if not value:
        return core_count()
    if not value.isdigit() or int(value) < 1:
        raise BadValueError(f"DHLAB_THREADS={value!r}; expected a whole number of at least 1.")
    return int(value)


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
