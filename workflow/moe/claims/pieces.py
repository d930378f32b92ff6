"""What a metric is the mean of, windows or documents of the evaluation text, and how sure these make a weighted sum."""

import math

from moe.figures.intervals import paired_error
from moe.figures.metrics import METRICS, accuracies, scored_as
from moe.figures.records import Record
from moe.figures.step_metrics import domain_losses, last_losses


def joined(each: list[Record], metric: str, snapshot: str, tasks: list[str]) -> list:
    """The pieces that all runs of one seed share, a frame a task (pieces as rows, runs as columns); empty: unknown."""
    import pandas as pd

    pieces = [_pieces(record, metric, snapshot, tasks) for record in each]
    if not all(pieces):
        return []
    return [pd.concat(some, axis=1, join="inner") for some in zip(*pieces, strict=True)]


def text_error(pieces: list[list], weights: list[float]) -> float | None:
    """Standard error of the weighted sum over windows, documents or batches, each averaged over the seeds first.

    pieces: for each seed a frame a task, as `joined` gives them. None where there are none.
    """
    import pandas as pd

    if not all(pieces):
        return None
    sums = [[frame @ weights for frame in tasks] for tasks in pieces]
    return paired_error([pd.concat(some, axis=1, join="inner").mean(axis=1) for some in zip(*sums, strict=True)])


def own_error(each: list[Record], weights: list[float], metric: str, snapshot: str) -> float | None:
    """Standard error of the weighted sum where the metric says its own for each run, as speeds do; else None."""
    errors = [METRICS[metric].error and METRICS[metric].error(record, snapshot) for record in each]
    if any(error is None for error in errors):
        return None
    return math.sqrt(sum((weight * error) ** 2 for weight, error in zip(weights, errors, strict=True)))


def alike(pieces: list[list], tasks: list[str]) -> str:
    """Which tasks' documents all runs compared answer alike in each seed: these cannot tell the runs apart."""
    if not tasks or not all(pieces) or pieces[0][0].shape[1] < 2:
        return ""
    same = [
        task
        for task, frames in zip(tasks, zip(*pieces, strict=True), strict=True)
        if all((frame.to_numpy() == frame.to_numpy()[:, :1]).all() for frame in frames)
    ]
    return f"all runs compared answer {', '.join(same)} alike, document by document" if same else ""


def _pieces(record: Record, metric: str, snapshot: str, tasks: list[str]) -> list:
    """What a metric of one seed is the mean of, a Series a task (of a loss a single one); empty where unknown."""
    if metric == "training_loss":
        return [last_losses(record)]
    if METRICS[metric].of_windows:
        return [METRICS[metric].of_windows(record, snapshot)]
    if metric == "domain_perplexity":  # linear in the losses around each domain's mean, whose error is its own
        losses = domain_losses(record, snapshot)
        return [math.exp(series.mean()) * series for series in losses.values()]
    if METRICS[metric].task:
        tasks = [METRICS[metric].task]
    elif metric != "mean_accuracy" or not tasks:
        return []
    frame, series = record.read("samples.csv"), []
    scored = accuracies(record, snapshot)
    for task in tasks:
        name, _, variant = scored_as(task, scored).partition("/")
        chosen = (frame["snapshot"] == snapshot) & (frame["task"] == name) & (frame["metric"] == variant)
        series.append(100 * frame[chosen].set_index("document")["value"])
    return series
