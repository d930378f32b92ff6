"""Which GPUs of a machine a job has: no two jobs share one, and a job that dies gives its own back.

A slot is a file lock, which the system releases with the last process that holds it: the launcher and the ranks that it
started, whichever ends last. On a cluster the scheduler gives each job its own devices, and no lock is asked.
"""

import fcntl
import os
import re
import tempfile
import time
from glob import glob
from pathlib import Path

PRETENDED = "REROUTED_DEVICES"  # environment variable: names of devices, for tests on a machine without any
SECONDS = 0.5  # between two looks at devices that others have


def devices() -> list[str]:
    """Names of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them: those that it names, else all."""
    for variable in (PRETENDED, "CUDA_VISIBLE_DEVICES"):
        if variable in os.environ:
            return [name.strip() for name in os.environ[variable].split(",") if name.strip()]
    found = (re.fullmatch(r".*nvidia(\d+)", path) for path in glob(os.path.join(os.sep, "dev", "nvidia[0-9]*")))
    return sorted((match[1] for match in found if match), key=int)


def claim(count: int) -> tuple[list[str], list[int]]:
    """Wait for `count` free GPUs; their names, and descriptors of their locks, for child processes to inherit.

    Fewer than that are given back while waiting, so that two jobs that want several do not wait for each other for
    ever. Raises ValueError where the machine has fewer.
    """
    known = devices()
    if count > len(known):
        raise ValueError(f"{count} ranks want a GPU each, this machine has {len(known)}: {', '.join(known) or 'none'}")
    while True:
        held: dict[str, int] = {}
        for name in known:
            lock = _locked(name)
            if lock is not None:
                held[name] = lock
            if len(held) == count:
                return list(held), list(held.values())
        for lock in held.values():
            os.close(lock)
        time.sleep(SECONDS)


def _locked(name: str) -> int | None:
    """A descriptor that holds the device's lock as long as any process has it open; None where another one holds it.

    flock rather than filelock, whose locks are a process' own.
    """
    path = Path(tempfile.gettempdir()) / f"rerouted-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
