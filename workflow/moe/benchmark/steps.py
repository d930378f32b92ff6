"""One train step of each contender: forward, cross-entropy and router loss, backward, clip at 1, AdamW.

Shape letters: B sequences, S positions, T = B·S tokens, D width, E experts, F expert width.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from deepspeed.moe.layer import MoE
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM

from moe.benchmark.settle import settle
from moe.data import Corpus, Windows
from moe.engine import build_engine
from moe.model import Decoder, FeedForward
from moe.ranks import init_ranks

Step = Callable[[], float]
RATE, BALANCE = 1e-4, 0.01


class Shape(dict):
    """Arguments of Decoder without its router, and batch and sequence of a step."""

    @property
    def model(self) -> dict[str, Any]:
        return {key: value for key, value in self.items() if key not in ("batch", "sequence")}

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self["batch"] * self["sequence"]

    def draw(self, device: torch.device) -> Tensor:
        """A batch of random tokens with their targets, [B, S + 1]."""
        return torch.randint(self["vocabulary"], (self["batch"], self["sequence"] + 1), device=device)


def reader(corpus: Corpus, shape: Shape, device: torch.device) -> Callable[[], Tensor]:
    """What gives one training batch of a corpus after another, [B, S + 1]."""
    windows, steps = Windows(corpus, "train", shape["sequence"], shape["batch"], seed=0), count()
    return lambda: torch.from_numpy(windows.at(next(steps))).to(device)


def ours(
    shape: Shape,
    router: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    batches: Callable[[], Tensor] | None = None,
    compiled: bool = False,
) -> Any:
    """The step that moe.train makes, ZeRO-1 engine and all; `.engine` is there to be asked.

    batches: gives the tokens of a step, else they are drawn at random. A ReLU router is trained until as many experts
        are active as it is meant for: at the start it is half dense.
    """
    if not torch.distributed.is_initialized():
        init_ranks(device)
    torch.manual_seed(0)
    model = Decoder(**shape.model, router=router).train()
    batch = shape["batch"]
    options = dict(batch=batch, micro_batch=batch, ranks=1, dtype=dtype, compile=compiled)
    engine = build_engine(model.to(device, dtype), **options)
    for group in engine.optimizer.param_groups:
        group["lr"] = RATE

    def step() -> float:
        tokens_BS = batches() if batches else shape.draw(device)
        loss, router_loss = engine(tokens_BS[:, :-1], tokens_BS[:, 1:])
        engine.backward(loss + router_loss)
        engine.step()
        step.statistics = engine.module.after_step()
        return loss.item()

    step.engine, step.statistics = engine, {}
    settle(step, engine, RATE)
    return step


def plain(
    model: nn.Module, losses: Callable[[Tensor], Tensor], shape: Shape, device: torch.device, compiled: bool
) -> Step:
    """A peer's step as its users write it: torch's fused AdamW and gradient clipping."""
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def step() -> float:
        loss = losses(shape.draw(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def mixtral_model(shape: Shape, experts: str, balanced: bool) -> MixtralForCausalLM:
    """transformers' Mixtral of the same shape; `experts` is one of its implementations."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["expert_width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        num_local_experts=shape["experts"],
        num_experts_per_tok=shape["top_k"],
        max_position_embeddings=shape["sequence"],
        output_router_logits=balanced,
        router_aux_loss_coef=BALANCE,
        sliding_window=None,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
        experts_implementation=experts,
    )
    return MixtralForCausalLM(config).train()


def mixtral(shape: Shape, experts: str, dtype: torch.dtype, device: torch.device, compiled: bool = False) -> Step:
    """Its train step."""
    model = mixtral_model(shape, experts, True).to(device, dtype)

    def losses(tokens_BS: Tensor) -> Tensor:
        # `labels` are shifted by the model itself: the last target would be lost
        output = model(input_ids=tokens_BS[:, :-1])
        loss = F.cross_entropy(output.logits.float().flatten(0, 1), tokens_BS[:, 1:].flatten())
        return loss + BALANCE * output.aux_loss

    return plain(model, losses, shape, device, compiled)


class DeepSpeedExperts(nn.Module):
    """DeepSpeed's MoE layer in the place of Mixtral's; keeps the balance loss of its last call."""

    def __init__(self, shape: Shape, drop: bool):
        super().__init__()
        expert = FeedForward(shape["width"], shape["expert_width"])
        options = {} if drop else {"drop_tokens": False}
        self.layer = MoE(shape["width"], expert, num_experts=shape["experts"], k=shape["top_k"], **options)

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BSD, self.balance, _ = self.layer(x_BSD)
        return y_BSD


def deepspeed_moe(shape: Shape, drop: bool, dtype: torch.dtype, device: torch.device, compiled: bool = False) -> Step:
    """transformers' Mixtral with DeepSpeed's MoE layers; `drop`: their default capacity, else no token is dropped."""
    if not torch.distributed.is_initialized():
        init_ranks(device)
    model = mixtral_model(shape, "eager", False)
    layers = []
    for block in model.model.layers:
        block.mlp = DeepSpeedExperts(shape, drop)
        block.mlp.layer.set_deepspeed_parallelism()
        layers.append(block.mlp)
    model = model.to(device, dtype)

    def losses(tokens_BS: Tensor) -> Tensor:
        logits_BSV = model(input_ids=tokens_BS[:, :-1]).logits
        loss = F.cross_entropy(logits_BSV.float().flatten(0, 1), tokens_BS[:, 1:].flatten())
        return loss + BALANCE * sum(layer.balance for layer in layers)

    return plain(model, losses, shape, device, compiled)


__all__ = ["Shape", "deepspeed_moe", "mixtral", "ours", "reader"]
