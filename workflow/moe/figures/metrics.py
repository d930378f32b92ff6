"""What can be measured of a finished run: the metrics of the tables and of the claims, by name."""

from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import NamedTuple

from moe.figures.records import Record, snapshots_of, target_sparsity
from moe.figures.stages import WINDOW, settling_steps

LOCAL = "local_"  # how the tasks made from the corpus' own held-out text are named, never a benchmark
EXCLUDED_STEPS = 100  # figure 3 of ReMoE leaves out the first 100 steps

# A task as the papers name it -> the harness tasks that are it, most likely first. Which variant of
# LAMBADA the papers used is not said; we take openai's.
TASK_NAMES = {"lambada": ("lambada_openai", "lambada")}
HEADERS = {
    "arc_challenge": "ARC-c",
    "arc_easy": "ARC-e",
    "boolq": "BoolQ",
    "hellaswag": "HellaSwag",
    "lambada": "LAMBADA",
    "piqa": "PIQA",
    "race": "RACE",
    "sciq": "SciQ",
}


class Metric(NamedTuple):
    """`read(record, snapshot)` gives the value in `unit`, or None where the run cannot say it."""

    read: Callable[[Record, str], float | None]
    header: str
    unit: str
    decimals: int
    printed: str  # its name in column `metric` of the reported files


def _validation(column: str, record: Record, snapshot: str) -> float | None:
    frame = record.read("validation.csv")
    rows = frame[(frame["snapshot"] == snapshot) & (frame["split"] == "valid")]
    return float(rows[column].iloc[-1]) if len(rows) else None


def _done(key: str, record: Record, snapshot: str) -> float | None:
    import json

    path = record.folder / "done.json"
    if not path.is_file():
        raise ValueError(f"run {record.run['run']}, seed {record.seed}: {path} is missing.")
    value = json.loads(path.read_text()).get(key)
    return None if value is None else value / 1e6


def _seconds_per_step(record: Record, snapshot: str) -> float | None:
    """Median over the steps, so that warm-up, checkpoints and a busy machine do not count."""
    seconds = record.steps()["seconds"].median()
    return None if seconds != seconds else float(seconds)


def _memory(record: Record, snapshot: str) -> float | None:
    most = record.steps()["memory_gib"].max()
    return None if most != most else float(most) * 2**30 / 1e9


def sparsities(record: Record):
    """Sparsity of every step, a float64 array [steps]. Errors: ValueError if the router has none."""
    series = record.steps()["sparsity"]
    if series.isna().all():
        raise ValueError(f"run {record.run['run']} has no sparsity: its router is no ReLU router.")
    return series.to_numpy(dtype=float)


def _settling(record: Record, snapshot: str) -> float | None:
    return settling_steps(sparsities(record), target_sparsity(record.run))


def _sparsity(record: Record, snapshot: str) -> float | None:
    """Mean over the steps after stages I and II, at least 100 as in the paper; None if too few follow."""
    series = sparsities(record)
    start = max(EXCLUDED_STEPS, settling_steps(series, target_sparsity(record.run)) or 0)
    return float(series[start:].mean()) if len(series) >= start + WINDOW else None


def accuracies(record: Record, snapshot: str) -> dict[str, float]:
    """Every accuracy that was scored at a snapshot, "task/metric" -> %."""
    frame = record.read("scores.csv")
    frame = frame[(frame["snapshot"] == snapshot) & frame["metric"].str.startswith("acc")]
    return {
        f"{task}/{metric}": 100 * float(value)
        for task, metric, value in zip(frame["task"], frame["metric"], frame["value"], strict=True)
    }


def scored_as(column: str, scored) -> str | None:
    """The "task/metric" among those scored that a column of a table means, or None."""
    task, _, metric = column.partition("/")
    names = [f"{name}/{metric}" for name in TASK_NAMES.get(task, (task,))]
    return next((name for name in names if name in scored), None)


def _mean(local: bool, record: Record, snapshot: str, tasks=()) -> float | None:
    scored = accuracies(record, snapshot)
    names = [scored_as(task, scored) for task in tasks if task.startswith(LOCAL) == local]
    return sum(scored[n] for n in names) / len(names) if names and all(names) else None


METRICS = {
    "valid_loss": Metric(partial(_validation, "loss"), "validation loss", "nats/token", 3, "valid_loss"),
    "perplexity": Metric(partial(_validation, "perplexity"), "perplexity", "", 2, "ppl"),
    "bits_per_byte": Metric(partial(_validation, "bits_per_byte"), "bits per byte", "bits/byte", 3, "bpc"),
    "mean_accuracy": Metric(partial(_mean, False), "mean", "%", 2, "average"),
    "local_mean_accuracy": Metric(partial(_mean, True), "local mean", "%", 2, "local_average"),
    "parameters": Metric(partial(_done, "parameters"), "parameters", "million", 3, "params"),
    "seconds_per_step": Metric(_seconds_per_step, "time", "s/step", 3, "train_speed"),
    "memory": Metric(_memory, "memory", "GB", 2, "memory"),
    "sparsity": Metric(_sparsity, "sparsity", "fraction", 4, "sparsity_mean"),
    "settling_steps": Metric(_settling, "settling time", "steps", 0, "settling_time"),
}


def metric_of(column: str, tasks: list[str]) -> Metric:
    """The metric that a column of a table shows; `tasks` are the "task/metric" columns to average."""
    if "/" not in column:
        metric = METRICS[column]
        if column.endswith("mean_accuracy"):
            return metric._replace(read=partial(metric.read, tasks=tasks))
        return metric

    def read(record, snapshot):
        scored = accuracies(record, snapshot)
        name = scored_as(column, scored)
        return None if name is None else scored[name]

    task, _, variant = column.partition("/")
    header = HEADERS.get(task, task) + ("" if variant == "acc" else f" {variant}")
    return Metric(read, header, "%", 2, column)


def columns_of(cell: str, records: list[Record]) -> list[str]:
    """The columns that a `y` cell lists, patterns such as local_*/acc replaced by what was scored."""
    columns = []
    for word in cell.split():
        if "*" not in word:
            columns.append(word)
            continue
        scored = {name for r in records for s in snapshots_of(r) for name in accuracies(r, s)}
        columns += sorted(name for name in scored if fnmatch(name, word))
    return columns
