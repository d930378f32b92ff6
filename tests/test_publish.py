"""What is published redraws every table, figure and verdict, and is small."""

import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_results import REPORTED, ROOT, make_results, tables

from moe.claims import files_judged, judge, runs_judged
from moe.figures import draw, files_drawn, select
from moe.publish import WHOLE_STEPS, condensed, publish, published_seeds, verdict_table

SEEDS = (0, 1, 2)
CLAIMS = len({(row["paper"], row["claim"]) for row in tables().claims})


def draw_all(runs, results, drawn, endings=("csv", "md", "svg")):
    """Every table, figure and verdict; the endings that a figure or a table has."""
    for row in tables().figures:
        own = {"csv", "md", "tex"} if not row["figure"].startswith("fig") else {"csv", "svg", "png"}
        paths = [drawn / row["paper"] / f"{row['figure']}.{e}" for e in endings if e in own]
        draw(row, select(row["runs"], runs), scale="laptop", reported=REPORTED, results=results, outputs=paths)
    outputs = [drawn / "claims.csv", drawn / "claims.md"]
    judge(tables().claims, runs, scale="laptop", reported=REPORTED, outputs=outputs)


def files_read(runs, results):
    """All that is drawn and judged from, as workflow/rules/inputs.smk lists it."""
    asked = [(select(row["runs"], runs), files_drawn(row)) for row in tables().figures]
    asked += [(runs_judged([row], runs), files_judged(row)) for row in tables().claims]
    asked += [(runs, (["run.yaml", "done.json"], []))]
    files = {results / name for _, (_, of_scale) in asked for name in of_scale}
    for some, (of_seed, _) in asked:
        files |= {Path(run["folder"]) / f"seed-{seed}" / name for run in some for seed in SEEDS for name in of_seed}
    return sorted(files)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder of a workflow with drawn and published results of three seeds, rows of the runs)"""
    root = tmp_path_factory.mktemp("published")
    results, drawn = root / "results/laptop", root / "paper_figures/laptop"
    results.mkdir(parents=True)
    runs = make_results(results, seeds=SEEDS)
    draw_all(runs, results, drawn)
    publish(drawn, results, files_read(runs, results), root / "paper_figures/published/laptop", None)
    return root, runs


def same_but_for_the_last_digits(one: Path, other: Path):
    first, second = (pd.read_csv(path, keep_default_na=False) for path in (one, other))
    assert first.shape == second.shape and list(first) == list(second), one.name
    for column in first:
        a, b = (pd.to_numeric(frame[column], errors="coerce") for frame in (first, second))
        words = a.isna()
        assert first.loc[words, column].tolist() == second.loc[words, column].tolist(), (one.name, column)
        assert np.allclose(a[~words], b[~words], rtol=1e-4, atol=1e-5), (one.name, column)


def test_all_is_drawn_again_from_the_published_folder_alone(published, tmp_path):
    root, runs = published
    folder = tmp_path / "published"
    shutil.copytree(root / "paper_figures/published/laptop", folder)
    moved = [{**run, "folder": str(folder / "runs" / run["run"])} for run in runs]
    draw_all(moved, folder, tmp_path / "again", endings=("csv", "md"))
    before, again = root / "paper_figures/laptop", tmp_path / "again"
    for path in sorted(before.rglob("*.md")):
        if path.name != "claims.md":
            assert path.read_text() == (again / path.relative_to(before)).read_text(), path.name
    for path in sorted(before.glob("*/*.csv")):
        same_but_for_the_last_digits(path, again / path.relative_to(before))
    verdicts = [pd.read_csv(place / "claims.csv")["verdict"].tolist() for place in (before, again)]
    assert verdicts[0] == verdicts[1] and len(set(verdicts[0])) > 1


def test_provenance_names_seeds_and_every_file(published):
    folder = published[0] / "paper_figures/published/laptop"
    facts = yaml.safe_load((folder / "provenance.yaml").read_text())
    assert set(map(tuple, published_seeds(folder).values())) == {SEEDS}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"provenance.yaml"}
    assert set(facts["files"]) == there and "nine digits" in facts["condensed"]
    with pytest.raises(ValueError, match="holds nothing published; published scales: laptop"):
        published_seeds(folder.parent / "gpu")


def test_publishing_again_gives_the_same_bytes(published, tmp_path):
    root, runs = published
    results = root / "results/laptop"
    publish(root / "paper_figures/laptop", results, files_read(runs, results), tmp_path / "again", None)
    once = yaml.safe_load((root / "paper_figures/published/laptop/provenance.yaml").read_text())
    assert yaml.safe_load((tmp_path / "again/provenance.yaml").read_text()) == once


def test_long_trainings_are_thinned_after_their_first_steps(tmp_path):
    steps = np.arange(1, 60_001)
    frame = pd.DataFrame(
        {"step": steps, "loss": 1 / 3, "load_0": 1.0, "flip_rate": np.where(steps % 7000 == 0, 0.1, np.nan)}
    )
    frame.to_csv(tmp_path / "metrics.csv", index=False)
    packed = condensed(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv.xz").write_bytes(packed)
    kept = pd.read_csv(tmp_path / "metrics.csv.xz")
    assert kept["step"].iloc[:WHOLE_STEPS].tolist() == list(range(1, WHOLE_STEPS + 1))
    assert 5000 < len(kept) < 6100 and kept["step"].iloc[-1] == 60_000
    assert kept["flip_rate"].count() == 8 and list(kept) == ["step", "loss", "flip_rate"]
    assert set(kept["loss"]) == {0.333333333}
    assert condensed(tmp_path / "metrics.csv") == packed
    frame[:2000].to_csv(tmp_path / "metrics.csv", index=False)
    assert lzma.decompress(condensed(tmp_path / "metrics.csv")).count(b"\n") == 2001


def test_the_verdicts_go_between_the_markers_of_the_readme(published, tmp_path):
    root, readme = published[0], tmp_path / "README.md"
    drawn, results = root / "paper_figures/laptop", root / "results/laptop"
    files = [Path(published[1][0]["folder"]) / "seed-0/done.json"]
    readme.write_text("before\n<!-- verdicts: begin -->\nstale\n<!-- verdicts: end -->\nafter\n")
    publish(drawn, results, files, tmp_path / "out", readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert text.count("| **") == CLAIMS
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="has no lines"):
        publish(drawn, results, files, tmp_path / "out", readme)


def test_the_verdict_table_has_a_line_a_claim(published):
    lines = verdict_table(published[0] / "paper_figures/laptop/claims.csv").splitlines()
    assert len(lines) == 2 + CLAIMS
    assert lines[2].startswith("| ReMoE 1 | ReLU routing beats top-k routing of the same compute")
    assert "−0.015 → −0.015 nats/token" in lines[2]


PART = {"paper": "rmoe", "claim": "2", "says": "words", "kind": "less", "right": "run == 'x'", "unit": "%"}
PART |= {"reported_left": "5.0", "reported_difference": "-1.5", "measured_left": "1.30", "difference": "3.6"}
PART |= {"verdict": "holds", "overall": "holds", "seeds": "3"}


@pytest.mark.parametrize(
    ("change", "cell"),
    [
        ({}, "−1.5 → +3.6 %"),
        ({"kind": "greater", "right": "-2.3", "reported_left": "1.82"}, "1.82 → 1.3 %, against −2.3 %"),
        ({"right": "0", "reported_left": "", "reported_difference": ""}, "not printed → 1.3 %, against 0 %"),
        ({"kind": "near", "right": "reported"}, "5 → 1.3 %"),
        ({"kind": "spread", "right": "", "measured_left": "", "difference": ""}, "−1.5 → not measured"),
        ({"seeds": "1"}, "**holds** (one seed)"),
        ({"seeds": "0"}, "**holds** |"),
    ],
)
def test_a_line_of_the_verdict_table(change, cell, tmp_path):
    pd.DataFrame([PART | change]).to_csv(tmp_path / "claims.csv", index=False)
    line = verdict_table(tmp_path / "claims.csv").splitlines()[2]
    assert f"| {cell}" in line and ("one seed" in line) == (change.get("seeds") == "1")


def test_three_seeds_of_every_run_stay_small(published):
    folder = published[0] / "paper_figures/published/laptop"
    runs = sum(path.stat().st_size for path in (folder / "runs").rglob("*") if path.is_file())
    assert runs < 6e6  # of 300 steps; 2000 steps have 8 MB


@pytest.mark.slow
def test_snakemake_redraws_from_the_published_folder_and_trains_nothing(published, tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(published[0] / "paper_figures/published", tmp_path / "paper_figures/published")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "HF_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), "--cores", "2"]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), "figures", "--config", "results=published"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not (tmp_path / "results/laptop").exists() and not (tmp_path / "results/corpora").exists()
    again, before = tmp_path / "paper_figures/laptop", published[0] / "paper_figures/laptop"
    assert pd.read_csv(again / "claims.csv")["verdict"].equals(pd.read_csv(before / "claims.csv")["verdict"])
    assert (again / "remoe/table9.md").read_text() == (before / "remoe/table9.md").read_text()
    command[-1] = "scale=gpu"
    said = subprocess.run(
        [*command, "results=published"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "holds nothing published; published scales: laptop" in errors[0]
