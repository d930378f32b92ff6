"""Experts alone, forward and backward: the grouped path, a loop over experts, a dense feed-forward of equal FLOPs.

Shape letters: T tokens, D width, E experts, F expert width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moe.experts import Experts, swiglu
from moe.model import FeedForward


def loop_over_experts(experts: Experts, x_TD: Tensor, gates_TE: Tensor) -> Tensor:
    """What one would write first: each expert in turn on the tokens that chose it."""
    y_TD = torch.zeros_like(x_TD)
    for expert, (in_DF, out_FD) in enumerate(zip(experts.in_EDF, experts.out_EFD, strict=True)):
        token_N = gates_TE[:, expert].nonzero()[:, 0]
        gate_N1 = gates_TE[token_N, expert, None].to(x_TD.dtype)
        y_TD = y_TD.index_add(0, token_N, gate_N1 * (swiglu(x_TD[token_N] @ in_DF) @ out_FD))
    return y_TD


def paths(
    tokens: int, width: int, expert_width: int, experts: int, top_k: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], None]]:
    """Contenders `grouped`, `loop` and `dense`; every token takes top_k experts drawn at random."""
    torch.manual_seed(0)
    stack, dense = Experts(experts, width, expert_width), FeedForward(width, top_k * expert_width)
    for parameter in [*stack.parameters(), *dense.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    stack, dense = stack.to(device, dtype), dense.to(device, dtype)
    x_TD = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    chosen_TK = torch.rand(tokens, experts, device=device).topk(top_k).indices
    gates_TE = torch.zeros(tokens, experts, device=device).scatter(1, chosen_TK, 1 / top_k)
    grad_TD = torch.ones_like(x_TD)

    def contender(apply: Callable[[], Tensor], weights: list[Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.grad(apply(), [x_TD, *weights], grad_TD)

    stacked = list(stack.parameters())
    return {
        "grouped": contender(lambda: stack(x_TD, gates_TE), stacked),
        "loop": contender(lambda: loop_over_experts(stack, x_TD, gates_TE), stacked),
        "dense": contender(lambda: dense(x_TD), list(dense.parameters())),
    }
