"""Models that remember the text before a block: their caches while they train, and losses over running text.

Letters: B streams, S tokens of a block, L layers, W states that a layer remembers, D width.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe.data import Corpus, Streams, Windows
from moe.devices import tokens_at_once
from moe.monitors import validation_loss

Cache = list[Tensor]  # a tensor [B, W, D] a layer, or nothing at the start of a text


class Memories:
    """What a rank's micro-batches remember from step to step; nothing where the batches are shuffled windows."""

    def __init__(self, batches: Streams | Windows, micro_batches: int):
        self.streams = batches if isinstance(batches, Streams) else None
        self.caches: list[Cache] = [[] for _ in range(micro_batches)]

    def before(self, step: int) -> list[dict[str, Cache]]:
        """The further arguments of each micro-batch's forward pass, which leaves in them what the next step needs."""
        if self.streams is None:
            return [{} for _ in self.caches]
        if self.streams.starts(step):
            self.caches = [[] for _ in self.caches]
        return [{"cache": cache} for cache in self.caches]

    def save(self, folder: Path, rank: int) -> None:
        """Write what this rank remembers, so that a resumed training goes on to the bit."""
        if self.streams is not None:
            named = {f"{i}.{layer}": left for i, cache in enumerate(self.caches) for layer, left in enumerate(cache)}
            save_file({name: left.contiguous() for name, left in named.items()}, _file(folder, rank))

    def load(self, folder: Path, rank: int, ranks: int, device: torch.device) -> None:
        """Remember what `save` wrote, by whatever number of ranks: this one goes on with its share of the streams."""
        if self.streams is None:
            return
        share, files = self.streams.batch // ranks, len(list(folder.glob("memory-*.safetensors")))
        each, first = self.streams.batch // files, rank * share  # streams of a file; the first of this rank
        wanted = range(first // each, -(-(first + share) // each))
        found = [_remembered(_file(folder, number), device) for number in wanted]
        skip = first - wanted[0] * each
        layers = [torch.cat(parts)[skip : skip + share].chunk(len(self.caches)) for parts in zip(*found, strict=True)]
        self.caches = [[layer[i].contiguous() for layer in layers] for i in range(len(self.caches))]


def _remembered(path: Path, device: torch.device) -> Cache:
    """What a rank remembered of all its streams."""
    named = load_file(path, device=str(device))
    places = sorted(tuple(map(int, name.split("."))) for name in named)  # (micro-batch, layer)
    layers = sorted({layer for _, layer in places})
    return [torch.cat([named[f"{i}.{at}"] for i, at in places if at == layer]) for layer in layers]


def _file(folder: Path, rank: int) -> Path:
    return folder / f"memory-{rank:05d}.safetensors"


def memory_bytes(model: nn.Module, streams: int) -> int:
    """Bytes of what a model remembers of so many streams, in float32; 0 for models that remember nothing."""
    return 4 * streams * getattr(model, "span", 0) * model.width * len(model.blocks)


@torch.no_grad()
def block_losses(
    model: nn.Module, streams: Streams, steps: range, *, micro_batch: int, rank: int = 0, ranks: int = 1
) -> Iterator[Tensor]:
    """Mean loss of each of this rank's blocks at each step, [B/ranks] in nats per token, float64.

    Blocks follow each other with the cache, which is empty at the first step. Several may be read in one pass, which
    gives each the same loss in less time.
    """
    model.eval()
    device = next(model.parameters()).device
    caches: list[Cache] = []
    for read in _passes(streams, steps, _blocks_at_once(model, streams.sequence * micro_batch)):
        blocks = [streams.at(step, rank, ranks) for step in read]
        text = np.concatenate([*(block[:, :-1] for block in blocks), blocks[-1][:, -1:]], axis=1)
        micro_batches = torch.from_numpy(text).to(device).split(micro_batch)
        if not caches or streams.starts(read[0]):
            caches = [[] for _ in micro_batches]
        losses = [_losses(model, micro, cache) for micro, cache in zip(micro_batches, caches, strict=True)]
        yield from torch.cat(losses).unflatten(1, (len(read), -1)).mean(2).T


def _blocks_at_once(model: nn.Module, tokens: int) -> int:
    """Blocks of a pass, of so many tokens each; one where the router looks at more than a token (Lory)."""
    if model.router is not None and model.router.gates.merges:
        return 1
    return max(1, tokens_at_once(next(model.parameters()).device, model.head.out_features) // tokens)


def _passes(streams: Streams, steps: range, most: int) -> Iterator[list[int]]:
    """The steps in groups, at most so many each, whose blocks follow each other in the text."""
    read: list[int] = []
    for step in steps:
        if len(read) == most or (read and streams.starts(step)):
            yield read
            read = []
        read.append(step)
    if read:
        yield read


def _losses(model: nn.Module, tokens_BS1: Tensor, cache: Cache) -> Tensor:
    logits_BSV = model(tokens_BS1[:, :-1], cache=cache)
    targets_BS = tokens_BS1[:, 1:]
    losses = nn.functional.cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten(), reduction="none")
    return losses.view(targets_BS.shape).double()


class StreamValidation:
    """Validation while a model trains: each time over the next blocks of the held-out streams, at most once all.

    As in the public code, so that two validations see different text. A departure: each starts with an empty cache,
    not with what an earlier model left there, which a resumed training would have to keep.
    """

    def __init__(self, model: nn.Module, corpus: Corpus, *, sequence: int, windows: int, streams: int, **split: Any):
        self.model, self.split = model, split
        self.streams = Streams(corpus, "valid", sequence, streams)
        self.blocks = min(max(1, windows // streams), len(self.streams))

    def __call__(self, number: int) -> float:
        """Mean loss of validation `number`, from 0 on, in nats per token."""
        steps = range(number * self.blocks, (number + 1) * self.blocks)
        losses = torch.stack(list(block_losses(self.model, self.streams, steps, **self.split)))
        sums = torch.stack([losses.sum(), torch.full_like(losses.sum(), losses.numel())])
        if self.split.get("ranks", 1) > 1:
            dist.all_reduce(sums)
        return (sums[0] / sums[1]).item()


def validation_of(
    model: nn.Module, corpus: Corpus, settings: dict[str, Any], micro_batch: int, rank: int, ranks: int
) -> Callable[[int], float]:
    """A training's validation, a function of how many there were before: over streams, or over the same windows."""
    of_ranks = {"sequence": settings["sequence"], "windows": settings["validate_windows"], "rank": rank, "ranks": ranks}
    if settings.get("streams", False):
        return StreamValidation(model, corpus, streams=settings["batch"], micro_batch=micro_batch, **of_ranks)
    return lambda number: validation_loss(model, corpus, batch=micro_batch, **of_ranks)
