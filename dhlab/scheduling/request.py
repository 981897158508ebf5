"""What is asked of a job: how many workers, where, for how long."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Self

from dhlab.errors import BadValueError, MissingDependencyError

__all__ = ["CLUSTERS", "Request", "check_installed", "count_gpus"]

CLUSTERS = ("local", "slurm")
LONGEST_SIGNAL_S = 120
MINUTES_ON_SLURM = 60.0
MOST_REQUEUES_HERE = 5  # submitit begins a job of this machine six times


@dataclass(frozen=True)
class Request:
    """What is asked of a job, and the numbers that the cluster gave it; JSON-compatible.

    Parameters
    ----------
    id
        Name of the job, unique among those of a user.
    name
        What people call it.
    call
        What runs, in words.
    cluster
        One of `CLUSTERS`.
    workers, nodes
        Processes that compute, and machines that they are spread over evenly.
    least_workers
        With how many a training still goes on; 0 if with no fewer than all.
    gpus
        GPUs for each worker.
    minutes
        Time after which the job is stopped and begun again; None is 60 on Slurm, and no limit elsewhere.
    partition
        Partition of Slurm; None is the site's default.
    max_requeues
        How often it may be begun again when its time is over.
    after
        Folders of the jobs that must be done before.
    tasks
        Number of tasks of an array; 0 is no array.
    options
        Further long options of ``sbatch``.
    devices
        ``CUDA_VISIBLE_DEVICES`` of a job on this machine; None leaves it unset.
    submitted
        When, ISO 8601.
    numbers
        What the cluster calls it, one for each time that it was handed over: the number of Slurm's job, or the
        identity of the local process that watches over it.
    parts
        Which tasks of an array were handed over last.
    """

    id: str
    name: str
    call: str
    cluster: str
    workers: int = 1
    nodes: int = 1
    least_workers: int = 0
    gpus: int = 0
    minutes: float | None = None
    partition: str | None = None
    max_requeues: int = 3
    after: tuple[str, ...] = ()
    tasks: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    devices: str | None = None
    submitted: str = ""
    numbers: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.minutes is None and self.cluster == "slurm":
            object.__setattr__(self, "minutes", MINUTES_ON_SLURM)

    def check(self) -> None:
        """Raise BadValueError if something is asked that no cluster can give."""
        for name, least in (("workers", 1), ("nodes", 1), ("least_workers", 0), ("gpus", 0), ("max_requeues", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadValueError(f"{name}={value!r}; expected a whole number of at least {least}.")
        if self.cluster not in CLUSTERS:
            raise BadValueError(f"cluster={self.cluster!r}; expected 'auto', {' or '.join(map(repr, CLUSTERS))}.")
        if self.least_workers and not self.least_workers < self.workers:
            raise BadValueError(f"least_workers={self.least_workers}; expected fewer than the {self.workers} workers.")
        if self.least_workers and self.tasks:
            raise BadValueError("least_workers for an array; expected a single training.")
        if self.workers % self.nodes:
            raise BadValueError(f"{self.workers} workers cannot be spread evenly over {self.nodes} nodes.")
        if self.minutes is not None and not self.minutes > 0:
            raise BadValueError(f"minutes={self.minutes!r}; expected a time above 0, or None.")
        if self.cluster == "local":
            self._check_local()

    def _check_local(self) -> None:
        if self.nodes > 1:
            raise BadValueError(f"nodes={self.nodes} on this machine alone; expected 1, or cluster='slurm'.")
        if self.partition is not None or self.options:
            raise BadValueError("partition and options are for Slurm; pass cluster='slurm' or leave them out.")
        if self.minutes is not None and self.max_requeues > MOST_REQUEUES_HERE:
            raise BadValueError(
                f"max_requeues={self.max_requeues} on this machine; expected at most {MOST_REQUEUES_HERE}."
            )
        if self.gpus and self.gpus * self.workers > (there := count_gpus()):
            raise BadValueError(
                f"{self.workers} workers with {self.gpus} GPUs each; expected at most this machine's {there}."
            )

    @property
    def signal_s(self) -> int:
        """How many seconds before its end a job is told to write its state."""
        return LONGEST_SIGNAL_S if self.minutes is None else int(min(LONGEST_SIGNAL_S, self.minutes * 60 / 2))

    def number_of(self, part: int | None) -> str | None:
        """Return what the cluster calls the job, or one task of its array; None if it never had it."""
        if not self.numbers or (part is not None and part not in self.parts):
            return None
        number = self.numbers[-1]
        if part is None or self.cluster == "local" or len(self.parts) == 1:
            return number
        return f"{number}_{self.parts.index(part)}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-compatible."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return what `to_dict` gave."""
        lists = ("after", "numbers", "parts")
        values: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in fields.items()}
        return cls(**values)


def check_installed(package: str, extra: str) -> None:
    """Raise MissingDependencyError if a package is not there, which an extra of dhlab installs."""
    if find_spec(package) is None:
        raise MissingDependencyError(f"this needs {package}, which is not installed: pip install 'dhlab[{extra}]'.")


def count_gpus() -> int:
    """Return how many GPUs this process may use."""
    import torch

    return torch.cuda.device_count()
