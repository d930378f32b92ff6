"""The device of this process: which, what it is called, what it has used."""

import os
import platform
import resource
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout


def pick() -> torch.device:
    """The CPU without a GPU; one rank of several takes its own GPU, a lone process the first that is free."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if "LOCAL_RANK" in os.environ:
        index = int(os.environ["LOCAL_RANK"]) % count
    else:
        index = next((i for i in range(count) if _claim(i)), 0)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


_claims: list[FileLock] = []  # held until the process ends


def _claim(index: int) -> bool:
    uuid = torch.cuda.get_device_properties(index).uuid
    lock = FileLock(Path(tempfile.gettempdir()) / f"rerouted-gpu-{uuid}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _claims.append(lock)
    return True


def name(device: torch.device) -> str:
    """What numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> float:
    """Peak so far, GiB: of the device's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
