"""A real Slurm on loopback: munged, slurmctld, two slurmd with two fake GPUs each, in a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from servers import free_ports
from waiting import wait_for

from dhlab.scheduling.clusters import cluster_named

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
{accounts}
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
MinJobAge={remembered_s}
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=2000 Gres=gpu:2
PartitionName=cpu Nodes=n[1-2] Default=YES MaxTime=01:00:00 State=UP
PartitionName=gpu Nodes=n[1-2] MaxTime=01:00:00 State=UP
"""
ACCOUNTS = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm
"""


class Slurm:
    """A cluster of two nodes in a folder.

    Parameters
    ----------
    folder
        Where its settings, state and logs are; short, for a socket's path has at most 107 characters.
    """

    # How long squeue knows of a job that has ended.
    remembered_s = 300

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "slurm.conf"

    def start(self) -> None:
        """Write the settings, start the daemons, wait until both nodes are idle."""
        for name in ("state", "munge", "log"):
            (self.folder / name).mkdir()
        ports = free_ports(3)
        host = socket.gethostname().partition(".")[0]
        self.settings.write_text(
            CONF.format(
                folder=self.folder, host=host, ports=ports, accounts=self.accounts(), remembered_s=self.remembered_s
            )
        )
        gpus = [f"NodeName=n{node} Name=gpu File={self._gpu_files(node)} Flags=nvidia_gpu_env\n" for node in (1, 2)]
        (self.folder / "gres.conf").write_text("".join(gpus))
        self._start_munged()
        self.start_accounts()
        self.run("slurmctld", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_until_idle()

    def accounts(self) -> str:
        """Return what the settings say of accounts."""
        return "AccountingStorageType=accounting_storage/none"

    def start_accounts(self) -> None:
        """Start what keeps accounts: nothing."""

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
        wait_for(lambda: self.run("sinfo", "-h", "-N", "-p", "cpu", "-o", "%T").split() == ["idle", "idle"])

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


class SlurmWithAccounts(Slurm):
    """A cluster whose squeue forgets at once what has ended; ``sacct`` tells, from a MariaDB of its own."""

    remembered_s = 2
    database: subprocess.Popen[bytes] | None = None

    def accounts(self) -> str:
        """Return how slurmdbd is reached."""
        (self.port,) = free_ports(1)
        kind = f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStoragePort={self.port}"
        return f"{kind}\nAccountingStorageHost=127.0.0.1\nAccountingStoragePass={self.folder}/munge/sock"

    def start_accounts(self) -> None:
        """Start MariaDB on a socket, and slurmdbd."""
        place = self.folder / "mariadb"
        place.mkdir()
        common = ["--no-defaults", f"--datadir={place}/data", "--user=root"]
        self.run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db")
        small = ["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=4M", "--skip-log-bin"]
        with (place / "log").open("w") as log:
            self.database = subprocess.Popen(
                ["mariadbd", *common, *small, f"--socket={place}/socket", "--skip-networking"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        settings = self.folder / "slurmdbd.conf"
        settings.write_text(ACCOUNTS.format(folder=self.folder, port=self.port))
        settings.chmod(0o600)
        self.run_until_done("mariadb", "--no-defaults", f"--socket={place}/socket", "--execute=select 1")
        self.start_slurmdbd()
        self.run_until_done("sacctmgr", "--immediate", "add", "cluster", "dhlab")

    def start_slurmdbd(self) -> None:
        """Start slurmdbd, which finds the database by its socket."""
        self.run("env", f"MYSQL_UNIX_PORT={self.folder}/mariadb/socket", "slurmdbd")

    def run_until_done(self, *command: str) -> None:
        """Run a command until it succeeds."""
        environment = os.environ | {"SLURM_CONF": str(self.settings)}
        wait_for(lambda: not subprocess.run(command, env=environment, capture_output=True, check=False).returncode)

    def stop(self) -> None:
        """End every daemon, the database last."""
        super().stop()
        if self.database is not None:
            self.database.terminate()
            self.database.wait(30)


@contextmanager
def run_slurm(kind: type[Slurm], folder: Path, *programs: str) -> Iterator[Slurm]:
    """Run a Slurm, or skip the test where it cannot."""
    if missing := [name for name in (*PROGRAMS, *programs) if shutil.which(name) is None]:
        packages = "slurm-wlm munge" + (" slurmdbd mariadb-server" if programs else "")
        pytest.skip(f"needs {packages} ({', '.join(missing)} not found): apt-get install {packages}")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons run as root here, and so must these tests")
    cluster = kind(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Give a running Slurm."""
    with run_slurm(Slurm, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def slurm_with_accounts(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmWithAccounts]:
    """Give a Slurm that keeps accounts, the one that this process talks to."""
    folder = tmp_path_factory.mktemp("slurm")
    with run_slurm(SlurmWithAccounts, folder, "slurmdbd", "mariadbd", "mariadb-install-db") as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.settings))
        yield cluster


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
    # Another Slurm gives the same numbers to other jobs.
    cluster_named.cache_clear()
    return folder
