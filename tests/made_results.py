"""Fabricated results for the tests of tables, figures and claims: tiny folders in the real formats."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

TASKS = {"local_last_word": 40, "local_best_ending": 30, "local_cloze": 50}


def relu_series(steps: int, seed: int = 0, target: float = 0.875):
    """Sparsity and λ as ReLU routing makes them: a dip, a rise, then noise around the target."""
    noise = np.random.default_rng(seed).normal(0, 1, steps)
    t = np.arange(steps)
    rise = 1 / (1 + np.exp(-(t - 70) / 8))
    S = 0.5 - 0.12 * np.exp(-(((t - 30) / 15) ** 2)) + (target - 0.5) * rise
    S = np.where(t < 105, np.minimum(S, target - 0.003), target) + 0.004 * noise * (t >= 106)
    lam = 1e-8 * 1.2 ** np.minimum(t, 75) * np.exp(0.1 * np.sin(t / 3) * (t > 75))
    return np.clip(S, 0.01, 0.99), lam


def make_run(folder: Path, run: dict, *, seeds=(0,), steps=300, shift=0.0, snapshots=("30B",), tasks=TASKS) -> dict:
    """Write seed folders for one run, `shift` lower in loss and higher in accuracy; returns its row."""
    home = folder / "runs" / run["run"]
    for seed in seeds:
        rng = np.random.default_rng(1000 + seed)  # the same text for every run: windows are paired
        place = home / f"seed-{seed}"
        place.mkdir(parents=True)
        t = np.arange(1, steps + 1)
        S, lam = relu_series(steps, seed)
        relu = run["router"] == "relu"
        loss = 2.0 + 3.5 * np.exp(-t / 60) + 0.03 * rng.normal(size=steps) - shift
        pd.DataFrame(
            {
                "step": t,
                "tokens": 512 * t,
                "loss": loss,
                "router_loss": lam * (4 - 3.4 * S) * 12 if relu else 0.01,
                "learning_rate": 1e-3,
                "gradient_norm": 1.0,
                "sparsity": S if relu else np.nan,
                "l1_lambda": lam if relu else np.nan,
                "valid_loss": np.where(t % 50 == 0, loss, np.nan),
                "tokens_per_second": 5120.0,
                "mfu": np.nan,
                "memory_gib": 0.5,
                "seconds": 0.1,
            }
        ).to_csv(place / "metrics.csv", index=False)
        windows, valid, scores, samples = [], [], [], []
        for position, label in enumerate(snapshots):
            step = steps * (position + 1) // len(snapshots)
            per_window = 2.1 - 0.1 * position - shift + 0.2 * rng.normal(size=64)
            windows += [{"snapshot": label, "window": w, "loss": v} for w, v in enumerate(per_window)]
            mean = per_window.mean()
            valid.append(
                {"run": run["run"], "seed": seed, "snapshot": label, "step": step}
                | {"tokens": 512 * step, "split": "valid", "windows": 64, "loss": mean}
                | {"bits_per_byte": mean / np.log(2), "perplexity": np.exp(mean)}
            )
            for task, documents in tasks.items():
                right = rng.random(documents) < 0.3 + shift
                scores.append(
                    {"run": run["run"], "seed": seed, "snapshot": label, "task": task}
                    | {"metric": "acc", "value": right.mean(), "stderr": 0.1}
                    | {"documents": documents, "shots": 0, "source": "local"}
                )
                samples += [
                    {"snapshot": label, "task": task, "metric": "acc"} | {"document": d, "value": int(v)}
                    for d, v in enumerate(right)
                ]
        pd.DataFrame(windows).to_csv(place / "validation_windows.csv", index=False)
        pd.DataFrame(valid).to_csv(place / "validation.csv", index=False)
        pd.DataFrame(scores).to_csv(place / "scores.csv", index=False)
        pd.DataFrame(samples).to_csv(place / "samples.csv", index=False)
        (place / "done.json").write_text(json.dumps({"parameters": 123456}))
    return {**run, "folder": str(home)}


def remoe(router: str, label: str, experts: int = 8) -> dict:
    name = {"none": "dense"}.get(router, router)
    return {
        "run": f"remoe-182m-{name}",
        "setup": "remoe-182m",
        "router": router,
        "experts": experts,
        "top_k": 1,
        "granularity": 1,
        "label": label,
        "options": "",
        "paper": "remoe",
        "size": "182M",
    }


def rmoe(router: str, label: str) -> dict:
    name = {"rmoe": "rmoe-p128"}.get(router, router)
    return {
        **remoe(router, label, 16),
        "run": f"rmoe-900m-{name}",
        "setup": "rmoe-0.9b",
        "top_k": 4,
        "paper": "rmoe",
        "size": "0.9B",
    }


def make_results(folder: Path, *, seeds=(0,), steps=300) -> list[dict]:
    """The five runs of both papers, with backbones.csv and gate_functions.csv; returns their rows."""
    runs = [
        make_run(folder, remoe("none", "Dense", 1), seeds=seeds, steps=steps),
        make_run(folder, remoe("topk", "dMoE"), seeds=seeds, steps=steps, shift=0.05),
        make_run(folder, remoe("relu", "ReMoE"), seeds=seeds, steps=steps, shift=0.08),
        make_run(folder, rmoe("smoe", "SMoE"), seeds=seeds, steps=steps, snapshots=("20B", "40B")),
        make_run(
            folder,
            rmoe("rmoe", "RMoE"),
            seeds=seeds,
            steps=steps,
            shift=0.05,
            snapshots=("20B", "40B"),
        ),
    ]
    shapes = [
        ("182M", 182471424, 777087744, 995.36, 768, 12, 12, 4),
        ("469M", 469812224, 2583938048, 2873.33, 1024, 24, 16, 4),
        ("978M", 978396672, 5735032320, 5991.48, 1536, 24, 16, 4),
    ]
    keys = "size dense_parameters moe_parameters_e8 gflops_per_sequence width layers heads kv_heads"
    rows = []
    for shape in shapes:
        row = dict(zip(keys.split(), shape, strict=True)) | {"setup": f"remoe-{shape[0].lower()}"}
        rows.append({"paper": "remoe", "scale_of_row": "paper", **row})
        rows.append({"paper": "remoe", "scale_of_row": "laptop", **row, "width": 64, "layers": 2})
    pd.DataFrame(rows).to_csv(folder / "backbones.csv", index=False)
    score = np.linspace(-2, 2, 401)
    others = np.exp([0.5, 0.0, -0.5]).sum()
    weight = np.exp(score) / (np.exp(score) + others)
    pd.DataFrame({"score": score, "topk": np.where(score > 0.5, weight, 0), "relu": np.maximum(score, 0)}).to_csv(
        folder / "gate_functions.csv", index=False
    )
    return runs
