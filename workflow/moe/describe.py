"""What can be said without training: the sizes of the backbones, and both papers' gates as functions of one score."""

from typing import Any

import torch

from moe.accounting import parameter_counts, training_flops
from moe.model import Decoder
from moe.routers.relu import ReLU
from moe.routers.topk import TopK

SHAPE = ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")


def backbone(model: dict[str, Any], sequence: int) -> dict[str, float]:
    """Parameters, dense and with 8 top-1 experts, of the model built on the meta device; GFLOPs a sequence."""
    counts = {}
    for name, router, experts in (("dense_parameters", "none", 1), ("moe_parameters_e8", "topk", 8)):
        with torch.device("meta"):
            counts[name] = parameter_counts(Decoder(**model, router={"name": router}, experts=experts))["parameters"]
    shape = {key: model[key] for key in SHAPE}
    return counts | {"gflops_per_sequence": training_flops(sequence, **shape) / 1e9, "sequence": sequence} | shape


def gate_functions(points: int = 801, reach: float = 3.0) -> list[dict[str, float]]:
    """Weight of one of two experts while its score moves, the other's being 0, by the routers themselves (fig. 2)."""
    scores_T = torch.linspace(-reach, reach, points)
    scores_TE = torch.stack([scores_T, torch.zeros_like(scores_T)], dim=1)
    topk_T = TopK(layers=1, experts=2, top_k=1).eval()(scores_TE, 0)[0][:, 0]
    relu_T = ReLU(layers=1, experts=2, top_k=1).eval()(scores_TE, 0)[0][:, 0]
    return [
        {"score": s, "topk": t, "relu": r}
        for s, t, r in zip(scores_T.tolist(), topk_T.tolist(), relu_T.tolist(), strict=True)
    ]
