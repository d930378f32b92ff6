"""What can be measured of a finished run: the metrics of the tables and of the claims, by name."""

from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from moe.figures import probe_metrics as probed
from moe.figures import routing_metrics as routed
from moe.figures import step_metrics as stepped
from moe.figures.records import Record, snapshots_of

if TYPE_CHECKING:
    import pandas as pd

LOCAL = "local_"  # how the tasks made from the corpus' own held-out text are named, never a benchmark

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
    printed: str = ""  # its name in column `metric` of the reported files; empty: neither paper prints it
    files: tuple[str, ...] = ("metrics.csv",)  # of a seed's folder, that it is read from
    paired: tuple[str, ...] = ()  # files whose rows pair two runs of one seed over the text
    error: Callable[[Record, str], float | None] | None = None  # standard error of one seed's value
    of_scale: tuple[str, ...] = ()  # files of results/{scale} instead: then it is one value, however many seeds
    task: str = ""  # the "task/metric" whose documents pair two runs of one seed
    csv_only: bool = False  # a table has it in its CSV alone
    split: str = ""  # of the text, where the reported files tell a validation number from a test number
    of_windows: Callable[[Record, str], "pd.Series"] | None = None  # what it is the mean of, window by window
    combine: Callable[[list[dict]], float] | None = None  # of the rows where its parts are printed, not itself


def accuracies(record: Record, snapshot: str) -> dict[str, float]:
    """Every accuracy that was scored at a snapshot, "task/metric" -> %."""
    frame = record.read("scores.csv")
    frame = frame[(frame["snapshot"] == snapshot) & frame["metric"].str.match("acc|exact_match")]
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


def _loss(column: str, header: str, printed: str = "", **options) -> Metric:
    read = partial(stepped.validation, column)
    return Metric(read, header, "nats/token", 3, printed, files=("validation.csv",), **options)


def _of_stream(kind: str, split: str) -> Metric:
    """Bits per character or perplexity of RMoE's small models, from the mean loss over one split."""
    printed, header, unit = {"bpc": ("bpc", "BPC", "bits/char"), "perplexity": ("ppl", "perplexity", "")}[kind]
    read, windows = (partial(of, kind, split) for of in (stepped.of_loss, stepped.windows_of_loss))
    options = dict(files=VALIDATION, paired=("validation_windows.csv",), split=split, of_windows=windows)
    return Metric(read, f"{split} {header}", unit, 3, printed, **options)


def _cost(column: str, header: str, unit: str, decimals: int, printed: str = "", error: bool = False) -> Metric:
    """What a run of RMoE's table 1 costs, measured beside the others' (results/{scale}/cost.csv)."""
    read, spread = partial(routed.cost, column), routed.extra_time_error if error else None
    return Metric(read, header, unit, decimals, printed, files=(), of_scale=("cost.csv",), error=spread)


def _speed(phase: str, printed: str) -> Metric:
    read, error = partial(routed.speed, phase, "difference_percent"), partial(routed.speed_error, phase)
    return Metric(read, f"{phase} speed", "%", 2, printed, files=(), of_scale=("speed.csv",), error=error)


def _balance(name: str) -> Metric:
    words = {"inner_balance": "top-1 over top-2 score", "outer_balance": "sum of the chosen scores"}
    return Metric(partial(probed.score, name), words[name], "", 3, name, SCORED)


def _information(header: str, distance: float) -> Metric:
    read, combine = partial(probed.information, distance), partial(probed.printed_information, distance)
    return Metric(read, header, "nats", 3, "mutual_information", ("mutual_information.csv",), combine=combine)


def _similarity(header: str, **when: float) -> Metric:
    return Metric(partial(probed.similarity, **when), header, "", 4, files=CHANGE)


def _pull(name: str, step: str) -> Metric:
    header, unit, decimals, printed = probed.PULL[name]
    read = partial(probed.pull, name, probed.PULL_STEPS[step])
    return Metric(read, f"{header} at {step} steps", unit, decimals, printed, CHANGE)


def _scored(column: str, record: Record, snapshot: str) -> float | None:
    return accuracies(record, snapshot).get(column)


def _benchmark(column: str, header: str, printed: str) -> Metric:
    read = partial(_scored, column)
    return Metric(read, header, "%", 2, printed, SCORES, paired=("samples.csv",), task=column)


VALIDATION, SCORES, SPEC = ("validation.csv",), ("scores.csv",), ("run.yaml",)
DOMAINS = ("domain_losses.csv",)
PROBED, CHANGE = ("routing.csv",), ("run.yaml", "metrics.csv")
SCORED, WEIGHTS = ("score_statistics.csv",), ("weights.csv",)
METRICS = {
    "valid_loss": _loss(
        "loss",
        "validation loss",
        "valid_loss",
        paired=("validation_windows.csv",),
        of_windows=partial(stepped.windows, "valid"),
    ),
    "leaky_loss": _loss("leaky_loss", "loss routed as in training"),
    "later_loss": _loss("later_loss", "loss after the first segment"),
    "perplexity": Metric(partial(stepped.validation, "perplexity"), "perplexity", "", 2, "ppl", VALIDATION),
    "bits_per_byte": Metric(
        partial(stepped.validation, "bits_per_byte"), "bits per byte", "bits/byte", 3, "bpc", VALIDATION
    ),
    "mean_accuracy": Metric(partial(_mean, False), "mean", "%", 2, "average", SCORES, paired=("samples.csv",)),
    "local_mean_accuracy": Metric(partial(_mean, True), "local mean", "%", 2, "local_average", SCORES),
    "hellaswag": _benchmark("hellaswag/acc_norm", "HellaSwag", "hellaswag"),
    "mmlu": _benchmark("mmlu/acc", "MMLU", "mmlu"),
    "gsm8k": _benchmark("gsm8k/exact_match", "GSM8K", "gsm8k"),
    "domain_perplexity": Metric(
        stepped.domain_perplexity, "mean perplexity of the domains", "", 3, "avg_ppl", DOMAINS, paired=DOMAINS
    ),
    **{f"{split}_{kind}": _of_stream(kind, split) for kind in ("bpc", "perplexity") for split in ("valid", "test")},
    "parameters": Metric(
        partial(stepped.parameters, "parameters"), "parameters", "million", 3, "params", ("done.json",)
    ),
    "router_parameters": Metric(
        partial(stepped.parameters, "router_parameters"),
        "of the router",
        "million",
        3,
        "router_params",
        ("done.json",),
    ),
    "peak_memory": _cost("memory_gb", "peak memory", "GB", 3, "peak_memory"),
    "seconds_per_1k": _cost("seconds_per_1k", "time", "s/1k steps", 1, "train_speed"),
    "extra_memory": _cost("extra_memory_percent", "more memory than SMoE", "%", 2),
    "extra_time": _cost("extra_time_percent", "slower than SMoE", "%", 2, error=True),
    "seconds_per_step": Metric(stepped.seconds_per_step, "time", "s/step", 3, "train_speed"),
    "memory": Metric(stepped.memory, "memory", "GB", 2, "memory"),
    "training_loss": Metric(stepped.training_loss, "training loss", "nats/token", 3),
    "sparsity": Metric(stepped.sparsity, "sparsity", "fraction", 4, "sparsity_mean"),
    "active_share": Metric(stepped.active_share, "active experts over k", "", 3),
    "settling_steps": Metric(stepped.settling, "settling time", "steps", 0, "settling_time"),
    "early_time": Metric(
        stepped.early_time, "stages I and II in 28,600 steps", "% of time", 2, "stage_I_II_share_of_time"
    ),
    "flip_rate": Metric(stepped.flip_rate, "flip rate", "fraction", 4),
    "flip_count": Metric(stepped.flip_count, "flip count", "experts", 4),
    "own_warmup_steps": Metric(stepped.own_warmup, "warm-up here", "steps", 0, files=SPEC),
    "loss_before": Metric(
        partial(stepped.loss_at_change, 0), "loss before the change", "nats/token", 3, "loss_before_transition", CHANGE
    ),
    "loss_after": Metric(
        partial(stepped.loss_at_change, 1), "loss after it", "nats/token", 3, "loss_after_transition", CHANGE
    ),
    "loss_jump": Metric(stepped.loss_jump, "jump of the loss", "nats/token", 3, files=CHANGE),
    "steps": Metric(stepped.steps, "steps", "", 0, files=SPEC, csv_only=True),
    "extra_steps": Metric(partial(stepped.matching, "extra_steps"), "extra steps", "", 0, files=SPEC),
    "matched_flops": Metric(
        partial(stepped.matching, "its_flops"), "of the run matched", "FLOPs", 0, files=SPEC, csv_only=True
    ),
    "flops_a_step": Metric(
        partial(stepped.matching, "flops_a_step"), "of a step", "FLOPs", 0, files=SPEC, csv_only=True
    ),
    "idle_experts": Metric(routed.idle_experts, "idle experts", "%", 2, files=PROBED),
    "layer_unevenness": Metric(routed.layer_unevenness, "std of sparsity over layers", "fraction", 4, files=PROBED),
    "domain_variance": Metric(routed.domain_variance, "variance over domains", "10⁻³", 3, files=PROBED),
    "domain_spread_with_depth": Metric(
        routed.domain_spread_with_depth, "spread over domains, deep − first", "experts", 4, files=PROBED
    ),
    "rank_correlation": Metric(
        routed.rank_correlation,
        "rank correlation",
        "",
        3,
        files=("token_activity.csv",),
        error=routed.rank_correlation_error,
    ),
    **{name: _balance(name) for name in ("inner_balance", "outer_balance")},
    "score_entropy": Metric(partial(probed.score, "entropy"), "median entropy of the scores", "nats", 3, files=SCORED),
    "mutual_information": _information("mutual information of two layers", 0.0),
    "distant_information": _information("mutual information of distant layers", probed.DISTANT),
    "expert_similarity": Metric(partial(probed.weight, "expert_similarity"), "similarity", "", 4, files=WEIGHTS),
    "router_norm": Metric(partial(probed.weight, "norm"), "norm of the map to the scores", "", 3, files=WEIGHTS),
    "selection_unevenness": Metric(probed.selection_unevenness, "unevenness of the choice", "%", 2, files=PROBED),
    **{f"similarity_at_{n}": _similarity(f"similarity after {n} %", at=n / 100) for n in range(10, 101, 10)},
    "similarity_rise": _similarity("similarity after 50 % − after 10 %", at=0.5, less=0.1),
    "similarity_fall": _similarity("similarity after 50 % − at the end", at=0.5, less=1.0),
    **{f"{name}_at_{step}": _pull(name, step) for name in probed.PULL for step in probed.PULL_STEPS},
    "training_speed": _speed("training", "train_diff"),
    "inference_speed": _speed("inference", "infer_diff"),
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
    return Metric(read, header, "%", 2, column, SCORES)


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
