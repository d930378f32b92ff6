"""Every router over one, two and four ranks, and over micro-batches: the same losses, λ, sparsity and gradients."""

import os
import tempfile
from functools import cache

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moe.model import Decoder
from moe.routers import ROUTERS, options_of

STEPS = 3
LAYOUTS = {2: (1, 2), 4: (1, 2, 4)}  # ranks -> ranks that share the experts; of four ranks, also two pairs
SPLITS = [(ranks, spread) for ranks, spreads in LAYOUTS.items() for spread in spreads]
SHAPE = dict(vocabulary=50, width=32, layers=3, heads=4, kv_heads=2, expert_width=48, experts=4, top_k=2, init_std=0.2)
SHAPE |= dict(shared_experts=1)  # whole on every rank, however the others are spread


def make(name):
    torch.manual_seed(3)
    options = {"segment": 4} if "segment" in options_of(name) else {}
    options |= {"epsilon": 0.0} if "epsilon" in options_of(name) else {}  # ranks would draw other samples
    options |= {"lambda_0": 0.3} if "lambda_0" in options_of(name) else {}  # so that an error in the penalty shows
    return Decoder(**SHAPE, router={"name": name} | options).train()


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(50, (4, 13), generator=generator) for _ in range(STEPS)]


def train(model, share, mean_over_ranks):
    """Losses, statistics and gradients of each step of plain gradient descent; share picks this rank's sequences."""
    record = []
    for tokens in batches():
        tokens = share(tokens)
        loss, router_loss = model(tokens[:, :-1], tokens[:, 1:])
        (loss + router_loss).backward()
        gradients = {n: mean_over_ranks(n, p) for n, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for n, p in model.named_parameters():
                if n in gradients:
                    p -= 0.3 * gradients[n]
                    p.grad = None
        losses = mean_over_ranks("", torch.stack([loss.detach(), router_loss.detach()]))
        record.append((losses, model.after_step(), {n: g.clone() for n, g in gradients.items()}))
    return record


def rank_main(rank, ranks, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    from moe.expert_parallel import gathered_state, spread_experts
    from moe.ranks import end_rank

    def share(tokens):
        return tokens.chunk(ranks)[rank]

    for spread in LAYOUTS[ranks]:
        sharing, twins = groups(ranks, spread)

        def mean(name, value, twins=twins):
            value = value if value.grad is None else value.grad
            # an expert got the rows of all ranks that share the experts; the other ranks' are with its twins
            dist.all_reduce(value, group=twins if "deepspeed_moe" in name else None)
            return value / ranks

        for name in ROUTERS:
            model = make(name)
            spread_experts(model, spread)
            for block in model.blocks if spread > 1 else ():
                block.experts.deepspeed_moe._set_ep_group(sharing)
            record = train(model, share, mean)
            if spread > 1:  # gradients are those of shares; whole weights say as much
                record = [(losses, statistics, {}) for losses, statistics, _ in record]
            torch.save((record, gathered_state(model)), f"{folder}/{name}-{spread}-{rank}")
    end_rank(0)


def groups(ranks, spread):
    """This rank's group that shares the experts, and the group of ranks with the same experts."""
    found = []
    for sets in (torch.arange(ranks).view(-1, spread), torch.arange(ranks).view(-1, spread).T):
        made = {tuple(members): dist.new_group(members) for members in sets.tolist()}  # every rank makes every group
        found += [group for members, group in made.items() if dist.get_rank() in members]
    return found


@pytest.fixture(scope="module")
def made_by():
    """Number of ranks -> a folder with what they made of every router; the ranks are started when first asked for."""
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def run(ranks):
            os.mkdir(f"{folder}/{ranks}")
            mp.start_processes(rank_main, (ranks, f"{folder}/{ranks}"), nprocs=ranks, start_method="spawn")
            return f"{folder}/{ranks}"

        yield run


@cache
def whole(name):
    """The record of one rank, and the model after it."""
    model = make(name)
    record = train(model, lambda tokens: tokens, lambda _, value: value if value.grad is None else value.grad)
    return record, {n: weight.detach() for n, weight in model.named_parameters()}


def close(mine, other):
    return (mine - other).norm() <= 1e-3 * other.norm() + 1e-6


@pytest.mark.promise("Experts or the batch over 1, 2 and 4 ranks: every router's numbers and gradients, to rounding")
@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize(("ranks", "spread"), SPLITS, ids=[f"{ranks} ranks, {by} share" for ranks, by in SPLITS])
def test_several_ranks_are_one(ranks, spread, name, made_by):
    record, weights = whole(name)
    for rank in range(ranks):
        parts, state = torch.load(f"{made_by(ranks)}/{name}-{spread}-{rank}")
        for (losses, statistics, gradients), (mine, same, ours) in zip(record, parts, strict=True):
            torch.testing.assert_close(mine, losses, rtol=1e-4, atol=1e-6)
            assert same == pytest.approx(statistics, rel=1e-6)
            if spread == 1:
                assert ours.keys() == gradients.keys()
            for n, gradient in ours.items():
                assert close(gradient, gradients[n]), n
        for n, weight in weights.items():
            assert close(state[n], weight), n


@pytest.mark.parametrize("name", ROUTERS)
def test_micro_batches_have_the_same_language_modelling_loss_and_statistics(name):
    whole, split = make(name), make(name)
    for tokens in batches():
        loss, _ = whole(tokens[:, :-1], tokens[:, 1:])
        losses = [split(part[:, :-1], part[:, 1:])[0] for part in tokens.split(1)]
        torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-5, atol=0)
        assert split.after_step() == whole.after_step()
