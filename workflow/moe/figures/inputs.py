"""Which files a row of config/figures.tsv is made from, so that the workflow asks for no others."""

from moe.figures.check import text
from moe.figures.kinds import KINDS
from moe.figures.metrics import METRICS, SCORES


def files_of_metrics(words, *, paired: bool = False) -> tuple[set[str], set[str]]:
    """Files of a seed's folder, and of results/{scale}, that these metrics are read from.

    paired: also what one seed's uncertainty is taken from.
    """
    words = [word.rpartition(":")[2] for word in words]
    chosen = [METRICS[word] for word in words if word in METRICS]
    seed = {file for metric in chosen for file in metric.files}
    if paired:
        seed |= {file for metric in chosen for file in metric.paired}
    if any("/" in word for word in words):
        seed |= set(SCORES)
    return seed, {file for metric in chosen for file in metric.of_scale}


def files_drawn(row: dict) -> tuple[list[str], list[str]]:
    """The same for a checked row of config/figures.tsv."""
    kind = KINDS[text(row, "kind")]
    words = text(row, "y").split() if kind.y == "metrics" else []
    seed, scale = files_of_metrics(words)
    named = {"run.yaml"} if kind.needs_runs else set()  # which text the numbers are of
    return sorted({*kind.reads, *seed, *named}), sorted({*kind.of_scale, *scale})


def shows_held_out(row: dict) -> bool:
    """Whether a checked row of config/figures.tsv shows a metric of validation.csv."""
    words = text(row, "y").split() if KINDS[text(row, "kind")].y == "metrics" else []
    return "validation.csv" in files_of_metrics(words)[0]
