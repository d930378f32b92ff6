"""Cross-entropy of an output head, chunk by chunk, so that the logits of a batch never exist at once.

Shape letters: T tokens, D width, V words, C tokens of a chunk.
"""

import torch
from torch import Tensor

# Bytes of a chunk's logits: few enough to stay in a CPU's cache, many enough to fill a GPU.
CHUNK = {"cpu": 2**23, "cuda": 2**28}


def head_loss(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of softmax(x W^T + b) at the targets, nats per token, in at least float32.

    The same as F.cross_entropy(F.linear(x_TD, weight_VD, bias_V), targets_T), with memory C × V instead of several
    T × V, which a small model would spend half of its step moving. The gradient is made with the loss, while a chunk
    is at hand.
    """
    return _HeadLoss.apply(x_TD, weight_VD, targets_T, bias_V)


class _HeadLoss(torch.autograd.Function):
    """Loss, and in the same pass its gradients for x_TD, weight_VD and bias_V (accumulated in at least float32)."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None) -> Tensor:
        tokens, words = x_TD.shape[0], weight_VD.shape[0]
        exact = torch.promote_types(x_TD.dtype, torch.float32)
        rows = max(1, CHUNK.get(x_TD.device.type, CHUNK["cuda"]) // (words * x_TD.element_size()))
        wanted = any(ctx.needs_input_grad)
        grad_TD = torch.empty_like(x_TD) if wanted else None
        grad_VD = torch.zeros_like(weight_VD, dtype=exact) if wanted else None
        grad_V = torch.zeros_like(bias_V, dtype=exact) if wanted and bias_V is not None else None
        total = x_TD.new_zeros((), dtype=exact)
        # one chunk's memory for all of them: it is still in the cache, and nothing is allocated in between
        all_logits = x_TD.new_empty(min(rows, tokens), words)
        all_probs = torch.empty_like(all_logits, dtype=exact)
        for start in range(0, tokens, rows):
            x_CD, targets_C1 = x_TD[start : start + rows], targets_T[start : start + rows, None]
            logits_CV, probs_CV = all_logits[: len(x_CD)], all_probs[: len(x_CD)]
            if bias_V is None:
                torch.mm(x_CD, weight_VD.t(), out=logits_CV)
            else:
                torch.addmm(bias_V, x_CD, weight_VD.t(), out=logits_CV)
            # a CPU would make a second float32 copy; a GPU converts on the way
            cast = x_TD.device.type == "cpu" and exact != x_TD.dtype
            torch.softmax(probs_CV.copy_(logits_CV) if cast else logits_CV, -1, dtype=exact, out=probs_CV)
            # log Σ exp from the largest probability, which cannot underflow: one pass fewer than logsumexp
            log_total_C = logits_CV.amax(-1).to(exact) - probs_CV.amax(-1).log()
            total += (log_total_C - logits_CV.gather(-1, targets_C1)[:, 0]).sum()
            if wanted:
                error_CV = probs_CV.scatter_add_(-1, targets_C1, probs_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
                if exact != x_TD.dtype:
                    error_CV = logits_CV.copy_(error_CV)
                if grad_V is not None:
                    grad_V += error_CV.sum(0, dtype=exact)
                torch.mm(error_CV, weight_VD, out=grad_TD[start : start + rows])
                if exact == x_TD.dtype:
                    grad_VD.addmm_(error_CV.t(), x_CD)
                else:
                    grad_VD += error_CV.t() @ x_CD
        if wanted:
            grad_V = grad_V.div_(tokens).to(bias_V.dtype) if grad_V is not None else None
            ctx.save_for_backward(grad_TD.div_(tokens), grad_VD.div_(tokens).to(weight_VD.dtype), grad_V)
        return total / tokens

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_TD, grad_VD, grad_V = ctx.saved_tensors
        grads = (made * grad.to(made.dtype) if made is not None else None for made in (grad_TD, grad_VD, grad_V))
        grad_TD, grad_VD, grad_V = grads
        return grad_TD, grad_VD, None, grad_V
