"""Copy what a scale gave to a folder that is kept under version control, and its verdicts into the README.

The folder holds the drawn figures, tables and verdicts, and every file of results/{scale} that they are made from, in
the same layout, so that all of it can be drawn again from there. Large files are condensed and compressed.
"""

import csv
import hashlib
import json
import lzma
import re
import shutil
from pathlib import Path

import yaml

# Files of a run that are published compressed, because they have a row a step, a document, a window or a token id.
COMPRESSED = ("metrics.csv", "samples.csv", "validation_windows.csv", "token_activity.csv", "domain_losses.csv")
DIGITS = "%.9g"  # of published steps and token ids: what float32 has; windows and samples decide verdicts, as they are
ROUNDED = ("metrics.csv", "token_activity.csv")
WHOLE_STEPS, FURTHER_STEPS = 3000, 3000  # of metrics.csv: all of the first, about so many of the others
# Columns of metrics.csv that some figure, table or claim reads, and those that show equal compute.
COLUMNS = ["step", "tokens", "loss", "router_loss", "sparsity", "active_experts", "l1_lambda", "flip_rate"]
COLUMNS += ["valid_loss", "flops", "memory_gib", "seconds", "router_gradient", "router_gradient_lm", "drop_ratio"]
NOW_AND_THEN = ("flip_rate", "valid_loss", "router_gradient", "similarity_0")  # of the columns that have gaps
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
PAPERS = {"remoe": "ReMoE", "rmoe": "RMoE"}


def publish(drawn: Path, results: Path, files: list[Path], destination: Path, readme: Path | None) -> None:
    """Replace `destination` by `drawn` and by `files`, which lie below `results`, and add their provenance.

    The verdict table of the readme, where one is given, is rewritten between its markers. Errors: ValueError if it has
    none.
    """
    text = readme.read_text(encoding="utf-8") if readme else ""
    before, begin, rest = text.partition(BEGIN)
    if readme and not (begin and END in rest):
        raise ValueError(f"{readme}: has no lines {BEGIN!r} and {END!r} between which the verdicts belong")
    aside = destination.with_name(destination.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(
        drawn, aside, ignore=shutil.ignore_patterns("claims-*")
    )  # a paper's page repeats its part of the whole
    for source in map(Path, files):
        kept = aside / source.relative_to(results)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if source.name in COMPRESSED:
            kept.with_name(kept.name + ".xz").write_bytes(condensed(source))
        else:
            shutil.copy(source, kept)
    (aside / "provenance.yaml").write_text(yaml.safe_dump(provenance(aside), sort_keys=False))
    shutil.rmtree(destination, ignore_errors=True)
    aside.rename(destination)
    if readme:
        table = verdict_table(destination / "claims.csv")
        readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def condensed(path: Path) -> bytes:
    """A CSV file as xz, a third smaller than gzip; of metrics.csv what figures read.

    A training longer than 3000 steps keeps its first 3000 steps, evenly spaced ones of the rest, and each step where
    something besides was measured.
    """
    import pandas as pd

    frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"snapshot": str})
    if path.name == "metrics.csv":
        frame = frame[[c for c in frame if c in COLUMNS or c.startswith("similarity_")]]
        every = max(1, -(-(len(frame) - WHOLE_STEPS) // FURTHER_STEPS))
        kept = (frame["step"] <= WHOLE_STEPS) | (frame["step"] % every == 0) | (frame["step"] == frame["step"].max())
        for column in set(NOW_AND_THEN) & set(frame):
            kept |= frame[column].notna()
        frame = frame[kept]
    digits = DIGITS if path.name in ROUNDED else None
    return lzma.compress(frame.to_csv(index=False, float_format=digits).encode("utf-8"), preset=9)


def published_seeds(folder: Path) -> dict[str, list[int]]:
    """Run -> its seeds, of what was published in `folder`. Errors: ValueError where nothing was."""
    path = folder / "provenance.yaml"
    if not path.is_file():
        others = ", ".join(sorted(p.parent.name for p in folder.parent.glob("*/provenance.yaml"))) or "none"
        raise ValueError(
            f"config/config.yaml, key results: {folder} holds nothing published; published scales: {others}"
        )
    seeds: dict[str, list[int]] = {}
    for record in sorted(folder.glob("runs/*/seed-*/run.yaml")):
        seeds.setdefault(record.parent.parent.name, []).append(int(record.parent.name.removeprefix("seed-")))
    return {run: sorted(found) for run, found in seeds.items()}


def provenance(folder: Path) -> dict:
    """Where published numbers come from: commits, data, devices, versions, seeds; and each file's SHA-256."""
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/seed-*/done.json"))]
    facts = {
        key: sorted({str(d[key]) for d in done}) for key in ("commit", "data", "device", "precision", "ranks", "seed")
    }
    facts["versions"] = {name: sorted({d["versions"][name] for d in done}) for name in done[0]["versions"]}
    facts["training_seconds"] = round(sum(d["seconds"] for d in done))
    facts["condensed"] = (
        f"numbers of {' and '.join(ROUNDED)} have nine digits; of trainings longer than {WHOLE_STEPS} steps the first "
        f"{WHOLE_STEPS} and about {FURTHER_STEPS} further ones are kept"
    )
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    facts["files"] = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return facts


def verdict_table(claims: Path) -> str:
    """All claims as a Markdown table: in our words, the first part's numbers, how the parts went, the verdict."""
    lines = ["| claim | in our words | reported → measured (first part) | parts | verdict |", "|---|---|---|---|---|"]
    parts = {}
    with open(claims, newline="", encoding="utf-8") as file:
        for part in csv.DictReader(file):
            parts.setdefault((part["paper"], part["claim"]), []).append(part)
    for (paper, claim), each in parts.items():
        verdicts = [part["verdict"] for part in each]
        counted = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts, reverse=True)))
        seeds = {part["seeds"] for part in each}  # 0: a metric of the machine, into which no seed enters
        one = " (one seed)" if "1" in seeds and seeds <= {"0", "1"} else ""
        cells = [
            f"{PAPERS[paper]} {claim}",
            each[0]["says"],
            _numbers(each[0]),
            counted,
            f"**{each[0]['overall']}**{one}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _numbers(part: dict) -> str:
    """What was printed and what was measured: differences, but of a number compared with another the number itself.

    A threshold of the table stands behind it.
    """
    threshold = four_digits(part["right"]) if is_number(part["right"]) else ""
    itself = threshold or part["kind"] == "near"
    reported = four_digits(part["reported_left"]) if itself else signed(part["reported_difference"])
    measured = four_digits(part["measured_left"]) if itself else signed(part["difference"])
    unit = f" {part['unit']}" if part["unit"] else ""
    against = f", against {threshold}{unit}" if threshold else ""
    return f"{reported or 'not printed'} → {measured + unit if measured else 'not measured'}{against}"


def is_number(cell: str) -> bool:
    """Whether a cell of column `right` is a threshold, and no query or empty."""
    return bool(re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell))


def four_digits(number: str) -> str:
    """A number with four digits; empty (nothing was measured) stays empty."""
    return f"{float(number):.4g}".replace("-", "−") if number else ""


def signed(number: str) -> str:
    """A difference with its sign, four digits; empty stays empty."""
    return f"{float(number):+.4g}".replace("-", "−") if number else ""
