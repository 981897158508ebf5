"""One worker of a job: ``python -m dhlab.scheduling.worker FOLDER [--under-srun]``."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from dhlab import env
from dhlab.atomic import atomic_write_text
from dhlab.scheduling.folder import CALL, JobFolder
from dhlab.scheduling.team import interface_to

__all__ = ["main"]

PARENT_DIES = 1  # Linux' PR_SET_PDEATHSIG


def main(folder: str, *, under_srun: bool) -> int:
    """Do what a job calls and leave the result, or the error, in its folder; return the exit status.

    Parameters
    ----------
    folder
        Folder of the job, or of one task of its array.
    under_srun
        Whether Slurm says which worker this is.
    """
    if under_srun:
        _take_rank_from_slurm()
    else:
        # Whoever watches may be killed; nobody would stop this worker then.
        ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGTERM)
        if env.get("DHLAB_WATCHER") not in ("", str(os.getppid())):
            return 128 + signal.SIGTERM
    _choose_network()
    signal.signal(signal.SIGUSR2, _leave)
    rank = int(env.get("HOROVOD_RANK") or 0)
    place = JobFolder(Path(folder))
    try:
        result = _do(place)
        if _is_first(rank):
            place.write("worker-0.result", result)
    except Exception as error:  # noqa: BLE001 - whatever it was, the person who submitted it is told
        traceback.print_exc()
        kind = type(error).__name__
        fault = {"worker": rank, "type": kind, "message": f"{kind}: {error}"}
        fault |= {"trace": traceback.format_exc(), "time": time.time()}
        atomic_write_text(place.path / f"worker-{rank}.error", json.dumps(fault))
        return 1
    return 0


def _do(place: JobFolder) -> Any:
    """Call what the job calls; a task of an array adds its own value as the first argument."""
    item: tuple[Any, ...] = ()
    if not place.has(CALL):
        place, item = JobFolder(place.path.parents[1]), (place.read("item.pkl"),)
    # Modules beside the notebook are found here as they are there, before what needs them is loaded.
    sys.path += [entry for entry in place.read_json("path.json").get("path", ()) if entry not in sys.path]
    function, arguments, keywords = place.read(CALL)
    return function(*item, *arguments, **keywords)


def _is_first(rank: int) -> bool:
    if not env.get("HOROVOD_ELASTIC"):
        return rank == 0
    from dhlab.distributed import is_main

    # Who was first at the beginning may be gone.
    return is_main()


def _leave(_number: int, _frame: object) -> None:
    """End without a result and without a fault: the job is begun again."""
    raise SystemExit(0)


def _take_rank_from_slurm() -> None:
    """Tell Horovod what Slurm says of this worker's place."""
    size, nodes = int(env.get("SLURM_STEP_NUM_TASKS")), int(env.get("SLURM_STEP_NUM_NODES"))
    if size == 1:
        return
    env.set_variables(
        {
            "HOROVOD_HOSTNAME": env.get("SLURMD_NODENAME"),
            "HOROVOD_RANK": env.get("SLURM_PROCID"),
            "HOROVOD_SIZE": str(size),
            "HOROVOD_LOCAL_RANK": env.get("SLURM_LOCALID"),
            "HOROVOD_LOCAL_SIZE": str(size // nodes),
            "HOROVOD_CROSS_RANK": env.get("SLURM_NODEID"),
            "HOROVOD_CROSS_SIZE": str(nodes),
        }
    )


def _choose_network() -> None:
    """Tell Horovod to talk over the network of the rendezvous and to listen on no other."""
    if server := env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR"):
        network = interface_to(server.partition(":")[0])
        env.set_variables({"HOROVOD_GLOO_IFACE": network, "NCCL_SOCKET_IFNAME": network})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], under_srun="--under-srun" in sys.argv))
