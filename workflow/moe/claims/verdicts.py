"""From measured differences to verdicts, part by part and for a whole claim."""

from pathlib import Path

from moe.claims.check import KINDS, is_number, name_of, ordered, sides
from moe.claims.compare import Measured, against, compare, contrast, slope_weights
from moe.figures.check import text
from moe.figures.metrics import METRICS
from moe.figures.records import records, snapshots_of, target_sparsity
from moe.figures.reported import Printed, attributes, find, load, parse_match, stems

HOLDS, CONTRADICTED, INCONCLUSIVE = "holds", "contradicted", "inconclusive"
# Metrics in % of a run of the same table, of which the papers print the two numbers -> the label of that run.
PERCENT_OF = {"extra_time": "SMoE", "extra_memory": "SMoE"}


def side(difference: float | None, half: float | None, sign: int) -> str:
    """Verdict on a difference claimed to be of one sign: does its 95 % interval exclude zero?"""
    if difference is None or half is None:
        return INCONCLUSIVE
    if sign * difference - half > 0:
        return HOLDS
    return CONTRADICTED if sign * difference + half < 0 else INCONCLUSIVE


def near(difference: float | None, half: float | None, margin: float) -> str:
    """Verdict on a number claimed to lie in a band: does its whole interval (or, for one seed, it)?"""
    if difference is None:
        return INCONCLUSIVE
    if abs(difference) + (half or 0) <= margin:
        return HOLDS
    return CONTRADICTED if abs(difference) - (half or 0) > margin else INCONCLUSIVE


def overall(verdicts: list[str]) -> str:
    """A claim holds if all of its parts do, and is contradicted if any is."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return HOLDS if set(verdicts) == {HOLDS} else INCONCLUSIVE


def judged(claims: list[dict], runs: list[dict], reported: Path) -> list[dict]:
    """One record a part (the columns of claims.csv), in the order of the table."""
    parts, says = [], {}
    for row in claims:
        key = (text(row, "paper"), text(row, "claim"))
        says.setdefault(key, text(row, "says"))
        parts.append({**Part(row, runs, reported).record(), "says": says[key]})
    for part in parts:
        same = [p for p in parts if (p["paper"], p["claim"]) == (part["paper"], part["claim"])]
        part["overall"] = overall([p["verdict"] for p in same])
    return parts


class Part:
    """One row of config/claims.tsv: its runs, what the paper printed of them, and the comparison of its kind."""

    def __init__(self, row: dict, runs: list[dict], reported: Path):
        self.row, self.kind, self.metric = row, text(row, "kind"), text(row, "metric")
        kind, right = KINDS[self.kind], text(row, "right")
        self.left = sides(row, runs, "left", kind.left)
        self.margin = float(text(row, "margin") or 0)
        self.snapshot = text(row, "snapshot") or snapshots_of(records(self.left[0])[0])[-1]
        self.pages, self.match = load(reported, stems(text(row, "reported"))), parse_match(text(row, "match"))
        self.tasks = {line.get("metric", "") for page in self.pages for line in page}
        self.printed: list[Printed] = []  # all that was found, for where it stands and its notes
        self.right: list[dict] | float | None = None
        if is_number(right):
            self.right = float(right)
        elif right == "target_sparsity":
            self.right = target_sparsity(self.left[0])
        elif right == "reported":
            self.right = self.paper(self.left[0])
            if self.right is None:
                raise ValueError(f"config/claims.tsv, row {name_of(row)}: no printed number fits its match.")
        elif right:
            self.right = sides(row, runs, "right", 2 if kind.right.startswith("runs") else 1)

    def paper(self, run: dict) -> float | None:
        """The number that the paper printed for a run, or what follows from those of it and of the run it is % of."""
        metric = METRICS[self.metric]
        us = attributes(run, self.snapshot, metric.split)
        labels = [us["label"], PERCENT_OF[self.metric]] if self.metric in PERCENT_OF else [us["label"]]
        found = [find(self.pages, self.match, us | {"label": x}, metric.printed, metric.combine) for x in labels]
        if None in found:
            return None
        self.printed += found
        return found[0].value if len(found) == 1 else 100 * (found[0].value / found[1].value - 1)

    def record(self) -> dict:
        """The columns of claims.csv."""
        kinds = {"near": self._near, "spread": self._spread, "slope-below": self._slope}
        kinds |= {"rises": self._ordered, "falls": self._ordered}
        measured, verdict, left, right = kinds.get(self.kind, self._pair)()
        known = left is not None and right is not None
        printed = list(dict.fromkeys(self.printed))
        notes = [measured.note, *dict.fromkeys(f"printed number: {p.note}" for p in printed if p.note)]
        columns = ("paper", "claim", "part", "statement", "kind", "left", "right", "metric", "margin", "along")
        return {
            **{column: text(self.row, column) for column in columns},
            "unit": self._unit(),
            "snapshot": self.snapshot,
            "reported_left": left,
            "reported_right": right,
            "reported_difference": round(left - right, 6) if known else None,
            "printed": "; ".join(dict.fromkeys(p.where for p in printed)),
            "measured_left": measured.left,
            "measured_right": measured.right,
            "difference": measured.difference,
            "interval": measured.half,
            "seeds": measured.seeds,
            "uncertainty": measured.uncertainty,
            "verdict": verdict,
            "figure": text(self.row, "figure"),
            "note": "; ".join(filter(None, notes)),
        }

    def _unit(self) -> str:
        unit = METRICS[self.metric].unit
        if self.kind != "slope-below":
            return unit
        places = [place for place, _ in ordered(self.row, self.left)]
        return f"{unit} per {'doubling' if min(places) > 0 else 'unit'} of {text(self.row, 'along')}".strip()

    def _pair(self) -> tuple[Measured, str, float | None, float | None]:
        """less and greater: a run against a run or a number; times-less and times-greater: `margin` times the run."""
        sign = {"less": -1, "greater": 1}[self.kind.removeprefix("times-")]
        times, allowed = (self.margin, 0.0) if self.kind.startswith("times-") else (1.0, self.margin)
        right = [(self.right[0], 1.0)] if isinstance(self.right, list) else self.right
        measured = contrast([(self.left[0], times)], right, self.metric, self.snapshot, self.tasks)
        shifted = None if measured.difference is None else measured.difference + sign * allowed
        theirs = self.paper(self.left[0])
        other = self.paper(self.right[0]) if isinstance(self.right, list) else self.right
        return measured, side(shifted, measured.half, sign), None if theirs is None else times * theirs, other

    def _near(self) -> tuple[Measured, str, float | None, float | None]:
        run, theirs = self.left[0], self.paper(self.left[0])
        if isinstance(self.right, list):
            measured = compare(run, self.right[0], self.metric, self.snapshot, self.tasks)
            other = self.paper(self.right[0])
        else:
            measured = against(run, self.metric, self.snapshot, self.right, self.margin)
            other = self.right
        return measured, near(measured.difference, measured.half, self.margin), theirs, other

    def _spread(self) -> tuple[Measured, str, float | None, float | None]:
        """The run with the largest mean against the one with the smallest."""
        means = [contrast([(run, 1.0)], 0.0, self.metric, self.snapshot, self.tasks) for run in self.left]
        theirs = [self.paper(run) for run in self.left]
        known = [value for value in theirs if value is not None]
        ends = (max(known), min(known)) if known and len(known) == len(theirs) else (None, None)
        if any(one.left is None for one in means):
            return Measured(None, None, None, None, means[0].seeds, "not measured"), INCONCLUSIVE, *ends
        order = sorted(range(len(means)), key=lambda i: means[i].left)
        lowest, highest = self.left[order[0]], self.left[order[-1]]
        measured = compare(highest, lowest, self.metric, self.snapshot, self.tasks)
        note = f"largest: {highest['run']}, smallest: {lowest['run']}"
        measured = measured._replace(note="; ".join(filter(None, [measured.note, note])))
        return measured, near(measured.difference, measured.half, self.margin), *ends

    def _ordered(self) -> tuple[Measured, str, float | None, float | None]:
        """The last run against the first; the verdict is the worst of those on each step between neighbours."""
        sign = {"rises": 1, "falls": -1}[self.kind]
        runs = [run for _, run in ordered(self.row, self.left)]
        steps = [
            compare(after, before, self.metric, self.snapshot, self.tasks)
            for before, after in zip(runs[:-1], runs[1:], strict=True)
        ]
        measured = compare(runs[-1], runs[0], self.metric, self.snapshot, self.tasks)
        values = [steps[0].right, *(step.left for step in steps)]
        decimals = METRICS[self.metric].decimals
        said = " → ".join("?" if value is None else f"{value:.{decimals}f}" for value in values)
        note = "; ".join(dict.fromkeys(filter(None, [*(step.note for step in steps), f"in order of the runs: {said}"])))
        verdict = overall([side(step.difference, step.half, sign) for step in steps])
        theirs = [self.paper(run) for run in runs]
        return measured._replace(note=note), verdict, theirs[-1], theirs[0]

    def _slope(self) -> tuple[Measured, str, float | None, float | None]:
        left = self._terms(self.left)
        right = self._terms(self.right) if isinstance(self.right, list) else self.right
        measured = contrast(left, right, self.metric, self.snapshot, self.tasks)
        shifted = None if measured.difference is None else measured.difference - self.margin
        other = self._printed_slope(right) if isinstance(right, list) else right
        return measured, side(shifted, measured.half, -1), self._printed_slope(left), other

    def _terms(self, runs: list[dict]) -> list[tuple[dict, float]]:
        pairs = ordered(self.row, runs)
        return [(run, w) for (_, run), w in zip(pairs, slope_weights([place for place, _ in pairs]), strict=True)]

    def _printed_slope(self, terms: list[tuple[dict, float]]) -> float | None:
        values = [self.paper(run) for run, _ in terms]
        return None if None in values else sum(v * w for v, (_, w) in zip(values, terms, strict=True))
