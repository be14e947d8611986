"""A SLURM of two virtual nodes on this machine, for tests: its daemons, ports and files are its own."""

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cli_runs import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in DAEMONS if not shutil.which(name)]

NODES = ["127.0.0.1", "127.0.0.2"]
"""Their names, which stand for this machine everywhere."""

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=10
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmdSpoolDir={base}/%n
StateSaveLocation={base}/state
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@contextlib.contextmanager
def cluster(base: Path) -> Iterator[dict[str, str]]:
    """Start it; yields the environment of its commands."""
    base.chmod(0o755)
    (base / "state").mkdir()
    key = base / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = base / "slurm.conf"
    ports = [free_port() for _ in range(3)]
    conf.write_text(CONF.format(host=socket.gethostname(), ports=ports, base=base, user=getpass.getuser()))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    names = {name: f"--{name}-file={base}/munge.{name}" for name in ("pid", "log", "seed")}
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--socket={base}/munge.socket",
        f"--key-file={key}",
        *names.values(),
    ]
    commands = [munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    running: list[subprocess.Popen] = []
    try:
        for command in commands:
            with (base / f"{Path(command[0]).name}.out").open("ab") as out:
                running.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
            time.sleep(1)
        wait_for(lambda: run(environment, "sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], 60)
        yield environment
    finally:
        run(environment, "scancel", f"--user={getpass.getuser()}")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not run(environment, "squeue", "-h"), 30)
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def run(environment: dict[str, str], *command: str) -> str:
    """Output of a command of SLURM; empty if it fails."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened for {seconds} s"
        time.sleep(0.2)


def restarts(environment: dict[str, str], job: str) -> int:
    """How often a job was put in the queue again; -1 once SLURM knows it no more or it has ended."""
    state = dict(re.findall(r"(\w+)=(\S+)", run(environment, "scontrol", "show", "job", job)))
    return int(state["Restarts"]) if state.get("JobState") in ("RUNNING", "PENDING", "COMPLETING", "REQUEUED") else -1
