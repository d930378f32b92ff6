"""The claims page: claims.md for readers, claims.csv for programs."""

import pandas as pd

from moe.claims.check import is_number
from moe.figures.layout import plain, signed
from moe.figures.metrics import METRICS
from moe.figures.titles import PAPERS

COLUMNS = [
    "paper",
    "claim",
    "part",
    "says",
    "statement",
    "kind",
    "left",
    "right",
    "metric",
    "unit",
    "snapshot",
    "margin",
    "along",
    "reported_left",
    "reported_right",
    "reported_difference",
    "printed",
    "measured_left",
    "measured_right",
    "difference",
    "interval",
    "seeds",
    "uncertainty",
    "verdict",
    "overall",
    "figure",
    "note",
]

LEGEND = """\
A part **holds** if the 95 % interval of its difference excludes zero on the claimed side (for numbers said to be near
each other: if the interval lies within the stated band; where an allowance is stated: if it excludes the allowance),
is **contradicted** if the interval lies on the other side (outside the band), and is **inconclusive** otherwise. A
metric said to rise or fall has to do so from each run to the next. With several seeds the interval is the t interval
of the differences paired by seed and, for means over windows or documents of the evaluation text, the normal interval
over these (each with its difference averaged over the seeds, which are all evaluated on the same text), added in
quadrature. With one seed the only uncertainty there is comes from the evaluation text (paired by window or document),
from the token ids of a correlation, from the last training batches or from the rounds of a speed measurement (normal
95 %); it does not know how much another seed would change, and the verdict says "one seed". A number compared with a
threshold is printed beside it.
Where one seed has no such uncertainty (steps, flips, shares of experts) a comparison stays inconclusive, and a number
said to be near another counts as it is. A claim holds if all of its parts do and is contradicted if any part is: of
many parts at 95 % some err."""


def csv(parts: list[dict]) -> str:
    """A line a part."""
    return pd.DataFrame(parts, columns=COLUMNS).to_csv(index=False)


def markdown(parts: list[dict], scale: str, texts: str = "") -> str:
    """Title with the scale, a table of verdicts, then each claim with its parts.

    texts: which corpora stand for the papers', a sentence or nothing.
    """
    size = "" if scale == "paper" else " (not the paper's size)"
    lines = [f"# The papers' claims at scale {scale}{size}", "", LEGEND, ""]
    if scale != "paper":
        lines += [f"Every verdict is about the models of scale {scale}, not about the paper's.", ""]
    lines += [texts, ""] if texts else []
    claims = {}
    for part in parts:
        claims.setdefault((part["paper"], part["claim"]), []).append(part)
    lines += ["| claim | the paper says, in our words | verdict |", "| --- | --- | --- |"]
    for (paper, claim), each in claims.items():
        link = f"[{PAPERS[paper]} {claim}](#{PAPERS[paper].lower()}-claim-{claim})"
        lines.append(f"| {link} | {each[0]['says']} | {_overall(each)} |")
    for (paper, claim), each in claims.items():
        lines += ["", f"## {PAPERS[paper]} claim {claim}", "", f"{each[0]['says']}", ""]
        lines += [f"**{_overall(each)}**", ""]
        lines += ["| part | reported | measured | uncertainty | verdict | figure |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        lines += [_row(part) for part in each]
        notes = dict.fromkeys(f"{part['part']}: {part['note']}." for part in each if part["note"])
        lines += ["", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def _overall(parts: list[dict]) -> str:
    seeds = {part["seeds"] for part in parts}
    return parts[0]["overall"] + (" (one seed)" if 1 in seeds and seeds <= {0, 1} else "")


def _row(part: dict) -> str:
    decimals = METRICS[part["metric"]].decimals + (part["kind"] == "slope-below")  # slopes are small
    reported = _numbers(part, "reported", decimals)
    if reported and part["printed"]:
        reported += f" ({part['printed']})"
    measured = _numbers(part, "measured", decimals)
    unit = f" {part['unit']}" if part["unit"] not in ("", "fraction") else ""
    link = f"[{part['figure']}]({part['paper']}/{part['figure']}.{_suffix(part['figure'])})"
    statement = f"{part['part']}: {part['statement']}"
    cells = [statement, reported, measured + unit if measured else "not measured"]
    cells += [part["uncertainty"], part["verdict"], link if part["figure"] else ""]
    return "| " + " | ".join(cells) + " |"


def _numbers(part: dict, which: str, decimals: int) -> str:
    """What was reported or measured: "1.921 − 1.937 = −0.016 ± 0.010"; empty where nothing is known.

    Of a number compared with a threshold it is the number, measured "1.30 ± 0.20 against −2.30".
    """
    left, right = part[f"{which}_left"], part[f"{which}_right"]
    if left is None or right is None:
        return ""
    half = part["interval"] if which == "measured" else None
    around = "" if half is None else f" ± {plain(half, decimals)}"
    if is_number(part["right"]):
        against = f" against {plain(right, decimals)}" if which == "measured" else ""
        return f"{plain(left, decimals)}{around}{against}"
    difference = part["difference" if which == "measured" else "reported_difference"]
    return f"{plain(left, decimals)} − {plain(right, decimals)} = {signed(difference, decimals)}{around}"


def _suffix(figure: str) -> str:
    return "svg" if figure.startswith("fig") else "md"
