"""The tables of RMoE's large runs: all printed numbers are shown, and what is picked or averaged is so by hand."""

import math
from pathlib import Path

import pandas as pd
import pytest
from made_results import REPORTED, make_results, tables, with_declared_files

from moe.claims.compare import compare
from moe.figures import draw, files_drawn, select
from moe.figures.metrics import METRICS
from moe.figures.records import records
from moe.figures.titles import called

ROWS = {row["figure"]: row for row in tables().figures if row["paper"] == "rmoe"}
PRINTED = ("table3", "table7", "table9", "table10", "table12")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make_results(folder), folder


def shown(figure, runs, results, folder, ending="csv"):
    path = folder / f"{figure}.{ending}"
    row = ROWS[figure]
    draw(row, select(row["runs"], runs), scale="laptop", reported=REPORTED, results=results, outputs=[path])
    return pd.read_csv(path, dtype=str, keep_default_na=False) if ending == "csv" else path.read_text()


@pytest.mark.parametrize("table", PRINTED)
def test_every_printed_number_stands_beside_a_cell(table, made, tmp_path):
    page = pd.read_csv(REPORTED / f"rmoe_{table}.csv", dtype=str, keep_default_na=False)
    drawn = shown(table, *made, tmp_path)
    drawn = drawn[drawn["printed"] == table.replace("table", "table ")]
    assert not drawn.duplicated(["row", "column"]).any()
    if table == "table3":  # prints seconds and memory once for both snapshots
        speeds = page["metric"].isin(["train_speed", "memory"])
        page = pd.concat([page, page[speeds]])
    assert sorted(map(float, drawn["reported"])) == sorted(map(float, page["value"]))


@pytest.mark.parametrize("table", ["table9", "table10"])
def test_the_points_of_the_largest_runs_are_those_of_the_paper(table, made, tmp_path):
    names = [name for name in shown(table, *made, tmp_path)["row"].unique()]
    points = {"table9": ("80B", "100B", "120B"), "table10": ("200B", "280B", "400B")}[table]
    assert names == [f"{point}, {label}" for point in points for label in ("SMoE", "SMoE-MLP", "RMoE")]
    assert "64 routed experts, 6 active, 2 shared" in shown(table, *made, tmp_path, "md")


def test_rows_of_fine_tuned_runs_say_what_was_frozen(made, tmp_path):
    names = list(shown("table12", *made, tmp_path)["row"].unique())
    assert len(names) == 5 * 2 + 25  # pretrained (the paper has no 40B row of the RNN) and fine-tuned
    assert "20B, RMoE, GRU, p = 128" in names and "40B, SMoE, fine-tuned, gate frozen" in names
    assert "20B, RMoE, RNN, p = 256, fine-tuned, router+rnn frozen" in names
    run = {"cell": "none", "state": None, "stage": "pretrain", "frozen": "none", "label": "SMoE"}
    assert called(["label", "cell", "state", "stage", "frozen"], run) == "SMoE"


def test_the_best_variant_is_shown_and_named(made, tmp_path):
    runs, folder = made
    table = shown("table7", runs, folder, tmp_path).set_index(["row", "column"])
    variants = [run for run in runs if run["base"] == "rmoe-900m-rmoe-p256" and run["at"] == "20B"]
    means = {r["frozen"]: METRICS["local_mean_accuracy"].read(*one(r), tasks=LOCAL) for r in variants}
    best = max(means, key=means.get)
    cell = float(table.loc[("RMoE, GRU, p = 256, fine-tuned", "local_mean_accuracy"), "measured"])
    assert len(means) == 3 and cell == pytest.approx(means[best])
    assert f"RMoE, GRU, p = 256, fine-tuned: {best}" in shown("table7", runs, folder, tmp_path, "md")
    assert len(table.index.get_level_values(0).unique()) == 10


LOCAL = ["local_best_ending/acc", "local_cloze/acc", "local_last_word/acc"]


def one(run):
    return records(run)[0], "20B"


def test_a_run_without_a_snapshot_that_is_asked_for_is_named(made, tmp_path):
    row = ROWS["table3"] | {"snapshots": "20B 60B"}
    with pytest.raises(ValueError, match="rmoe-900m-rmoe-p128 has no snapshot '60B', only 20B, 40B"):
        draw(row, select(row["runs"], made[0]), scale="x", reported=REPORTED, results=made[1], outputs=[])


def test_the_perplexity_is_the_mean_of_the_domains_perplexities(made):
    run = next(run for run in made[0] if run["run"] == "rmoe-15b-120b-rmoe")
    frame = pd.read_csv(Path(run["folder"]) / "seed-0/domain_losses.csv")
    frame = frame[frame["snapshot"] == "100B"]
    expected = sum(math.exp(rows["loss"].mean()) for _, rows in frame.groupby("domain")) / 4
    assert METRICS["domain_perplexity"].read(records(run)[0], "100B") == pytest.approx(expected)


def test_the_error_of_a_difference_of_perplexities_is_paired_over_windows(made):
    mine, other = ([r for r in made[0] if r["run"] == f"rmoe-15b-120b-{name}"][0] for name in ("rmoe", "smoe"))
    found = compare(mine, other, "domain_perplexity", "100B", set())
    left, right = (records(run)[0].read("domain_losses.csv") for run in (mine, other))
    variance = 0.0
    for domain in left["domain"].unique():
        losses = [f[(f["snapshot"] == "100B") & (f["domain"] == domain)]["loss"].to_numpy() for f in (left, right)]
        difference = math.exp(losses[0].mean()) * losses[0] - math.exp(losses[1].mean()) * losses[1]
        variance += difference.var(ddof=1) / len(difference)
    assert found.half == pytest.approx(1.959963984540054 * math.sqrt(variance) / 4)
    assert found.difference < 0


def test_benchmarks_without_data_leave_their_columns_empty(made, tmp_path):
    table = shown("table9", *made, tmp_path)
    for column in ("hellaswag", "mmlu", "gsm8k"):
        assert (table[table["column"] == column]["measured"] == "").all()
    assert (table[table["column"] == "domain_perplexity"]["measured"] != "").all()
    markdown = shown("table9", *made, tmp_path, "md")
    assert "not run here (no data or no time): hellaswag, mmlu, gsm8k." in markdown
    assert "The mean is left empty" not in markdown, "table 9 has none"


@pytest.mark.parametrize("figure", PRINTED)
def test_a_table_reads_no_other_files_than_it_declares(figure, made, tmp_path):
    assert not files_drawn(ROWS[figure])[1]
    chosen = with_declared_files(ROWS[figure], *made, tmp_path)
    outputs = [tmp_path / "a.csv"]
    draw(ROWS[figure], chosen, scale="laptop", reported=REPORTED, results=tmp_path, outputs=outputs)
    shown(figure, *made, tmp_path)
    assert outputs[0].read_text() == (tmp_path / f"{figure}.csv").read_text()
