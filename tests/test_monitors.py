"""Flips are those of the masks before and after a step, and watching changes nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import SEQUENCE, TinyCorpus, tiny_model

from moe.monitors import Flips, validation_loss


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
