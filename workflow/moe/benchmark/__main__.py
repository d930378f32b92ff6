"""Measure and write the table: `python -m moe.benchmark --output results/benchmark/cpu.csv`."""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from moe.command_line import exit_code, note
from moe.launch import ALLOCATOR

PARTS = ("routers", "experts", "peers", "mfu")
COLUMNS = ["part", "contender", "dtype", "tokens_per_second", "baseline", "ratio", "ratio_low", "ratio_high"]
COLUMNS += ["active_experts", "peak_memory_mib", "mfu", "host_syncs", "rounds", "device", "threads", "torch", "commit"]


def device_name(device: torch.device) -> str:
    """GPU or processor, as a file's name wants it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((line.split(":")[1] for line in lines if line.startswith("model name")), "cpu")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def provenance(device: torch.device) -> dict[str, str | int]:
    """Columns that say where and from what a row came."""
    commit = None
    if shutil.which("git"):
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    threads = torch.get_num_threads()
    return {"device": device_name(device), "threads": threads, "torch": torch.__version__, "commit": commit or ""}


def measure(arguments: argparse.Namespace, device: torch.device) -> Iterator[list[dict]]:
    """Rows of one chosen part after the other."""
    from moe.benchmark import parts  # after the threads are set

    best = "bfloat16" if device.type == "cuda" else arguments.dtype
    chosen = arguments.parts.split(",")
    for name in chosen:
        if name not in PARTS:
            raise ValueError(f"--parts: {name!r} is unknown, expected some of {', '.join(PARTS)}")
    for name in chosen:
        note(f"benchmark: {name}")
        if name == "mfu":
            setups = {path.stem: yaml.safe_load(path.read_text()) for path in arguments.setups}
            rows = parts.mfu_part(device, arguments.rounds, setups, arguments.corpus, arguments.tiny)
        elif name == "routers":
            rows = parts.routers_part(device, arguments.rounds, best, arguments.corpus, arguments.tiny)
        else:
            rows = getattr(parts, f"{name}_part")(device, arguments.rounds, best, arguments.tiny)
        yield [row | provenance(device) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="CSV to write")
    parser.add_argument("--parts", default="routers,experts,peers", help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--rounds",
        type=int,
        default=11,
        help="turns that count; of what is compared closely two or three times as many",
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="on a CPU, but for peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--setups", type=Path, nargs="*", default=[], help="of part mfu")
    parser.add_argument("--corpus", type=Path, help="folder of a prepared corpus, the text of parts routers and mfu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="shapes for a test")
    arguments = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):  # as for trainings; peers get it too
        os.execve(sys.executable, [sys.executable, "-m", "moe.benchmark", *sys.argv[1:]], os.environ | ALLOCATOR)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    def command() -> None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for rows in measure(arguments, device):
                writer.writerows(rows)
                file.flush()  # should a later part fail, these were measured

    sys.exit(exit_code(command))


if __name__ == "__main__":
    main()
