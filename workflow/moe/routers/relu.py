"""ReMoE (arXiv 2412.14711): ReLU gates, kept sparse by an adaptive, load-balancing L1 penalty.

Shape letters: T tokens, E experts.
"""

import math

import torch
from torch import Tensor

from moe.routers.base import Choice, Gates, Sequences, share_of_tokens


class ReLU(Gates):
    """gates = ReLU(scores); the added loss is λ · Σ_e f_e · mean_t gates_te, summed over layers (equations 4, 8–11).

    f_e = E/(kT) · #{t: gate_te > 0}, without gradient, counted per micro-batch over all data-parallel ranks; so
    micro-batches matter only through f, ranks not at all. After each optimiser step λ ← λ·α while the gates are denser
    than 1 − k/E, else λ/α (equation 7; at equality the official code divides, so do we).
    Departures from the paper, both as in its code, which made its tables: layers are summed, not averaged (its λ is the
    paper's over L); λ is compared in float32. Beyond it: λ stays within [lambda_min, lambda_max] (neither binds in the
    paper's runs). A penalty can shut gates but not open them, so while the sparsity lies above its target for other
    reasons λ would fall without end.

    lambda_0: λ of the first step. alpha: the factor. balance: False sets f = 1 (table 11).
    """

    reads_distributions = False

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        lambda_0: float = 1e-8,
        alpha: float = 1.2,
        balance: bool = True,
        lambda_min: float = 1e-20,
        lambda_max: float = 1e4,
    ):
        super().__init__()
        if not 1 < alpha < math.inf:
            raise ValueError(f"option alpha is {alpha!r}, expected a number above 1")
        if not 0 < lambda_min <= lambda_max < math.inf:
            raise ValueError(
                f"option lambda_min is {lambda_min!r}, expected above 0 and at most lambda_max {lambda_max!r}"
            )
        if not 0 < lambda_min <= lambda_0 <= lambda_max:
            raise ValueError(f"option lambda_0 is {lambda_0!r}, expected {lambda_min!r} ≤ lambda_0 ≤ {lambda_max!r}")
        self.alpha, self.balance = alpha, balance
        self.bounds = (lambda_min, lambda_max)
        self.per_slot = experts / top_k
        self.target = 1 - top_k / experts
        self.l1_lambda = float(lambda_0)  # a Python float: casting the model cannot round it

    def forward(self, scores_TE: Tensor, layer: int, sequences: Sequences | None = None) -> Choice:
        """scores_TE -> gates_TE, λ-weighted penalty, scores_TE."""
        gates_TE = scores_TE.relu()
        mean_E = gates_TE.mean(0)
        if self.balance:
            share_E = share_of_tokens(gates_TE.detach() > 0, self.training, mean_E.dtype)
            mean_E = mean_E * (share_E * self.per_slot)
        return Choice(gates_TE, self.l1_lambda * mean_E.sum(), scores_TE)

    def distribution(self, scores_TE: Tensor) -> Tensor:
        """Their softmax, which these gates do without."""
        return scores_TE.softmax(-1)

    def after_step(self, sparsity: float, active_LE: Tensor) -> dict[str, float]:
        """Move λ against the measured sparsity; metrics l1_lambda, as used in the step, and l1_bound.

        l1_bound: −1 where λ would have fallen below its lower bound, 1 where it would have risen above its upper one,
        else 0.
        """
        used = self.l1_lambda
        proposed = next_lambda(used, sparsity, self.target, self.alpha)
        self.l1_lambda = min(max(proposed, self.bounds[0]), self.bounds[1])
        return {"l1_lambda": used, "l1_bound": float((self.l1_lambda < proposed) - (self.l1_lambda > proposed))}

    def get_extra_state(self) -> dict[str, float]:
        return {"l1_lambda": self.l1_lambda}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.l1_lambda = float(state["l1_lambda"])


def next_lambda(l1_lambda: float, sparsity: float, target: float, alpha: float) -> float:
    """λ·α if the sparsity is below its target, else λ/α; float32 as the official code, so 0.9 counts as 1 − 1/10."""
    too_dense = torch.tensor(sparsity, dtype=torch.float32) < torch.tensor(target, dtype=torch.float32)
    return l1_lambda * alpha if too_dense else l1_lambda / alpha
