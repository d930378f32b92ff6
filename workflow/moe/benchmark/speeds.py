"""Training and inference TFLOPS of top-k and ReLU routing in stage III, and their difference (ReMoE, table 7).

`python -m moe.benchmark.speeds RUN … --corpora results/corpora --output speed.csv`, with a finished run of either
router for each setup. Their last snapshots are timed, in turns and on the same batches of their corpus; several ranks
are started by moe.launch, as for a training.

Shape letters: B sequences, S positions.
"""

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from moe import devices
from moe.accounting import forward_flops, training_flops
from moe.benchmark.settle import settle
from moe.benchmark.turns import in_turns, speed_ratio
from moe.command_line import exit_code, note
from moe.data import Windows
from moe.finished import FinishedRun, open_run, write_csv
from moe.parallel import build_engine, init_ranks, spread_experts

COLUMNS = ["setup", "size", "phase", "router", "tflops", "difference_percent", "low_percent", "high_percent"]
COLUMNS += ["active_experts", "rounds", "device"]
ROUTERS = ("topk", "relu")  # the baseline first
FLOPS = {"training": training_flops, "inference": forward_flops}
ENGINE = ("betas", "eps", "weight_decay", "clip", "zero_stage", "compile")


class Contender:
    """A finished run's model with the engine of its training; `statistics` are those of the last train step."""

    def __init__(self, run: FinishedRun):
        self.run, self.settings = run, run.spec["training"]
        self.rank, self.ranks = init_ranks_once(run.device)
        batch = self.settings["batch"]
        self.micro_batch = self.settings.get("micro_batch") or max(1, batch // self.ranks)
        if batch % (self.ranks * self.micro_batch):
            each = f"{self.ranks} ranks × micro_batch {self.micro_batch}"
            raise ValueError(f"{run.folder / 'run.yaml'}: batch {batch} is not a multiple of {each}")
        model = run.model(run.snapshots[-1])
        dtype = next(model.parameters()).dtype
        spread_experts(model, self.settings.get("expert_ranks", 1))
        options = {key: self.settings[key] for key in ENGINE if key in self.settings}
        sizes = dict(batch=batch, micro_batch=self.micro_batch, ranks=self.ranks)
        self.engine = build_engine(model, dtype=dtype, **sizes, **options)
        # an engine is built with a learning rate of 0, so top-k's weights are held from the start
        settle(self.training(), self.engine, self.settings["final_learning_rate"])

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """This rank's micro-batches [B, S + 1] of a step, from the first step of the schedule on."""
        settings = self.settings
        windows = Windows(self.run.corpus, "train", settings["sequence"], settings["batch"], self.run.spec["seed"])
        for step in count():
            tokens_BS = torch.from_numpy(windows.at(step, self.rank, self.ranks)).to(self.run.device)
            yield tokens_BS.split(self.micro_batch)

    def training(self) -> Callable[[], None]:
        """What a step of moe.train computes: all micro-batches, the optimiser, the router's own move."""
        batches, engine = self.batches(), self.engine

        def step() -> None:
            engine.module.train()
            for i, micro_BS in enumerate(next(batches)):
                if i:
                    engine.step()  # only accumulates: the optimiser moves after the last micro-batch
                loss, router_loss = engine(micro_BS[:, :-1], micro_BS[:, 1:])
                engine.backward(loss + router_loss)
            engine.step()
            step.statistics = engine.module.after_step()
            step.active.append(step.statistics["active_experts"])

        step.statistics, step.active = {}, []
        return step

    def inference(self) -> Callable[[], None]:
        """The logits of the same batches."""
        batches, model = self.batches(), self.engine.module

        @torch.no_grad()
        def step() -> None:
            model.eval()
            for micro_BS in next(batches):
                model(micro_BS[:, :-1])

        return step

    def flops(self, phase: str) -> float:
        """Nominal FLOPs of a step on one device: k active experts, whatever the router does."""
        model = self.run.spec["model"]
        shape = {k: model[k] for k in ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")}
        sequences = self.settings["batch"] / self.ranks
        return sequences * FLOPS[phase](self.settings["sequence"], active_experts=model["top_k"], **shape)


def init_ranks_once(device: torch.device) -> tuple[int, int]:
    """As init_ranks, whose group is one a process."""
    group = torch.distributed
    return (group.get_rank(), group.get_world_size()) if group.is_initialized() else init_ranks(device)


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
            row["tflops"] = contenders[router].flops(phase) / statistics.median(seconds[router]) / 1e12
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
