"""Parameters of RMoE's small models: our routers, built, within the rest of the shape, counted.

The printed totals (enwik8, vocabulary 205) count an unused LayerNorm a layer that the public code carries, and for XMoE
and HyperMoE its unused linear gate; ours count a learnable temperature a layer for cosine scores.
"""

import pytest
import torch

from moe.routers import build_router

EXPERTS, VOCABULARY, HEADS, SPAN = 16, 205, 8, 2048
SIZES = {"small": dict(layers=6, width=264), "medium": dict(layers=8, width=352)}


def all_but_the_router(layers, width):
    """Embedding, head with bias, one table of relative positions, and a layer's attention, experts and four norms."""
    attention = 4 * width * width
    experts = EXPERTS * (2 * width * width + 2 * width)
    norms = 4 * 2 * width  # after attention, after the experts, after both, and the unused one
    return VOCABULARY * (2 * width + 1) + width // HEADS * SPAN + layers * (attention + experts + norms)


def linear_gates(layers, width):
    return layers * (width + 1) * EXPERTS


@pytest.mark.parametrize(
    ("size", "router", "options", "extra", "printed"),
    [
        ("medium", "smoe", {"bias": True}, 0, 36_076_813),
        ("medium", "random-smoe", {"bias": True}, 0, 36_076_813),
        ("medium", "rmoe", {"bias": True}, 0, 36_508_685),
        ("medium", "rmoe-np", {"bias": True}, 0, 36_508_685),
        ("medium", "rmoe-detach", {"bias": True}, 0, 36_508_685),
        ("medium", "rmoe-np-r0.5", {"bias": True}, 0, 36_508_685),
        ("medium", "rmoe-np-r1.0-detach-r", {"bias": True}, 0, 36_508_685),
        ("medium", "rmoe-shared-projector", {"bias": True}, 0, 36_233_229),
        ("medium", "rmoe-rnn", {"bias": True}, 0, 36_442_637),
        ("medium", "rmoe-lstm", {"bias": True}, 0, 36_541_709),
        ("medium", "smoe-mlp", {}, 0, 36_787_469),
        ("medium", "cosine-moe", {}, -8, 36_076_685),
        ("medium", "xmoe", {}, -8 + linear_gates(8, 352), 36_123_917),
        ("medium", "hypermoe", {}, linear_gates(8, 352), 48_414_861),
        ("small", "smoe", {"bias": True}, 0, 15_319_165),
        ("small", "smoe-mlp", {}, 0, 15_725_437),
        ("small", "rmoe", {"bias": True}, 0, 15_608_701),
    ],
)
def test_small_models_have_exactly_the_printed_parameters(size, router, options, extra, printed):
    with torch.device("meta"):
        built = build_router(router, **SIZES[size], experts=EXPERTS, top_k=2, **options)
    own = sum(parameter.numel() for parameter in built.parameters())
    assert all_but_the_router(**SIZES[size]) + own + extra == printed
