"""Every table and figure of ReMoE: all printed numbers are shown, and ours are those computed by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import REPORTED, make_results, make_run, remoe, rows, tables, with_declared_files

from moe.figures import KINDS, draw, select
from moe.figures.listing import code
from moe.figures.metrics import METRICS
from moe.figures.records import records
from moe.figures.routing_metrics import domain_shares, expert_shares
from moe.figures.shares import within_shares
from moe.figures.style import Picture
from moe.figures.titles import called
from moe.routers import options_of
from moe.run_columns import SHOWN_OPTIONS, shown_options

ROWS = {row["figure"]: row for row in tables().figures if row["paper"] == "remoe"}
PRINTED = [f"table{n}" for n in range(1, 16)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make_results(folder, benchmarks=True), folder


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeded")
    return make_results(folder, seeds=(0, 1, 2)), folder


def csv(figure, runs, results, folder, **options):
    path = folder / f"{figure}.csv"
    row = ROWS[figure]
    draw(row, select(row["runs"], runs), scale="laptop", reported=REPORTED, results=results, outputs=[path])
    return pd.read_csv(path, **options)


def test_every_table_and_figure_of_the_paper_has_a_row():
    figures = ["fig1", "fig2", "fig3", "fig4", "fig5", "fig6a", "fig6b", "fig6c", "fig7", "fig8a", "fig8b", "fig8c"]
    figures += ["fig8d", "fig9", "fig10", "fig11", "fig12", "fig13"]
    assert set(ROWS) == {*PRINTED, *figures, "extra-crossing"}
    assert {row["kind"] for row in tables().figures} <= set(KINDS)


@pytest.mark.parametrize("table", PRINTED)
def test_every_printed_number_stands_beside_a_cell(table, made, tmp_path):
    page = pd.read_csv(REPORTED / f"remoe_{table}.csv", dtype=str, keep_default_na=False)
    drawn = csv(table, *made, tmp_path, dtype=str, keep_default_na=False)
    if table == "table12":
        assert drawn.loc[drawn["reported"] != "", "reported"].tolist() == page["value"].tolist()
        assert drawn.loc[drawn["reported"] != "", "reported_token"].tolist() == page["token"].tolist()
        return
    shown = drawn[drawn["printed"] == table.replace("table", "table ")]
    assert sorted(shown["reported"]) == sorted(page["value"])
    assert not shown.duplicated(["row", "column"]).any()


def test_every_loss_of_figure_6_is_shown(made, tmp_path):
    page = pd.read_csv(REPORTED / "remoe_fig6.csv")
    for part in "abc":
        drawn = csv(f"fig6{part}", *made, tmp_path)
        printed = page[page["figure"] == f"6{part}"]
        assert sorted(drawn["reported"]) == sorted(printed["value"])
        assert np.allclose(drawn["measured"], drawn["reported"])  # the made-up results are the printed ones


def test_losses_at_the_change_of_the_warm_up_are_those_printed(made, tmp_path):
    table = csv("table15", *made, tmp_path).set_index(["row", "column"])
    row = "MoE with warmup, 500 steps of warm-up"
    assert table.loc[(row, "loss_before"), "reported"] == 3.101
    assert table.loc[(row, "loss_after"), "reported"] == 5.827
    assert table.loc[(row, "own_warmup_steps"), "measured"] == 500 // tables().scale["divide"]["warmup_steps"]
    metrics = pd.read_csv(made[1] / "runs/remoe-182m-topk-warmup-500/seed-0/metrics.csv").set_index("step")["loss"]
    assert table.loc[(row, "loss_before"), "measured"] == metrics[125]
    assert table.loc[(row, "loss_after"), "measured"] == metrics[126]


def test_the_computation_of_matched_compute_stands_in_the_csv(made, tmp_path):
    for name in ("table8", "table9", "table10", "table13", "table14"):
        table = csv(name, *made, tmp_path)
        matched = table[table["column"].isin(["extra_steps", "matched_flops", "flops_a_step"])].dropna(
            subset="measured"
        )
        assert set(matched["column"]) == {"extra_steps", "matched_flops", "flops_a_step"}
        assert matched["row"].str.contains("MoE").all() and not matched["row"].str.contains("ReMoE|warm").any()


def test_hours_are_counted_over_the_stages_of_the_relu_run(seeded, tmp_path):
    runs, folder = seeded
    table = csv("table6", runs, folder, tmp_path).set_index(["row", "column"])["measured"]
    for seed in range(3):
        sparsity = pd.read_csv(folder / f"runs/remoe-469m-120b-relu/seed-{seed}/metrics.csv")["sparsity"]
        assert (sparsity[:105] < 0.875).all()  # stage III begins after 105 steps
    first = table["ReMoE", "steps of I"]
    assert table["ReMoE", "I"] == pytest.approx(first * 0.2 / 3600)
    assert table["MoE", "I"] == pytest.approx(first * 0.1 / 3600)
    for row in ("MoE", "ReMoE"):
        assert sum(table[row, f"steps of {s}"] for s in ("I", "II", "III")) == 300
        assert sum(table[row, s] for s in ("I", "II", "III")) == pytest.approx(table[row, "total"])
    early = table["ReMoE", "steps of I"] + table["ReMoE", "steps of II"]
    seconds = early * 0.2
    assert table["ReMoE", "early_time"] == pytest.approx(100 * seconds / (seconds + (28_600 - early) * 0.1), rel=1e-3)


def test_speeds_are_shown_where_they_were_measured(made, tmp_path):
    runs, folder = made
    table = csv("table7", runs, folder, tmp_path).set_index(["row", "column"])
    cell = table.loc[("469M, tensor parallel 1", "training difference")]
    assert (cell["reported"], cell["measured"], float(cell["interval"])) == (-1.37, 1.0, 1.5)
    assert cell["note"].endswith("95 % interval -0.50 to 2.50")
    assert table.loc["978M, tensor parallel 4", "measured"].isna().all()
    without = csv("table7", runs, tmp_path, tmp_path)
    assert without["measured"].isna().all() and without["reported"].notna().all()


def test_tokens_of_a_middle_layer_stand_beside_the_papers(made, tmp_path):
    table = csv("table12", *made, tmp_path, keep_default_na=False)
    assert set(table["layer"]) == {1} and len(table) == 8 * 8
    assert table.loc[4, ["reported_token", "text", "share"]].tolist() == ["NULL", " w4", 96.0]
    assert code("a|`b\n") == r"`` a\|`b\n ``" and code(" x") == "`␣x`"
    assert code("\n  x") == r"`\n␣␣x`"


def test_flip_count_is_experts_times_flip_rate_and_leaves_out_the_start(made, tmp_path):
    runs, folder = made
    data = csv("fig10", runs, folder, tmp_path)
    assert set(data["experts"]) == {8, 16, 32} and data["run"].nunique() == 6
    assert np.allclose(data["flip_count"], data["experts"] * data["flip_rate"], rtol=1e-4)
    record = records(next(run for run in runs if run["run"] == "remoe-182m-10b-relu-e16"))[0]
    series = record.steps().set_index("step")["flip_rate"].dropna()
    assert METRICS["flip_count"].read(record, "10B") == pytest.approx(16 * series[series.index > 60].mean())


def test_wide_intervals_stay_on_the_logarithmic_axis(seeded, tmp_path, monkeypatch):
    runs, folder = seeded
    row, drawn = ROWS["fig10"], []
    monkeypatch.setattr("moe.figures.flips.mean_interval", lambda values: (float(np.mean(list(values))), 1.0))
    monkeypatch.setattr(Picture, "write", lambda self, path: drawn.append(self))
    options = {"scale": "laptop", "reported": REPORTED, "results": folder, "outputs": [tmp_path / "fig10.svg"]}
    draw(row, select(row["runs"], runs), **options)
    for axis, column in zip(drawn[0].figure.axes, ("flip_rate", "flip_count"), strict=True):
        least, factor = drawn[0].data[column].min(), 1 + 1 / drawn[0].data["flip_rate"].min()
        shades = [path.vertices[:, 1].min() for shade in axis.collections for path in shade.get_paths()]
        assert shades and min(shades) == pytest.approx(least / factor), "not down to zero or below it"


def test_bars_of_a_share_end_at_zero_and_one():
    each = pd.DataFrame({"sparsity": [0.9, 0.05, 0.5], "interval": [0.2, 0.1, 0.1]})
    assert np.allclose(within_shares(each), [[0.2, 0.05, 0.1], [0.1, 0.1, 0.1]])
    assert within_shares(each.assign(interval=None)) is None, "one seed"


def test_a_run_too_short_to_have_flips_measured_is_named(tmp_path):
    runs = make_results(tmp_path, steps=8)
    path = tmp_path / "fig10.svg"
    row = ROWS["fig10"]
    made = draw(row, select(row["runs"], runs), scale="smoke", reported=REPORTED, results=tmp_path, outputs=[path])
    assert made is None and path.stat().st_size > 1000
    assert csv("fig10", runs, tmp_path, tmp_path).empty


def test_shares_by_hand(tmp_path):
    """Two layers, two domains of 100 and 300 tokens, two experts."""
    run = make_run(tmp_path, remoe("relu", "ReMoE"))
    counts = {(0, "a"): (50, 50), (0, "b"): (150, 150), (1, "a"): (90, 10), (1, "b"): (3, 597)}
    lines = [
        (layer, domain, expert, routed, 0.0, {"a": 100, "b": 300}[domain])
        for (layer, domain), both in counts.items()
        for expert, routed in enumerate(both)
    ]
    columns = ["layer", "domain", "expert", "routed", "gate", "tokens"]
    place = Path(run["folder"]) / "seed-0"
    pd.DataFrame(lines, columns=columns).to_csv(place / "routing.csv", index=False)
    record = records(run)[0]
    assert expert_shares(record).to_numpy().tolist() == [[0.5, 0.5], [93 / 400, 607 / 400]]
    assert domain_shares(record).loc[1].to_numpy().tolist() == [[0.9, 0.01], [0.1, 1.99]]
    variance = np.mean([0, 0, np.var([0.9, 0.01]), np.var([0.1, 1.99])])
    assert METRICS["domain_variance"].read(record, "") == pytest.approx(1000 * variance)
    assert METRICS["idle_experts"].read(record, "") == 0
    assert METRICS["layer_unevenness"].read(record, "") == pytest.approx(np.std([0.5, 1 - 700 / 800]))
    assert METRICS["domain_spread_with_depth"].read(record, "") == pytest.approx(np.std([1.0, 2.0]))
    draw(ROWS["fig8c"], [run], scale="smoke", reported=REPORTED, results=tmp_path, outputs=[tmp_path / "c.csv"])
    assert pd.read_csv(tmp_path / "c.csv")["share"].tolist() == pytest.approx([0.5, 0.5, 93 / 400, 607 / 400])
    draw(ROWS["fig12"], [run], scale="smoke", reported=REPORTED, results=tmp_path, outputs=[tmp_path / "d.csv"])
    assert pd.read_csv(tmp_path / "d.csv")["active"].tolist() == pytest.approx([1.0, 1.0, 1.0, 2.0])


def test_the_rank_correlation_is_scipys(tmp_path):
    from scipy.stats import spearmanr

    run = make_run(tmp_path, remoe("relu", "ReMoE"))
    record = records(run)[0]
    activity = record.read("token_activity.csv")
    expected = spearmanr(activity["occurrences"], activity["active"]).statistic
    assert METRICS["rank_correlation"].read(record, "") == pytest.approx(expected) and expected < -0.9


def test_curves_have_a_few_hundred_points_with_their_interval(seeded, tmp_path):
    runs, folder = seeded
    data = csv("fig5", runs, folder, tmp_path)
    assert data.groupby("run").size().max() <= 400 and set(data["seeds"]) == {3}
    each = [pd.read_csv(folder / f"runs/remoe-182m-hash/seed-{s}/metrics.csv")["loss"] for s in range(3)]
    last = np.mean([series.iloc[-6:].mean() for series in each])  # 2 % of 300 steps
    assert data[data["run"] == "remoe-182m-hash"]["mean"].iloc[-1] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("figure", list(ROWS))
def test_a_figure_reads_no_other_files_than_it_declares(figure, made, tmp_path):
    runs, folder = made
    chosen = with_declared_files(ROWS[figure], runs, folder, tmp_path / "results")
    draw(
        ROWS[figure],
        chosen,
        scale="laptop",
        reported=REPORTED,
        results=tmp_path / "results",
        outputs=[tmp_path / "a.csv"],
    )
    assert (tmp_path / "a.csv").read_text() == csv_text(figure, made, tmp_path)


def csv_text(figure, made, folder):
    csv(figure, *made, folder)
    return (folder / f"{figure}.csv").read_text()


def test_options_shown_are_those_of_the_routers():
    for router, options in SHOWN_OPTIONS.items():
        known = options_of(router)
        assert {name: known[name] for name in options} == options
    assert shown_options("topk", {"balance": 0.0})["balanced"] == "no"
    assert shown_options("relu", {"alpha": 1.5}) == {
        "lambda_0": 1e-8,
        "alpha": 1.5,
        "warmup_steps": None,
        "reduced": None,
        "balanced": "yes",
    }
    assert set(shown_options("hash", {}).values()) == {None, ""}
    assert {run["balanced"] for run in rows()} == {"yes", "no", ""}


def test_names_of_rows_say_what_differs():
    run = {"label": "ReMoE", "router": "relu", "experts": 8, "lambda_0": 1e-8, "alpha": 1.05, "balanced": "no"}
    assert called(["label", "experts", "lambda_0", "alpha"], run) == "ReMoE, E = 8, λ₀ = 1e-8, α = 1.05"
    assert called(["label", "experts"], {**run, "router": "none", "label": "Dense"}) == "Dense"
    assert called(["label", "balanced"], run) == "ReMoE, without balancing"


def test_both_routings_of_figure_1_have_the_same_scores():
    from moe.describe import routing_example

    frame = pd.DataFrame(routing_example())
    assert np.allclose(frame["relu"], frame["score"].clip(lower=0))
    for _, token in frame.groupby("token"):
        soft = np.exp(token["score"]) / np.exp(token["score"]).sum()
        assert (token["topk"] > 0).sum() == 1 and token["topk"].max() == pytest.approx(soft.max())
    assert routing_example() == routing_example()
