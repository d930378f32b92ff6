"""Parameters, FLOPs and utilisation of a model, counted rather than estimated."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # counting FLOPs must not wait for torch
    from torch import nn

# Dense bf16 peak of a device, FLOP/s, from its datasheet; a device that is not here has no MFU.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L40S": 362e12,
}


def parameter_counts(model: "nn.Module") -> dict[str, int]:
    """Trainable and frozen parameters: in all, of the router alone, of the embeddings, and active for a token.

    Active are all but those of the E − k experts that a token of a router with k nominal experts does not take;
    embeddings (input and output), router and shared experts are.
    """
    router = getattr(model, "router", None)
    routed = sum(p.numel() for block in model.blocks if router is not None for p in block.experts.parameters())
    embeddings = [p for name, p in model.named_parameters() if name in ("embed.weight", "head.weight")]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "router_parameters": sum(p.numel() for p in router.parameters()) if router is not None else 0,
        "embedding_parameters": sum(p.numel() for p in embeddings),
        "active_parameters": sum(p.numel() for p in model.parameters())
        - (routed // model.experts * (model.experts - model.top_k) if routed else 0),
    }


def forward_flops(
    tokens: int,
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    expert_width: int,
    vocabulary: int,
    active_experts: float = 1.0,
    shared_experts: float = 0.0,
) -> float:
    """FLOPs of one forward pass over one sequence of `tokens`.

    2 · tokens · (matmul parameters + output head) + 4 · tokens² · width · layers: attention is not halved for causality
    and the router is left out, as in ReMoE's table 1. active_experts: experts of expert_width per token, which may be a
    measured mean. shared_experts: those of the same width that every token takes besides.
    """
    attention = 2 * width * width + 2 * width * (width // heads) * kv_heads
    feed_forward = 3 * width * expert_width * (active_experts + shared_experts)
    matmuls = layers * (attention + feed_forward) + width * vocabulary
    return 2 * tokens * matmuls + 4 * tokens**2 * width * layers


def span_forward_flops(
    tokens: int, *, width: int, layers: int, expert_width: int, vocabulary: int, span: int, active_experts: float = 1.0
) -> float:
    """The same for a block of RMoE's small model, whose keys and values are made anew of the span before it, too."""
    attention = 2 * 2 * width * width * tokens + 2 * 2 * width * width * (tokens + span)
    attention += 3 * 2 * tokens * span * width  # queries with keys, with positions, and weights with values
    feed_forward = 2 * 2 * tokens * width * expert_width * active_experts
    return layers * (attention + feed_forward) + 2 * tokens * width * vocabulary


def sequence_flops(model: dict[str, Any], tokens: int, active_experts: float) -> float:
    """FLOPs of forward and backward of a sequence, of whatever kind the model of a run.yaml is."""
    keys = ("width", "layers", "expert_width", "vocabulary")
    shape = {key: model[key] for key in keys} | {"active_experts": active_experts}
    if model.get("kind") == "span":
        return 3 * span_forward_flops(tokens, span=model["span"], **shape)
    shape["shared_experts"] = shared_experts(model)
    return training_flops(tokens, heads=model["heads"], kv_heads=model["kv_heads"], **shape)


def shared_experts(model: dict[str, Any]) -> float:
    """Experts of a run.yaml's model that every token takes, counted in experts of the width before granularity."""
    return model.get("shared_experts", 0) / model.get("granularity", 1)


def training_flops(tokens: int, **shape: float) -> float:
    """FLOPs of forward and backward: three forwards."""
    return 3 * forward_flops(tokens, **shape)


def utilisation(flops_per_second: float, device_name: str, devices: int = 1) -> float | None:
    """Model FLOPs utilisation in (0, 1); None on an unknown device or for a figure that cannot be true."""
    known = [name for name in PEAK_FLOPS if device_name.startswith(name)]
    if not known:
        return None
    mfu = flops_per_second / (PEAK_FLOPS[max(known, key=len)] * devices)
    return mfu if 0 < mfu < 1 else None


def step_flops(spec: dict[str, Any], active_experts: float | None, lengths: Sequence[int] | None = None) -> float:
    """FLOPs of one optimiser step of a run, forward and backward over its whole batch.

    active_experts: expert applications per token and layer (experts of the width after granularity), as measured, but
    for the shared ones; None for a dense model, whose feed-forward is `experts` times as wide. lengths: tokens of each
    sequence of the batch; by default all are as long as the setup has them.
    """
    model, training = spec["model"], spec["training"]
    applied = model.get("experts", 1) if active_experts is None else active_experts / model.get("granularity", 1)
    counts = {training["sequence"]: training["batch"]} if lengths is None else Counter(lengths)
    return sum(count * sequence_flops(model, tokens, float(applied)) for tokens, count in counts.items())


def training_mfu(flops: float, seconds: float, device_name: str, devices: int) -> float | None:
    """Share of the devices' peak that a step of so many FLOPs reached."""
    return utilisation(flops / seconds, device_name, devices)
