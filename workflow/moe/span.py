"""The model of RMoE's enwik8 and WikiText-103 runs: attention over a fixed span, a cache of hidden states, post-norm.

The paper says "the default configurations" of CompeteSMoE's public code, whose model this is, without the LayerNorm
that each of its layers carries and never applies.

Shape letters: B sequences, S positions of a block, T = B·S tokens, D width, V words, W span, P = W + S positions that
a block sees, H heads, C head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe.experts import ReLUExperts
from moe.loss import head_loss
from moe.routers import Routing, Sequences, build_router, options_of
from moe.span_attention import span_attention


class SpanDecoder(nn.Module):
    """Post-norm decoder without absolute positions or a final norm; the output projection has a bias and is untied.

    span: hidden states before a token that it attends to. dropout: of attention weights, experts' hidden units and the
    experts' sum. Linear maps of the router have biases wherever it has the option `bias`.
    expert_width, experts, top_k, granularity, router: as Decoder's; router `none` is a dense feed-forward.
    Every parameter starts as PyTorch's defaults (embeddings N(0, 1)), the positions as N(0, 1), experts as they say.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        expert_width: int,
        span: int,
        router: dict[str, Any],
        experts: int = 1,
        top_k: int = 1,
        granularity: int = 1,
        dropout: float = 0.1,
        checkpointing: bool = False,
    ):
        super().__init__()
        if expert_width % granularity:
            raise ValueError(f"granularity {granularity} does not divide the expert width {expert_width}")
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        experts, top_k = experts * granularity, top_k * granularity
        self.width, self.span, self.checkpointing = width, span, checkpointing
        self.experts, self.top_k = experts, top_k
        self.embed = nn.Embedding(vocabulary, width)
        self.positions_CW = nn.Parameter(torch.randn(width // heads, span))  # shared by all layers and heads
        self.router = _router(router, layers=layers, width=width, experts=experts, top_k=top_k)
        ffn_width = expert_width // granularity if self.router else expert_width * experts
        stacked = experts if self.router else None
        self.blocks = nn.ModuleList(SpanBlock(width, heads, ffn_width, stacked, dropout) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BS: Tensor | None = None,
        routings: list[Routing] | None = None,
        prompts_B: Tensor | None = None,
        cache: list[Tensor] | None = None,
        places_N: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As Decoder.forward; the text before the block is what `cache` holds of it.

        cache: what the block before left, a tensor [B, W, D] a layer: the layer's last W inputs, without gradient. It
            is replaced by what this block leaves. An empty list, or None, is the start of a text: W vectors of zeros,
            attended to like any others.
        """
        sequences = Sequences(tokens_BS, prompts_B)
        x_BSD = self.embed(tokens_BS)
        memory, router_loss = None, x_BSD.new_zeros((), dtype=torch.float32)
        start_BWD = x_BSD.new_zeros(x_BSD.shape[0], self.span, self.width)
        left = []
        for layer, block in enumerate(self.blocks):
            before_BWD = cache[layer] if cache else start_BWD
            if cache is not None:
                left.append(torch.cat([before_BWD, x_BSD.detach()], 1)[:, -self.span :].contiguous())
            arguments = (x_BSD, before_BWD, self.positions_CW, self.router, layer, memory, sequences)
            if self.checkpointing and self.training:
                x_BSD, routing = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BSD, routing = block(*arguments)
            if routing is not None:
                memory, router_loss = routing.memory_TH, router_loss + routing.loss
                if routings is not None:
                    routings.append(routing)
        if cache is not None:
            cache[:] = left
        if targets_BS is None:
            return self.head(x_BSD if places_N is None else x_BSD.flatten(0, 1).index_select(0, places_N))
        loss = head_loss(x_BSD.flatten(0, 1), self.head.weight, targets_BS.flatten(), self.head.bias)
        return loss, router_loss

    def after_step(self) -> dict[str, float]:
        """As Decoder.after_step."""
        return self.router.after_step() if self.router is not None else {}


def _router(router: dict[str, Any], **sizes: int) -> nn.Module | None:
    """The router with biases in its linear maps, as CompeteSMoE's gates have them; None for the dense model."""
    options = {key: value for key, value in router.items() if key != "name"}
    if router["name"] == "none":
        return None
    if "bias" in options_of(router["name"]):
        options = {"bias": True} | options
    return build_router(router["name"], **sizes, **options)


class SpanBlock(nn.Module):
    """h = norm(x + attention(x)), m = norm(h + experts(h)), norm(h + m): two residuals around the experts."""

    def __init__(self, width: int, heads: int, ffn_width: int, experts: int | None, dropout: float):
        super().__init__()
        self.attention = SpanAttention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        if experts is None:
            hidden = nn.Linear(width, ffn_width), nn.ReLU(), nn.Dropout(dropout)
            self.feed_forward = nn.Sequential(*hidden, nn.Linear(ffn_width, width))
        else:
            self.experts = ReLUExperts(experts, width, ffn_width, dropout)
        self.dropout = nn.Dropout(dropout)
        self.experts_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BSD, before_BWD, positions_CW, router, layer, memory, sequences):
        h_BSD = self.attention_norm(x_BSD + self.attention(x_BSD, before_BWD, positions_CW))
        y_BSD, routing = self.feed(h_BSD, router, layer, memory, sequences)
        m_BSD = self.experts_norm(h_BSD + self.dropout(y_BSD))
        return self.norm(h_BSD + m_BSD), routing

    def feed(self, h_BSD, router, layer, memory=None, sequences=None):
        """The experts' sum, [B, S, D], and the routing; None for the dense feed-forward."""
        if router is None:
            return self.feed_forward(h_BSD), None
        h_TD = h_BSD.flatten(0, 1)
        routing = router(h_TD, layer, memory, sequences)
        return self.experts(h_TD, routing.gates_TE, routing.segments).view_as(h_BSD), routing


class SpanAttention(nn.Module):
    """Each token attends to the W hidden states before it, not to itself; no biases.

    Logits (q · k + q · pe_distance)/√C; dropout of the weights, none of the output.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor, before_BWD: Tensor, positions_CW: Tensor) -> Tensor:
        """x_BSD after before_BWD -> [B, S, D]; column w of positions_CW belongs to the distance W − w.

        Keys and values of before_BWD are made anew, with today's weights, as the public code does.
        """
        seen_BPD = torch.cat([before_BWD, x_BSD], 1)
        q_BHSC = self.query(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BHPC, v_BHPC = self.key_value(seen_BPD).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, 1)
        dropout = self.dropout if self.training else 0.0
        y_BHSC = span_attention(q_BHSC, k_BHPC, v_BHPC, positions_CW, dropout)
        return self.out(y_BHSC.transpose(1, 2).flatten(2))
