"""Checks of config/figures.tsv when the workflow is read, before anything is trained."""

import json
from functools import cache
from pathlib import Path

from moe.figures.kinds import BACKBONE, GROUPS, KINDS, LAYERS, STEPS
from moe.figures.metrics import LOCAL, METRICS, TASK_NAMES
from moe.figures.reported import columns_of, parse_match, stems
from moe.wrong import wrong

FILE = "config/figures.tsv"
HIDDEN = ("folder", "seeds")  # what a run has besides the columns that a table may name


def text(row: dict, column: str) -> str:
    """A cell as text; an empty one, however it was read, is ""."""
    value = row.get(column)
    return "" if value is None or value != value else str(value).strip()


def select(query: str, runs: list[dict], *, file=FILE, row="", column="runs") -> list[dict]:
    """The runs that a query of a table selects, in their order; none for an empty query.

    The query is a pandas expression over the columns of the runs; those that hold only numbers are
    compared as numbers. Errors: ValueError naming file, row and column if it is no valid query, names an
    unknown column, or selects nothing.
    """
    if not query.strip():
        return []
    try:
        chosen = _places(query, json.dumps(runs))
    except NameError as error:
        name = str(error).split("'")[1] if "'" in str(error) else str(error)
        problem = f"of the query {query!r} is no column of the runs"
        known = [column for column in dict.fromkeys(key for run in runs for key in run) if column not in HIDDEN]
        raise wrong(file, row, column, name, problem, known) from None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise wrong(file, row, column, query, f"is no valid pandas query ({reason})") from None
    if not chosen:
        raise wrong(file, row, column, query, "selects no run of config/runs.tsv")
    return [runs[i] for i in chosen]


@cache  # the tables ask the same of the same runs again and again
def _places(query: str, runs: str) -> list[int]:
    """The places of the runs that a query selects. runs: as JSON."""
    # Without the dictionaries a query could name the variables of this module with @.
    return list(_frame(runs).query(query, engine="python", local_dict={}, global_dict={}).index)


@cache
def _frame(runs: str):
    """The runs, given as JSON, as a pandas frame whose columns are numbers or text."""
    import pandas as pd

    frame = pd.DataFrame(json.loads(runs)).drop(columns="seeds", errors="ignore")
    for name in frame.columns:
        try:
            frame[name] = pd.to_numeric(frame[name])
        except (ValueError, TypeError):
            frame[name] = frame[name].astype(str)
    return frame


def check_figures(rows: list[dict], runs: list[dict], reported: Path, *, file=FILE) -> None:
    """Raise ValueError, one sentence, for the first wrong cell of config/figures.tsv.

    rows      the table, dicts of text
    runs      every row of runs.tsv joined with its setup (paper, size, ...)
    reported  folder of the reported numbers
    """
    seen = set()
    for row in rows:
        name = f"{text(row, 'paper')}/{text(row, 'figure')}"
        if name in seen:
            raise wrong(file, name, "figure", text(row, "figure"), "stands in two rows")
        seen.add(name)
        if text(row, "kind") not in KINDS:
            raise wrong(file, name, "kind", text(row, "kind"), "is no kind of figure", KINDS)
        if not text(row, "title"):
            raise wrong(file, name, "title", "", "is empty: every figure needs one")
        kind = KINDS[text(row, "kind")]
        query = text(row, "runs")
        if bool(query) != kind.needs_runs:
            problem = "selects no run" if kind.needs_runs else "is not empty, the kind needs no run"
            raise wrong(file, name, "runs", query, problem)
        chosen = select(query, runs, file=file, row=name)
        printed = check_reported(row, runs, reported, file=file, name=name)
        _check_axes(row, kind, chosen, printed, file=file, name=name)


def check_reported(row: dict, runs: list[dict], reported: Path, *, file, name) -> set[str]:
    """Check the columns `reported` and `match` of a row; returns the metrics printed in those files."""
    columns, metrics = set(), set()
    for stem in stems(text(row, "reported")):
        found, names = columns_of(reported, stem, file=file, row=name)
        columns |= set(found)
        metrics |= names
    try:
        match = parse_match(text(row, "match"))
    except ValueError as error:
        problem = f"is {error}"
        raise wrong(file, name, "match", text(row, "match"), problem) from None
    known = {key for run in runs for key in run} | {"snapshot", "split"}
    for column, source in match.items():
        if column not in columns:
            problem = "is no column of the reported file"
            raise wrong(file, name, "match", column, problem, sorted(columns))
        plain = not source.startswith("=") and "{" not in source
        if plain and known > {"snapshot", "split"} and source not in known | _options(runs):
            problem = "is neither a column of the runs nor, with = in front, a constant"
            raise wrong(file, name, "match", source, problem, sorted(known))
    return metrics


def _options(runs: list[dict]) -> set[str]:
    from moe.figures.reported import attributes

    return {name for run in runs for name in attributes(run)}


def _check_axes(row: dict, kind, runs: list[dict], printed: set[str], *, file, name) -> None:
    for column, holds in (("x", kind.x), ("y", kind.y)):
        words = text(row, column).split()
        if holds and not words:
            raise wrong(file, name, column, "", f"is empty, kind {text(row, 'kind')} needs it")
        for word in words:
            if holds == "steps" and word not in STEPS:
                raise wrong(file, name, column, word, "is no column of metrics.csv", STEPS)
            if holds == "layers" and word not in LAYERS:
                raise wrong(file, name, column, word, "is no choice of layers", LAYERS)
            if holds == "groups" and word not in GROUPS:
                raise wrong(file, name, column, word, "is no group of routers", GROUPS)
            if holds == "backbone" and word not in BACKBONE:
                raise wrong(file, name, column, word, "is no number of a backbone", BACKBONE)
            if holds == "attributes" and word not in {*runs[0], "snapshot"}:
                names = sorted({*runs[0], "snapshot"})
                raise wrong(file, name, column, word, "is no column of the runs", names)
            if holds == "metrics":
                of, _, metric = word.rpartition(":")
                corpora = {run["corpus"] for run in runs} if of else ()
                if of and of not in corpora:
                    raise wrong(file, name, column, of, "is the corpus of none of the runs", corpora)
                check_metric(metric, printed, file=file, name=name, column=column)
    for word in text(row, "hue").split():
        if runs and word not in runs[0]:
            raise wrong(file, name, "hue", word, "is no column of the runs", sorted(runs[0]))


def check_metric(word: str, printed: set[str], *, file, name, column="metric") -> None:
    """A metric is one of METRICS or a "task/metric": one that the paper printed, or a local task."""
    tasks = {metric for metric in printed if "/" in metric}
    if "/" not in word:
        if word not in METRICS:
            raise wrong(file, name, column, word, "is no metric", [*METRICS, *sorted(tasks)])
    elif tasks and not word.startswith(LOCAL) and "*" not in word and word not in tasks:
        names = sorted(tasks | {t for t in TASK_NAMES})
        raise wrong(file, name, column, word, "is printed in none of the reported files", names)
