"""Every router over one, two and four ranks, and over micro-batches: the same losses, λ, sparsity and gradients."""

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moe.model import Decoder
from moe.routers import ROUTERS, options_of

STEPS = 3
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


def rank_main(rank, folder, ranks):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    from moe.expert_parallel import gathered_state, spread_experts
    from moe.ranks import end_rank

    def share(tokens):
        return tokens.chunk(ranks)[rank]

    def mean(name, value):
        value = value if value.grad is None else value.grad
        if "deepspeed_moe" in name:  # an expert got every rank's rows already
            return value / ranks
        dist.all_reduce(value)
        return value / ranks

    for name in ROUTERS:
        torch.save(train(make(name), share, mean), f"{folder}/data-{name}-{rank}")
        model = make(name)
        spread_experts(model, ranks)
        for block in model.blocks:
            block.experts.deepspeed_moe._set_ep_group(dist.group.WORLD)
        record = train(model, share, mean)
        torch.save(([r[:2] for r in record], gathered_state(model)), f"{folder}/expert-{name}-{rank}")
    end_rank(0)


@pytest.fixture(scope="module", params=[2, 4])
def many(request):
    """A number of ranks, and a folder with what they made of every router, data parallel and expert parallel."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank_main, (folder, request.param), nprocs=request.param, start_method="spawn")
        yield request.param, folder


@pytest.mark.parametrize("name", ROUTERS)
def test_data_parallel_ranks_are_one(name, many):
    ranks, folder = many
    whole = train(make(name), lambda tokens: tokens, lambda _, value: value if value.grad is None else value.grad)
    for rank in range(ranks):
        parts = torch.load(f"{folder}/data-{name}-{rank}")
        for (losses, statistics, gradients), (mine, same, ours) in zip(whole, parts, strict=True):
            torch.testing.assert_close(mine, losses, rtol=1e-4, atol=1e-6)
            assert same == pytest.approx(statistics, rel=1e-6)
            assert ours.keys() == gradients.keys()
            for n, gradient in gradients.items():
                assert (ours[n] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, n


@pytest.mark.parametrize("name", ROUTERS)
def test_expert_parallel_ranks_are_one(name, many):
    ranks, folder = many
    model = make(name)
    whole = train(model, lambda tokens: tokens, lambda _, value: value if value.grad is None else value.grad)
    for rank in range(ranks):
        parts, state = torch.load(f"{folder}/expert-{name}-{rank}")
        for (losses, statistics, _), (mine, same) in zip(whole, parts, strict=True):
            torch.testing.assert_close(mine, losses, rtol=1e-4, atol=1e-6)
            assert same == pytest.approx(statistics, rel=1e-6)
        for n, weight in model.named_parameters():
            assert (state[n] - weight).norm() <= 1e-3 * weight.norm() + 1e-6, n


@pytest.mark.parametrize("name", ROUTERS)
def test_micro_batches_have_the_same_language_modelling_loss_and_statistics(name):
    whole, split = make(name), make(name)
    for tokens in batches():
        loss, _ = whole(tokens[:, :-1], tokens[:, 1:])
        losses = [split(part[:, :-1], part[:, 1:])[0] for part in tokens.split(1)]
        torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=1e-5, atol=0)
        assert split.after_step() == whole.after_step()
