"""Softmax over experts, then the k largest: the baseline of both papers, dropless.

Shape letters: T tokens, E experts, K chosen experts.
"""

import torch
from torch import Tensor

from moe.routers.base import Gates, share_of_tokens

NORMALISE = ("none", "chosen")
BALANCE_LAYERS = ("sum", "mean")


class TopK(Gates):
    """Keep each token's k largest probabilities.

    normalise: `none` keeps the probabilities as they are (ReMoE's dMoE, its equation 2); `chosen` is the softmax over
        the k chosen scores (RMoE's code; the same as dividing the k probabilities by their sum).
    balance: coefficient c of the loss c · E · Σ_e f_e P_e, f_e the expert's share of all T·k assignments (no gradient),
        P_e its mean probability over all tokens (Switch Transformer; 1 · c at uniform routing, whatever k is).
    balance_layers: `sum` adds the layers' losses (ReMoE's code), `mean` averages them (Megablocks, RMoE's large runs).
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        normalise: str = "none",
        balance: float = 1e-2,
        balance_layers: str = "sum",
    ):
        super().__init__()
        if normalise not in NORMALISE:
            raise ValueError(f"option normalise is {normalise!r}, expected one of {', '.join(NORMALISE)}")
        if balance_layers not in BALANCE_LAYERS:
            raise ValueError(
                f"option balance_layers is {balance_layers!r}, expected one of {', '.join(BALANCE_LAYERS)}"
            )
        self.top_k, self.normalise = top_k, normalise
        self.weight = balance / (layers if balance_layers == "mean" else 1)

    def forward(self, scores_TE: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """scores_TE -> (gates_TE, balance loss, probabilities_TE)."""
        probs_TE = scores_TE.softmax(-1)
        weights_TK, experts_TK = probs_TE.topk(self.top_k, dim=-1, sorted=False)
        if self.normalise == "chosen":
            weights_TK = scores_TE.gather(-1, experts_TK).softmax(-1)
        # A probability that underflows to zero would silently drop its expert.
        weights_TK = weights_TK.clamp(min=torch.finfo(weights_TK.dtype).tiny)
        gates_TE = torch.zeros_like(probs_TE).scatter(-1, experts_TK, weights_TK)
        return gates_TE, self.weight * balance_loss(probs_TE, gates_TE, self.top_k, self.training), probs_TE


def balance_loss(probs_TE: Tensor, gates_TE: Tensor, top_k: int, training: bool) -> Tensor:
    """E · Σ_e f_e P_e: 1 at uniform routing; f over all data-parallel ranks, P over this rank's tokens."""
    share_E = share_of_tokens(gates_TE.detach() > 0, training, probs_TE.dtype) / top_k
    return probs_TE.shape[1] * (share_E * probs_TE.mean(0)).sum()
