"""What a language model says of given tokens, and what it would say next: batched, each forward pass made once.

Nothing here knows the harness; `evaluate.py` adapts it. Letters: B rows of a batch, S padded length, N scored
positions of a row, V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe.branches import Tree, branches_of, grow
from moe.command_line import progress

Pair = tuple[list[int], list[int]]  # context (not empty) and continuation
Input = tuple[tuple[int, ...], int]  # tokens, and how many of them are the prompt where the router wants to know
Asked = dict[Input, list[tuple[int, list[int]]]]  # input -> [(request, targets at its end)]


def pieces(context: list[int], continuation: list[int], length: int) -> Iterator[Pair]:
    """Cut a continuation so that each piece fits a model of `length` tokens; yields (input, targets).

    The targets are the tokens that follow the last len(targets) tokens of the input. A context is cut from the
    left. Each token of the continuation is a target once; the pieces of a continuation that alone exceeds the length
    are the harness' rolling windows, and the last one gets all the context that fits.
    """
    tokens = context + continuation
    for start in range(len(context), len(tokens), length):
        end = min(start + length, len(tokens))
        yield tokens[max(0, end - 1 - length) : end - 1], tokens[start:end]


def padded(rows: list[list[int]], device: torch.device) -> Tensor:
    """Rows as one tensor [B, S], padded on the right: causal attention never looks there."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)


class Row(NamedTuple):
    """Inputs that begin alike, and the row that the model reads in their stead."""

    inputs: list[Input]
    tree: Tree
    tokens: list[int]


def rows_of(inputs: list[Input], longest: int) -> list[Row]:
    """Inputs in rows, shared ones of at most `longest` tokens; 0: each is a row of its own."""
    if longest:
        trees = grow([tokens for tokens, _ in inputs], longest)
        return [Row([(text, 0) for text in tree.texts], tree, tree.row) for tree in trees]
    return [Row([given], Tree([given[0]], len(given[0])), list(given[0])) for given in inputs]


def batches(rows: list[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Rows, shared ones first and the longest first, in batches of at most `batch_tokens` tokens with their padding."""
    rows = sorted(rows, key=lambda row: (len(row.inputs) == 1, -len(row.tokens), row.inputs))
    while rows:
        size, plain = max(1, batch_tokens // len(rows[0].tokens)), len(rows[0].inputs) == 1
        batch = [row for row in rows[:size] if (len(row.inputs) == 1) == plain]
        yield batch
        rows = rows[len(batch) :]


def merges(model: nn.Module) -> bool:
    """Whether the router merges experts by segment: then padding must not be routed, and a prompt is routed once."""
    return getattr(model, "router", None) is not None and model.router.gates.merges


@torch.no_grad()
def score(
    model: nn.Module,
    pairs: list[Pair],
    *,
    length: int,
    batch_tokens: int,
    vocabulary: int | None = None,
    device: torch.device | str = "cpu",
    describe: str = "score",
    prompted: bool = True,
) -> list[tuple[float, bool]]:
    """For each (context, continuation): log-probability in nats, and whether greedy decoding would say it.

    prompted: contexts are prompts, which a router that merges experts (Lory) routes once; False for running text.
    Requests that put the same tokens into the model share its forward pass (equal requests; choices of one token), and
    those that begin alike (the choices of a question) what they share of it, where the router sees each token alone.
    `vocabulary`: tokens that the tokenizer knows; ids above it are padding of the embedding and never the greedy one.
    """
    asked: Asked = defaultdict(list)
    prompts_matter = prompted and merges(model)
    if merges(model) and not prompted:
        batch_tokens = 1  # one sequence a batch, so that none is padded
    for request, (context, continuation) in enumerate(pairs):
        for tokens, targets in pieces(context, continuation, length):
            prompt = len(tokens) - len(targets) + 1 if prompts_matter else 0
            asked[tuple(tokens), prompt].append((request, targets))
    logprobs, greedy = [[] for _ in pairs], [True] * len(pairs)
    shares = getattr(model, "reads_branches", False) and not merges(model)
    bar = progress(describe, len(asked), "sequence")
    for batch in batches(rows_of(list(asked), 2 * length if shares else 0), batch_tokens):
        inputs = [given for row in batch for given in row.inputs]
        prompts_B = torch.tensor([prompt for _, prompt in inputs], device=device) if prompts_matter else None
        tokens_BS = padded([row.tokens for row in batch], device)
        places_N = torch.tensor(places(batch, asked, tokens_BS.shape[1]), device=device)
        branches = branches_of([row.tree for row in batch], tokens_BS.shape[1], device)
        further = {"branches": branches} if branches else {}
        logits_NV = model(tokens_BS, prompts_B=prompts_B, places_N=places_N, **further)
        for request, picked, best in read(logits_NV, inputs, asked, vocabulary):
            logprobs[request] += picked
            greedy[request] &= best
        bar.update(len(inputs))
    bar.close()
    return [(math.fsum(picked), best) for picked, best in zip(logprobs, greedy, strict=True)]


def places(batch: list[Row], asked: Asked, length: int) -> list[int]:
    """Where the logits for a batch's targets stand, counted through its rows of `length` tokens, input by input.

    Of each input as many of its last tokens as the longest piece asked of it has targets: the head of a model is made
    for these alone, since it would be the largest part of a model with many words.
    """
    found = []
    for number, row in enumerate(batch):
        for given, path in zip(row.inputs, row.tree.paths, strict=True):
            last = max(len(piece) for _, piece in asked[given])
            found += [number * length + place for place in path[-last:]]
    return found


def read(
    logits_NV: Tensor, inputs: list[Input], asked: Asked, vocabulary: int | None
) -> Iterator[tuple[int, list[float], bool]]:
    """What the logits at `places` say of each piece asked: request, log-probability of each target, all greedy?"""
    rows, targets, stop = [], [], 0
    for given in inputs:
        stop += max(len(piece) for _, piece in asked[given])
        for _, piece in asked[given]:
            rows += range(stop - len(piece), stop)
            targets += piece
    logits_NV = logits_NV.float()
    best = logits_NV[:, :vocabulary].argmax(-1)[rows].tolist()
    picked = logits_NV.log_softmax(-1)[rows, targets].tolist()
    start = 0
    for request, piece in (pair for given in inputs for pair in asked[given]):
        end = start + len(piece)
        yield request, picked[start:end], best[start:end] == piece
        start = end


@torch.no_grad()
def generate(
    model: nn.Module,
    contexts: list[list[int]],
    *,
    stop: Callable[[list[int]], bool],
    tokens: int,
    length: int,
    batch_tokens: int,
    vocabulary: int | None = None,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Greedy continuation of each context, until `stop(continuation)` or `tokens` tokens.

    The model sees the last `length` tokens of context and continuation. Each step is a whole forward pass.
    """
    said = [[] for _ in contexts]
    bar = progress("generate", len(contexts), "sequence")
    # The window of a row grows to `length`, so that is what a batch is sized for.
    size = max(1, batch_tokens // length)
    order = sorted(range(len(contexts)), key=lambda row: -len(contexts[row]))
    for begin in range(0, len(order), size):
        live = order[begin : begin + size]
        for _ in range(tokens):
            rows = [(contexts[row] + said[row])[-length:] for row in live]
            # what is left in the window of each row's context, which is its prompt
            prompts = [max(1, len(row) - len(said[i])) for i, row in zip(live, rows, strict=True)]
            prompts_B = torch.tensor(prompts, device=device) if merges(model) else None
            tokens_BS = padded(rows, device)
            last = [i * tokens_BS.shape[1] + len(row) - 1 for i, row in enumerate(rows)]
            logits_BV = model(tokens_BS, prompts_B=prompts_B, places_N=torch.tensor(last, device=device))
            for row, token in zip(live, logits_BV[:, :vocabulary].argmax(-1).tolist(), strict=True):
                said[row].append(token)
            live = [row for row in live if not stop(said[row])]
            if not live:
                break
        bar.update(len(order[begin : begin + size]))
    bar.close()
    return said
