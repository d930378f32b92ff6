"""The measured side of a claim: a metric of two runs, their difference and how sure it is."""

from typing import NamedTuple

from moe.figures.intervals import NORMAL_95, mean_interval, paired_error
from moe.figures.metrics import LOCAL, METRICS, accuracies, scored_as
from moe.figures.records import Record, records
from moe.figures.stages import WINDOW


class Measured(NamedTuple):
    """Means over seeds, their difference (left − right), its 95 % half-width or None, and in words."""

    left: float | None
    right: float | None
    difference: float | None
    half: float | None
    seeds: int
    uncertainty: str
    note: str = ""


def compare(left: dict, right: dict, metric: str, snapshot: str, printed: set[str]) -> Measured:
    """A metric of two runs, paired by seed; with one seed paired over the evaluation text.

    `printed` are the tasks that the paper reports, for the mean accuracy. Errors: ValueError if the runs
    have no seed in common or a file is missing.
    """
    pairs = _paired(left, right)
    note, tasks = "", []
    if metric == "mean_accuracy":
        tasks, note = shared_tasks([r for pair in pairs for r in pair], snapshot, printed)

        def value(record):
            scored = accuracies(record, snapshot)
            names = [scored_as(task, scored) for task in tasks]
            return sum(scored[name] for name in names) / len(names) if names else None

    else:

        def value(record):
            return METRICS[metric].read(record, snapshot)

    values = [(value(a), value(b)) for a, b in pairs]
    if any(a is None or b is None for a, b in values):
        return Measured(None, None, None, None, len(pairs), "not measured", note)
    differences = [a - b for a, b in values]
    mean, half = mean_interval(differences)
    means = (mean_interval(a for a, _ in values)[0], mean_interval(b for _, b in values)[0])
    if half is not None:
        words = f"{len(pairs)} seeds; 95 % t interval of the paired differences"
        return Measured(*means, mean, half, len(pairs), words, note)
    error = _text_error(*pairs[0], metric, snapshot, tasks)
    if error is None:
        return Measured(*means, mean, None, 1, "one seed; no uncertainty known", note)
    half = NORMAL_95 * error
    return Measured(*means, mean, half, 1, f"one seed; ±{half:.2g} over the evaluation text", note)


def against(run: dict, metric: str, snapshot: str, reference: float, margin: float) -> Measured:
    """A metric of one run against a number.

    A run that does not settle, but is long enough to have settled within the band, counts with the steps
    in which it was watched: its settling time is at least that.
    """
    each = records(run)
    values = [METRICS[metric].read(record, snapshot) for record in each]
    note = ""
    if metric == "settling_steps" and None in values:
        watched = [len(record.steps()) - WINDOW for record in each]
        values = [
            (w if w > reference + margin else None) if value is None else value
            for value, w in zip(values, watched, strict=True)
        ]
        note = "a run did not settle: its settling time is at least what is counted here"
    if None in values:
        note = f"cannot be said of a run of {len(each[0].steps())} steps"
        return Measured(None, reference, None, None, len(each), "not measured", note)
    mean, half = mean_interval(values)
    words = "one seed" if half is None else f"{len(each)} seeds; 95 % t interval"
    return Measured(mean, reference, mean - reference, half, len(each), words, note)


def _paired(left: dict, right: dict) -> list[tuple[Record, Record]]:
    ours = {record.seed: record for record in records(left)}
    theirs = {record.seed: record for record in records(right)}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"runs {left['run']} and {right['run']} have no seed in common.")
    return [(ours[seed], theirs[seed]) for seed in seeds]


def shared_tasks(each: list[Record], snapshot: str, printed: set[str]) -> tuple[list[str], str]:
    """Tasks that ran in all of the runs: of the paper's if there are any, else the local ones; and words."""
    scored = [accuracies(record, snapshot) for record in each]
    tasks = sorted(t for t in printed if "/" in t and all(scored_as(t, s) for s in scored))
    if tasks:
        missing = len([t for t in printed if "/" in t]) - len(tasks)
        lacking = f" ({missing} of the paper's tasks were not run)" if missing else ""
        return tasks, f"mean over {', '.join(tasks)}{lacking}"
    local = [t for t in scored[0] if t.startswith(LOCAL) and t.endswith("/acc")]
    tasks = sorted(t for t in local if all(t in s for s in scored))
    if tasks:
        return tasks, f"mean over {', '.join(tasks)}: none of the paper's tasks was run"
    return [], "no task ran in both"


def _text_error(left, right, metric, snapshot, tasks) -> float | None:
    """Standard error of the difference over windows or documents that both runs were scored on."""
    if metric == "valid_loss":
        both = _joined(left, right, "validation_windows.csv", snapshot, ["window"], "loss")
        return paired_error([both])
    if metric == "mean_accuracy" and tasks:
        scored = accuracies(left, snapshot)
        each = []
        for task in tasks:
            name, _, variant = scored_as(task, scored).partition("/")
            only = {"task": name, "metric": variant}
            both = _joined(left, right, "samples.csv", snapshot, ["document"], "value", only)
            each.append(100 * both)
        return paired_error(each)
    return None


def _joined(left, right, file, snapshot, keys, column, only=None):
    """Differences left − right of one column, joined on `keys`."""
    frames = []
    for record in (left, right):
        frame = record.read(file)
        frame = frame[frame["snapshot"] == snapshot]
        for name, value in (only or {}).items():
            frame = frame[frame[name] == value]
        frames.append(frame)
    both = frames[0].merge(frames[1], on=keys, suffixes=("_left", "_right"))
    return both[f"{column}_left"].to_numpy(float) - both[f"{column}_right"].to_numpy(float)
