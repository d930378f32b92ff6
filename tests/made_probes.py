"""Fabricated files of RMoE's probes in the real formats: what the paper prints as it prints it, the rest so as it says.

made_results.py writes them beside the other files of a run.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from moe import score_statistics as scored
from moe.figures.probe_metrics import PULL
from moe.figures.reported import attributes, find, load
from moe.schedule import spread_points, windows
from moe.weights import WEIGHTS

REPORTED = Path(__file__).parent.parent / "config/reported"
# in the order of the entropy that the paper's text gives them
ENTROPY = ["smoe", "hypermoe", "smoe-mlp", "rmoe-np", "xmoe", "rmoe-xmoe", "cosine-moe", "rmoe-np-r0.5", "rmoe"]
ENTROPY += ["random-smoe", "rmoe-np-r1.0"]
NORMS = {"smoe": 3.0}  # of the map to the scores; the others have less
UNEVEN = {"hypermoe": 0.9, "random-smoe": 1.0, "rmoe": 0.3}  # of the choice of experts; the others have less
ALIKE = {"random-smoe": 0.4, "xmoe": 0.15}  # experts of a layer at the end
TOKENS = 4000


@cache
def page(name: str):
    return load(REPORTED, [name])


def printed(run: dict, name: str, metric: str, **columns: int) -> float | None:
    """A number of table or figure `name` for a run."""
    match = {"router": "label", "size": "size"} if name != "rmoe_table11" else {"router": "label"}
    found = find(page(name), match | {k: f"={v}" for k, v in columns.items()}, attributes(run), metric)
    return found.value if found else None


def noise(seed: int, *shape: int):
    """Small, and the same for every run: what is compared is paired by seed."""
    return 1 + 0.01 * np.random.default_rng(seed).standard_normal(shape)


def write_probes(run: dict, seed: int, place: Path, layers: int = 8, experts: int = 16) -> None:
    """score_statistics, score_entropy, mutual_information, weights and routing of one seed."""
    for name, rows, columns in (
        ("score_statistics", statistics(run, seed, layers), scored.STATISTICS),
        ("score_entropy", entropies(run, layers), scored.HISTOGRAM),
        ("mutual_information", pairs(run, seed, layers), scored.INFORMATION),
        ("weights", weights(run, seed, layers), WEIGHTS),
        ("routing", choices(run, layers, experts), ["layer", "domain", "expert", "routed", "gate", "tokens"]),
    ):
        pd.DataFrame(rows, columns=columns).to_csv(place / f"{name}.csv", index=False)


def statistics(run, seed, layers):
    rank = ENTROPY.index(run["router"])
    middles = {"entropy": 0.2 * (rank + 1)}
    for name, start, step in (("inner_balance", 30.0, -2.5), ("outer_balance", 0.95, -0.06)):
        middles[name] = printed(run, "rmoe_table8", name) or start + step * rank
    for name, value in middles.items():
        for layer in [*range(layers), "all"]:
            middle = value * noise(seed)[()]
            spread = {q: middle * (0.5 + p) for q, p in scored.QUANTILES.items()}
            tokens = TOKENS * (layers if layer == "all" else 1)
            yield {"layer": layer, "statistic": name, "tokens": tokens, "mean": middle} | spread


def entropies(run, layers):
    rank = ENTROPY.index(run["router"])
    for layer in range(layers):
        yield {"layer": layer, "low": 0.2 * rank, "high": 0.2 * rank + 0.1, "tokens": TOKENS // 4}
        yield {"layer": layer, "low": 0.2 * rank + 0.1, "high": 0.2 * rank + 0.2, "tokens": TOKENS * 3 // 4}


def pairs(run, seed, layers):
    for i in range(layers):
        for j in range(i + 1):
            found = [
                printed(run, name, "mutual_information", layer_i=i, layer_j=j) for name in ("rmoe_fig3", "rmoe_fig6")
            ]
            value = next((v for v in found if v), 0.1 * (ENTROPY.index(run["router"]) + 1) / (1 + i - j))
            yield {"layer_i": i, "layer_j": j, "mutual_information": value * noise(seed)[()], "tokens": TOKENS}


def weights(run, seed, layers):
    norm, alike = NORMS.get(run["router"], 1.5), ALIKE.get(run["router"], 0.2)
    for layer, wobble in enumerate(noise(seed, layers)):
        row = {
            "layer": layer,
            "norm": norm * wobble,
            "std": norm / 10 * wobble,
            "initial_norm": 1.0,
            "initial_std": 0.1,
        }
        yield row | {"expert_similarity": alike * wobble, "similarity_of_random": 0.125}


def choices(run, layers, experts):
    uneven = UNEVEN.get(run["router"], 0.2)
    for layer in range(layers):
        share = 2 * (1 + uneven * np.cos(2 * np.pi * np.arange(experts) / experts)) / experts
        for expert, value in enumerate(share):
            yield (layer, "text", expert, round(value * TOKENS), value * TOKENS / 2, TOKENS)


def watched(run: dict, training: dict, seed: int, layers: int = 4) -> dict[str, np.ndarray]:
    """Columns of metrics.csv that a setup's monitors fill, empty where nothing is measured."""
    steps, columns = np.arange(1, training["steps"] + 1), {}
    less = 0.9 if run["router"] == "rmoe" else 1.0
    if training.get("similarity_points"):
        rise = 0.2 + 0.5 * np.sin(np.pi * steps / (1.3 * len(steps)))  # rises, then falls
        at = np.isin(steps, spread_points(training["similarity_points"], len(steps)))
        for layer in range(layers):
            columns[f"similarity_{layer}"] = np.where(at, less * rise * (1 + 0.1 * layer) * noise(seed)[()], np.nan)
    points = training.get("gradient_points", [])
    for share, window in zip(points, windows(points, len(steps), training.get("gradient_steps", 100)), strict=True):
        for name in ("router_gradient", "router_gradient_lm", "drop_ratio"):
            value = printed(run, "rmoe_table11", PULL[name][3], step=round(60_000 * share))
            value = 1.0 if value is None else value  # of SMoE-MLP the paper prints none
            column = columns.setdefault(name, np.full(len(steps), np.nan))
            inside = np.isin(steps, window)
            column[inside] = value / (100 if name == "drop_ratio" else 1) * noise(seed)[()]
    return columns
