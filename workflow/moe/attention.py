"""Causal grouped-query attention with rotary positions.

Shape letters: B sequences, S positions, D width, H heads, K key-value heads, G = H/K heads a group, C head width,
N = B·K groups in all, Q queries of a block, P positions that a block sees.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.branches import Branches

BLOCK = 64  # queries of a block on a CPU: the upper triangle that is computed in vain is half a block


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions, no biases."""

    def __init__(self, width: int, heads: int, kv_heads: int, rope_base: float):
        super().__init__()
        self.heads, self.kv_heads, self.rope_base = heads, kv_heads, rope_base
        head_width = width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self._angles: tuple[Tensor, Tensor] | None = None  # cos, sin: cached per length, device and dtype

    def forward(self, x_BSD: Tensor, branches: Branches | None = None) -> Tensor:
        """x_BSD -> [B, S, D]; position s sees positions 0 … s, or those that its branch sees (at inference)."""
        batch, positions, _ = x_BSD.shape
        heads_BSHC = self.qkv(x_BSD).view(batch, positions, self.heads + 2 * self.kv_heads, -1)
        qk_BSHC, v_BSKC = heads_BSHC.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q_BSHC, k_BSKC = self._rotate(qk_BSHC, branches).split([self.heads, self.kv_heads], dim=2)
        q_BHSC, k_BKSC, v_BKSC = (heads.transpose(1, 2) for heads in (q_BSHC, k_BSKC, v_BSKC))
        if branches is None:
            y_BHSC = causal_attention(q_BHSC, k_BKSC, v_BKSC)
        else:
            seen_B1SS = branches.seen_BSS[:, None]
            grouped = self.heads != self.kv_heads
            y_BHSC = F.scaled_dot_product_attention(q_BHSC, k_BKSC, v_BKSC, attn_mask=seen_B1SS, enable_gqa=grouped)
        return self.out(y_BHSC.transpose(1, 2).reshape(batch, positions, -1))

    def _rotate(self, x_BSHC: Tensor, branches: Branches | None = None) -> Tensor:
        """Rotary positions, halves convention: (a, b) -> (a cos − b sin, b cos + a sin)."""
        positions, width = x_BSHC.shape[1], x_BSHC.shape[3]
        cached = self._angles
        if (
            cached is None
            or cached[0].shape[0] != positions
            or cached[0].device != x_BSHC.device
            or cached[0].dtype != x_BSHC.dtype
        ):
            self._angles = cached = rotary(positions, width, self.rope_base, x_BSHC)
        cos_S1C, sin_S1C = cached
        if branches is not None:
            return _rotated(x_BSHC, cos_S1C[branches.positions_BS], sin_S1C[branches.positions_BS], 1)
        return _Rotate.apply(x_BSHC, cos_S1C, sin_S1C)


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: one function, no record of its halves."""

    @staticmethod
    def forward(ctx, x_BSHC: Tensor, cos_S1C: Tensor, sin_S1C: Tensor) -> Tensor:
        ctx.save_for_backward(cos_S1C, sin_S1C)
        return _rotated(x_BSHC, cos_S1C, sin_S1C, 1)

    @staticmethod
    def backward(ctx, grad_BSHC: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(grad_BSHC, *ctx.saved_tensors, -1), None, None


def _rotated(x_BSHC: Tensor, cos_S1C: Tensor, sin_S1C: Tensor, direction: int) -> Tensor:
    a, b = x_BSHC.chunk(2, -1)
    return (x_BSHC * cos_S1C).addcmul_(torch.cat([b, a], -1), sin_S1C, value=direction)


def rotary(positions: int, width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles position · base^(−2i/width), [S, 1, C], computed in float32, cast to `like`.

    The sine of the first half is negated, as the halves convention wants it.
    """
    frequencies = base ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(positions, device=like.device, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return tuple(torch.cat(pair, -1)[:, None].to(like.dtype) for pair in ((cos, cos), (-sin, sin)))


def causal_attention(q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
    """softmax(q k^T/√C) v over positions not later than the query's, [B, H, S, C]; heads of a group share keys."""
    if q_BHSC.device.type == "cpu" and torch.is_grad_enabled():
        return _BlockAttention.apply(q_BHSC, k_BKSC, v_BKSC)
    return F.scaled_dot_product_attention(
        q_BHSC, k_BKSC, v_BKSC, is_causal=True, enable_gqa=q_BHSC.shape[1] != k_BKSC.shape[1]
    )


class _BlockAttention(torch.autograd.Function):
    """Training on a CPU, where PyTorch's fused backward pass is slower than plain products over blocks of queries.

    Keeps the probabilities, S²/2 a head: right for the hundreds of positions that a CPU trains on.
    """

    @staticmethod
    def forward(ctx, q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
        batch, heads, positions, width = q_BHSC.shape
        groups = batch * k_BKSC.shape[1]
        q_NGSC = q_BHSC.reshape(groups, -1, positions, width) * width**-0.5
        k_NSC, v_NSC = (x.reshape(groups, positions, width) for x in (k_BKSC, v_BKSC))
        y_NGSC, kept = torch.empty_like(q_NGSC), []
        for start, end in _blocks(positions):
            scores_NGQP = (q_NGSC[:, :, start:end].flatten(1, 2) @ k_NSC[:, :end].mT).unflatten(1, (-1, end - start))
            later_QQ = torch.ones(end - start, end - start, dtype=torch.bool, device=q_BHSC.device).triu_(1)
            scores_NGQP[..., start:].masked_fill_(later_QQ, -torch.inf)
            probs_NGQP = scores_NGQP.softmax(-1)
            y_NGSC[:, :, start:end] = (probs_NGQP.flatten(1, 2) @ v_NSC[:, :end]).view(groups, -1, end - start, width)
            kept.append(probs_NGQP)
        ctx.save_for_backward(q_NGSC, k_NSC, v_NSC, *kept)
        ctx.shapes = q_BHSC.shape, k_BKSC.shape
        return y_NGSC.view(q_BHSC.shape)

    @staticmethod
    def backward(ctx, grad_BHSC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_NGSC, k_NSC, v_NSC, *kept = ctx.saved_tensors
        grad_NGSC = grad_BHSC.reshape(q_NGSC.shape)
        grads = torch.empty_like(q_NGSC), torch.zeros_like(k_NSC), torch.zeros_like(v_NSC)
        grad_q_NGSC, grad_k_NSC, grad_v_NSC = grads
        for (start, end), probs_NGQP in zip(_blocks(q_NGSC.shape[2]), kept, strict=True):
            grad_y_NXC, q_NXC = (x[:, :, start:end].flatten(1, 2) for x in (grad_NGSC, q_NGSC))  # X = G·Q
            probs_NXP = probs_NGQP.flatten(1, 2)
            grad_v_NSC[:, :end] += probs_NXP.mT @ grad_y_NXC
            grad_probs_NXP = grad_y_NXC @ v_NSC[:, :end].mT
            grad_scores_NXP = torch._softmax_backward_data(grad_probs_NXP, probs_NXP, -1, probs_NXP.dtype)
            grad_q_NGSC[:, :, start:end] = (grad_scores_NXP @ k_NSC[:, :end]).unflatten(1, (-1, end - start))
            grad_k_NSC[:, :end] += grad_scores_NXP.mT @ q_NXC
        q_shape, k_shape = ctx.shapes
        grad_q_NGSC *= q_shape[-1] ** -0.5
        return grad_q_NGSC.view(q_shape), grad_k_NSC.view(k_shape), grad_v_NSC.view(k_shape)


def _blocks(positions: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, positions)) for start in range(0, positions, BLOCK)]
