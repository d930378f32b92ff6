"""Softmax over experts, then the k largest: the baseline of both papers, dropless.

Shape letters: T tokens, E experts, K chosen experts.
"""

import math

import torch
from torch import Tensor

from moe.routers.base import Choice, Gates, Sequences, share_of_tokens

NORMALISE = ("none", "chosen")
BALANCE_LAYERS = ("sum", "mean")
CURVES = ("step", "linear", "cosine")


class TopK(Gates):
    """Keep each token's k largest probabilities.

    normalise: `none` keeps the probabilities as they are (ReMoE's dMoE, its equation 2); `chosen` is the softmax over
        the k chosen scores (RMoE's code; the same as dividing the k probabilities by their sum).
    balance: coefficient c of the loss c · E · Σ_e f_e P_e, f_e the expert's share of all T·k assignments (no gradient),
        P_e its mean probability over all tokens (Switch Transformer; 1 · c at uniform routing, whatever k is).
    balance_layers: `sum` adds the layers' losses (ReMoE's code), `mean` averages them (Megablocks, RMoE's large runs).
    warmup_steps: near-dense warm-up (ReMoE's appendix): that many optimiser steps with warmup_top_k experts a token (0:
        ¾ of all, 6 of 8 as in the paper). warmup_curve: `step` goes from there to k at once; `linear` and `cosine`
        gradually (SMoE-Dropout's schedules).
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        top_k: int,
        normalise: str = "none",
        balance: float = 1e-2,
        balance_layers: str = "sum",
        warmup_steps: int = 0,
        warmup_top_k: int = 0,
        warmup_curve: str = "step",
    ):
        super().__init__()
        words = {"normalise": (normalise, NORMALISE), "balance_layers": (balance_layers, BALANCE_LAYERS)}
        words |= {"warmup_curve": (warmup_curve, CURVES)}
        for key, (value, known) in words.items():
            if value not in known:
                raise ValueError(f"option {key} is {value!r}, expected one of {', '.join(known)}")
        if not 0 <= balance < math.inf:
            raise ValueError(f"option balance is {balance!r}, expected a number from 0 on")
        if warmup_steps < 0:
            raise ValueError(f"option warmup_steps is {warmup_steps!r}, expected at least 0")
        if not 0 <= warmup_top_k <= experts:
            raise ValueError(f"option warmup_top_k is {warmup_top_k!r}, expected at most the {experts} experts")
        self.last_top_k, self.normalise = top_k, normalise
        self.weight = balance / (layers if balance_layers == "mean" else 1)
        self.warmup_steps, self.warmup_curve = warmup_steps, warmup_curve
        self.warmup_top_k = warmup_top_k or max(top_k, round(experts * 0.75))
        self.step = 0

    @property
    def top_k(self) -> int:
        """Experts a token now."""
        if self.step >= self.warmup_steps:
            return self.last_top_k
        return scheduled_top_k(self.step, self.warmup_steps, self.warmup_top_k, self.last_top_k, self.warmup_curve)

    def forward(self, scores_TE: Tensor, layer: int, sequences: Sequences | None = None) -> Choice:
        """scores_TE -> gates_TE, balance loss, probabilities_TE."""
        probs_TE = scores_TE.softmax(-1)
        experts_TK = scores_TE.topk(self.top_k, dim=-1, sorted=False).indices  # probabilities may underflow, and tie
        if self.normalise == "chosen":
            weights_TK = scores_TE.gather(-1, experts_TK).softmax(-1)
        else:
            weights_TK = probs_TE.gather(-1, experts_TK)
        gates_TE = spread(weights_TK, experts_TK, probs_TE)
        return Choice(gates_TE, self.weight * balance_loss(probs_TE, gates_TE, self.top_k, self.training), probs_TE)

    def after_step(self, sparsity: float, active_LE: Tensor) -> dict[str, float]:
        """Count the step for the warm-up."""
        self.step += 1
        return {}

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])


def scheduled_top_k(step: int, steps: int, first: int, last: int, curve: str) -> int:
    """k after `step` of `steps`, from first to last; linear and cosine as SMoE-Dropout (half to even, clipped)."""
    if curve == "step":
        return first if step < steps else last
    if curve == "linear":
        k = round((last - first) * step / steps) + first
    else:
        k = round((first - last) * math.cos(math.pi * step / (2 * steps))) + last
    return min(max(k, min(first, last)), max(first, last))


def spread(weights_TK: Tensor, experts_TK: Tensor, like_TE: Tensor) -> Tensor:
    """The chosen experts' weights as gates_TE; one that underflows to zero would silently drop its expert."""
    weights_TK = weights_TK.clamp(min=torch.finfo(weights_TK.dtype).tiny)
    return torch.zeros_like(like_TE).scatter(-1, experts_TK, weights_TK)


def balance_loss(probs_TE: Tensor, gates_TE: Tensor, top_k: int, training: bool) -> Tensor:
    """E · Σ_e f_e P_e: 1 at uniform routing; f over all data-parallel ranks, P over this rank's tokens."""
    share_E = share_of_tokens(gates_TE.detach() > 0, training, probs_TE.dtype) / top_k
    return probs_TE.shape[1] * (share_E * probs_TE.mean(0)).sum()
