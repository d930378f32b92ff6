"""The measured side of a claim: a weighted sum of a metric over runs, and how sure it is."""

import math
from typing import NamedTuple

from moe.claims.pieces import alike, joined, own_error, text_error
from moe.figures.intervals import NORMAL_95, mean_interval
from moe.figures.metrics import LOCAL, METRICS, accuracies, scored_as
from moe.figures.records import Record, records
from moe.figures.stages import WINDOW

Terms = list[tuple[dict, float]]  # runs with their weights


class Measured(NamedTuple):
    """Means over seeds, their difference (left − right), its 95 % half-width or None, and in words."""

    left: float | None
    right: float | None
    difference: float | None
    half: float | None
    seeds: int  # 0: the metric is one of the machine, no seed enters
    uncertainty: str
    note: str = ""


def contrast(left: Terms, right: Terms | float, metric: str, snapshot: str, printed: set[str]) -> Measured:
    """Σ weight · metric of `left`, less that of `right` (or a number); paired by seed and over the evaluation text.

    The half-width is √(seeds² + text²). seeds: the t interval of the differences paired by seed. text: the normal
    interval over windows or documents, where the metric is a mean over such pieces; as all seeds are evaluated on the
    same text, a piece counts once, with its difference averaged over the seeds, and more seeds do not narrow it. For
    means over seeds and pieces drawn independently of each other this covers both draws; what is left of a single
    answer counts twice, on the safe side. Without it three seeds that answer alike would be sure of a difference of a
    few documents. One seed has the text alone.
    printed: the tasks that the paper reports, for the mean accuracy. Errors: ValueError if the runs have no seed in
    common or a file is missing.
    """
    reference = None if isinstance(right, list) else float(right)
    terms = left + [(run, -weight) for run, weight in ([] if reference is not None else right)]
    seeds = _paired([run for run, _ in terms])
    seeds = seeds[:1] if METRICS[metric].of_scale else seeds
    counted = 0 if METRICS[metric].of_scale else len(seeds)
    tasks, note = shared_tasks([r for each in seeds for r in each], snapshot, printed, metric)
    values = [[value_of(record, metric, snapshot, tasks) for record in each] for each in seeds]
    weights = [weight for _, weight in terms]
    if metric == "settling_steps":
        values, note = _watched(values, seeds, weights, reference)
    if any(value is None for each in values for value in each):
        return Measured(None, reference, None, None, counted, "not measured", note)
    both = []
    for each in values:
        parts = [weight * value for weight, value in zip(weights, each, strict=True)]
        both.append((sum(parts[: len(left)]), -sum(parts[len(left) :]) if reference is None else reference))
    mean, half = mean_interval(a - b for a, b in both)
    means = (mean_interval(a for a, _ in both)[0], mean_interval(b for _, b in both)[0])
    pieces = [joined(each, metric, snapshot, tasks) for each in seeds]
    note = "; ".join(filter(None, [note, alike(pieces, [METRICS[metric].task] if METRICS[metric].task else tasks)]))
    error = text_error(pieces, weights)
    if half is not None:
        said = f"{len(seeds)} seeds; 95 % t interval of the {'paired differences' if len(terms) > 1 else 'mean'}"
        # Batches of the training are a seed's own, so that its interval has them already.
        if error is not None and metric != "training_loss":
            text = NORMAL_95 * error
            said += f" (±{half:.2g}) and the evaluation text's (±{text:.2g}), in quadrature"
            half = math.hypot(half, text)
        return Measured(*means, mean, half, counted, said, note)
    error = own_error(seeds[0], weights, metric, snapshot) if error is None else error
    said = "one seed" if counted else "no seed enters"
    if error is None:
        return Measured(*means, mean, None, counted, f"{said}; no uncertainty known", note)
    half = NORMAL_95 * error
    over = "the evaluation text" if counted else "the measured rounds"
    return Measured(*means, mean, half, counted, f"{said}; ±{half:.2g} over {over}", note)


def compare(left: dict, right: dict, metric: str, snapshot: str, printed: set[str]) -> Measured:
    """A metric of two runs, paired by seed; with one seed paired over the evaluation text."""
    return contrast([(left, 1.0)], [(right, 1.0)], metric, snapshot, printed)


def against(run: dict, metric: str, snapshot: str, reference: float, margin: float) -> Measured:
    """A metric of one run against a number.

    A run that does not settle, but is long enough to have settled within the band, counts with the steps
    in which it was watched: its settling time is at least that. What was measured on the machine is one value.
    """
    each = records(run)[:1] if METRICS[metric].of_scale else records(run)
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
    if METRICS[metric].of_scale:
        return Measured(mean, reference, mean - reference, half, 0, "no seed enters; no uncertainty known", note)
    words = "one seed" if half is None else f"{len(each)} seeds; 95 % t interval"
    return Measured(mean, reference, mean - reference, half, len(each), words, note)


def slope_weights(places: list[float]) -> list[float]:
    """Weights w with Σ w·y the least-squares slope of y: per doubling of the place, per unit where one is not > 0."""
    x = [math.log2(place) for place in places] if min(places) > 0 else places
    middle = sum(x) / len(x)
    square = sum((value - middle) ** 2 for value in x)
    return [(value - middle) / square for value in x]


def value_of(record: Record, metric: str, snapshot: str, tasks: list[str]) -> float | None:
    """A metric of one seed; the mean accuracy is over `tasks`."""
    if metric != "mean_accuracy":
        return METRICS[metric].read(record, snapshot)
    scored = accuracies(record, snapshot)
    names = [scored_as(task, scored) for task in tasks]
    return sum(scored[name] for name in names) / len(names) if names else None


def shared_tasks(each: list[Record], snapshot: str, printed: set[str], metric="mean_accuracy") -> tuple[list[str], str]:
    """Tasks that ran in all of the runs: of the paper's if there are any, else the local ones; and words."""
    if metric != "mean_accuracy":
        return [], ""
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


def _paired(runs: list[dict]) -> list[list[Record]]:
    """For each seed that all runs have, the runs' records."""
    each = [{record.seed: record for record in records(run)} for run in runs]
    seeds = sorted(set.intersection(*(set(one) for one in each)))
    if not seeds:
        raise ValueError(f"runs {' and '.join(dict.fromkeys(r['run'] for r in runs))} have no seed in common.")
    return [[one[seed] for one in each] for seed in seeds]


def _watched(values, seeds, weights, reference) -> tuple[list[list[float | None]], str]:
    """Settling times, a run that does not settle counted as longer than it was watched, where that decides a pair."""
    filled, note = [], ""
    for each, found in zip(seeds, values, strict=True):
        open_ones = [place for place, value in enumerate(found) if value is None]
        if len(open_ones) == 1 and len(found) == 2 and reference is None and set(map(abs, weights)) == {1.0}:
            place = open_ones[0]
            bound = float(len(each[place].steps()) - WINDOW)
            if bound > found[1 - place]:  # else the bound says nothing of which is longer
                found = [bound if value is None else value for value in found]
                note = "a run did not settle: its settling time is at least what is counted here"
        filled.append(found)
    return filled, note
