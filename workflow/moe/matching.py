"""How much longer a run trains so that its compute is that of another one (ReMoE's compute-matched baselines)."""

import csv
from pathlib import Path
from typing import Any

from moe.accounting import shared_experts, training_flops

SHAPE = ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")


def step_flops(spec: dict[str, Any], active_experts: float) -> float:
    """FLOPs of one optimiser step with so many experts applied per token (of the width after granularity)."""
    model, training = spec["model"], spec["training"]
    shape = {key: model[key] for key in SHAPE} | {"shared_experts": shared_experts(model)}
    applied = active_experts / model.get("granularity", 1)
    return training["batch"] * training_flops(training["sequence"], active_experts=applied, **shape)


def match(spec: dict[str, Any], other: dict[str, Any], metrics: Path) -> dict[str, Any]:
    """`spec` with more steps, and under `matching` how many: Σ_i (FLOPs of the other's step i − F)/F, F = a step here.

    other, metrics: run.yaml and metrics.csv of the run to match, whose measured activity counts. The cosine spans the
    longer run. The paper does not say how much it added, so this is our reading of "equal compute".
    """
    model, training = spec["model"], spec["training"]
    own = step_flops(spec, model["top_k"] * model.get("granularity", 1))
    with metrics.open(newline="") as file:
        theirs = sum(step_flops(other, float(row["active_experts"])) for row in csv.DictReader(file))
    extra = max(0, round(theirs / own - other["training"]["steps"]))
    numbers = {"run": other["run"], "its_flops": theirs, "flops_a_step": own, "extra_steps": extra}
    return spec | {"training": training | {"steps": training["steps"] + extra}, "matching": numbers}
