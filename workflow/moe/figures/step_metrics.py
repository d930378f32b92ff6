"""Numbers of one seed that follow from its validation, from every step's row of metrics.csv, and from run.yaml.

Each function takes (record, snapshot) and gives a number, or None where the run cannot say it.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from moe.figures.records import Record, target_sparsity, total_experts
from moe.figures.stages import WINDOW, settling_steps

if TYPE_CHECKING:
    import pandas as pd

EXCLUDED_STEPS = 100  # figure 3 of ReMoE leaves out the first 100 steps
LAST = 0.1  # share of the steps at the end whose losses are the "training loss" of a run
EARLY = 0.1  # share of the steps at the start that count in no mean flip rate: stages I and II, where experts are dense
PAPER_STEPS = 28_600  # of ReMoE's longer training: 120B tokens in batches of 4096 sequences (table 5)


def validation(column: str, record: Record, snapshot: str) -> float | None:
    """A column of validation.csv; None where it is empty, as for routers that have no such loss."""
    frame = record.read("validation.csv")
    rows = frame[(frame["snapshot"] == snapshot) & (frame["split"] == "valid")]
    return _known(rows[column].iloc[-1]) if len(rows) and column in rows else None


def windows(split: str, record: Record, snapshot: str) -> "pd.Series":
    """Loss of each window of a split, nats per token, by the window's number."""
    frame = record.read("validation_windows.csv")
    of_split = frame["split"] == split if "split" in frame else split == "valid"
    return frame[(frame["snapshot"] == snapshot) & of_split].set_index("window")["loss"]


def of_loss(kind: str, split: str, record: Record, snapshot: str) -> float | None:
    """Bits per character, loss/ln 2, or perplexity, exp(loss), of a split; RMoE's numbers, a token being a character.

    The loss is the mean over blocks of 8 parallel streams, read with the cache.
    """
    frame = record.read("validation.csv")
    losses = frame[(frame["snapshot"] == snapshot) & (frame["split"] == split)]["loss"]
    loss = _known(losses.iloc[-1]) if len(losses) else None
    if loss is None:
        return None
    return loss / math.log(2) if kind == "bpc" else math.exp(loss)


def windows_of_loss(kind: str, split: str, record: Record, snapshot: str) -> "pd.Series":
    """What `of_loss` is the mean of, window by window; of the perplexity to first order in a window's own loss."""
    losses = windows(split, record, snapshot)
    if kind == "bpc":
        return losses / math.log(2)
    return math.exp(losses.mean()) * (1 + losses - losses.mean())


def domain_losses(record: Record, snapshot: str) -> dict[str, "pd.Series"]:
    """Losses of the test text by domain: domain -> Series by window, nats per token."""
    frame = record.read("domain_losses.csv")
    frame = frame[frame["snapshot"] == snapshot]
    return {str(domain): rows.set_index("window")["loss"] for domain, rows in frame.groupby("domain")}


def domain_perplexity(record: Record, snapshot: str) -> float | None:
    """Mean over domains of the perplexity exp(mean loss) of each one's test text."""
    losses = domain_losses(record, snapshot)
    return sum(math.exp(series.mean()) for series in losses.values()) / len(losses) if losses else None


def parameters(which: str, record: Record, snapshot: str) -> float | None:
    """Parameters in millions: of the model, or `router_parameters`."""
    value = record.done().get(which)
    return None if value is None else value / 1e6


def seconds_per_step(record: Record, snapshot: str) -> float | None:
    """Median over the steps, so that warm-up, checkpoints and a busy machine do not count."""
    return _known(record.steps()["seconds"].median())


def memory(record: Record, snapshot: str) -> float | None:
    """Largest memory in GB."""
    most = _known(record.steps()["memory_gib"].max())
    return None if most is None else most * 2**30 / 1e9


def last_losses(record: Record):
    """Training losses of the last tenth of the steps, a Series by step.

    Runs of one setup and seed saw the same batches.
    """
    frame = record.steps().set_index("step")["loss"]
    return frame[frame.index > (1 - LAST) * frame.index.max()]


def training_loss(record: Record, snapshot: str) -> float | None:
    """Mean training loss over the last tenth of the steps, nats per token."""
    return _known(last_losses(record).mean())


def sparsities(record: Record):
    """Sparsity of every step, a float64 array [steps]. Errors: ValueError if the router has none."""
    series = record.steps()["sparsity"]
    if series.isna().all():
        raise ValueError(f"run {record.run['run']} has no sparsity: its router is no ReLU router.")
    return series.to_numpy(dtype=float)


def settling(record: Record, snapshot: str) -> float | None:
    """Steps of stages I and II; None if the sparsity does not settle."""
    return settling_steps(sparsities(record), target_sparsity(record.run))


def sparsity(record: Record, snapshot: str) -> float | None:
    """Mean over the steps after stages I and II, at least 100 as in the paper; None if too few follow."""
    series = sparsities(record)
    start = max(EXCLUDED_STEPS, settling_steps(series, target_sparsity(record.run)) or 0)
    return float(series[start:].mean()) if len(series) >= start + WINDOW else None


def active_share(record: Record, snapshot: str) -> float | None:
    """Mean active experts over the k wanted, over the same steps: 1 where as many are active as top-k would choose.

    Of many experts the sparsity hides what this shows: at E = 128 a router without any active expert is 0.008 off.
    """
    value, target = sparsity(record, snapshot), target_sparsity(record.run)
    return None if value is None else (1 - value) / (1 - target)


def early_time(record: Record, snapshot: str) -> float | None:
    """% of the time of 28,600 steps that stages I and II take, at this run's seconds a step.

    A scale trains for fewer steps, of which two stages of the same length are a larger share; so their seconds are set
    beside the median second of stage III, as many times as the paper's training has steps left.
    """
    settled = settling(record, snapshot)
    if settled is None:
        return None
    seconds = record.steps()["seconds"].to_numpy(dtype=float)
    early, late = seconds[:settled].sum(), float(np.median(seconds[settled:])) * (PAPER_STEPS - settled)
    return 100 * float(early / (early + late))


def flip_rate(record: Record, snapshot: str) -> float | None:
    """Share of (layer, token, expert) switched on or off by one optimiser step, mean over the measured steps.

    The first tenth of the training does not count: there ReLU routing is dense.
    """
    frame = record.steps()
    if "flip_rate" not in frame:
        return None
    late = frame["step"] > EARLY * frame["step"].max()
    return _known(frame.loc[late, "flip_rate"].mean())


def flip_count(record: Record, snapshot: str) -> float | None:
    """Experts switched on or off per token and layer: E times the flip rate."""
    rate = flip_rate(record, snapshot)
    return None if rate is None else total_experts(record.run) * rate


def own_warmup(record: Record, snapshot: str) -> float | None:
    """Steps of near-dense warm-up as trained, after the scale's division; None for a run that has none."""
    return record.spec()["model"]["router"].get("warmup_steps") or None


def loss_at_change(after: int, record: Record, snapshot: str) -> float | None:
    """Training loss of the last step with many experts (after = 0) or the first with k (after = 1)."""
    steps = own_warmup(record, snapshot)
    if steps is None:
        return None
    frame = record.steps().set_index("step")["loss"]
    return _known(frame.get(steps + after, math.nan))


def loss_jump(record: Record, snapshot: str) -> float | None:
    """How far the training loss rises when near-dense warm-up ends."""
    before, after = (loss_at_change(i, record, snapshot) for i in (0, 1))
    return None if before is None or after is None else after - before


def steps(record: Record, snapshot: str) -> float | None:
    """Optimiser steps of the run."""
    return record.spec()["training"]["steps"]


def matching(key: str, record: Record, snapshot: str) -> float | None:
    """A number of how the run was lengthened to match another's compute (run.yaml, `matching`); None if it was not."""
    return record.spec().get("matching", {}).get(key)


def _known(value) -> float | None:
    return None if value is None or value != value else float(value)
