"""What the weights of a model say of its router and experts, beside what they were before the first step."""

import torch
from torch import nn

from moe.expert_statistics import expert_similarity, similarity_of_random, weight_norm
from moe.snapshots import build_model

WEIGHTS = ["layer", "norm", "std", "initial_norm", "initial_std", "expert_similarity", "similarity_of_random"]


@torch.no_grad()
def weight_rows(model: nn.Module, start: nn.Module) -> list[dict]:
    """Rows of weights.csv, a layer each: of a model and of what it was before its first step.

    Norm and standard deviation are of the last linear map to the scores, empty for routers that have none.
    """
    rows = []
    for layer, block in enumerate(model.blocks if model.router is not None else ()):
        row = {"layer": layer}
        for prefix, each in (("", model), ("initial_", start)):
            if each.router.scores is not None:
                norm, std = weight_norm(each.router.scores.last_map(layer).float().cpu().numpy())
                row |= {f"{prefix}norm": norm, f"{prefix}std": std}
        vectors_MED = block.experts.mean_vectors().cpu().numpy()
        row |= {"expert_similarity": expert_similarity(vectors_MED)}
        row |= {"similarity_of_random": similarity_of_random(*vectors_MED.shape[:2])}
        rows.append({key: float(f"{value:.6g}") if key != "layer" else value for key, value in row.items()})
    return rows


def model_at_start(spec: dict) -> nn.Module:
    """The model before its first step: the training seeds its random numbers and builds it in the same way."""
    with torch.random.fork_rng([]):
        torch.manual_seed(spec["seed"])
        return build_model(spec)
