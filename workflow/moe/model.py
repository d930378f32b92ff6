"""The decoder of ReMoE and of RMoE's large runs: LLaMA style, every feed-forward layer a Mixture of Experts.

Shape letters: B sequences, S positions, T = B·S tokens (less those of padding, in experts), D width, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe.attention import Attention
from moe.branches import Branches
from moe.experts import Experts, swiglu
from moe.loss import head_loss
from moe.norms import RMSNorm
from moe.routers import Routing, Sequences, build_router

IGNORED = -100  # a target that is in no loss, PyTorch's number for it


class Decoder(nn.Module):
    """Pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, untied embeddings.

    expert_width: feed-forward width of one expert before granularity (4 · width in ReMoE).
    experts, top_k, granularity: E, k, G of ReMoE's section 4.3: E·G experts of width expert_width/G, k·G active.
    shared_experts: further experts of that width that every token takes besides, without a gate (DeepSeekMoE, arXiv
        2401.06066); their sum is one feed-forward network of as many times the width, which is what is built.
    router: its name in ROUTERS and options; name `none` is the dense model, a plain feed-forward of E times the width.
    init_std: of every matrix, embeddings and router included; scaled_init divides it by √(2·layers) for the output
        projections of attention and experts (ReMoE's Megatron; RMoE's large model does not).
    """

    reads_branches = True

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
        shared_experts: int = 0,
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
        shared_width = shared_experts * (expert_width // granularity)
        ffn_width = expert_width // granularity if self.router else expert_width * experts
        routed = experts if self.router else None
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads, ffn_width, routed, rope_base, norm_eps, shared_width) for _ in range(layers)
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
            scaled = name.endswith(("attention.out.weight", "out_EFD", "feed_forward.out.weight", "shared.out.weight"))
            parameter.normal_(0, std * (output_scale if scaled else 1.0))

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BS: Tensor | None = None,
        routings: list[Routing] | None = None,
        prompts_B: Tensor | None = None,
        real_BS: Tensor | None = None,
        places_N: Tensor | None = None,
        branches: Branches | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Next-token logits [B, S, V]; given targets, instead (language-modelling loss, router loss), nats per token.

        routings: a list that receives each MoE layer's Routing, tokens flattened sequence by sequence.
        prompts_B: at inference, how many tokens of each sequence are its prompt, for routers that route it once.
        real_BS: which tokens are no padding. Padding is routed to no expert and enters no router's loss (but for a
            router that merges experts by segments of whole sequences); targets of IGNORED are in no loss.
        places_N: tokens, counted through all sequences, whose logits alone are wanted: then [N, V].
        branches: where a row holds several texts that begin alike; for routers that look at each token alone.
        """
        sequences, kept_T = Sequences(tokens_BS, prompts_B), None
        if real_BS is not None and self.router is not None and not self.router.gates.merges:
            kept_T = real_BS.flatten().nonzero()[:, 0]
            sequences = Sequences(tokens_BS.flatten()[kept_T][None])
        x_BSD = self.embed(tokens_BS)
        memory, router_loss = None, x_BSD.new_zeros((), dtype=torch.float32)
        for layer, block in enumerate(self.blocks):
            arguments = (x_BSD, self.router, layer, memory, sequences, kept_T, branches)
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
            return self.head(x_BSD if places_N is None else x_BSD.flatten(0, 1).index_select(0, places_N))
        x_TD, targets_T = x_BSD.flatten(0, 1), targets_BS.flatten()
        if real_BS is not None:
            asked_T = (targets_T != IGNORED).nonzero()[:, 0]
            x_TD, targets_T = x_TD.index_select(0, asked_T), targets_T[asked_T]
        return head_loss(x_TD, self.head.weight, targets_T), router_loss

    def after_step(self) -> dict[str, float]:
        """Let the router adjust after an optimiser step; its statistics, empty for a dense model."""
        return self.router.after_step() if self.router is not None else {}


class Block(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x)) + shared(norm(x)) where there are shared experts."""

    def __init__(self, width, heads, kv_heads, ffn_width, experts, rope_base, norm_eps, shared_width=0):
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads, rope_base)
        self.experts_norm = RMSNorm(width, eps=norm_eps)
        if experts is None:
            self.feed_forward = FeedForward(width, ffn_width)
        else:
            self.experts = Experts(experts, width, ffn_width)
        self.shared = FeedForward(width, shared_width) if shared_width else None

    def forward(self, x_BSD, router, layer, memory, sequences, kept_T=None, branches=None):
        """kept_T: places among all tokens of those that are no padding; None: all are."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), branches)
        h_BSD = self.experts_norm(x_BSD)
        if self.shared is not None:
            x_BSD = x_BSD + self.shared(h_BSD)
        if router is None:
            return x_BSD + self.feed_forward(h_BSD), None
        h_TD = h_BSD.flatten(0, 1)
        if kept_T is not None:
            h_TD = h_TD.index_select(0, kept_T)
        routing = router(h_TD, layer, memory, sequences)
        y_TD = self.experts(h_TD, routing.gates_TE, routing.segments)
        if kept_T is not None:
            y_TD = y_TD.new_zeros(h_BSD.shape[:2].numel(), y_TD.shape[1]).index_copy(0, kept_T, y_TD)
        return x_BSD + y_TD.view_as(x_BSD), routing


class FeedForward(nn.Module):
    """SwiGLU of the dense model, and of the experts that every token takes."""

    def __init__(self, width: int, ffn_width: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.out = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(swiglu(self.gate_up(x)))
