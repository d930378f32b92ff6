"""The four parts of the benchmark, each a list of rows for the table.

What is compared shares a process or has one of its own: an engine is never quite freed, and one process with all of
them would grow by gigabytes.
"""

import statistics
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch

from moe.accounting import training_flops, utilisation
from moe.benchmark.alone import Alone, in_own_process, in_processes
from moe.benchmark.paths import paths
from moe.benchmark.steps import Shape, deepspeed_moe, mixtral, ours, reader
from moe.benchmark.turns import in_turns, speed_ratio
from moe.data import Corpus
from moe.devices import peak_memory
from moe.routers import ROUTERS

# the shape at which peers are compared, and a quarter of its batch for all routers side by side
PEERS = Shape(vocabulary=8192, width=256, layers=4, heads=8, kv_heads=4)
PEERS |= dict(expert_width=512, experts=8, top_k=2, batch=16, sequence=256)
ROUTED = Shape(PEERS | {"vocabulary": 2048, "batch": 4})
TINY = Shape(vocabulary=64, width=16, layers=2, heads=2, kv_heads=1)
TINY |= dict(expert_width=16, experts=4, top_k=2, batch=2, sequence=16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOSELY = ("relu", "rmoe", "rmoe p/width as 0.9B")  # the papers' own, whose cost is a claim
PROCESSES = 3  # for what has to be close: a process favours one of its contenders, however many turns they take
# by torch.compile, too; in bfloat16 alone, as it knows grouped products in nothing else
COMPILED = ("ours", "Mixtral, grouped_mm", "Mixtral, DeepSpeed MoE")
PATHS = [(1, 1), (8, 1), (8, 2), (32, 1), (32, 2), (128, 2)]  # E, k


def routers_part(
    device: torch.device, rounds: int, dtype: str, corpus: Path | None, tiny: bool
) -> list[dict[str, Any]]:
    """Every router's train step and memory, and its speed over top-k with the same normalisation, pair by pair.

    corpus: folder of a prepared corpus. Without one tokens are random: nothing to learn but that all are alike, so that
    the activity of ReLU gates swings from batch to batch.
    """
    shape, rows = TINY if tiny else ROUTED, []
    if corpus:
        shape = Shape(shape | {"vocabulary": max(shape["vocabulary"], Corpus(corpus).vocabulary)})
    contenders = {name: {"name": name} for name in ROUTERS}
    # the paper's state of 128 is a tenth of its large model's width, here half of it
    contenders["rmoe p/width as 0.9B"] = {"name": "rmoe", "state": max(1, shape["width"] // 10)}
    for name, router in contenders.items():
        processes = PROCESSES if name in CLOSELY else 1
        row = router_row(name, router, shape, rounds, dtype, corpus, device, processes)
        rows.append(row | {"peak_memory_mib": in_own_process(memory_of, router, shape, dtype, device)})
    return rows


def router_row(
    name: str,
    router: dict[str, Any],
    shape: Shape,
    rounds: int,
    dtype: str,
    corpus: Path | None,
    device: torch.device,
    processes: int,
) -> dict[str, Any]:
    """A router's train step beside that of top-k with the same normalisation; active experts are a mean over turns."""
    baseline = "smoe" if ROUTERS[router["name"]].get("normalise") == "chosen" else "topk"
    pair = {name: router, baseline: {"name": baseline}}
    seconds = in_processes(processes, beside_top_k, name, pair, shape, rounds, dtype, corpus, device)
    active, turns = seconds.pop("active_experts"), processes * rounds
    row = _row("routers", name, dtype, shape, seconds[name], turns) | _ratio(seconds, name, baseline)
    return row | {"active_experts": statistics.mean(active)}


def beside_top_k(
    name: str,
    pair: dict[str, dict[str, Any]],
    shape: Shape,
    rounds: int,
    dtype: str,
    corpus: Path | None,
    device: torch.device,
) -> dict[str, list[float]]:
    """Seconds of each router of the pair in each turn; `active_experts`: how many of `name` were active in it."""
    steps, active, text = {}, [], Corpus(corpus) if corpus else None
    for one in pair:
        batches = reader(text, shape, device) if text else None
        steps[one] = ours(shape, pair[one], DTYPES[dtype], device, batches)

    def watched() -> None:
        steps[name]()
        active.append(steps[name].statistics["active_experts"])

    return in_turns(steps | {name: watched}, rounds) | {"active_experts": active[-rounds:]}


def memory_of(router: dict[str, Any], shape: Shape, dtype: str, device: torch.device) -> float:
    """MiB that model, optimiser and three steps add at their peak, which cannot be reset on a CPU: a process each."""
    before = psutil.Process().memory_info().rss / 2**20
    step = ours(shape, router, DTYPES[dtype], device)
    for _ in range(3):
        step()
    peak = 1024 * peak_memory(device)
    return peak if device.type == "cuda" else peak - before


def experts_part(device: torch.device, rounds: int, dtype: str, tiny: bool) -> list[dict[str, Any]]:
    """The grouped path against a loop and against a dense feed-forward of equal active FLOPs."""
    tokens, width, expert_width = (64, 16, 16) if tiny else (4096, 256, 512)
    rows, turns = [], PROCESSES * rounds
    for experts, top_k in PATHS[:2] if tiny else PATHS:
        sizes = (tokens, width, expert_width, experts, top_k)
        seconds = in_processes(PROCESSES, paths_in_turns, sizes, rounds, dtype, device)
        for name in seconds:
            shape = Shape(experts=experts, top_k=top_k, batch=1, sequence=tokens)
            row = _row("experts", f"{name} E={experts} k={top_k}", dtype, shape, seconds[name], turns)
            rows.append(row | _ratio(seconds, name, "dense", suffix=f" E={experts} k={top_k}"))
    return rows


def paths_in_turns(sizes: tuple[int, ...], rounds: int, dtype: str, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each path at these sizes (those of `paths`) in each turn."""
    return in_turns(paths(*sizes, DTYPES[dtype], device), rounds)


def peers_part(device: torch.device, rounds: int, dtype: str, tiny: bool) -> list[dict[str, Any]]:
    """The whole train step against transformers' Mixtral and DeepSpeed's MoE layer, a process each.

    One precision after the other, since all contenders of both take more memory than a laptop has; ratios are to the
    fastest peer of the same precision. Mixtral's `batched_mm` gathers each token's expert weights, more memory again at
    this shape, so it runs on a GPU only.
    """
    shape, rows, turns = TINY if tiny else PEERS, [], 2 * rounds
    contenders = {"ours": (ours, {"name": "topk"}), "Mixtral, eager": (mixtral, "eager")}
    contenders["Mixtral, grouped_mm"] = (mixtral, "grouped_mm")
    if device.type == "cuda" or tiny:
        contenders["Mixtral, batched_mm"] = (mixtral, "batched_mm")
    contenders["Mixtral, DeepSpeed MoE"] = (deepspeed_moe, True)
    contenders["Mixtral, DeepSpeed MoE, no token dropped"] = (deepspeed_moe, False)
    for name, kind in DTYPES.items():
        steps = {one: Alone(build, shape, what, kind, device) for one, (build, what) in contenders.items()}
        for one in COMPILED[:1] if tiny else COMPILED:
            build, what = contenders[one]
            if kind == torch.bfloat16:
                steps[f"{one}, compiled"] = Alone(build, shape, what, kind, device, compiled=True)
        seconds = in_turns(steps, turns)
        for step in steps.values():
            step.close()
        fastest = min((one for one in steps if not one.startswith("ours")), key=lambda s: statistics.median(seconds[s]))
        rows += [_row("peers", one, name, shape, seconds[one], turns) | _ratio(seconds, one, fastest) for one in steps]
    return rows


def mfu_part(
    device: torch.device, rounds: int, setups: dict[str, dict], corpus: Path | None, tiny: bool
) -> list[dict[str, Any]]:
    """Utilisation at the papers' sizes (E = 8, k = 1), bf16, on real text and its natural routing; ratios to top-k.

    For a GPU. corpus: folder of a prepared corpus, whose ids take the first rows of the embedding; without one tokens
    are random. Raises ValueError where its vocabulary is larger than a setup's.
    """
    rows = []
    for size, setup in setups.items():
        for name, experts in (("none", 1), ("topk", 8), ("relu", 8), ("rmoe", 8)):
            more = {"experts": experts, "top_k": 1, "batch": 1 if tiny else 8}
            shape = Shape(setup["model"] | more | {"sequence": setup["training"]["sequence"]})
            rows.append(in_own_process(mfu_row, size, name, shape, rounds, corpus, device))
    return rows


def mfu_row(
    size: str, name: str, shape: Shape, rounds: int, corpus: Path | None, device: torch.device
) -> dict[str, Any]:
    """A router's train step at a size, beside that of top-k."""
    text, steps = Corpus(corpus) if corpus else None, {}
    if text and text.vocabulary > shape["vocabulary"]:
        raise ValueError(f"{corpus}: a vocabulary of {text.vocabulary} is larger than {shape['vocabulary']} of {size}")
    for one in {name, "topk"} if name not in ("none", "topk") else {name}:
        batches = reader(text, shape, device) if text else None
        steps[one] = ours(shape, {"name": one}, torch.bfloat16, device, batches)
    seconds = in_turns(steps, rounds)
    row = _row("mfu", f"{size} {name}", "bfloat16", shape, seconds[name], rounds)
    active = steps[name].statistics.get("active_experts", 1.0)
    kept = {k: shape[k] for k in ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")}
    flops = shape["batch"] * training_flops(shape["sequence"], active_experts=active, **kept)
    if device.type == "cuda":
        row["mfu"] = utilisation(flops / statistics.median(seconds[name]), torch.cuda.get_device_name())
        row["host_syncs"] = _host_syncs(steps[name])
    if "topk" in steps and name != "topk":
        row |= _ratio(seconds, name, "topk", prefix=f"{size} ")
    return row | {"active_experts": active}


def _row(part: str, contender: str, dtype: str, shape: Shape, seconds: list[float], rounds: int) -> dict[str, Any]:
    rate = shape.tokens / statistics.median(seconds)
    return {"part": part, "contender": contender, "dtype": dtype, "rounds": rounds, "tokens_per_second": rate}


def _ratio(seconds: dict, name: Any, baseline: Any, prefix: str = "", suffix: str = "") -> dict[str, Any]:
    if name == baseline:
        return {}
    median, low, high = speed_ratio(seconds[name], seconds[baseline])
    return {"baseline": f"{prefix}{baseline}{suffix}", "ratio": median, "ratio_low": low, "ratio_high": high}


def _host_syncs(step) -> int:
    """How often a step makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)
