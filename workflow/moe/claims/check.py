"""Checks of config/claims.tsv when the workflow is read, before anything is trained."""

from pathlib import Path
from typing import NamedTuple

from moe.figures.check import check_metric, check_reported, select, text
from moe.figures.inputs import files_of_metrics
from moe.figures.metrics import METRICS
from moe.figures.reported import number, stems
from moe.wrong import wrong

FILE = "config/claims.tsv"
REFERENCES = ("target_sparsity", "reported")  # what `right` of kind near may name besides a number or a run


class Kind(NamedTuple):
    """What a kind of claim says, how many runs its sides select at least, and what else its row has to hold."""

    says: str
    left: int = 1  # runs of `left`: 1 means exactly one
    right: str = "run or number"  # what `right` holds: the words below, joined by "or"; "" for nothing
    along: bool = False  # whether `along` names the column of the runs that orders them
    margin: bool = False  # whether `margin` is needed; where it is not, it is an allowance, 0 if empty


KINDS = {
    "less": Kind("the metric of `left` is below that of `right` (or not more than `margin` above it)"),
    "greater": Kind("the metric of `left` is above that of `right` (or not more than `margin` below it)"),
    "times-less": Kind("`margin` times the metric of `left` is below that of `right`", margin=True),
    "times-greater": Kind("`margin` times the metric of `left` is above that of `right`", margin=True),
    "near": Kind("the metric of `left` is within `margin` of `right`", right="run or number or reference", margin=True),
    "spread": Kind("the metric of no two runs of `left` differs by more than `margin`", 2, "", margin=True),
    "rises": Kind("the metric of the runs of `left` rises with `along`, from each to the next", 2, "", along=True),
    "falls": Kind("the metric of the runs of `left` falls with `along`, from each to the next", 2, "", along=True),
    "slope-below": Kind(
        "the metric's least-squares slope per doubling of `along` over `left` is below that over `right`",
        2,
        "runs or number",
        along=True,
    ),
}


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


def sides(row: dict, runs: list[dict], side: str, least: int, *, file=FILE) -> list[dict]:
    """The runs that a side selects: exactly one where `least` is 1, else at least so many. Errors: ValueError."""
    query = text(row, side)
    chosen = select(query, runs, file=file, row=name_of(row), column=side)
    if (len(chosen) != 1) if least == 1 else (len(chosen) < least):
        wanted = "one is" if least == 1 else f"at least {least} are"
        raise wrong(file, name_of(row), side, query, f"selects {len(chosen)} runs where {wanted} compared")
    return chosen


def ordered(row: dict, chosen: list[dict], *, file=FILE) -> list[tuple[float, dict]]:
    """Runs with their number in column `along`, smallest first. Errors: ValueError where one has none, or two one."""
    column = text(row, "along")
    if column not in chosen[0]:
        raise wrong(file, name_of(row), "along", column, "is no column of the runs", sorted(chosen[0]))
    try:
        pairs = sorted(((number(run[column]), run) for run in chosen), key=lambda pair: pair[0])
    except ValueError:
        raise wrong(file, name_of(row), "along", column, "is no number in every run compared") from None
    if len({place for place, _ in pairs}) < len(pairs):
        raise wrong(file, name_of(row), "along", column, "is the same in two of the runs compared")
    return pairs


def _check_sides(row: dict, runs: list[dict], *, file, name) -> None:
    kind, right, margin = KINDS[text(row, "kind")], text(row, "right"), text(row, "margin")
    chosen = [sides(row, runs, "left", kind.left, file=file)]
    if not kind.right and right:
        raise wrong(file, name, "right", right, f"is not empty, kind {text(row, 'kind')} has one side")
    if right in REFERENCES and "reference" in kind.right:
        if right == "reported" and not stems(text(row, "reported")):
            raise wrong(file, name, "right", right, "needs a file in column reported")
    elif kind.right and not is_number(right):
        if "reference" in kind.right and not set(right) & set("=<> "):  # a word, and no query
            raise wrong(file, name, "right", right, "is no number, reference or query", REFERENCES)
        chosen.append(sides(row, runs, "right", 2 if kind.right.startswith("runs") else 1, file=file))
    if bool(text(row, "along")) != kind.along:
        problem = "is empty" if kind.along else "is not empty"
        raise wrong(file, name, "along", text(row, "along"), f"{problem}, kind {text(row, 'kind')} decides that")
    if kind.along:
        for some in chosen:
            ordered(row, some, file=file)
    if (margin or kind.margin) and (not is_number(margin) or float(margin) <= 0):
        raise wrong(file, name, "margin", margin, "is no positive number")


def runs_judged(rows: list[dict], runs: list[dict]) -> list[dict]:
    """The runs that any checked row compares, in the order of runs.tsv."""
    names = set()
    for row in rows:
        for side in ("left", "right"):
            cell = text(row, side)
            if cell and cell not in REFERENCES and not is_number(cell):
                names |= {run["run"] for run in select(cell, runs, row=name_of(row), column=side)}
    return [run for run in runs if run["run"] in names]


def files_judged(row: dict) -> tuple[list[str], list[str]]:
    """Files of each seed's folder, and of results/{scale}, that a checked row is judged from."""
    seed, scale = files_of_metrics([text(row, "metric")], paired=True)
    # which name a run's snapshots and its text
    return sorted({"validation.csv", "run.yaml", *seed}), sorted(scale)
