"""A finished run as one of several whose steps are timed in turns.

Shape letters: B sequences, S positions.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from moe.benchmark.settle import settle
from moe.data import Streams, Windows
from moe.engine import build_engine
from moe.expert_parallel import spread_experts
from moe.finished import FinishedRun
from moe.ranks import init_ranks
from moe.streaming import Memories

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

    def batches(self) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
        """This rank's micro-batches [B, S + 1] of a step with the model's further arguments, from the first step on."""
        settings, kind = self.settings, Streams if self.run.reads_streams else Windows
        batches = kind(self.run.corpus, "train", settings["sequence"], settings["batch"], self.run.spec["seed"])
        memories = Memories(batches, settings["batch"] // (self.ranks * self.micro_batch))
        for step in count():
            tokens_BS = torch.from_numpy(batches.at(step, self.rank, self.ranks)).to(self.run.device)
            yield list(zip(tokens_BS.split(self.micro_batch), memories.before(step), strict=True))

    def training(self) -> Callable[[], None]:
        """What a step of moe.train computes: all micro-batches, the optimiser, the router's own move."""
        batches, engine = self.batches(), self.engine

        def step() -> None:
            engine.module.train()
            for i, (micro_BS, memory) in enumerate(next(batches)):
                if i:
                    engine.step()  # only accumulates: the optimiser moves after the last micro-batch
                loss, router_loss = engine(micro_BS[:, :-1], micro_BS[:, 1:], **memory)
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
            for micro_BS, memory in next(batches):
                model(micro_BS[:, :-1], **memory)

        return step


def init_ranks_once(device: torch.device) -> tuple[int, int]:
    """As init_ranks, whose group is one a process."""
    group = torch.distributed
    return (group.get_rank(), group.get_world_size()) if group.is_initialized() else init_ranks(device)
