"""What can be said without training: the sizes of the backbones, and both papers' gates as functions of one score."""

from typing import Any

import torch

from moe.accounting import parameter_counts, training_flops
from moe.model import Decoder
from moe.routers import build_router
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


@torch.no_grad()
def routing_example(tokens: int = 3, experts: int = 4, width: int = 16, seed: int = 0) -> list[dict[str, float]]:
    """Scores and weights of a few tokens by both routers, from one small forward pass (ReMoE, figure 1).

    Random token vectors and one random linear layer of scores for both, so nothing was trained and no scale enters.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x_TD = torch.randn(tokens, width)
        topk, relu = (
            build_router(name, layers=1, width=width, experts=experts, top_k=1).eval() for name in ("topk", "relu")
        )
        weight_ED = torch.randn(experts, width) / width**0.5
    for router in (topk, relu):
        for parameter in router.scores.parameters():
            parameter.copy_(weight_ED.view_as(parameter))
    scores_TE = relu.scores(x_TD, 0)
    topk_TE, relu_TE = (router(x_TD, 0).gates_TE for router in (topk, relu))
    return [
        {"token": t, "expert": e, "score": s.item(), "topk": topk_TE[t, e].item(), "relu": relu_TE[t, e].item()}
        for t, row in enumerate(scores_TE)
        for e, s in enumerate(row)
    ]


@torch.no_grad()
def recurrent_example(layers: int = 3, experts: int = 4, width: int = 16, state: int = 5, seed: int = 0) -> list[dict]:
    """What RMoE's router does to one token, from one small forward pass through its layers (RMoE, figure 1).

    A row a number: layer, part (input, projected, memory: what the layer is handed, state: what it hands on, score,
    weight), place, value. Random weights and inputs, two experts a token; nothing was trained and no scale enters.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        router = build_router("rmoe", layers=layers, width=width, experts=experts, top_k=2, state=state).eval()
        inputs_LD = torch.randn(layers, width)
    rows, memory = [], None
    for layer, x_D in enumerate(inputs_LD):
        handed = torch.zeros(state) if memory is None else memory[0]
        routing = router(x_D[None], layer, memory)
        memory = routing.memory_TH
        parts = {"input": x_D, "projected": router.memory.projectors[layer](x_D), "memory": handed}
        parts |= {"state": memory[0], "score": routing.scores_TE[0], "weight": routing.gates_TE[0]}
        for part, values in parts.items():
            rows += [{"layer": layer, "part": part, "place": i, "value": v} for i, v in enumerate(values.tolist())]
    return rows
