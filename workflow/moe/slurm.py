"""What a job of Slurm knows of itself: its nodes, when its time is up, how it is queued again."""

import os
import re
import subprocess
import time
from datetime import datetime
from typing import Self

WARNING = "REROUTED_WARNING"  # environment variable: seconds before the end of a job at which its ranks are warned
SECONDS = 120  # by default: time for a step and a checkpoint
PATIENCE = 300  # seconds until Slurm has ended a job that it queues again


class Allocation:
    """A job of Slurm, seen from one of its nodes.

    ends: when its time is up, in seconds of time.time(); None where it has no end. warned: whether that was said.
    """

    def __init__(self, job: str, node: int, nodes: int, ends: float | None):
        self.job, self.node, self.nodes, self.ends, self.warned = job, node, nodes, ends, False
        seconds = float(os.environ.get(WARNING, SECONDS))
        self.warning = None if ends is None else max(ends - seconds, time.time())

    @classmethod
    def of_this_job(cls) -> Self | None:
        """None outside of Slurm, and where Slurm does not answer."""
        job = os.environ.get("SLURM_JOB_ID")
        end = _asked("squeue", "--noheader", "--jobs", job, "--format", "%e") if job else None
        if end is None:
            return None
        nodes = (
            int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else 1
        )
        return cls(job, int(os.environ.get("SLURM_NODEID", 0)), nodes, _moment(end.strip()))

    def share(self, ranks: int) -> tuple[int, int]:
        """First rank of this node, and how many it starts. Raises ValueError unless all nodes have as many."""
        if ranks % self.nodes:
            raise ValueError(f"{ranks} ranks on {self.nodes} nodes, expected as many on each")
        return self.node * ranks // self.nodes, ranks // self.nodes

    def rendezvous(self) -> dict[str, str]:
        """Where the ranks find each other: the first node, at a port that follows from the job's number."""
        names = _asked("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]) or ""
        shown = _asked("scontrol", "--oneliner", "show", "node", names.split()[0]) if names.split() else None
        address = re.search(r"NodeAddr=(\S+)", shown or "")
        if address is None:
            raise ValueError(f"Slurm does not say where node {names.split()[:1]} of job {self.job} is")
        return {"MASTER_ADDR": address[1], "MASTER_PORT": str(20_000 + int(self.job) % 12_000)}

    def time_is_up(self) -> bool:
        """Once, when the job's end is near."""
        if self.warned or self.warning is None or time.time() < self.warning:
            return False
        self.warned = True
        return True

    def near_its_end(self) -> bool:
        """Whether ranks that have stopped did so since the time is up: another node's clock may have said it first."""
        return self.warning is not None and time.time() >= self.warning - 60

    def queue_again(self) -> None:
        """Have the first node put the job back into the queue, and wait for what ends it."""
        if self.node == 0 and _asked("scontrol", "requeue", self.job) is None:
            return  # it may not be queued again: whoever submitted it sees the exit code
        time.sleep(PATIENCE)


def _asked(*command: str) -> str | None:
    """What a command of Slurm says; None where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _moment(text: str) -> float | None:
    """Seconds of time.time() of a time as squeue says it; None of what is none ("N/A", "NONE")."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
