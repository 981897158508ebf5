"""A real Slurm on loopback: munged, slurmctld, two slurmd with two fake GPUs each, in a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from servers import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONF = """\
ClusterName=dhlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU=64
SlurmdParameters=config_overrides
ReturnToService=2
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdTimeout=10
KillWait=3
MessageTimeout=3
MinJobAge=300
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=2000 Gres=gpu:2
PartitionName=cpu Nodes=n[1-2] Default=YES MaxTime=01:00:00 State=UP
PartitionName=gpu Nodes=n[1-2] MaxTime=01:00:00 State=UP
"""


class Slurm:
    """A cluster of two nodes in a folder.

    Parameters
    ----------
    folder
        Where its settings, state and logs are; short, for a socket's path has at most 107 characters.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "slurm.conf"

    def start(self) -> None:
        """Write the settings, start the daemons, wait until both nodes are idle."""
        for name in ("state", "munge", "log"):
            (self.folder / name).mkdir()
        ports = free_ports(3)
        host = socket.gethostname().partition(".")[0]
        self.settings.write_text(CONF.format(folder=self.folder, host=host, ports=ports))
        gpus = [f"NodeName=n{node} Name=gpu File={self._gpu_files(node)} Flags=nvidia_gpu_env\n" for node in (1, 2)]
        (self.folder / "gres.conf").write_text("".join(gpus))
        self._start_munged()
        self.run("slurmctld", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_until_idle()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-N", node)

    def kill(self, daemon: str, number: int = signal.SIGTERM) -> None:
        """Send a signal to a daemon: ``slurmctld``, ``slurmd-n1`` …"""
        os.kill(int((self.folder / f"{daemon}.pid").read_text()), number)

    def run(self, *command: str) -> str:
        """Run a command of Slurm against this cluster and return what it prints."""
        done = subprocess.run(
            command, env=os.environ | {"SLURM_CONF": str(self.settings)}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_until_idle(self) -> None:
        """Wait until nothing runs and both nodes answer."""
        deadline = time.monotonic() + 30
        while self.run("sinfo", "-h", "-N", "-p", "cpu", "-o", "%T").split() != ["idle", "idle"]:
            assert time.monotonic() < deadline, self.run("sinfo", "-N", "-l")
            time.sleep(0.1)

    def stop(self) -> None:
        """End every daemon."""
        for pid in [*self.folder.glob("*.pid"), self.folder / "munge" / "pid"]:
            if pid.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(pid.read_text()), signal.SIGTERM)

    def _start_munged(self) -> None:
        place = self.folder / "munge"
        self.folder.chmod(0o755)
        place.chmod(0o755)
        key = place / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        # --force: a folder below /tmp is writable by others.
        self.run("munged", "--force", *(f"--{option}={place / name}" for option, name in names.items()))

    def _gpu_files(self, node: int) -> str:
        # Slurm wants character devices whose names end in a number; nothing opens them.
        for number in (0, 1):
            os.mknod(self.folder / f"node{node}gpu{number}", 0o666 | 0o020000, os.makedev(195, number))
        return f"{self.folder}/node{node}gpu[0-1]"


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Give a running Slurm."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"needs Slurm and munge ({', '.join(missing)} not found): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons run as root here, and so must these tests")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Give an idle Slurm, the one that this process talks to."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.settings))
    return slurm_cluster


@pytest.fixture(autouse=True)
def jobs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the jobs of a test apart."""
    folder = tmp_path / "jobs"
    monkeypatch.setenv("DHLAB_JOBS", str(folder))
    return folder
