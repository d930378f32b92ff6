"""The numbers that the papers printed (config/reported/*.csv), matched to our runs by columns."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from moe.wrong import wrong

FACTORS = {"k": 1e3, "M": 1e6, "B": 1e9}  # of sizes as printed
# What RMoE calls by several names, in one of its tables or another (docs/discrepancies.md) -> our label.
ALIASES = {
    "SMoE + MLP": "SMoE-MLP",
    "RMoE + NP": "RMoE-NP",
    "RMoE + detach h_{i-1}": "RMoE-detach",
    "RMoE + NP + r-0.5": "RMoE-NP-r0.5",
    "RMoE + NP + r-1.0": "RMoE-NP-r1.0",
    "RMoE + NP + r-0.5 + detach-r": "RMoE-NP-r0.5-detach-r",
    "RMoE + NP + r-1.0 + detach-r": "RMoE-NP-r1.0-detach-r",
    "RandomMoE": "RandomSMoE",
    "linear": "SMoE",
    "rnn": "RMoE",
    "wikitext103": "wikitext-103",
}


class Printed(NamedTuple):
    """A printed number: as a number, as printed, its unit, where it stands, what disagrees with it."""

    value: float
    text: str
    unit: str
    where: str
    note: str


def stems(cell) -> list[str]:
    """File stems in a `reported` cell, in order of preference: the first that prints a number wins."""
    return str(cell or "").split()


def parse_match(cell) -> dict[str, str]:
    """The `match` cell, a YAML mapping from a column of the reported files to where its value comes from.

    `router: label` compares with an attribute of the run (a column of runs.tsv, of its setup or of its
    options, or `snapshot`), `stage: =pretrain` with a constant, `setting: "{size} E=8"` with text made
    from attributes. Errors: ValueError if it is not a mapping of names to text.
    """
    try:
        match = yaml.safe_load(str(cell or "") or "{}")
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(match, dict):
        raise ValueError("not a mapping such as {router: router, tokens: snapshot}")
    return {str(column): str(source) for column, source in match.items()}


def load(folder: Path, names: list[str]) -> list[list[dict]]:
    """The rows of each file, all cells as text (a token of ReMoE's table 12 is called NULL)."""
    pages = []
    for name in names:
        with open(Path(folder) / f"{name}.csv", encoding="utf-8", newline="") as file:
            pages.append(list(csv.DictReader(file)))
    return pages


def attributes(run: dict, snapshot: str = "", split: str = "") -> dict:
    """What a reported column may be compared with: the run's columns, its options, the snapshot, the metric's split."""
    options = run.get("options") or {}
    if isinstance(options, str):
        options = yaml.safe_load(options) or {}
    return {**(options if isinstance(options, dict) else {}), **run, "snapshot": snapshot, "split": split}


def same(printed: str, ours) -> bool:
    """Equal as numbers where both are numbers (1e-8 and 0.00000001), otherwise as text (Dense×8 is Densex8).

    Of several printed names for one thing (ALIASES) each is equal to ours.
    """
    if isinstance(ours, bool):
        ours = "yes" if ours else "no"
    try:
        return math.isclose(float(printed), float(ours), rel_tol=1e-9)
    except (TypeError, ValueError):
        return ALIASES.get(str(printed), str(printed)).replace("×", "x") == str(ours).replace("×", "x")


def number(value) -> float:
    """A size as printed (182M, 0.91B), a number, or yes and no as 1 and 0. Errors: ValueError for anything else."""
    word = {"yes": "1", "no": "0"}.get(str(value), str(value))
    return float(word[:-1]) * FACTORS[word[-1]] if word[-1:] in FACTORS else float(word)


def resolve(source: str, values: dict):
    """The value that one entry of a match stands for; None where the run has no such attribute."""
    if source.startswith("="):
        return source[1:]
    if "{" in source:
        try:
            return source.format(**values)
        except KeyError:
            return None
    return values.get(source)


def find(
    pages: list[list[dict]],
    match: dict,
    values: dict,
    metric: str,
    combine: Callable[[list[dict]], float] | None = None,
) -> Printed | None:
    """The number printed for one metric of one run, or None.

    A column named in `match` that a file lacks does not restrict that file, and an empty cell fits any
    run (table 3 of RMoE prints a speed once for both token counts); where some rows fit exactly, those
    count. combine: makes one number of the rows where the paper prints many, of single layers. Errors: ValueError if
    what fits are different numbers otherwise.
    """
    for rows in pages:
        fits = _fitting(rows, {"metric": f"={metric}", **match}, values)
        if fits:
            best = min(loose for loose, _ in fits)
            rows = [row for loose, row in fits if loose == best]
            if combine is not None:
                value = combine(rows)
                return _printed(rows[0])._replace(value=value, text=f"{value:.3f}")
            if len({row["value"] for row in rows}) > 1:
                some = ", ".join(row["value"] for row in rows[:4])
                raise ValueError(f"{metric} fits several printed numbers ({some}): match more columns")
            return _printed(rows[0])
    return None


def place(pages: list[list[dict]], match: dict, values: dict) -> int:
    """Where a run stands in the first file, so that our rows can follow the paper's; its end if nowhere.

    Whatever is printed of it counts, on either split.
    """
    rows, match = pages[0] if pages else [], {column: s for column, s in match.items() if s != "split"}
    fits = _fitting(rows, match, values)
    return rows.index(fits[0][1]) if fits else len(rows)


def _fitting(rows: list[dict], match: dict, values: dict) -> list[tuple[int, dict]]:
    """The rows that fit, each with the number of its cells that fit any run because they are empty."""
    fits = []
    for row in rows:
        cells = [(row[c], resolve(s, values)) for c, s in match.items() if c in row]
        if all(printed == "" or same(printed, ours) for printed, ours in cells):
            fits.append((sum(printed == "" for printed, _ in cells), row))
    return fits


def _printed(row: dict) -> Printed:
    place = "table" if "table" in row else "figure" if "figure" in row else "source"
    where = f"{place} {row[place]}"
    if row[place] == "text":
        section = row["section"]
        where = f"caption of {section}" if section.startswith("Fig.") else f"section {section}"
    return Printed(float(row["value"]), row["value"], row.get("unit", ""), where, row.get("note", ""))


def columns_of(folder: Path, name: str, *, file, row) -> tuple[list[str], set[str]]:
    """Columns and metrics of one reported file; ValueError naming the table's row if there is none."""
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        known = sorted(p.stem for p in Path(folder).glob("*.csv"))
        raise wrong(file, row, "reported", name, "is no file of reported numbers", known)
    rows = load(folder, [name])[0]
    return list(rows[0]), {r.get("metric", "") for r in rows}
