"""Checks of config/claims.tsv when the workflow is read, before anything is trained."""

from pathlib import Path

from moe.figures.check import check_metric, check_reported, select, text
from moe.figures.metrics import METRICS
from moe.figures.reported import stems
from moe.wrong import wrong

FILE = "config/claims.tsv"
KINDS = {
    "less": "the metric of `left` is below that of `right`",
    "greater": "the metric of `left` is above that of `right`",
    "near": "the metric of `left` is within `margin` of the number `right`",
}
REFERENCES = ("target_sparsity", "reported")  # what `right` of kind near may name besides a number


def name_of(row: dict) -> str:
    """How a row is called in messages: remoe/3a."""
    return f"{text(row, 'paper')}/{text(row, 'claim')}{text(row, 'part')}"


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return abs(float(cell)) < float("inf")
    except ValueError:
        return False


def check_claims(
    rows: list[dict],
    runs: list[dict],
    reported: Path,
    figures: list[dict] = (),
    *,
    file=FILE,
) -> None:
    """Raise ValueError, one sentence, for the first wrong cell of config/claims.tsv.

    rows, figures  config/claims.tsv and config/figures.tsv, dicts of text
    runs           every row of runs.tsv joined with its setup
    reported       folder of the reported numbers
    """
    seen, said = set(), set()
    drawn = {(text(f, "paper"), text(f, "figure")) for f in figures}
    for row in rows:
        name = name_of(row)
        if name in seen:
            raise wrong(file, name, "part", text(row, "part"), "stands in two rows")
        seen.add(name)
        claim = (text(row, "paper"), text(row, "claim"))
        if claim not in said and not text(row, "says"):
            raise wrong(file, name, "says", "", "is empty in the first row of the claim")
        said.add(claim)
        if text(row, "kind") not in KINDS:
            raise wrong(file, name, "kind", text(row, "kind"), "is no kind of claim", KINDS)
        if text(row, "metric") not in METRICS:
            raise wrong(file, name, "metric", text(row, "metric"), "is no metric", METRICS)
        _check_sides(row, runs, file=file, name=name)
        printed = check_reported(row, runs, reported, file=file, name=name)
        check_metric(text(row, "metric"), printed, file=file, name=name)
        figure = text(row, "figure")
        if figures and (claim[0], figure) not in drawn:
            names = sorted(f for paper, f in drawn if paper == claim[0])
            raise wrong(file, name, "figure", figure, "is no figure of the paper", names)


def one_run(row: dict, side: str, runs: list[dict], *, file=FILE) -> dict:
    """The run that a side of a comparison selects; ValueError if it is not exactly one."""
    query = text(row, side)
    chosen = select(query, runs, file=file, row=name_of(row), column=side)
    if len(chosen) != 1:
        problem = f"selects {len(chosen)} runs where one is compared"
        raise wrong(file, name_of(row), side, query, problem)
    return chosen[0]


def _check_sides(row: dict, runs: list[dict], *, file, name) -> None:
    one_run(row, "left", runs, file=file)
    right, margin = text(row, "right"), text(row, "margin")
    if text(row, "kind") != "near":
        one_run(row, "right", runs, file=file)
        return
    if not is_number(right) and right not in REFERENCES:
        raise wrong(file, name, "right", right, "is neither a number nor a reference", REFERENCES)
    if right == "reported" and not stems(text(row, "reported")):
        raise wrong(file, name, "right", right, "needs a file in column reported")
    if not is_number(margin) or float(margin) <= 0:
        raise wrong(file, name, "margin", margin, "is no positive number: kind near needs a band")


def runs_judged(rows: list[dict], runs: list[dict]) -> list[dict]:
    """The runs that any checked row compares, in the order of runs.tsv."""
    names = set()
    for row in rows:
        for side in ("left", "right"):
            cell = text(row, side)
            if cell and cell not in REFERENCES and not is_number(cell):
                names |= {run["run"] for run in select(cell, runs, row=name_of(row), column=side)}
    return [run for run in runs if run["run"] in names]
