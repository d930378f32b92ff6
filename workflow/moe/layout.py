"""What a training takes on given GPUs, estimated before it starts, and how it is split over them.

The estimate adds up what a step must do one after another: the model's FLOPs at the share of the peak that was measured
for its width, what the ranks send each other at the speed of their links, and a cost for each layer's kernels. Nothing
overlaps in it, so it errs on the slow side where a real step does two things at once. docs/scaling.md has its numbers.

Letters: R ranks, P expert-parallel ranks, D width, k experts of a token.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from moe.accounting import step_flops
from moe.table_checks import DENSE

USABLE = 0.9  # share of a GPU's memory: the rest is the allocator's, NCCL's and the driver's
RECOMPUTED = 4 / 3  # FLOPs with checkpointed blocks: their forward pass runs twice
COPIES = 16  # bytes of a parameter's checkpoint: weights, float32 master, two moments (as check_disk counts)


class Hardware(NamedTuple):
    """A machine, or several alike. Fields as in hardware.schema.yaml."""

    device: str
    nodes: int
    gpus: int  # of a node
    memory_gib: float
    peak_tflops: float  # dense, in `precision`
    efficiency: list[dict[str, float]]  # width of a model and the share of the peak that its training reaches
    within_gb_s: float  # from a GPU to another of its node, one direction
    between_gb_s: float  # from a GPU to one of another node
    layer_ms: float  # of a micro-batch: kernels that wait for no arithmetic

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    def share(self, width: int) -> float:
        """Share of the peak at a width: between the measured ones by the logarithm, beyond them the nearest."""
        known = sorted((one["width"], one["share"]) for one in self.efficiency)
        if width <= known[0][0]:
            return known[0][1]
        for (low, a), (high, b) in zip(known, known[1:], strict=False):
            if width <= high:
                return a + (b - a) * math.log(width / low) / math.log(high / low)
        return known[-1][1]


class Sizes(NamedTuple):
    """Parameters of a model: those that every rank holds, and those of the routed experts."""

    shared: int
    routed: int


class Estimate(NamedTuple):
    """A training on hardware, split in one way."""

    micro_batch: int
    expert_ranks: int
    memory_gib: float  # of each GPU
    sent_gb: float  # by each rank in a step
    seconds: float  # of a step
    parts: dict[str, float]  # of them: arithmetic, gradients, tokens, layers

    @property
    def fits(self) -> bool:
        return math.isfinite(self.seconds)


def sizes_of(spec: dict[str, Any]) -> Sizes:
    """Counted from the model itself, which is built without memory."""
    return _sizes(json.dumps(spec["model"], sort_keys=True))


@cache
def _sizes(model: str) -> Sizes:
    import torch

    from moe.snapshots import build_model

    with torch.device("meta"):
        built = build_model({"model": json.loads(model)})
    routed = sum(p.numel() for block in built.blocks if hasattr(block, "experts") for p in block.experts.parameters())
    return Sizes(sum(p.numel() for p in built.parameters()) - routed, routed)


def memory_gib(spec: dict[str, Any], sizes: Sizes, ranks: int, expert_ranks: int, micro_batch: int) -> float:
    """Largest memory of a rank: weights, gradients, its share of the optimiser (ZeRO-1), activations."""
    model, training = spec["model"], spec["training"]
    size = 4 if training.get("precision") == "float32" else 2
    held = sizes.shared + sizes.routed / expert_ranks
    accumulates = training["batch"] > micro_batch * ranks
    gradients = 4 if accumulates or size == 4 else 2
    optimizer = 12 * (sizes.shared + sizes.routed) / ranks  # an expert's is shared by the ranks that hold it
    total = held * (size + gradients) + optimizer + size * activations(model, training, micro_batch)
    if model.get("kind") == "span":  # what each layer remembers of each stream of the rank
        total += size * model["layers"] * model["span"] * model["width"] * training["batch"] / ranks
    return total / 2**30


def activations(model: dict[str, Any], training: dict[str, Any], micro_batch: int) -> float:
    """Numbers that a forward pass keeps for the backward one: a block's inputs, or all of it where it is not redone."""
    width, layers, tokens = model["width"], model["layers"], micro_batch * training["sequence"]
    expert, k = model["expert_width"] / model["granularity"], model["top_k"] * model["granularity"]
    gated = 3 if model.get("kind") != "span" else 2  # SwiGLU keeps both halves and their product
    routed = k * (width + gated * expert) + model.get("shared_experts", 0) * gated * expert
    attention = width * (6 if model.get("kind") != "span" else 10)
    if model.get("kind") == "span":
        attention += 2 * width * model["span"] / training["sequence"] * 2  # keys and values of what came before
        attention += 2 * model["heads"] * model["span"]  # its weights, and which of them are kept
    block = tokens * (attention + 4 * width + routed + 4 * model["experts"] * model["granularity"])
    kept = layers * tokens * width + block if model.get("checkpointing") else layers * block
    head = model["vocabulary"] * width + tokens * width  # its gradients, made with the loss
    return kept + head + 2**27 * 2  # and a chunk of logits


def estimate(spec: dict[str, Any], hardware: Hardware, ranks: int, expert_ranks: int, micro_batch: int) -> Estimate:
    """A training on so many GPUs, each expert on every P-th of them; infinite seconds where it does not fit."""
    model, training, sizes = spec["model"], spec["training"], sizes_of(spec)
    memory = memory_gib(spec, sizes, ranks, expert_ranks, micro_batch)
    size = 4 if training.get("precision") == "float32" else 2
    steps = training["batch"] // (ranks * micro_batch)  # micro-batches of a rank
    active = None if model["router"]["name"] == DENSE else model["top_k"] * model["granularity"]
    redone = RECOMPUTED if model.get("checkpointing") else 1.0
    peak = hardware.peak_tflops * 1e12 * (0.5 if size == 4 else 1.0)  # TF32 has half of bfloat16's
    parts = {"arithmetic": redone * step_flops(spec, active) / (ranks * peak * hardware.share(model["width"]))}
    # a ring over the nodes goes at the speed of its slowest link
    link = hardware.between_gb_s if ranks > hardware.gpus else hardware.within_gb_s
    held = sizes.shared + sizes.routed / expert_ranks
    copies = ranks // expert_ranks  # of an expert
    gradients = 2 * size * (sizes.shared * (1 - 1 / ranks) + sizes.routed / expert_ranks * (1 - 1 / copies))
    parts["gradients"] = gradients / (link * 1e9)
    tokens = 0.0
    if expert_ranks > 1 and active is not None:
        way = training["sequence"] * micro_batch * active * model["width"] * size * (1 - 1 / expert_ranks)
        ways = 6 if model.get("checkpointing") else 4  # there and back, in each pass
        tokens = way * ways * model["layers"] * steps
        link = hardware.between_gb_s if expert_ranks > hardware.gpus else hardware.within_gb_s
    parts["tokens"] = tokens / (link * 1e9)
    parts["layers"] = steps * model["layers"] * hardware.layer_ms / 1e3 * redone
    fits = memory <= USABLE * hardware.memory_gib and held > 0
    seconds = sum(parts.values()) if fits else math.inf
    return Estimate(micro_batch, expert_ranks, memory, (gradients + tokens) / 1e9, seconds, parts)


def layouts(spec: dict[str, Any], ranks: int) -> Iterator[tuple[int, int]]:
    """(expert ranks, micro-batch) that the run can be split into."""
    model, training = spec["model"], spec["training"]
    experts = model["experts"] * model["granularity"] if model["router"]["name"] != DENSE else 1
    share = training["batch"] // ranks
    if training["batch"] % ranks:
        return
    for expert_ranks in (p for p in range(1, ranks + 1) if ranks % p == 0 and experts % p == 0):
        yield from ((expert_ranks, m) for m in range(1, share + 1) if share % m == 0)


def best(spec: dict[str, Any], hardware: Hardware, ranks: int | None = None) -> Estimate | None:
    """The fastest split that fits, of equal ones that with the fewest expert ranks; None where none does."""
    ranks = ranks or hardware.ranks
    found = [estimate(spec, hardware, ranks, p, m) for p, m in layouts(spec, ranks)]
    return min((e for e in found if e.fits), key=lambda e: (e.seconds, e.expert_ranks), default=None)
