"""Seconds and memory of a training step of several runs, each beside SMoE of the same setup (RMoE, table 1).

`python -m moe.benchmark.cost RUN … --corpora results/corpora --output cost.csv`, with finished runs, SMoE of each setup
among them. Steps are timed in turns in one process group, several ranks being started by moe.launch; the memory of a
run is that of a process of its own, where no other run's tensors are.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from torch.profiler import ProfilerActivity, profile

from moe import devices
from moe.benchmark.contender import Contender, init_ranks_once
from moe.benchmark.turns import in_turns, speed_ratio
from moe.command_line import exit_code, note
from moe.finished import FinishedRun, open_run, write_csv
from moe.ranks import end_rank

COLUMNS = ["run", "setup", "router", "seconds_per_1k", "extra_time_percent", "low_percent", "high_percent"]
COLUMNS += ["memory_gb", "extra_memory_percent", "rounds", "device"]
BASELINE = "smoe"
PEAK_STEPS = 3  # the optimiser's moments exist after the first


def compare(
    runs: dict[str, FinishedRun], memory: dict[str, float], rounds: int, clock=time.perf_counter
) -> list[dict[str, Any]]:
    """Rows of a setup's runs, SMoE first: seconds from the median round, more time than SMoE's from paired rounds.

    memory: GB of each. The extra time has the 95 % interval of its median; none with too few rounds.
    """
    names = sorted(runs, key=lambda name: router_of(runs[name]) != BASELINE)
    steps = {name: Contender(runs[name]).training() for name in names}
    seconds, rows = in_turns(steps, rounds, clock), []
    for name in names:
        row = {"run": name, "setup": runs[name].spec["setup"], "router": router_of(runs[name])}
        row |= {"seconds_per_1k": 1000 * statistics.median(seconds[name]), "memory_gb": memory[name]}
        row |= {"rounds": rounds, "device": devices.name(runs[name].device)}
        if name != names[0]:
            extra = ("extra_time_percent", "low_percent", "high_percent")
            ratios = speed_ratio(seconds[names[0]], seconds[name])  # how many times SMoE's seconds
            row |= {n: None if r is None else 100 * (r - 1) for n, r in zip(extra, ratios, strict=True)}
            row["extra_memory_percent"] = 100 * (memory[name] / memory[names[0]] - 1)
        rows.append(row)
    return rows


def router_of(run: FinishedRun) -> str:
    """Name of a run's router."""
    return run.spec["model"]["router"]["name"]


def by_setup(folders: list[Path]) -> list[dict[str, tuple[Path, str]]]:
    """For each setup: run -> its folder and corpus. Raises ValueError unless one run of each setup is SMoE."""
    setups: dict[str, dict[str, tuple[Path, str]]] = {}
    routers: dict[str, list[str]] = {}
    for folder in folders:
        spec = yaml.safe_load((folder / "run.yaml").read_text())
        setups.setdefault(spec["setup"], {})[spec["run"]] = (folder, spec["corpus"])
        routers.setdefault(spec["setup"], []).append(spec["model"]["router"]["name"])
    for setup, names in routers.items():
        if names.count(BASELINE) != 1:
            found = f"{names.count(BASELINE)} of {len(names)} runs have the router {BASELINE}"
            raise ValueError(f"setup {setup}: {found}, expected one that the others are compared with")
    return list(setups.values())


def peak(run: FinishedRun) -> float:
    """Most bytes, in GB, that tensors of a training held at a time: weights, gradients, moments, activations.

    One process and one micro-batch at a time, which hold the whole optimiser, however many ranks train. On a GPU the
    allocator knows it; on a CPU the allocations and releases that the profiler saw are added up, which gives the same
    number each time, as the memory of a process, caches and libraries included, does not.
    """
    settings = run.spec["training"]
    size = settings.get("micro_batch") or settings["batch"]
    spec = run.spec | {"training": settings | {"batch": size, "micro_batch": size, "expert_ranks": 1}}
    init_ranks_once(run.device)
    watched = run.device.type == "cpu"
    gc.collect()  # what an earlier engine left is released before, not meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) if watched else nullcontext() as seen:
        step = Contender(run._replace(spec=spec)).training()
        for _ in range(PEAK_STEPS):
            step()
    if seen is None:
        return devices.peak_memory(run.device) * 2**30 / 1e9
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes)) / 1e9


def peak_alone(folder: Path, corpora: Path) -> float:
    """`peak` of a run in a process of its own."""
    command = [sys.executable, "-m", "moe.benchmark.cost", "--peak", str(folder), "--corpora", str(corpora)]
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, env=alone, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure(arguments: argparse.Namespace) -> None:
    """Rows of every setup, written by the first rank."""
    leads, rows, corpora = int(os.environ.get("RANK", 0)) == 0, [], arguments.corpora
    setups = by_setup(arguments.runs)
    # before this process takes a part of the memory itself; the other ranks wait for the first one meanwhile
    memory = {name: peak_alone(f, corpora) if leads else 1.0 for each in setups for name, (f, _) in each.items()}
    device = devices.pick()
    init_ranks_once(device)
    for each in setups:
        if leads:
            note(f"cost of {', '.join(each)}")
        runs = {name: open_run(folder, corpora / c, device=device.type) for name, (folder, c) in each.items()}
        rows += compare(runs, memory, arguments.rounds)
        gc.collect()  # engines are cycles, and the next setup needs their memory
    if leads:
        write_csv(arguments.output, COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs")
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the prepared corpora")
    parser.add_argument("--rounds", type=int, default=31, help="turns that count")
    parser.add_argument("--output", type=Path, help="cost.csv")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about calls that DeepSpeed makes

    def command() -> None:
        if arguments.peak:
            corpus = yaml.safe_load((arguments.peak / "run.yaml").read_text())["corpus"]
            print(peak(open_run(arguments.peak, arguments.corpora / corpus, device=devices.pick().type)))
        else:
            measure(arguments)

    end_rank(exit_code(command))


if __name__ == "__main__":
    main()
