"""What is watched while a model trains, without touching the training: held-out loss, and flips of the routing.

Letters: B windows, S tokens of a window, T = B·S, E experts, L layers.
"""

import math
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe.data import Corpus, held_out


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
