"""The decoder of ReMoE and of RMoE's large runs: LLaMA style, every feed-forward layer a Mixture of Experts.

Shape letters: B sequences, S positions, T = B·S tokens, D width, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe.attention import Attention
from moe.experts import Experts, swiglu
from moe.loss import head_loss
from moe.norms import RMSNorm
from moe.routers import Routing, Sequences, build_router


class Decoder(nn.Module):
    """Pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, untied embeddings.

    expert_width: feed-forward width of one expert before granularity (4 · width in ReMoE).
    experts, top_k, granularity: E, k, G of ReMoE's section 4.3: E·G experts of width expert_width/G, k·G active.
    router: its name in ROUTERS and options; name `none` is the dense model, a plain feed-forward of E times the width.
    init_std: of every matrix, embeddings and router included; scaled_init divides it by √(2·layers) for the output
        projections of attention and experts (ReMoE's Megatron; RMoE's large model does not).
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        expert_width: int,
        router: dict[str, Any],
        experts: int = 1,
        top_k: int = 1,
        granularity: int = 1,
        rope_base: float = 1e6,
        norm_eps: float = 1e-5,
        init_std: float = 0.01,
        scaled_init: bool = True,
        checkpointing: bool = False,
    ):
        super().__init__()
        if expert_width % granularity:
            raise ValueError(f"granularity {granularity} does not divide the expert width {expert_width}")
        if width % heads or heads % kv_heads:
            raise ValueError(f"{heads} heads do not divide the width {width}, or {kv_heads} kv_heads the heads")
        experts, top_k = experts * granularity, top_k * granularity
        self.width, self.checkpointing = width, checkpointing
        self.experts, self.top_k = experts, top_k
        self.embed = nn.Embedding(vocabulary, width)
        options = {key: value for key, value in router.items() if key != "name"}
        self.router = (
            None
            if router["name"] == "none"
            else build_router(router["name"], layers=layers, width=width, experts=experts, top_k=top_k, **options)
        )
        ffn_width = expert_width // granularity if self.router else expert_width * experts
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads, ffn_width, experts if self.router else None, rope_base, norm_eps)
            for _ in range(layers)
        )
        self.norm = RMSNorm(width, eps=norm_eps)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self._initialise(init_std, (2 * layers) ** -0.5 if scaled_init else 1.0)

    @torch.no_grad()
    def _initialise(self, std: float, output_scale: float) -> None:
        own = [n for n, module in self.named_modules() if getattr(module, "keeps_own_init", False)]
        for name, parameter in self.named_parameters():
            if (parameter.ndim == 1 and "norm" in name) or name.startswith(tuple(f"{n}." for n in own)):
                continue  # ones; scores that begin as their source says
            scaled = name.endswith(("attention.out.weight", "out_EFD", "feed_forward.out.weight"))
            parameter.normal_(0, std * (output_scale if scaled else 1.0))

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BS: Tensor | None = None,
        routings: list[Routing] | None = None,
        prompts_B: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Next-token logits [B, S, V]; given targets, instead (language-modelling loss, router loss), nats per token.

        routings: a list that receives each MoE layer's Routing, tokens flattened sequence by sequence.
        prompts_B: at inference, how many tokens of each sequence are its prompt, for routers that route it once.
        """
        sequences = Sequences(tokens_BS, prompts_B)
        x_BSD = self.embed(tokens_BS)
        memory, router_loss = None, x_BSD.new_zeros((), dtype=torch.float32)
        for layer, block in enumerate(self.blocks):
            arguments = (x_BSD, self.router, layer, memory, sequences)
            if self.checkpointing and self.training:
                x_BSD, routing = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BSD, routing = block(*arguments)
            if routing is not None:
                memory, router_loss = routing.memory_TH, router_loss + routing.loss
                if routings is not None:
                    routings.append(routing)
        x_BSD = self.norm(x_BSD)
        if targets_BS is None:
            return self.head(x_BSD)
        return head_loss(x_BSD.flatten(0, 1), self.head.weight, targets_BS.flatten()), router_loss

    def after_step(self) -> dict[str, float]:
        """Let the router adjust after an optimiser step; its statistics, empty for a dense model."""
        return self.router.after_step() if self.router is not None else {}


class Block(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(self, width, heads, kv_heads, ffn_width, experts, rope_base, norm_eps):
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, rope_base)
        self.experts_norm = RMSNorm(width, eps=norm_eps)
        if experts is None:
            self.feed_forward = FeedForward(width, ffn_width)
        else:
            self.experts = Experts(experts, width, ffn_width)

    def forward(self, x_BSD, router, layer, memory, sequences):
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
        h_BSD = self.experts_norm(x_BSD)
        if router is None:
            return x_BSD + self.feed_forward(h_BSD), None
        h_TD = h_BSD.flatten(0, 1)
        routing = router(h_TD, layer, memory, sequences)
        return x_BSD + self.experts(h_TD, routing.gates_TE, routing.segments).view_as(x_BSD), routing


class FeedForward(nn.Module):
    """SwiGLU of the dense model."""

    def __init__(self, width: int, ffn_width: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.out = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(swiglu(self.gate_up(x)))
