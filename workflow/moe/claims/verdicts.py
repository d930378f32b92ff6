"""From measured differences to verdicts, part by part and for a whole claim."""

from pathlib import Path

from moe.claims.check import is_number, name_of, one_run
from moe.claims.compare import Measured, against, compare
from moe.figures.check import text
from moe.figures.metrics import METRICS
from moe.figures.records import records, snapshots_of, target_sparsity
from moe.figures.reported import attributes, find, load, parse_match, stems

HOLDS, CONTRADICTED, INCONCLUSIVE = "holds", "contradicted", "inconclusive"


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
        parts.append({**_part(row, runs, reported), "says": says[key]})
    for part in parts:
        same = [p for p in parts if (p["paper"], p["claim"]) == (part["paper"], part["claim"])]
        part["overall"] = overall([p["verdict"] for p in same])
    return parts


def _part(row: dict, runs: list[dict], reported: Path) -> dict:
    metric, kind = text(row, "metric"), text(row, "kind")
    left = one_run(row, "left", runs)
    snapshot = text(row, "snapshot") or snapshots_of(records(left)[0])[-1]
    pages = load(reported, stems(text(row, "reported")))
    match = parse_match(text(row, "match"))

    def paper(run):
        return find(pages, match, attributes(run, snapshot), METRICS[metric].printed)

    ours = paper(left)
    if kind == "near":
        reference = _reference(row, left, ours)
        margin = float(text(row, "margin"))
        measured = against(left, metric, snapshot, reference, margin)
        verdict = near(measured.difference, measured.half, margin)
        theirs = None
        printed_right = reference
    else:
        right = one_run(row, "right", runs)
        tasks = {line.get("metric", "") for page in pages for line in page}
        measured = compare(left, right, metric, snapshot, tasks)
        verdict = side(measured.difference, measured.half, {"less": -1, "greater": 1}[kind])
        theirs = paper(right)
        printed_right = theirs.value if theirs else None
    return _record(row, snapshot, measured, verdict, ours, theirs, printed_right)


def _reference(row: dict, run: dict, printed) -> float:
    """The number that `right` of kind near means."""
    right = text(row, "right")
    if is_number(right):
        return float(right)
    if right == "target_sparsity":
        return target_sparsity(run)
    if printed is None:
        raise ValueError(f"config/claims.tsv, row {name_of(row)}: no printed number fits its match.")
    return printed.value


def _record(row, snapshot, measured: Measured, verdict, ours, theirs, printed_right) -> dict:
    printed = [p for p in (ours, theirs) if p]
    known = ours is not None and printed_right is not None
    notes = [measured.note, *dict.fromkeys(f"printed number: {p.note}" for p in printed if p.note)]
    columns = ("paper", "claim", "part", "statement", "kind", "left", "right", "metric", "margin")
    return {
        **{column: text(row, column) for column in columns},
        "unit": METRICS[text(row, "metric")].unit,
        "snapshot": snapshot,
        "reported_left": ours.value if ours else None,
        "reported_right": printed_right,
        "reported_difference": round(ours.value - printed_right, 6) if known else None,
        "printed": "; ".join(dict.fromkeys(p.where for p in printed)),
        "measured_left": measured.left,
        "measured_right": measured.right,
        "difference": measured.difference,
        "interval": measured.half,
        "seeds": measured.seeds,
        "uncertainty": measured.uncertainty,
        "verdict": verdict,
        "figure": text(row, "figure"),
        "note": "; ".join(filter(None, notes)),
    }
