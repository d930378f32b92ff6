"""RMSNorm whose training on a CPU is few passes over the data; elsewhere PyTorch's.

Shape letters: D width.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + eps) · weight, over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D]; the mean is taken in at least float32."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


class _RMSNorm(torch.autograd.Function):
    """PyTorch composes it on a CPU of a dozen operations, each with a gradient of its own, half of them casts."""

    @staticmethod
    def forward(ctx, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight_D)
        return normed * weight_D

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight_D = ctx.saved_tensors
        product = grad * normed
        grad_weight_D = product.flatten(0, -2).sum(0)
        along = (product @ weight_D).div_(-weight_D.shape[0]).unsqueeze_(-1)  # what would change the length
        return (grad * weight_D).addcmul_(normed, along).mul_(scale), grad_weight_D, None
