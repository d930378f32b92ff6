"""Flips are those of the masks before and after a step, and watching changes nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import SEQUENCE, TinyCorpus, tiny_model

from moe.expert_statistics import drop_ratio
from moe.monitors import Flips, RouterPull, Similarity, validation_loss
from moe.routers import ROUTERS
from moe.schedule import spread_points, windows
from moe.span import SpanDecoder


class Shown(torch.nn.Module):
    """A model whose gates are what a test lays down, one set a forward pass."""

    def __init__(self, masks):
        super().__init__()
        self.router, self.masks = SimpleNamespace(), iter(masks)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens_BS, routings):
        routings += [SimpleNamespace(gates_TE=torch.tensor(layer) * 0.5) for layer in next(self.masks)]


A, B, C = [[[1, 0], [0, 1]]], [[[1, 1], [0, 1]]], [[[0, 1], [1, 1]]]  # one layer, two tokens, two experts


def test_flip_rate_is_the_share_of_gates_that_a_step_opened_or_shut():
    flips = Flips(Shown([A, B, C]), TinyCorpus(), sequence=SEQUENCE, windows=1, every=1)
    rates = []
    for step in (1, 2):
        flips.before_step(step)
        rates.append(flips.after_step(step)["flip_rate"])
    assert rates == [1 / 4, 2 / 4]


def test_every_nth_step_compares_with_the_step_just_before():
    flips = Flips(Shown([A, C]), TinyCorpus(), sequence=SEQUENCE, windows=1, every=3)
    seen = []
    for step in (1, 2, 3, 4):
        flips.before_step(step)
        seen.append(flips.after_step(step))
    assert seen == [{}, {}, {"flip_rate": 3 / 4}, {}]


@pytest.mark.parametrize("router", ["topk", "relu", "sparsemixer-v2", "lory"])
def test_watching_leaves_the_random_numbers_and_the_router_alone(router):
    model = tiny_model(router).train()
    flips = Flips(model, TinyCorpus(), sequence=SEQUENCE, windows=2, every=1)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    flips.before_step(1)
    flips.after_step(1)
    validation_loss(model, TinyCorpus(), sequence=SEQUENCE, windows=3, batch=2, rank=0, ranks=1)
    assert torch.equal(torch.rand(3), expected)
    assert model.train().after_step() == {}


def test_a_dense_model_flips_nothing():
    flips = Flips(tiny_model("none"), TinyCorpus(), sequence=SEQUENCE, windows=1, every=1)
    flips.before_step(1)
    assert flips.after_step(1) == {}


def test_validation_loss_is_the_mean_over_windows():
    model, corpus = tiny_model(), TinyCorpus()
    total, count = 0.0, 0
    for start in range(0, len(corpus.flat) - SEQUENCE, SEQUENCE):
        window = torch.from_numpy(corpus.flat[start : start + SEQUENCE + 1].astype(np.int64))[None]
        with torch.no_grad():
            total, count = total + model(window[:, :-1], window[:, 1:])[0].item(), count + 1
    one = validation_loss(model, corpus, sequence=SEQUENCE, windows=count, batch=2, rank=0, ranks=1)
    assert one == pytest.approx(total / count, rel=1e-5)


def test_points_are_spread_evenly_to_the_end_of_a_schedule():
    assert spread_points(10, 10_000) == list(range(1000, 10_001, 1000))
    assert spread_points(10, 4) == [1, 2, 3, 4] and spread_points(0, 100) == []


def test_windows_end_at_the_papers_steps():
    paper = windows([1 / 600, 1 / 6, 1.0], 60_000, 100)
    assert [(w[0], w[-1]) for w in paper] == [(1, 100), (9_901, 10_000), (59_901, 60_000)]
    assert [(w[0], w[-1]) for w in windows([1 / 600, 0.5], 600, 20)] == [(1, 20), (281, 300)]
    assert [len(w) for w in windows([0.0, 1.0], 8, 100)] == [8, 8]


@pytest.mark.parametrize("kind", ["decoder", "span"])
def test_similarity_of_identical_experts_is_their_number_of_matrices(kind):
    model = tiny_model() if kind == "decoder" else span_model("smoe")
    experts = model.blocks[1].experts
    for parameter in experts.parameters():
        parameter.data[:] = torch.randn(parameter.shape[1:])
    similarity = Similarity(model, points=2, steps=4)
    assert [similarity.after_step(step) for step in (1, 3)] == [{}, {}]
    found = similarity.after_step(2)
    assert list(found) == similarity.columns == ["similarity_0", "similarity_1"]
    assert found["similarity_1"] == pytest.approx(3 if kind == "decoder" else 2)
    assert 0.3 < found["similarity_0"] < 1.5
    assert Similarity(tiny_model("none"), points=3, steps=9).columns == []


def span_model(router, seed=0):
    torch.manual_seed(seed)
    sizes = dict(vocabulary=257, width=16, layers=2, heads=2, expert_width=8, span=8, experts=4, top_k=2)
    return SpanDecoder(**sizes, router={"name": router}, dropout=0.3).train()


def batch(count=2):
    rows = torch.randint(257, (2 * count, SEQUENCE + 1), generator=torch.Generator().manual_seed(0))
    return [(row[:, :-1], row[:, 1:]) for row in rows.split(2)]


def given(micro_batches, caches=None):
    further = [{}] * len(micro_batches) if caches is None else [{"cache": cache} for cache in caches]
    return [(*micro, more, 1.0) for micro, more in zip(micro_batches, further, strict=True)]


def pull_of(model, **options):
    return RouterPull(model, **(dict(points=[0.5], length=1, steps=2, ranks=1) | options))


@pytest.mark.parametrize("router", ["smoe", "rmoe", "rmoe-np-r0.5"])
def test_the_gradient_is_that_of_the_training_step(router):
    """Two micro-batches of a model with dropout and a cache: backward as the training goes gives the same norms."""
    model, caches = span_model(router), [[torch.randn(2, 8, 16) for _ in range(2)] for _ in range(2)]
    before = [list(cache) for cache in caches]
    torch.manual_seed(3)
    found = pull_of(model).before_step(1, given(batch(), caches))
    for cache, kept in zip(caches, before, strict=True):
        assert all(one is other for one, other in zip(cache, kept, strict=True))
    weights = list(model.router.parameters())
    norms, counts = [], 0
    for both in (True, False):
        torch.manual_seed(3)
        model.zero_grad()
        for (inputs, targets), kept in zip(batch(), before, strict=True):
            routings = []
            loss, router_loss = model(inputs, targets, routings=routings, cache=list(kept))
            ((loss + router_loss if both else loss) / 2).backward()
            counts = counts + torch.stack([(routing.gates_TE > 0).sum(0) for routing in routings])
        norms.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]).norm().item())
    assert [found["router_gradient"], found["router_gradient_lm"]] == pytest.approx(norms, rel=1e-4)
    assert abs(norms[0] - norms[1]) > 1e-4 * norms[0]  # the balance loss is felt
    assert found["drop_ratio"] == pytest.approx(drop_ratio(counts.numpy()))
    assert list(found) == list(RouterPull.columns)


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ("hash", "random-smoe")])
def test_measuring_the_gradient_leaves_everything_as_it_was(router):
    model = tiny_model(router).train()
    model(*batch(1)[0])
    counts, seen = model.router.active_LE.clone(), list(model.router.tokens_L)
    state = {name: part.clone() if torch.is_tensor(part) else part for name, part in model.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    found = pull_of(model).before_step(1, given(batch(1)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model.router.active_LE, counts) and model.router.tokens_L == seen
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, part in model.state_dict().items():
        assert torch.equal(part, state[name]) if torch.is_tensor(part) else part == state[name]
    assert found["router_gradient"] >= 0 and found["router_gradient_lm"] >= 0 and 0 <= found["drop_ratio"] <= 1


@pytest.mark.parametrize("router", ["none", "hash", "random-smoe"])
def test_a_router_without_weights_has_no_gradient(router):
    pull = pull_of(tiny_model(router))
    assert pull.at == set() and pull.before_step(1, given(batch(1))) == {}


def test_activation_checkpointing_changes_no_measured_gradient():
    found = []
    for checkpointing in (False, True):
        model = span_model("rmoe")
        model.checkpointing = checkpointing
        torch.manual_seed(1)
        found.append(pull_of(model).before_step(1, given(batch())))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
