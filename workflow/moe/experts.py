"""Experts applied to gated tokens: dispatch by sorting, grouped matrix products, combine. No token is dropped.

Shape letters: T tokens, D model width, E experts, F expert width, N routed (token, expert) pairs, sorted by expert.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CACHED = 2**20  # numbers that stay in a CPU's cache for a while


class Pairs(NamedTuple):
    """The N routed pairs, sorted by expert and then by token; memory is linear in N."""

    token_N: Tensor
    gate_N: Tensor
    ends_E: Tensor  # int32: where each expert's pairs end


def route_pairs(gates_TE: Tensor, fill: bool = False) -> Pairs:
    """Every positive gate becomes a pair; tokens without experts and experts without tokens simply have none.

    fill: let each expert's pairs be followed by at most a sixteenth as many of gate 0, which count for nothing, so that
        the numbers of rows repeat from layer to layer and from step to step.
    """
    gates_ET = gates_TE.t()
    routed_ET = gates_ET > 0
    expert_N, token_N = routed_ET.nonzero(as_tuple=True)  # row-major, hence sorted by expert
    gate_N = gates_ET[expert_N, token_N]
    rows_E = routed_ET.sum(1)
    ends_E = rows_E.cumsum(0)
    if not fill:
        return Pairs(token_N, gate_N, ends_E.to(torch.int32))
    filled_E = torch.tensor([round_up(rows) for rows in rows_E.tolist()], device=rows_E.device)
    filled_ends_E = filled_E.cumsum(0)
    shift_E = (filled_ends_E - filled_E) - (ends_E - rows_E)
    place_N = torch.arange(len(token_N), device=token_N.device) + shift_E.repeat_interleave(rows_E)
    total = int(filled_ends_E[-1])
    token_N = token_N.new_zeros(total).scatter(0, place_N, token_N)
    return Pairs(token_N, gate_N.new_zeros(total).scatter(0, place_N, gate_N), filled_ends_E.to(torch.int32))


def round_up(rows: int) -> int:
    """The next number of at most five significant bits: sixteen between a power of two and the next."""
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step


class Experts(nn.Module):
    """E feed-forward networks SwiGLU_e(v) = W_out (silu(W_gate v) · W_up v), without biases (both papers' decoders)."""

    def __init__(self, experts: int, width: int, expert_width: int):
        super().__init__()
        self.in_EDF = nn.Parameter(torch.empty(experts, width, 2 * expert_width))  # W_gate beside W_up
        self.out_EFD = nn.Parameter(torch.empty(experts, expert_width, width))

    def forward(self, x_TD: Tensor, gates_TE: Tensor, segments: list[int] | None = None) -> Tensor:
        """y_t = Σ_e gate_te · SwiGLU_e(x_t), [T, D]; a token without experts gets zeros.

        segments: lengths of consecutive segments within which gates are equal; then experts are merged, not chosen:
        y_t = SwiGLU(x_t) with the weights Σ_e gate_te · W_e (Lory).
        """
        if segments is not None:
            return self.apply_sorted(x_TD, *merge(dict(self.named_parameters()), gates_TE, segments))
        # oneDNN makes new machine code for every number of rows that its bfloat16 products meet: milliseconds each
        fill = x_TD.device.type == "cpu" and x_TD.dtype == torch.bfloat16
        pairs = route_pairs(gates_TE, fill)
        y_ND = self.apply_sorted(x_TD.index_select(0, pairs.token_N), pairs.ends_E)
        return combine(y_ND, pairs, x_TD.shape[0])

    @torch.no_grad()
    def mean_vectors(self) -> Tensor:
        """Mean over the hidden axis of each expert's W_gate, W_up and W_out, [3, E, D], in at least float32."""
        exact = torch.promote_types(self.in_EDF.dtype, torch.float32)
        gate_ED, up_ED = (half.mean(2, dtype=exact) for half in self.in_EDF.chunk(2, 2))
        return torch.stack([gate_ED, up_ED, self.out_EFD.mean(1, dtype=exact)])

    def apply_sorted(self, x_ND: Tensor, ends_E: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Each expert on its own consecutive rows of x_ND, which end at ends_E; `weights` stand in for its own."""
        in_EDF, out_EFD = (weights or self._parameters).values()
        if x_ND.shape[0] == 0:  # nothing routed: keep the weights in the graph, so that their gradient is 0, not None
            return x_ND + 0 * (in_EDF.sum() + out_EFD.sum()).to(x_ND.dtype)
        return grouped_product(swiglu(grouped_product(x_ND, in_EDF, ends_E)), out_EFD, ends_E)


class ReLUExperts(Experts):
    """E networks Linear–ReLU–Dropout–Linear with biases (RMoE's enwik8 and WikiText-103 models, after CompeteSMoE).

    dropout: share of the hidden units that training drops. Weights start as U(±1/√(in · out)), biases as 0.
    """

    def __init__(self, experts: int, width: int, expert_width: int, dropout: float = 0.0):
        nn.Module.__init__(self)
        self.dropout = dropout
        bound = (width * expert_width) ** -0.5
        self.in_EDF = nn.Parameter(torch.empty(experts, width, expert_width).uniform_(-bound, bound))
        self.in_bias_EF = nn.Parameter(torch.zeros(experts, expert_width))
        self.out_EFD = nn.Parameter(torch.empty(experts, expert_width, width).uniform_(-bound, bound))
        self.out_bias_ED = nn.Parameter(torch.zeros(experts, width))

    @torch.no_grad()
    def mean_vectors(self) -> Tensor:
        """As Experts.mean_vectors, of the two matrices, [2, E, D]."""
        exact = torch.promote_types(self.in_EDF.dtype, torch.float32)
        return torch.stack([self.in_EDF.mean(2, dtype=exact), self.out_EFD.mean(1, dtype=exact)])

    def apply_sorted(self, x_ND: Tensor, ends_E: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """As Experts.apply_sorted."""
        in_EDF, in_bias_EF, out_EFD, out_bias_ED = (weights or self._parameters).values()
        if x_ND.shape[0] == 0:  # as in Experts.apply_sorted
            unused = in_EDF.sum() + in_bias_EF.sum() + out_EFD.sum() + out_bias_ED.sum()
            return x_ND + 0 * unused.to(x_ND.dtype)
        rows_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        expert_N = torch.repeat_interleave(rows_E, output_size=x_ND.shape[0])
        hidden_NF = grouped_product(x_ND, in_EDF, ends_E) + in_bias_EF.index_select(0, expert_N)
        hidden_NF = F.dropout(hidden_NF.relu(), self.dropout, self.training)
        return grouped_product(hidden_NF, out_EFD, ends_E) + out_bias_ED.index_select(0, expert_N)


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) · up of [..., 2F], gate beside up -> [..., F]."""
    if torch.compiler.is_compiling():
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up
    return _SwiGLU.apply(both)


class _SwiGLU(torch.autograd.Function):
    """In few passes, on a CPU over few rows at a time; the gradient of both halves is made where it belongs."""

    @staticmethod
    def forward(ctx, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        hidden = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        _by_rows(_hidden, both, hidden)
        return hidden

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        grad_both = torch.empty_like(both)
        _by_rows(_grad_of_halves, both, grad, grad_both)
        return grad_both


def _hidden(both: Tensor, hidden: Tensor) -> None:
    gate, up = both.chunk(2, -1)
    torch.ops.aten.silu.out(gate, out=hidden).mul_(up)


def _grad_of_halves(both: Tensor, grad: Tensor, grad_both: Tensor) -> None:
    gate, up = both.chunk(2, -1)
    grad_gate, grad_up = grad_both.chunk(2, -1)
    torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad)
    torch.mul(grad, up, out=grad_gate)
    torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)


def _by_rows(function: Callable[..., None], *tensors: Tensor) -> None:
    """On a CPU large tensors part by part: what one pass of the function leaves is still in the cache for the next."""
    parts = -(-tensors[0].numel() // CACHED) if tensors[0].device.type == "cpu" else 1
    if parts <= 1:
        function(*tensors)
    else:
        for rows in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
            function(*rows)


def merge(weights: dict[str, Tensor], gates_TE: Tensor, segments: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Where the segments end, and Σ_e gate_e · W_e of each of them: one expert a segment, in the weights' graph."""
    ends_J = torch.tensor(segments, device=gates_TE.device).cumsum(0)
    gates_JE = gates_TE[ends_J - 1]
    merged = {
        name: (gates_JE.to(weight.dtype) @ weight.flatten(1)).view(-1, *weight.shape[1:])
        for name, weight in weights.items()
    }
    return ends_J.to(torch.int32), merged


def grouped_product(x_NI: Tensor, w_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Each group of rows times its own matrix, [N, O]; ends_E says where the groups end."""
    if x_NI.dtype == torch.float64:  # grouped_mm knows no doubles; gradient checks need them
        rows_E = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
        return torch.cat([rows @ w for rows, w in zip(x_NI.split(rows_E), w_EIO, strict=True)])
    whole = 16 // x_NI.element_size()  # grouped_mm wants rows of whole 16 bytes; very fine experts have fewer
    inner, outer = -x_NI.shape[1] % whole, -w_EIO.shape[2] % whole
    if inner or outer:
        x_NI, w_EIO = F.pad(x_NI, (0, inner)), F.pad(w_EIO, (0, outer, 0, inner))
        return F.grouped_mm(x_NI, w_EIO, offs=ends_E)[:, : w_EIO.shape[2] - outer]
    return F.grouped_mm(x_NI, w_EIO, offs=ends_E)


def combine(y_ND: Tensor, pairs: Pairs, tokens: int) -> Tensor:
    """Weigh the experts' outputs by their gates and add them up per token, [T, D]."""
    weighted_ND = y_ND * pairs.gate_N.to(y_ND.dtype)[:, None]
    return y_ND.new_zeros(tokens, y_ND.shape[1]).index_add(0, pairs.token_N, weighted_ND)
