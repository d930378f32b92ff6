"""DeepSpeed's engine around a model: AdamW, ZeRO, clipping, gradients summed over micro-batches."""

import inspect
from types import MethodType
from typing import Any

import torch
from torch import nn

from moe.compiler import leave_compiler_out, prepare_compiler
from moe.expert_parallel import ParallelExperts
from moe.one_rank import spare_one_rank
from moe.ranks import deepspeed

PLAIN_STEP = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_engine(
    model: nn.Module,
    *,
    batch: int,
    micro_batch: int,
    ranks: int,
    dtype: torch.dtype,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    zero_stage: int = 1,
    compile: bool = False,
) -> Any:
    """A DeepSpeed engine with AdamW (no decay on norms), ZeRO, clipping and gradient accumulation."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1]
    others = [p for p in trainable if p.ndim <= 1]
    parameter_groups = [
        {"params": decayed, "name": "decayed", "weight_decay": weight_decay},
        {"params": others, "name": "others", "weight_decay": 0.0},
    ]
    spread = any(isinstance(module, ParallelExperts) for module in model.modules())
    if spread:
        parameter_groups = deepspeed.moe.utils.split_params_into_different_moe_groups_for_optimizer(parameter_groups)
    parameter_groups = [group for group in parameter_groups if group["params"]]
    if not compile:
        leave_compiler_out()
    optimizer = torch.optim.AdamW(parameter_groups, lr=0.0, betas=tuple(betas), eps=eps, fused=True)
    if not compile:
        optimizer.step = MethodType(PLAIN_STEP, optimizer)
    config = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": batch // (micro_batch * ranks),
        "gradient_clipping": clip,
        # ZeRO-0 with expert parallelism clips wrongly and reports no norm, so the stage is 1 or 2
        # contiguous gradients cost a copy; without them DeepSpeed gets the norm of spread experts wrong
        "zero_optimization": {"stage": zero_stage, "contiguous_gradients": zero_stage > 1 or spread},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # what is not finite ends the training (moe.health); DeepSpeed would look at every gradient, and skip the step
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": False},
        "steps_per_print": 10**9,
    }
    if batch > micro_batch * ranks:  # many small gradients would vanish in a bfloat16 sum; one needs no second buffer
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if ranks == 1:  # nothing is summed over ranks, so nothing needs more digits for it
        config["communication_data_type"] = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    if compile:
        prepare_compiler()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    zero = deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer  # bfloat16 over micro-batches has another
    if ranks == 1 and not config["zero_optimization"]["contiguous_gradients"] and isinstance(engine.optimizer, zero):
        spare_one_rank(engine.optimizer, dtype)
    if compile:
        engine.compile()
    return engine
