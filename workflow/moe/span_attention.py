"""Attention of each position to the W before it, with one relative table (Sukhbaatar et al., arXiv 1905.07799, eq. 2).

Shape letters: B sequences, H heads, N = B·H, S positions of a block, C head width, W span, P = W + S keys, Q queries of
a chunk, K = W + Q keys of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def span_attention(
    q_BHSC: Tensor, k_BHPC: Tensor, v_BHPC: Tensor, positions_CW: Tensor, dropout: float = 0.0
) -> Tensor:
    """Query s over keys s … s + W − 1, [B, H, S, C]; memory grows as S · W, since queries go in chunks of W/4."""
    span, length = positions_CW.shape[1], q_BHSC.shape[2]
    size, parts = max(64, span // 4), []
    attend = _band if q_BHSC.device.type == "cpu" else _masked
    for start in range(0, length, size):
        q_BHQC = q_BHSC[:, :, start : start + size]
        keys = slice(start, start + span + q_BHQC.shape[2])
        parts.append(attend(q_BHQC, k_BHPC[:, :, keys], v_BHPC[:, :, keys], positions_CW, dropout))
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def _masked(q_BHQC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, positions_CW: Tensor, dropout: float) -> Tensor:
    """A chunk by PyTorch's fused attention, the relative table as its bias."""
    bias_BHQK = skewed(q_BHQC @ positions_CW * q_BHQC.shape[3] ** -0.5)
    return F.scaled_dot_product_attention(q_BHQC, k_BHKC, v_BHKC, attn_mask=bias_BHQK, dropout_p=dropout)


def skewed(x_BHQW: Tensor) -> Tensor:
    """Row q moved q places to the right, −∞ around it, [B, H, Q, W + Q]: what lay by distance lies by key.

    Rows padded to one place more than those of the result, read as the result's rows, move by one a row.
    """
    queries, span = x_BHQW.shape[2:]
    padded = F.pad(x_BHQW, (0, queries + 1), value=-torch.inf).flatten(2)
    return padded[..., : queries * (span + queries)].unflatten(2, (queries, span + queries))


def _band(q_BHQC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, positions_CW: Tensor, dropout: float) -> Tensor:
    """A chunk on a CPU, where PyTorch's masked attention is slower than plain products and a view of their band."""
    shape = q_BHQC.shape
    y_NQC = _BandAttention.apply(*(x.flatten(0, 1) for x in (q_BHQC, k_BHKC, v_BHKC)), positions_CW, dropout)
    return y_NQC.unflatten(0, shape[:2])


class _BandAttention(torch.autograd.Function):
    """Softmax over the W keys of each query, which lie on a band of the products [N, Q, K]: nothing is masked.

    Products of few columns (C) and many rows are made as those of few rows: up to five times as fast on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, q_NQC: Tensor, k_NKC: Tensor, v_NKC: Tensor, positions_CW: Tensor, dropout: float) -> Tensor:
        scaled_NQC = q_NQC * q_NQC.shape[-1] ** -0.5
        logits_NQW = (scaled_NQC @ positions_CW).add_(band(scaled_NQC @ k_NKC.mT))
        probs_NQW = logits_NQW.softmax(-1)
        kept_NQW, scale = keep(probs_NQW, dropout) if dropout else (None, 1.0)
        ctx.save_for_backward(scaled_NQC, k_NKC, v_NKC, positions_CW, probs_NQW, kept_NQW)
        ctx.scale = scale
        return (v_NKC.mT @ _spread(probs_NQW, kept_NQW).mT).mul_(scale).mT

    @staticmethod
    def backward(ctx: Any, grad_NQC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q_NQC, k_NKC, v_NKC, positions_CW, probs_NQW, kept_NQW = ctx.saved_tensors
        grad_NQC = grad_NQC * ctx.scale
        spread_NQK = _spread(probs_NQW, kept_NQW)
        grad_v_NCK = grad_NQC.mT @ spread_NQK
        grad_probs_NQW = band(grad_NQC @ v_NKC.mT)
        grad_probs_NQW = grad_probs_NQW.contiguous() if kept_NQW is None else grad_probs_NQW * kept_NQW
        grad_logits_NQW = torch._softmax_backward_data(grad_probs_NQW, probs_NQW, -1, probs_NQW.dtype)
        band(spread_NQK).copy_(grad_logits_NQW)
        grad_q_NCQ = k_NKC.mT @ spread_NQK.mT
        grad_q_NQC = (grad_logits_NQW @ positions_CW.T).add_(grad_q_NCQ.mT).mul_(q_NQC.shape[-1] ** -0.5)
        grad_positions_CW = q_NQC.flatten(0, 1).T @ grad_logits_NQW.flatten(0, 1)
        return grad_q_NQC, (q_NQC.mT @ spread_NQK).mT, grad_v_NCK.mT, grad_positions_CW, None


def band(x_NQK: Tensor) -> Tensor:
    """A view of row q's places q … q + W − 1, [N, Q, W]."""
    queries, keys = x_NQK.shape[1:]
    return x_NQK.as_strided((x_NQK.shape[0], queries, keys - queries), (queries * keys, keys + 1, 1))


def _spread(x_NQW: Tensor, kept_NQW: Tensor | None) -> Tensor:
    """What is kept of x on the band of an array [N, Q, K] of zeros."""
    n, queries, span = x_NQW.shape
    spread_NQK = x_NQW.new_zeros(n, queries, span + queries)
    if kept_NQW is None:
        band(spread_NQK).copy_(x_NQW)
    else:
        torch.mul(x_NQW, kept_NQW, out=band(spread_NQK))
    return spread_NQK


def keep(like: Tensor, dropout: float) -> tuple[Tensor, float]:
    """1 where dropout keeps a place and 0 elsewhere, and what the kept are multiplied with so that the mean stays.

    As numbers of the same kind, since a product with truth values takes five times as long.
    Four places share the 64 bits of one random number, four times as fast as one number each on a CPU; the share that
    is dropped is so a multiple of 2⁻¹⁶.
    """
    dropped = round(dropout * 2**16)
    bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = torch.ge(bits[: like.numel()].view(like.shape), dropped - 2**15, out=torch.empty_like(like))
    return kept, 2**16 / (2**16 - dropped)
