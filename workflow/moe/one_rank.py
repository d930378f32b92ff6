"""What DeepSpeed's optimizer of ZeRO does for many ranks, left out where there is one: the same to the bit.

A small model with many experts spends half of a step there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

PART = 2**18  # numbers that are squared at a time: their float64 still fits a cache, and there are few parts
MOVED = 2**20  # numbers that AdamW moves at a time in bfloat16
SMALL = 2**15  # gradients of fewer numbers are joined
LANES = 64  # a multiple of the numbers that AdamW moves at once


def spare_one_rank(zero: Any, dtype: torch.dtype) -> None:
    """Change DeepSpeed's optimizer so that it copies no gradient or weight that it need not, and passes memory less."""
    # it would join all gradients, divide them by one, sum them over one rank and copy them back
    zero.buffered_reduce_fallback = lambda *arguments, **options: None
    if dtype == torch.float32:  # the weights that AdamW moves are the model's: none are copied back after a step
        for own, (whole,) in zip(
            zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True
        ):
            own.data = whole.data
        zero._link_all_hp_params()
    if zero.bit16_groups_flat[0].device.type != "cpu":
        return
    zero.get_grad_norm_direct = _norm
    scale_down, most, whole_step = zero.unscale_and_clip_grads, zero.clip_grad, zero.step

    def clip(gradients: list[Tensor], norm: Tensor) -> None:
        if not (zero.loss_scale == 1.0 and 0 <= (norm + 1e-6) / most <= 1):  # else it multiplies by one
            scale_down(gradients, norm)

    def step(closure: None = None) -> None:
        for i, gradients in zero.averaged_gradients.items():
            zero.averaged_gradients[i] = _pieces(gradients)
        norm, state = zero.scaled_global_norm(), zero.optimizer.state
        if 0 <= norm < torch.inf and all(state.get(own) for own in zero.single_partition_of_fp32_groups):
            _step(zero, norm)
        else:  # what is not finite is skipped, and AdamW's state is made the first time
            whole_step()

    zero.unscale_and_clip_grads, zero.step = clip, step


@torch.no_grad()
def _step(zero: Any, norm: Tensor) -> None:
    """DeepSpeed's step without the copy that joins all gradients: AdamW moves the weights of one after the other.

    In bfloat16 it moves its float32 weights part by part: a part of the gradient becomes float32, and a part of the
    model's weights is written, while both are in a cache.
    """
    zero.micro_step_id, zero.overflow, zero._global_grad_norm = -1, False, norm
    for i, (own, (model,), group) in enumerate(
        zip(
            zero.single_partition_of_fp32_groups,
            zero.parallel_partitioned_bit16_groups,
            zero.optimizer.param_groups,
            strict=True,
        )
    ):
        gradients, state, exact = zero.averaged_gradients[i], zero.optimizer.state[own], own.dtype == model.dtype
        if not exact:
            gradients = [part for gradient in gradients for part in gradient.split(MOVED)]
        sizes, steps = [gradient.numel() for gradient in gradients], state["step"].clone()
        columns = [x.data.split(sizes) for x in (own, state["exp_avg"], state["exp_avg_sq"])]
        if exact:
            zero.unscale_and_clip_grads(gradients, norm)
            _adamw(gradients, *columns, steps, group)
        else:
            memory = torch.empty(MOVED, dtype=own.dtype)
            for gradient, target, *moved in zip(gradients, model.data.split(sizes), *columns, strict=True):
                same = memory[: gradient.numel()].copy_(gradient)
                zero.unscale_and_clip_grads([same], norm)
                _adamw([same], *([x] for x in moved), steps, group)
                target.copy_(moved[0])
        state["step"].add_(1)
        zero.free_grad_in_param_list(zero.params_in_partition[i])
        zero.averaged_gradients[i] = zero.all_grad_tensors[i] = None
    zero._lazy_init_hp_params_optimizer_state()


def _adamw(
    gradients: list[Tensor],
    weights: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: Tensor,
    group: dict[str, Any],
) -> None:
    """AdamW's step number `steps` + 1 on these tensors."""
    adam(
        [*weights],
        gradients,
        [*means],
        [*squares],
        [],
        [steps.clone() for _ in gradients],
        fused=True,
        amsgrad=False,
        decoupled_weight_decay=True,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _pieces(gradients: list[Tensor]) -> list[Tensor]:
    """The gradients in their order, flat: large ones without a copy, the small ones between them joined.

    Each piece begins at a multiple of LANES, as AdamW rounds the end of a tensor otherwise than what it moves at once;
    a large gradient's first and last few numbers go with the small ones where they have to.
    """
    pieces, small, size = [], [], 0
    for gradient in gradients:
        flat = gradient.detach().reshape(-1)
        if flat.numel() >= SMALL:
            start = -size % LANES
            end = start + (flat.numel() - start) // LANES * LANES
            pieces += [*_joined([*small, flat[:start]]), flat[start:end]]
            flat, small, size = flat[end:], [], 0
        small.append(flat)
        size += flat.numel()
    return pieces + _joined(small)


def _joined(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.cat(tensors)] if any(tensor.numel() for tensor in tensors) else []


def _norm(gradients: list[Tensor], params: list[Tensor], norm_type: float = 2) -> Tensor:
    """Norm of all gradients summed in float64, −1 where it is not finite, as DeepSpeed's; in parts that fit a cache."""
    exact, total = torch.empty(PART, dtype=torch.float64), 0.0
    for gradient in gradients:
        if not getattr(gradient, "_zero_padding", False):
            for part in gradient.detach().flatten().split(PART):
                same = exact[: part.numel()].copy_(part)
                total += torch.dot(same, same).item()
    norm = torch.tensor(total).float().sqrt()
    return norm if norm.isfinite() else torch.full_like(norm, -1.0)
