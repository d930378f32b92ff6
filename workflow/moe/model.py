"""The decoder of ReMoE and of RMoE's large runs: LLaMA style, every feed-forward layer a Mixture of Experts.

Shape letters: B sequences, S positions, T = B·S tokens, D width, H heads, K key-value heads, C head width, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from moe.experts import Experts
from moe.routers import Routing, Sequences, build_router


class Decoder(nn.Module):
    """Pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, untied embeddings.

    expert_width: feed-forward width of one expert before granularity (4 · width in ReMoE).
    experts, top_k, granularity: E, k, G of ReMoE's section 4.3: E·G experts of width expert_width/G, k·G active.
    router: its name in ROUTERS and options; name `none` is the dense model, a plain feed-forward of E times the width.
    shared_experts: experts that every token takes besides (no gate), of the same width.
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
        self.norm = nn.RMSNorm(width, eps=norm_eps)
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
        logits_BSV = self.head(self.norm(x_BSD))
        if targets_BS is None:
            return logits_BSV
        loss = F.cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten())
        return loss, router_loss

    def after_step(self) -> dict[str, float]:
        """Let the router adjust after an optimiser step; its statistics, empty for a dense model."""
        return self.router.after_step() if self.router is not None else {}


class Block(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(self, width, heads, kv_heads, ffn_width, experts, rope_base, norm_eps):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, rope_base)
        self.experts_norm = nn.RMSNorm(width, eps=norm_eps)
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
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, width: int, heads: int, kv_heads: int, rope_base: float):
        super().__init__()
        self.heads, self.kv_heads, self.rope_base = heads, kv_heads, rope_base
        head_width = width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self._angles: tuple[Tensor, Tensor] | None = None  # cos, sin: cached per length, device and dtype

    def forward(self, x_BSD: Tensor) -> Tensor:
        batch, positions, _ = x_BSD.shape
        heads_BSHC = self.qkv(x_BSD).view(batch, positions, self.heads + 2 * self.kv_heads, -1)
        qk_BSHC, v_BSKC = heads_BSHC.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q_BSHC, k_BSKC = self._rotate(qk_BSHC).split([self.heads, self.kv_heads], dim=2)
        y_BHSC = F.scaled_dot_product_attention(
            q_BSHC.transpose(1, 2),
            k_BSKC.transpose(1, 2),
            v_BSKC.transpose(1, 2),
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(y_BHSC.transpose(1, 2).reshape(batch, positions, -1))

    def _rotate(self, x_BSHC: Tensor) -> Tensor:
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
        a, b = x_BSHC.chunk(2, -1)
        return x_BSHC * cos_S1C + torch.cat([-b, a], -1) * sin_S1C


def rotary(positions: int, width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles position · base^(−2i/width), [S, 1, C], computed in float32, cast to `like`."""
    frequencies = base ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(positions, device=like.device, dtype=torch.float32), frequencies)
    angles_S1C = torch.cat([angles, angles], -1)[:, None]
    return angles_S1C.cos().to(like.dtype), angles_S1C.sin().to(like.dtype)
