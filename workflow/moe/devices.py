"""The device of this process: which, what it is called, what it has used."""

import os
import platform
import resource
from pathlib import Path

import torch

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**16}  # what keeps a core's caches or a GPU busy
LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**29}


def pick() -> torch.device:
    """The CPU without a GPU; else the rank's own of those that its launcher was given (moe.slots)."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


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


def tokens_at_once(device: torch.device, vocabulary: int) -> int:
    """Tokens of a pass of a model that is only read: fewer where the logits (tokens x vocabulary) would be large."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    return max(1, min(TOKENS_AT_ONCE[kind], LOGITS_AT_ONCE[kind] // vocabulary))
