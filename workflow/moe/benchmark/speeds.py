"""Training and inference TFLOPS of top-k and ReLU routing in stage III, and their difference (ReMoE, table 7).

`python -m moe.benchmark.speeds RUN … --corpora results/corpora --output speed.csv`, with a finished run of either
router for each setup. Their last snapshots are timed, in turns and on the same batches of their corpus; several ranks
are started by moe.launch, as for a training.
"""

import argparse
import gc
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import yaml

from moe import devices
from moe.accounting import forward_flops, training_flops
from moe.benchmark.contender import Contender, init_ranks_once
from moe.benchmark.turns import in_turns, speed_ratio
from moe.command_line import exit_code, note
from moe.finished import FinishedRun, open_run, write_csv

COLUMNS = ["setup", "size", "phase", "router", "tflops", "difference_percent", "low_percent", "high_percent"]
COLUMNS += ["active_experts", "rounds", "device"]
ROUTERS = ("topk", "relu")  # the baseline first
FLOPS = {"training": training_flops, "inference": forward_flops}


def nominal_flops(contender: Contender, phase: str) -> float:
    """FLOPs of a step on one device: k active experts, whatever the router does."""
    model, sequence = contender.run.spec["model"], contender.settings["sequence"]
    shape = {k: model[k] for k in ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")}
    sequences = contender.settings["batch"] / contender.ranks
    return sequences * FLOPS[phase](sequence, active_experts=model["top_k"], **shape)


def compare(runs: dict[str, FinishedRun], rounds: int, clock=time.perf_counter) -> list[dict[str, Any]]:
    """Rows of a setup, from its run of each router: TFLOPS from the median round, the difference from paired rounds.

    The difference is ReLU's lead over top-k in percent, with the 95 % interval of its median; none with too few rounds.
    """
    contenders = {router: Contender(runs[router]) for router in ROUTERS}
    spec, active, rows = runs["topk"].spec, {}, []
    for phase in FLOPS:
        # a phase at a time: with two in turns each comes as often after itself as after the other
        steps = {router: getattr(contenders[router], phase)() for router in ROUTERS}
        seconds = in_turns(steps, rounds, clock)
        for router in ROUTERS:
            if phase == "training":
                active[router] = statistics.mean(steps[router].active)
            row = {"setup": spec["setup"], "size": spec["size"], "phase": phase, "router": router}
            row["tflops"] = nominal_flops(contenders[router], phase) / statistics.median(seconds[router]) / 1e12
            row |= {"active_experts": active[router], "rounds": rounds, "device": devices.name(runs[router].device)}
            rows.append(row)
        names = ("difference_percent", "low_percent", "high_percent")
        ratios = speed_ratio(seconds["relu"], seconds["topk"])
        rows[-1] |= {n: None if r is None else 100 * (r - 1) for n, r in zip(names, ratios, strict=True)}
    return rows


def by_setup(folders: list[Path]) -> dict[str, dict[str, tuple[Path, str]]]:
    """Setup -> router -> run's folder and corpus. Raises ValueError unless each setup has one run of either router."""
    setups: dict[str, dict[str, tuple[Path, str]]] = {}
    for folder in folders:
        spec = yaml.safe_load((folder / "run.yaml").read_text())
        of_setup, router = setups.setdefault(spec["setup"], {}), spec["model"]["router"]["name"]
        if router not in ROUTERS or router in of_setup:
            raise ValueError(f"{folder}: router {router!r}, expected one run of each of {', '.join(ROUTERS)} a setup")
        of_setup[router] = (folder, spec["corpus"])
    for setup, of_setup in setups.items():
        if missing := [router for router in ROUTERS if router not in of_setup]:
            raise ValueError(f"setup {setup}: no run with router {missing[0]!r}, expected one to compare with")
    return setups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one a setup and router")
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the prepared corpora")
    parser.add_argument("--rounds", type=int, default=31, help="turns that count")
    parser.add_argument("--output", type=Path, required=True, help="speed.csv")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about calls that DeepSpeed makes

    def measure() -> None:
        device, rows = devices.pick(), []
        rank, _ = init_ranks_once(device)
        for setup, folders in by_setup(arguments.runs).items():
            if rank == 0:
                note(f"speeds of {setup}")
            corpora = arguments.corpora
            runs = {r: open_run(folder, corpora / c, device=device.type) for r, (folder, c) in folders.items()}
            rows += compare(runs, arguments.rounds)
            gc.collect()  # engines are cycles, and the next setup needs their memory
        if rank == 0:
            write_csv(arguments.output, COLUMNS, rows)

    sys.exit(exit_code(measure))


if __name__ == "__main__":
    main()
