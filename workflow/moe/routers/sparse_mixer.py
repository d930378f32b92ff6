"""SparseMixer-v2 (GRIN, arXiv 2409.12136): sampled experts with an estimate of the gradient through the choice.

Shape letters: T tokens, E experts, K chosen experts.
"""

import math

import torch
from torch import Tensor

from moe.routers.base import Choice, Gates, Sequences
from moe.routers.topk import BALANCE_LAYERS, balance_loss, spread

KEPT = 0.25  # chance that a sample which is not the largest keeps its whole weight (Heun's third-order method)
SCALED = 1 / 3  # its weight otherwise


class SparseMixer(Gates):
    """k picks, one after the other, each among the candidates: experts whose score is within 2ε of the largest.

    p̃ = softmax over the candidates. Training samples one by Gumbel noise, evaluation takes the largest; its weight is
    m = p̃ of the chosen, in training times φ: 1 if the sample is the largest or with chance 1/4, else 1/3. The backward
    pass knows no φ: ∂L/∂s = m · ∂L/∂weight · (1[chosen] − p̃). A pick is masked for the next; none is renormalised.

    epsilon: ε, the paper's jitter. balance, balance_layers: as TopK's (GRIN has such a loss; ReMoE does not say for its
        baseline).
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        epsilon: float = 0.01,
        balance: float = 1e-2,
        balance_layers: str = "sum",
    ):
        super().__init__()
        for key, value in (("epsilon", epsilon), ("balance", balance)):
            if not 0 <= value < math.inf:
                raise ValueError(f"option {key} is {value!r}, expected a number from 0 on")
        if balance_layers not in BALANCE_LAYERS:
            raise ValueError(
                f"option balance_layers is {balance_layers!r}, expected one of {', '.join(BALANCE_LAYERS)}"
            )
        self.top_k, self.epsilon = top_k, epsilon
        self.weight = balance / (layers if balance_layers == "mean" else 1)

    def forward(self, scores_TE: Tensor, layer: int, sequences: Sequences | None = None) -> Choice:
        """scores_TE -> gates_TE, balance loss, probabilities_TE."""
        weights, experts, left_TE = [], [], scores_TE
        for _ in range(self.top_k):
            weight_T1, expert_T1 = self.pick(scores_TE, left_TE.detach())
            weights.append(weight_T1)
            experts.append(expert_T1)
            left_TE = left_TE.scatter(-1, expert_T1, -torch.inf)
        probs_TE = scores_TE.softmax(-1)
        gates_TE = spread(torch.cat(weights, -1), torch.cat(experts, -1), probs_TE)
        return Choice(gates_TE, self.weight * balance_loss(probs_TE, gates_TE, self.top_k, self.training), probs_TE)

    def pick(self, scores_TE: Tensor, left_TE: Tensor) -> tuple[Tensor, Tensor]:
        """One pick among left_TE, the scores with −∞ for experts picked before: (weights, experts), [T, 1] each."""
        highest_T1, largest_T1 = left_TE.max(-1, keepdim=True)
        scale_TE = torch.maximum(left_TE.abs(), highest_T1)
        # (max − s)/scale ≤ 2ε, written without the division, which is 0/0 where all scores are 0
        candidate_TE = (highest_T1 - left_TE <= 2 * self.epsilon * scale_TE) & left_TE.isfinite()
        candidate_TE = candidate_TE.scatter(-1, largest_T1, True)  # for negative maxima below rounding
        probs_TE = scores_TE.masked_fill(~candidate_TE, -torch.inf).softmax(-1)
        if not self.training:
            return probs_TE.gather(-1, largest_T1), largest_T1
        noise_TE = -torch.empty_like(left_TE).exponential_().log()
        expert_T1 = left_TE.masked_fill(~candidate_TE, -torch.inf).add(noise_TE).argmax(-1, keepdim=True)
        weight_T1 = probs_TE.gather(-1, expert_T1)
        whole_T1 = (expert_T1 == largest_T1) | (torch.rand_like(weight_T1) < KEPT)
        # the value of m · φ, the gradient of m: this is GRIN's custom backward
        return weight_T1 + (weight_T1 * torch.where(whole_T1, 1.0, SCALED) - weight_T1).detach(), expert_T1
