"""Parameters of RMoE's small models, built.

The printed totals (enwik8, vocabulary 205) count an unused LayerNorm a layer that the public code carries, and for XMoE
and HyperMoE its unused linear gate; ours have a learnable temperature a layer for cosine scores.
"""

import pytest
import torch

from moe.accounting import parameter_counts
from moe.span import SpanDecoder

EXPERTS = 16
SHAPE = dict(vocabulary=205, heads=8, span=2048, experts=EXPERTS, top_k=2)
SIZES = {"small": dict(layers=6, width=264, expert_width=264), "medium": dict(layers=8, width=352, expert_width=352)}


def unused_norms(layers, width, **_):
    return layers * 2 * width


def linear_gates(layers, width):
    return layers * (width + 1) * EXPERTS


@pytest.mark.parametrize(
    ("size", "router", "extra", "printed"),
    [
        ("medium", "smoe", 0, 36_076_813),
        ("medium", "random-smoe", 0, 36_076_813),
        ("medium", "rmoe", 0, 36_508_685),
        ("medium", "rmoe-np", 0, 36_508_685),
        ("medium", "rmoe-detach", 0, 36_508_685),
        ("medium", "rmoe-np-r0.5", 0, 36_508_685),
        ("medium", "rmoe-np-r1.0-detach-r", 0, 36_508_685),
        ("medium", "rmoe-shared-projector", 0, 36_233_229),
        ("medium", "rmoe-rnn", 0, 36_442_637),
        ("medium", "rmoe-lstm", 0, 36_541_709),
        ("medium", "smoe-mlp", 0, 36_787_469),
        ("medium", "cosine-moe", -8, 36_076_685),
        ("medium", "xmoe", -8 + linear_gates(8, 352), 36_123_917),
        ("medium", "hypermoe", linear_gates(8, 352), 48_414_861),
        ("small", "smoe", 0, 15_319_165),
        ("small", "smoe-mlp", 0, 15_725_437),
        ("small", "rmoe", 0, 15_608_701),
    ],
)
def test_small_models_have_exactly_the_printed_parameters(size, router, extra, printed):
    with torch.device("meta"):
        built = SpanDecoder(**SHAPE, **SIZES[size], router={"name": router})
    assert parameter_counts(built)["parameters"] + unused_norms(**SIZES[size]) + extra == printed
