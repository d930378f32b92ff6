"""Copy what a scale gave to a folder that is kept under version control, and its verdicts into the README."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import yaml

# Files of a run that are published compressed, because they have a row a step, a document, a window or a token id.
GZIPPED = ("metrics.csv", "samples.csv", "validation_windows.csv", "token_activity.csv")
RECORDS = ("run.yaml", "done.json", "validation.csv", "scores.csv")  # the small files of a run
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
PAPERS = {"remoe": "ReMoE", "rmoe": "RMoE"}


def publish(drawn: Path, runs: list[dict], destination: Path, readme: Path | None) -> None:
    """Replace `destination` by the figures, tables and claims of `drawn`, the records of `runs`, and their provenance.

    runs: rows of runs.tsv with `folder` and `seeds`. The verdict table of the
    readme, where one is given, is rewritten between its markers.
    """
    text = readme.read_text(encoding="utf-8") if readme else ""
    before, begin, rest = text.partition(BEGIN)
    if readme and not (begin and END in rest):
        raise ValueError(f"{readme}: has no lines {BEGIN!r} and {END!r} between which the verdicts belong")
    aside = destination.with_name(destination.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(drawn, aside)
    for run in runs:
        for seed in run["seeds"]:
            kept = aside / "runs" / run["run"] / f"seed-{seed}"
            kept.mkdir(parents=True)
            for name in RECORDS:
                shutil.copy(Path(run["folder"]) / f"seed-{seed}" / name, kept / name)
    (aside / "provenance.yaml").write_text(yaml.safe_dump(provenance(aside), sort_keys=False))
    shutil.rmtree(destination, ignore_errors=True)
    aside.rename(destination)
    if readme:
        table = verdict_table(destination / "claims.csv")
        readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def provenance(folder: Path) -> dict:
    """Where published numbers come from: commits, data, devices, versions, seeds; and each file's SHA-256."""
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/seed-*/done.json"))]
    facts = {
        key: sorted({str(d[key]) for d in done}) for key in ("commit", "data", "device", "precision", "ranks", "seed")
    }
    facts["versions"] = {name: sorted({d["versions"][name] for d in done}) for name in done[0]["versions"]}
    facts["training_seconds"] = round(sum(d["seconds"] for d in done))
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    facts["files"] = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return facts


def verdict_table(claims: Path) -> str:
    """Parts of all claims as a Markdown table: reported and measured difference, uncertainty, verdict."""
    lines = ["| claim | reported | measured | uncertainty | verdict |", "|---|---|---|---|---|"]
    with open(claims, newline="", encoding="utf-8") as file:
        for part in csv.DictReader(file):
            near = part["kind"] == "near"
            reported = four_digits(part["reported_left"]) if near else signed(part["reported_difference"])
            measured = four_digits(part["measured_left"]) if near else signed(part["difference"])
            name = f"{PAPERS[part['paper']]} {part['claim']}{part['part']}: {part['statement']}"
            reported, measured = (f"{n} {part['unit']}".strip() if n else "" for n in (reported, measured))
            lines.append(f"| {name} | {reported} | {measured} | {part['uncertainty']} | **{part['verdict']}** |")
    return "\n".join(lines)


def four_digits(number: str) -> str:
    """A number with four digits; empty (nothing was measured) stays empty."""
    return f"{float(number):.4g}" if number else ""


def signed(number: str) -> str:
    """A difference with its sign, four digits; empty stays empty."""
    return f"{float(number):+.4g}".replace("-", "−") if number else ""
