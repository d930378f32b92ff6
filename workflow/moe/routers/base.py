"""What every router promises: one weight per token and expert.

Shape letters: T tokens, D model width, E experts, H what the scores read (width or router memory), L MoE layers.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Routing(NamedTuple):
    gates_TE: Tensor  # weight of each expert for each token; zero means not routed
    loss: Tensor  # scalar the trainer adds to the language-modelling loss
    memory_TH: Tensor | None = None  # handed to the next layer
    scores_TE: Tensor | None = None  # what the gates were cut from: probabilities or pre-ReLU scores


class Router(nn.Module):
    """memory ∘ scores ∘ gates, serving every MoE layer of one model, so that layers may share what they like.

    scores: module (h_TH, layer) -> scores_TE.
    gates: module (scores_TE, layer) -> (gates_TE, loss, shown_TE); owns the loss that it wants.
    memory: optional module (x_TD, layer, memory) -> (h_TH, memory), recurrent across layers, never along the sequence.
    """

    def __init__(self, layers: int, experts: int, scores: nn.Module, gates: nn.Module, memory: nn.Module | None = None):
        super().__init__()
        self.memory, self.scores, self.gates = memory, scores, gates
        self.layers, self.experts = layers, experts
        self.active_LE: Tensor | None = None  # routed tokens since the last step; counts, so exact
        self.tokens_L: list[int] = [0] * layers

    def forward(self, x_TD: Tensor, layer: int, memory_TH: Any = None, token_ids_T: Tensor | None = None) -> Routing:
        """Route the tokens x_TD (leading dimensions are flattened) of MoE layer `layer`."""
        h_TH = x_TD = x_TD.flatten(0, -2)
        if self.memory is not None:
            h_TH, memory_TH = self.memory(x_TD, layer, memory_TH)
        scores_TE = self.scores(h_TH, layer)
        gates_TE, loss, shown_TE = self.gates(at_least_float32(scores_TE), layer)
        if self.training:
            self._count(gates_TE, layer)
        return Routing(gates_TE, loss, memory_TH, shown_TE)

    @torch.no_grad()
    def _count(self, gates_TE: Tensor, layer: int) -> None:
        # Recomputation under activation checkpointing counts twice; everything read from the counts is a ratio.
        if self.active_LE is None or self.active_LE.device != gates_TE.device:
            self.active_LE = torch.zeros(self.layers, self.experts, dtype=torch.long, device=gates_TE.device)
        self.active_LE[layer] += (gates_TE > 0).sum(0)
        self.tokens_L[layer] += gates_TE.shape[0]

    def after_step(self) -> dict[str, float]:
        """Adjust what changes once per optimiser step (λ, …); returns the step's statistics as metrics.

        sparsity: share of zero gates over all layers, tokens, micro-batches and ranks; sparsity_{l}: of one layer;
        load_{l}: tokens of the busiest expert over the mean of the layer's experts.
        """
        if self.active_LE is None:
            return {}
        active_LE = summed_over_ranks(self.active_LE).cpu()
        tokens_L = summed_over_ranks(torch.tensor(self.tokens_L, device=self.active_LE.device)).cpu()
        self.active_LE, self.tokens_L = None, [0] * self.layers
        slots_L = tokens_L * self.experts
        active_L = active_LE.sum(1)
        sparsity_L = 1 - active_L.double() / slots_L
        busiest_L = active_LE.amax(1).double() * self.experts / active_L.clamp(min=1)
        sparsity = 1 - active_L.sum().item() / slots_L.sum().item()
        statistics = {"sparsity": sparsity}
        statistics |= {f"sparsity_{i}": s for i, s in enumerate(sparsity_L.tolist())}
        statistics |= {f"load_{i}": m for i, m in enumerate(busiest_L.tolist())}
        return statistics | self.gates.after_step(sparsity)


class Gates(nn.Module):
    """From scores to weights; subclasses define forward(scores_TE, layer) -> (gates_TE, loss, shown_TE)."""

    def after_step(self, sparsity: float) -> dict[str, float]:
        """Adjust the gates' own state after an optimiser step; returns metrics."""
        return {}


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for a softmax or a count of zeros; double stays double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def ranks() -> int:
    """How many data-parallel ranks train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed_over_ranks(counts: Tensor) -> Tensor:
    """Sum over data-parallel ranks, so that what is computed from counts does not depend on their number."""
    if ranks() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def share_of_tokens(mask_TE: Tensor, training: bool, dtype: torch.dtype) -> Tensor:
    """Share of all ranks' tokens that each expert gets, [E], a constant for the gradient (T may differ by rank)."""
    counts = mask_TE.sum(0)
    tokens = mask_TE.shape[0]
    if training and ranks() > 1:  # a validation may run on one rank alone
        totals = summed_over_ranks(torch.cat([counts, counts.new_tensor([tokens])]))
        counts, tokens = totals[:-1], totals[-1]
    return counts.to(dtype) / tokens
