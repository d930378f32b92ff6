"""What every router promises: one weight per token and expert.

Shape letters: T tokens, D model width, E experts, H what the scores read (width or router memory), L MoE layers.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Sequences(NamedTuple):
    """What a router may know of its T tokens besides their hidden states: they are ids_BS, flattened."""

    ids_BS: Tensor
    prompts_B: Tensor | None = None  # at inference: how many tokens of each sequence are its prompt


class Routing(NamedTuple):
    gates_TE: Tensor  # weight of each expert for each token; zero means not routed
    loss: Tensor  # scalar the trainer adds to the language-modelling loss
    memory_TH: Tensor | None = None  # handed to the next layer
    scores_TE: Tensor | None = None  # what the gates were cut from: probabilities or pre-ReLU scores
    segments: list[int] | None = None  # lengths of consecutive segments whose experts are merged, not dispatched to


class Choice(NamedTuple):
    """What gates make of scores; see Routing."""

    gates_TE: Tensor
    loss: Tensor
    scores_TE: Tensor
    segments: list[int] | None = None


class Router(nn.Module):
    """memory ∘ scores ∘ gates, serving every MoE layer of one model, so that layers may share what they like.

    scores: module (h_TH, layer) -> scores_TE; None for gates that read none.
    gates: module (scores_TE, layer, sequences) -> Choice; owns the loss that it wants.
    memory: optional module (x_TD, layer, memory) -> (h_TH, memory), recurrent across layers, never along the sequence;
        its mix(scores_TE, memory) -> (scores_TE, memory) may add to the scores what an earlier layer passed on.
    Raises ValueError where parts do not go together.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        scores: nn.Module | None,
        gates: "Gates",
        memory: nn.Module | None = None,
    ):
        super().__init__()
        if not gates.reads_scores and (scores is not None or memory is not None):
            raise ValueError(f"{type(gates).__name__} gates read no scores, so neither scores nor memory go with them")
        if not gates.reads_distributions and getattr(memory, "gives_distributions", False):
            raise ValueError(
                f"{type(gates).__name__} gates cut scores at zero, and residual 'softmax' hands them logarithms of "
                "probabilities, which are below it: no expert would ever be chosen"
            )
        if gates.reads_scores and scores is None:
            raise ValueError(f"{type(gates).__name__} gates read scores, and there are none")
        self.memory, self.scores, self.gates = memory, scores, gates
        self.layers, self.experts = layers, experts
        self.active_LE: Tensor | None = None  # routed tokens since the last step; counts, so exact
        self.tokens_L: list[int] = [0] * layers

    def forward(self, x_TD: Tensor, layer: int, memory_TH: Any = None, sequences: Sequences | None = None) -> Routing:
        """Route the tokens x_TD (leading dimensions are flattened) of MoE layer `layer`.

        sequences: how the tokens lie in sequences, and their ids; without it they are one sequence of unknown ids.
        """
        h_TH = x_TD = x_TD.flatten(0, -2)
        if self.memory is not None:
            h_TH, memory_TH = self.memory(x_TD, layer, memory_TH)
        scores_TE = at_least_float32(self.scores(h_TH, layer)) if self.scores is not None else None
        if self.memory is not None:
            scores_TE, memory_TH = self.memory.mix(scores_TE, memory_TH)
        choice = self.gates(scores_TE, layer, sequences)
        if self.training:
            self._count(choice.gates_TE, layer)
        return Routing(choice.gates_TE, choice.loss, memory_TH, choice.scores_TE, choice.segments)

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
        load_{l}: tokens of the busiest expert over the mean of the layer's experts; active_experts: expert
        applications per token and layer, what the compute of a step follows from.
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
        statistics |= {"active_experts": self.gates.applications((1 - sparsity) * self.experts)}
        statistics |= {f"sparsity_{i}": s for i, s in enumerate(sparsity_L.tolist())}
        statistics |= {f"load_{i}": m for i, m in enumerate(busiest_L.tolist())}
        return statistics | self.gates.after_step(sparsity, active_LE)


class Gates(nn.Module):
    """From scores to weights; subclasses define forward(scores_TE, layer, sequences=None) -> Choice."""

    reads_scores = True
    reads_distributions = True  # whether scores may be any logarithms of probabilities, as a softmax takes them
    leaks = False  # whether a token's gates depend on later tokens in training (never in evaluation)
    merges = False  # whether experts are merged rather than dispatched to: gates are dense, compute is not

    def distribution(self, scores_TE: Tensor) -> Tensor:
        """A Choice's scores as probabilities over all experts, for the probes: what most gates cut from as it is."""
        return scores_TE

    def after_step(self, sparsity: float, active_LE: Tensor) -> dict[str, float]:
        """Adjust the gates' own state after an optimiser step; returns metrics.

        sparsity: share of zero gates in the step; active_LE: tokens that each layer's each expert got, on the CPU.
        """
        return {}

    def applications(self, routed: float) -> float:
        """Expert applications per token, given how many gates of a token are not zero."""
        return routed


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
