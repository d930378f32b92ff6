"""What is watched while a model trains, without touching the training.

Held-out loss, flips of the routing, how alike the experts are, what pulls at the router.

Letters: B windows, S tokens of a window, T = B·S, E experts, L layers.
"""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe.data import Corpus, held_out
from moe.expert_statistics import drop_ratio, expert_similarity
from moe.schedule import spread_points, windows


@torch.no_grad()
def validation_loss(
    model: nn.Module, corpus: Corpus, *, sequence: int, windows: int, batch: int, rank: int, ranks: int
) -> float:
    """Mean loss of `windows` validation windows, nats per token; ranks share them in equally many forward passes."""
    model.eval()
    device = next(model.parameters()).device
    mine = islice(held_out(corpus, "valid", sequence, windows), rank, None, ranks)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses, of windows
    for _ in range(math.ceil(windows / (ranks * batch))):
        some = [torch.as_tensor(window) for window in islice(mine, batch)]
        if not some and ranks == 1:
            break
        # a rank without windows of its own still takes part in what experts exchange
        rows = torch.stack(some) if some else torch.zeros(1, sequence + 1, dtype=torch.long)
        rows = rows.to(device)
        loss = model(rows[:, :-1], rows[:, 1:])[0].double()
        sums += torch.stack([loss, torch.ones_like(loss)]) * len(some)
    if ranks > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


class Flips:
    """Flip rate (ReMoE's figure 10): how much of the routing of a fixed text one optimiser step changes.

    Mean over layers, tokens and experts of |mask − mask one step before|, mask = gates > 0, in evaluation mode; the
    flip count is E times it. Measured in every `every`-th step, on the first `windows` validation windows. A resumed
    run measures the same: the mask before a step follows from the weights alone.
    """

    def __init__(self, model: nn.Module, corpus: Corpus, *, sequence: int, windows: int, every: int):
        self.model, self.every = model, every if model.router is not None else 0
        self.before: tuple[int, Tensor] | None = None  # step, mask_LTE after it
        if self.every:
            rows = list(islice(held_out(corpus, "valid", sequence, None), windows))
            device = next(model.parameters()).device
            self.tokens_BS = torch.stack([torch.as_tensor(row)[:-1] for row in rows]).to(device)

    def before_step(self, step: int) -> None:
        """Note the mask that `step` (from 1 on) is about to change."""
        if self.every and step % self.every == 0 and (self.before is None or self.before[0] != step - 1):
            self.before = step - 1, self._mask()

    def after_step(self, step: int) -> dict[str, float]:
        """{"flip_rate"} of `step`, or nothing where it is not measured."""
        if not self.every or step % self.every:
            return {}
        mask_LTE = self._mask()
        rate = (mask_LTE ^ self.before[1]).double().mean().item()
        self.before = step, mask_LTE
        return {"flip_rate": rate}

    @torch.no_grad()
    def _mask(self) -> Tensor:
        self.model.eval()
        routings: list = []
        self.model(self.tokens_BS, routings=routings)
        return torch.stack([routing.gates_TE > 0 for routing in routings])


class Similarity:
    """How alike each layer's experts are (RMoE's figure 5), after the steps at the ends of `points` equal parts."""

    def __init__(self, model: nn.Module, *, points: int, steps: int):
        self.model = model
        self.at = set(spread_points(points, steps)) if model.router is not None else set()
        self.columns = [f"similarity_{layer}" for layer in range(len(model.blocks))] if self.at else []

    def after_step(self, step: int) -> dict[str, float]:
        """{"similarity_{layer}"} of `step`, or nothing where it is not measured; every rank must call it."""
        if step not in self.at:
            return {}
        vectors = [block.experts.mean_vectors().cpu().numpy() for block in self.model.blocks]
        return dict(zip(self.columns, map(expert_similarity, vectors), strict=True))


class RouterPull:
    """The gradient of the router by loss, and what a capacity would drop (RMoE's table 11), of some steps' batches.

    Of each point of the schedule (a share of its steps) the `length` steps that end there are measured. A measured step
    sees its batch twice: first here, then as if nothing had been, so the training does not change: random numbers, what
    the router counts and what the model remembers of the text before stay as they were. In training mode and with
    the random numbers of the step itself, so these are the gradients that it takes (before clipping).
    """

    columns = ("router_gradient", "router_gradient_lm", "drop_ratio")

    def __init__(self, model: nn.Module, *, points: list[float], length: int, steps: int, ranks: int):
        self.model, self.ranks = model, ranks
        router = model.router
        self.weights = [] if router is None else [p for p in router.parameters() if p.requires_grad]
        self.at = {step for window in windows(points, steps, length) for step in window} if self.weights else set()

    def before_step(self, step: int, micro_batches: Iterable[tuple]) -> dict[str, float]:
        """Norms of the gradient of all trainable router weights by the whole loss and by the language model's alone.

        micro_batches: (inputs [B, S], targets [B, S], further arguments of the forward pass, weight of the language
        model's loss) each. Nothing is measured in other steps. Every rank must call it.
        """
        if step not in self.at:
            return {}
        return undisturbed(self.model, lambda: self._measure(list(micro_batches)))

    def _measure(self, micro_batches: list[tuple]) -> dict[str, float]:
        counts_LE, by_loss = 0, [0, 0]  # of the language model, of the router
        for inputs_BS, targets_BS, further, weight in micro_batches:
            routings: list = []
            kept = {name: list(value) if isinstance(value, list) else value for name, value in further.items()}
            lm_loss, router_loss = self.model(inputs_BS, targets_BS, routings=routings, **kept)  # it changes a list
            for which, loss in enumerate((weight * lm_loss, router_loss)):
                by_loss[which] = by_loss[which] + self._gradient(loss) / len(micro_batches)
            counts_LE = counts_LE + torch.stack([(routing.gates_TE > 0).sum(0) for routing in routings])
        gradients, counts_LE = torch.stack(by_loss), counts_LE.double()
        if self.ranks > 1:
            dist.all_reduce(gradients)
            dist.all_reduce(counts_LE)
        lm, router = gradients / self.ranks
        values = ((lm + router).norm().item(), lm.norm().item(), drop_ratio(counts_LE.cpu().numpy()))
        return dict(zip(self.columns, values, strict=True))

    def _gradient(self, loss: Tensor) -> Tensor:
        """Of all weights in one row, float64; zeros where the loss does not depend on them."""
        if not loss.requires_grad:
            loss = loss + 0 * self.weights[0].sum()
        some = torch.autograd.grad(loss, self.weights, retain_graph=True, materialize_grads=True, allow_unused=True)
        return torch.cat([gradient.flatten().double() for gradient in some])


def undisturbed(model: nn.Module, measure: Callable[[], Any]) -> Any:
    """What `measure` gives in training mode; random numbers and the router's counts stay as they were."""
    router, device = model.router, next(model.parameters()).device
    counts = None if router.active_LE is None else router.active_LE.clone()
    kept = counts, list(router.tokens_L)
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = measure()
    router.active_LE, router.tokens_L = kept
    return found
