"""Fabricated results for the tests of tables, figures and claims: folders in the real formats, for all of runs.tsv.

Losses, accuracies and settling times of ReMoE's runs are the printed ones, so that what the paper claims of its own
numbers can be asked of the code.
"""

import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from made_probes import ENTROPY, watched, write_probes

from moe.describe import recurrent_example
from moe.figures import files_drawn, select
from moe.figures.reported import attributes, find, load, parse_match, stems
from moe.tables import Tables

ROOT = Path(__file__).parent.parent
REPORTED = ROOT / "config/reported"
TASKS = {"local_last_word": 40, "local_best_ending": 30, "local_cloze": 50}
PRINTED_TASKS = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "lambada", "piqa", "race"]
HARNESS = {"lambada": "lambada_openai"}
DOMAINS = ["python", "cpp", "prose", "examples"]
PROBED = ["remoe-182m-relu", "remoe-182m-topk", "remoe-182m-relu-unbalanced", "remoe-182m-topk-unbalanced"]
PROBED_SETUPS = ["rmoe-enwik8-medium"] + [f"rmoe-enwik8-depth{depth}" for depth in (12, 18, 24, 32)]
UNPRINTED = {"hash": 1.99, "lory": 1.98, "sparsemixer-v2": 1.96, "expert-choice": 1.95}  # losses
UNPRINTED |= {"topk": 1.97, "relu": 1.94}  # without balancing
UNPRINTED |= {"rmoe": 1.95, "rmoe-relu": 1.93}  # tried by neither paper
COSTS = {"smoe": (960.2, 47.92), "hypermoe": (962.0, 49.69), "smoe-mlp": (964.1, 48.70), "random-smoe": (961.4, 47.72)}
COSTS |= {"cosine-moe": (962.4, 48.68), "xmoe": (967.5, 48.70), "rmoe": (972.9, 49.46)}  # table 1 of RMoE: s, GB
LARGE = {"rmoe-900m-smoe": (1000.0, 50.0), "rmoe-900m-rmoe-p128": (1004.0, 50.7)}  # 0.4 % and 1.4 % more


@cache
def tables() -> Tables:
    """The project's own tables at scale laptop."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"tables": str(ROOT / "config")}
    return Tables(config, ROOT / "workflow/schemas")


def rows() -> list[dict]:
    """Every row of runs.tsv, joined as the workflow joins it."""
    return [dict(run) for run in tables().runs.values()]


def relu_series(steps: int, seed: int = 0, target: float = 0.875, settled: int = 106):
    """Sparsity and λ as ReLU routing makes them: a dip, a rise, then noise around the target after `settled` steps."""
    noise = np.random.default_rng(seed).normal(0, 1, steps)
    t = np.arange(steps) * 106 / settled
    rise = 1 / (1 + np.exp(-(t - 70) / 8))
    S = 0.5 - 0.12 * np.exp(-(((t - 30) / 15) ** 2)) + (target - 0.5) * rise
    S = np.where(t < 105, np.minimum(S, target - 0.003), target) + 0.032 * (1 - target) * noise * (t >= 106)
    lam = 1e-8 * 1.2 ** np.minimum(t, 75) * np.exp(0.1 * np.sin(t / 3) * (t > 75))
    return np.clip(S, 0.01, 0.9999), lam


@cache
def _printed(names: tuple[str, ...]):
    return load(REPORTED, list(names))


def printed(run: dict, metric: str) -> float | None:
    """What the paper printed for a run of ReMoE, from the tables of its own family."""
    names, match = ["remoe_table8", "remoe_table9", "remoe_table10", "remoe_fig6"], {"router": "router", "size": "size"}
    match |= {key: key for key in ("experts", "granularity")}
    if not run["matches"]:
        names = ["remoe_table2", "remoe_table11", "remoe_table13", "remoe_table14", "remoe_table15", "remoe_table5"]
        names += ["remoe_table3", "remoe_table4", "remoe_table8", "remoe_table9", "remoe_table10", "remoe_fig6"]
        match |= {"warmup_steps": "warmup_steps", "load_balancing": "balanced", "lambda0": "lambda_0", "alpha": "alpha"}
    if run["balanced"] == "no":
        names = ["remoe_table11"]
    if run["router"] == "none":
        match["model"] = "label"
    if run["warmup_steps"]:
        names = [n for n in names if n.removeprefix("remoe_table") in ("13", "14", "15")]
    (snapshot,) = tables().setups[run["setup"]]["snapshots"]
    for name in names:
        found = find(_printed((name,)), match | {"tokens": "snapshot"}, attributes(run, snapshot), metric)
        if found:
            return found.value
    return None


@cache
def _shown_of_rmoe() -> list[tuple]:
    """The runs of each table and figure of RMoE with what it prints of them and how that is matched."""
    some = [f for f in tables().figures if f["paper"] == "rmoe" and f["reported"] and f["kind"] in ("table", "scaling")]
    runs = [{run["run"] for run in select(figure["runs"], rows())} for figure in some]
    pages = [load(REPORTED, stems(figure["reported"])) for figure in some]
    return list(zip(runs, pages, [parse_match(figure["match"]) for figure in some], strict=True))


def of_rmoe(run: dict, metric: str, split: str) -> float | None:
    """What RMoE printed for one of its small runs, from the first table or figure that shows it."""
    for names, pages, match in _shown_of_rmoe():
        found = run["run"] in names and find(pages, match, attributes(run, "best", split), metric)
        if found:
            return found.value
    return None


def rmoe_losses(run: dict) -> dict[str, float]:
    """Losses of a small run of RMoE by split: those behind the printed BPC or perplexity, else made up."""
    losses = {}
    for split in ("valid", "test"):
        bpc, perplexity = of_rmoe(run, "bpc", split), of_rmoe(run, "ppl", split)
        losses[split] = np.log(perplexity) if perplexity else np.log(2) * (bpc or 1.14)
    return losses


def make_run(
    folder: Path,
    run: dict,
    *,
    seeds=(0,),
    steps=300,
    shift=0.0,
    snapshots=("30B",),
    tasks=TASKS,
    loss=2.1,
    scores=None,
    settled=106,
    test_loss=None,
) -> dict:
    """Write seed folders for one run, `shift` lower in loss and higher in accuracy; returns its row.

    scores: task -> % that the harness gave, besides the local tasks. test_loss: of a run that is tested, too.
    """
    home = folder / "runs" / run["run"]
    for seed in seeds:
        rng = np.random.default_rng(1000 + seed)  # the same text for every run: windows are paired
        place = home / f"seed-{seed}"
        place.mkdir(parents=True)
        metrics = _metrics(run, seed, steps, shift + 2.1 - loss, settled, rng)
        if run["paper"] == "rmoe":
            metrics = metrics.assign(**watched(run, tables().spec(run["run"])["training"] | {"steps": steps}, seed))
        metrics.to_csv(place / "metrics.csv", index=False)
        of_splits = {"valid": loss - shift} | ({} if test_loss is None else {"test": test_loss - shift})
        _validation(run, seed, steps, of_splits, snapshots, rng, place)
        _scores(run, seed, snapshots, tasks, shift, scores or {}, rng, place)
        (place / "done.json").write_text(json.dumps({"parameters": 123456, "router_parameters": 3456} | _facts(seed)))
        if run["run"] in tables().runs:
            spec = tables().spec(run["run"], seed)
            if run["matches"]:
                spec["matching"] = {"run": run["matches"], "its_flops": 2.02e15, "flops_a_step": 1e12}
                spec["matching"]["extra_steps"] = 20
            (place / "run.yaml").write_text(yaml.safe_dump(spec))
        _domain_losses(loss - shift, snapshots, rng, place)
        if run["run"] in PROBED:
            _probed(run, seed, place)
        elif run["setup"] in PROBED_SETUPS and run["router"] in ENTROPY:
            write_probes(run, seed, place)
    return {**run, "folder": str(home)}


def _facts(seed: int) -> dict:
    facts = {"commit": "abc", "data": "def", "device": "a machine", "precision": "float32", "ranks": 1}
    return facts | {"seed": seed, "seconds": 30.0, "versions": {"torch": "2"}}


def _metrics(run, seed, steps, lower, settled, rng) -> pd.DataFrame:
    t = np.arange(1, steps + 1)
    relu = run["router"] == "relu"
    k, experts, granularity = (int(run[key]) for key in ("top_k", "experts", "granularity"))
    S, lam = relu_series(steps, seed, 1 - k / experts, settled)
    loss = 2.0 + 3.5 * np.exp(-t / 60) + 0.03 * rng.normal(size=steps) - lower
    own = tables().scale["divide"]["warmup_steps"]
    change = int(run["warmup_steps"] or 0) // own  # of near-dense warm-up: the loss jumps there
    loss += np.where((t > change) & (change > 0), 0.5 * np.exp(-(t - change) / 5), 0)
    rate = 0.02 * 8 / experts if relu else 0.034 * (8 / experts) ** 0.64  # 2.2 and 2.8 times as much at E = 16 and 32
    flips = rate * (1 + 0.02 * rng.normal(size=steps))
    return pd.DataFrame(
        {
            "step": t,
            "tokens": 512 * t,
            "loss": loss,
            "router_loss": lam * (4 - 3.4 * S) * 12 if relu else 0.01,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "sparsity": S if relu else np.nan,
            "active_experts": experts * granularity * (1 - S) if relu else k * granularity,
            "l1_lambda": lam if relu else np.nan,
            "flip_rate": np.where(t % 10 == 0, flips, np.nan),
            "sparsity_0": S if relu else np.nan,
            "valid_loss": np.where(t % 50 == 0, loss, np.nan),
            "tokens_per_second": 5120.0,
            "mfu": np.nan,
            "memory_gib": 0.5,
            "seconds": np.where((t <= settled) & relu, 0.2, 0.1),
        }
    )


def _validation(run, seed, steps, losses, snapshots, rng, place) -> None:
    windows, valid = [], []
    for (position, label), (split, loss) in product(enumerate(snapshots), losses.items()):
        step = steps * (position + 1) // len(snapshots)
        noise = 0.2 * rng.normal(size=64)
        per_window = loss - 0.1 * position + noise - noise.mean()
        windows += [{"snapshot": label, "split": split, "window": w, "loss": v} for w, v in enumerate(per_window)]
        mean = per_window.mean()
        valid.append(
            {"run": run["run"], "seed": seed, "snapshot": label, "step": step}
            | {"tokens": 512 * step, "split": split, "windows": 64, "loss": mean}
            | {"bits_per_byte": mean / np.log(2), "perplexity": np.exp(mean)}
            | {"leaky_loss": mean - 0.1 if run["router"] == "expert-choice" else None}
            | {"later_loss": mean + 0.05 if run["router"] == "lory" else None}
        )
    pd.DataFrame(windows).to_csv(place / "validation_windows.csv", index=False)
    pd.DataFrame(valid).to_csv(place / "validation.csv", index=False)


def _domain_losses(loss, snapshots, rng, place) -> None:
    """The test text of each domain, 20 windows; later snapshots are better, and domains differ."""
    lines = [
        {"snapshot": label, "domain": domain, "window": w, "loss": loss - 0.1 * position + 0.2 * d + noise}
        for position, label in enumerate(snapshots)
        for d, domain in enumerate(DOMAINS)
        for w, noise in enumerate(0.1 * rng.normal(size=20))
    ]
    pd.DataFrame(lines).to_csv(place / "domain_losses.csv", index=False)


def _scores(run, seed, snapshots, tasks, shift, given, rng, place) -> None:
    rows, samples = [], []
    for label in snapshots:
        for task, documents in {**tasks, **dict.fromkeys(given, 25)}.items():
            right = rng.random(documents) < 0.3 + shift
            right = np.full(documents, given[task] / 100) if task in given else right  # as printed: documents are alike
            value = given[task] / 100 if task in given else right.mean()
            rows.append(
                {"run": run["run"], "seed": seed, "snapshot": label, "task": task, "metric": "acc", "value": value}
                | {"stderr": 0.1, "documents": documents, "shots": 0, "source": "local"}
            )
            samples += [
                {"snapshot": label, "task": task, "metric": "acc", "document": d, "value": float(v)}
                for d, v in enumerate(right)
            ]
    pd.DataFrame(rows).to_csv(place / "scores.csv", index=False)
    pd.DataFrame(samples).to_csv(place / "samples.csv", index=False)


def _probed(run, seed, place, layers=3, vocabulary=200) -> None:
    """Tables of the probe: ReLU's experts differ by domain, in deep layers more; unbalanced, some of them idle."""
    rng = np.random.default_rng(seed)
    relu, even = run["router"] == "relu", run["balanced"] == "yes"
    routing = []
    for layer in range(layers):
        for d, domain in enumerate(DOMAINS):
            share = np.full(8, 1 / 8)
            share += (0.08 if relu else 0.02) * np.cos(np.arange(8) + 2 * d) * (layer + 1) / layers
            share *= 1 + (0.1 * (layer + 1) * d if relu else 0)
            if not even:
                share[:3] = 0.001
                share[3:] *= 1.6 - 0.6 * layer
            share = share if relu else share / share.sum()
            for expert, value in enumerate(share):
                routing.append((layer, domain, expert, int(round(value * 10_000)), value * 5000, 10_000))
    columns = ["layer", "domain", "expert", "routed", "gate", "tokens"]
    pd.DataFrame(routing, columns=columns).to_csv(place / "routing.csv", index=False)
    seen = np.round(20_000 / np.arange(1, vocabulary + 1)).astype(int)
    active = (1 + 0.2 * np.log(np.arange(1, vocabulary + 1)) if relu else 1.0) + 0.05 * rng.random(vocabulary)
    words = [f" w{i}" if i % 3 else f"a|`b{i}\n" for i in range(vocabulary)]
    activity = pd.DataFrame({"token": range(vocabulary), "text": words, "occurrences": seen, "active": active})
    activity.to_csv(place / "token_activity.csv", index=False)
    top = [
        (layer, e, p + 1, 10 * e + p, words[10 * e + p], 100 - p, 100, (100 - p) / 100)
        for layer in range(layers)
        for e in range(8)
        for p in range(8)
    ]
    columns = ["layer", "expert", "place", "token", "text", "routed", "occurrences", "share"]
    pd.DataFrame(top, columns=columns).to_csv(place / "top_tokens.csv", index=False)


def remoe(router: str, label: str, experts: int = 8) -> dict:
    """One of the first three runs of ReMoE by its router, or a made-up relative of it."""
    name = {"none": "dense"}.get(router, router)
    row = dict(tables().runs[f"remoe-182m-{name}"])
    return row | {"label": label, "experts": experts, "top_k": 1}


def make_results(folder: Path, *, seeds=(0,), steps=300, benchmarks=False, paper="") -> list[dict]:
    """Every run of runs.tsv and the files of the scale; returns the rows of the runs.

    benchmarks: with the paper's tasks, scored as printed; else the local tasks alone, as without any data of theirs.
    paper: only the runs of one.
    """
    runs = []
    for run in rows():
        if paper not in ("", run["paper"]):
            continue
        snapshots = tuple(tables().spec(run["run"])["snapshots"])
        options = {"steps": steps}
        if run["paper"] == "remoe":
            options["loss"] = printed(run, "valid_loss") or UNPRINTED[run["router"]]
            found = {HARNESS.get(task, task): printed(run, f"{task}/acc") for task in PRINTED_TASKS}
            options["scores"] = found if benchmarks and None not in found.values() else {}
            options["settled"] = int(printed(run, "settling_time") or 106)
            options["steps"] = 600 if steps == 300 and run["setup"] == "remoe-182m-10b" else steps
        elif tables().setups[run["setup"]]["model"].get("kind") == "span":
            losses = rmoe_losses(run)
            options |= {"loss": losses["valid"], "test_loss": losses["test"]}
        else:
            options["shift"] = 0.05 if run["router"] == "rmoe" else 0.0
            training = tables().spec(run["run"])["training"]
            if training.get("similarity_points") or training.get("gradient_points"):
                options["steps"] = training["steps"]
        runs.append(make_run(folder, run, seeds=seeds, snapshots=snapshots, **options))
    _scale_files(folder)
    return runs


def _costs() -> pd.DataFrame:
    """Seconds and memory as printed for the routers of RMoE's table 1, and as said of the large size."""
    lines = []
    for run in rows():
        small = run["setup"] == "rmoe-enwik8-medium" and run["router"] in COSTS and run["reduced"] in (None, 16)
        if small or run["run"] in LARGE:
            seconds, memory = COSTS[run["router"]] if small else LARGE[run["run"]]
            base = COSTS["smoe"] if small else LARGE["rmoe-900m-smoe"]
            extra, more = 100 * (seconds / base[0] - 1), {}
            if run["router"] != "smoe":
                more = {"extra_time_percent": extra, "low_percent": extra - 0.01, "high_percent": extra + 0.01}
                more["extra_memory_percent"] = 100 * (memory / base[1] - 1)
            line = {"run": run["run"], "setup": run["setup"], "router": run["router"], "seconds_per_1k": seconds}
            lines.append(line | more | {"memory_gb": memory, "rounds": 7, "device": "a machine"})
    return pd.DataFrame(lines)


def _scale_files(folder: Path) -> None:
    shapes = [
        ("182M", 182471424, 777087744, 995.36, 768, 12, 12, 4),
        ("469M", 469812224, 2583938048, 2873.33, 1024, 24, 16, 4),
        ("978M", 978396672, 5735032320, 5991.48, 1536, 24, 16, 4),
    ]
    keys = "size dense_parameters moe_parameters_e8 gflops_per_sequence width layers heads kv_heads"
    lines, speeds = [], []
    for shape in shapes:
        row = dict(zip(keys.split(), shape, strict=True)) | {"setup": f"remoe-{shape[0].lower()}"}
        lines.append({"paper": "remoe", "scale_of_row": "paper", **row})
        lines.append({"paper": "remoe", "scale_of_row": "laptop", **row, "width": 64, "layers": 2})
        for phase in ("training", "inference"):
            for router, tflops in (("topk", 100.0), ("relu", 101.0)):
                difference = (
                    dict(difference_percent=1.0, low_percent=-0.5, high_percent=2.5) if router == "relu" else {}
                )
                speeds.append({"setup": row["setup"], "size": shape[0], "phase": phase, "router": router})
                speeds[-1] |= {"tflops": tflops, **difference, "rounds": 7, "device": "a machine"}
    pd.DataFrame(lines).to_csv(folder / "backbones.csv", index=False)
    pd.DataFrame(speeds).to_csv(folder / "speed.csv", index=False)
    _costs().to_csv(folder / "cost.csv", index=False)
    score = np.linspace(-2, 2, 401)
    others = np.exp([0.5, 0.0, -0.5]).sum()
    weight = np.exp(score) / (np.exp(score) + others)
    pd.DataFrame({"score": score, "topk": np.where(score > 0.5, weight, 0), "relu": np.maximum(score, 0)}).to_csv(
        folder / "gate_functions.csv", index=False
    )
    scores = np.array([[1.2, 0.3, -0.5], [-0.2, 0.9, -1.0]])
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    example = [
        {"token": t, "expert": e, "score": scores[t, e], "relu": max(scores[t, e], 0)}
        | {"topk": soft[t, e] if e == scores[t].argmax() else 0}
        for t in range(2)
        for e in range(3)
    ]
    pd.DataFrame(example).to_csv(folder / "routing_example.csv", index=False)
    pd.DataFrame(recurrent_example()).to_csv(folder / "recurrent_example.csv", index=False)


def with_declared_files(row: dict, runs: list[dict], results: Path, folder: Path, seeds: tuple = (0,)) -> list[dict]:
    """The runs of a row of figures.tsv in a folder that holds the files which its kind declares, and no others."""
    of_seed, of_scale = files_drawn(row)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = []
    for run in select(row["runs"], runs):
        for seed in seeds:
            place = folder / "runs" / run["run"] / f"seed-{seed}"
            place.mkdir(parents=True)
            for name in of_seed:
                (place / name).write_bytes((Path(run["folder"]) / f"seed-{seed}" / name).read_bytes())
        chosen.append({**run, "folder": str(folder / "runs" / run["run"])})
    for name in of_scale:
        (folder / name).write_bytes((results / name).read_bytes())
    return chosen
