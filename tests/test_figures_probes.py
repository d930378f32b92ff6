"""RMoE's figures, tables and claims of what its routers do: printed numbers are shown, ours computed by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_probes import UNEVEN
from made_results import REPORTED, ROOT, make_results, tables, with_declared_files
from test_training import corpus, trained  # noqa: F401 (a fixture)

from moe import probe
from moe.claims import judge
from moe.describe import recurrent_example
from moe.figures import draw, files_drawn, select
from moe.figures.metrics import METRICS
from moe.figures.records import records
from moe.tables import Tables

PROBES = ["table8", "table11", "fig1", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "fig10", "fig11"]
PROBES += ["fig12", "fig13"]
ROWS = {row["figure"]: row for row in tables().figures if row["paper"] == "rmoe" and row["figure"] in PROBES}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make_results(folder, seeds=(0, 1, 2), paper="rmoe"), folder


def drawn(figure, made, folder, ending="csv"):
    runs, results = made
    row, path = ROWS[figure], folder / f"{figure}.{ending}"
    draw(row, select(row["runs"], runs), scale="laptop", reported=REPORTED, results=results, outputs=[path])
    return pd.read_csv(path, keep_default_na=False, na_values=[""]) if ending == "csv" else path


def record_of(made, name, seed=0):
    return records(next(run for run in made[0] if run["run"] == name))[seed]


def test_every_table_and_figure_of_the_probes_has_a_row():
    assert sorted(ROWS) == sorted(PROBES)


@pytest.mark.parametrize("table", ["table8", "table11"])
def test_every_printed_number_stands_beside_a_cell(table, made, tmp_path):
    page = pd.read_csv(REPORTED / f"rmoe_{table}.csv", dtype=str, keep_default_na=False)
    shown = drawn(table, made, tmp_path).dropna(subset="reported")
    assert sorted(shown["reported"]) == sorted(page["value"].astype(float))
    assert not shown.duplicated(["row", "column"]).any()
    ours = shown["measured"].astype(float)
    close = shown["column"] != "router_gradient_lb"  # a difference of printed numbers, of which one is off by 0.001
    assert np.allclose(ours[close], shown["reported"].astype(float)[close], rtol=0.02)
    assert np.allclose(ours, shown["reported"].astype(float), rtol=0.02, atol=0.0025)


def test_rows_of_table_11_name_the_papers_steps_and_ours(made, tmp_path):
    table = drawn("table11", made, tmp_path).set_index(["row", "column"])["measured"]
    assert {row for row, _ in table.index} == {
        f"{name}, {step} steps"
        for name in ("SMoE", "RMoE")
        for step in ("100", "10k", "20k", "30k", "40k", "50k", "60k")
    }
    training = tables().spec("rmoe-15b-120b-smoe")["training"]
    assert float(table["SMoE, 60k steps", "last_here"]) == training["steps"]
    assert float(table["SMoE, 100 steps", "last_here"]) == training["gradient_steps"] == 20
    markdown = drawn("table11", made, tmp_path, "md").read_text()
    assert "100 steps: 1 to 20; 10k steps: 31 to 50;" in markdown and "60k steps: 281 to 300." in markdown
    assert "35.6" in markdown and float(table["SMoE, 10k steps", "first_here"]) == 31
    row, path = ROWS["table11"], tmp_path / "paper.md"
    runs = select(row["runs"], made[0])
    draw(row, runs, scale="paper", reported=REPORTED, results=made[1], outputs=[path])
    assert "the same share of this schedule" in path.read_text(), "at every scale"


@pytest.mark.parametrize("figure", ["fig3", "fig6"])
def test_every_printed_pair_of_layers_is_shown(figure, made, tmp_path):
    page = pd.read_csv(REPORTED / f"rmoe_{figure}.csv")
    data = drawn(figure, made, tmp_path)
    assert sorted(data["reported"].dropna()) == sorted(page["value"])
    assert np.allclose(data["measured"], data["reported"], rtol=0.02) and set(data["seeds"]) == {3}
    assert (data["layer_i"] > data["layer_j"]).all()


def test_printed_pairs_are_shown_beside_a_model_with_fewer_layers(made, tmp_path):
    runs = [dict(run) for run in select(ROWS["fig6"]["runs"], made[0])]
    for run in runs:
        place = tmp_path / run["run"] / "seed-0"
        place.mkdir(parents=True)
        for name in files_drawn(ROWS["fig6"])[0]:
            frame = pd.read_csv(Path(run["folder"]) / "seed-0" / name)
            (frame[frame["layer_i"] < 3] if "layer_i" in frame else frame).to_csv(place / name, index=False)
        run["folder"] = str(place.parent)
    path = tmp_path / "six.csv"
    options = dict(scale="laptop", reported=REPORTED, results=tmp_path)
    draw(ROWS["fig6"], runs, outputs=[path, tmp_path / "six.svg"], **options)
    data = pd.read_csv(path)
    assert data["measured"].count() == 2 * 3 and data["reported"].count() == 2 * 28


def test_violins_have_the_histogram_of_all_layers_and_quantiles_by_layer(made, tmp_path):
    data = drawn("fig9", made, tmp_path)
    smoe = data[data["run"] == "rmoe-enwik8-medium-smoe"]
    assert smoe["share"].dropna().tolist() == [0.25, 0.75]
    assert smoe.loc[smoe["median"].notna(), "layer"].tolist() == [*map(str, range(8)), "all"]
    assert data["interval"].dropna().gt(0).all()
    names = drawn("fig10", made, tmp_path)["line"].unique().tolist()
    assert names == [f"{name}, dimension {d}" for d in (16, 8, 32) for name in ("XMoE",)] + [
        f"XMoE + GRU, dimension {d}" for d in (8, 16, 32)
    ]


def test_similarity_over_training_is_measured_at_every_tenth(made, tmp_path):
    data = drawn("fig5", made, tmp_path)
    steps = tables().spec("rmoe-900m-smoe")["training"]["steps"]
    assert sorted(set(data["step"])) == [steps * tenth // 10 for tenth in range(1, 11)]
    assert set(data["layer"]) == {0, 1, 2, 3} and set(data["seeds"]) == {3}
    record = record_of(made, "rmoe-900m-smoe")
    own = pd.read_csv(record.folder / "metrics.csv").set_index("step").filter(like="similarity").mean(axis=1)
    assert METRICS["similarity_at_30"].read(record, "") == pytest.approx(own[round(0.3 * steps)])
    expected = own[round(0.5 * steps)] - own[steps]
    assert METRICS["similarity_fall"].read(record, "") == pytest.approx(expected)


def test_weights_by_layer_stand_beside_those_before_the_first_step(made, tmp_path):
    data = drawn("fig11", made, tmp_path)
    assert data["size"].unique().tolist() == ["depth 12", "depth 18", "depth 24", "depth 32"]
    smoe = data[data["label"] == "SMoE"]
    assert np.allclose(smoe["norm"], 3, rtol=0.03) and np.allclose(smoe["std"], 0.3, rtol=0.03)
    assert set(data["initial_norm"]) == {1.0} and set(data["initial_std"]) == {0.1}
    alike = drawn("fig13", made, tmp_path).groupby("label")["similarity"].mean()
    assert alike.idxmax() == "RandomSMoE" and alike.idxmin() == "XMoE"


def test_frequencies_of_a_layer_add_up_to_one(made, tmp_path):
    data = drawn("fig12", made, tmp_path)
    assert np.allclose(data.groupby(["run", "seed", "layer"])["share"].sum(), 1)
    value = METRICS["selection_unevenness"].read(record_of(made, "rmoe-enwik8-medium-hypermoe"), "")
    assert value == pytest.approx(100 * UNEVEN["hypermoe"] / 2**0.5, rel=0.01)  # of a cosine


def test_the_diagram_is_what_the_router_does(made, tmp_path):
    frame = drawn("fig1", made, tmp_path)
    assert recurrent_example() == recurrent_example()
    values = {key: part["value"].to_numpy() for key, part in frame.groupby(["layer", "part"])}
    for layer in range(3):
        assert values[layer, "score"].sum() == pytest.approx(1) and values[layer, "weight"].sum() == pytest.approx(1)
        assert (values[layer, "weight"] > 0).sum() == 2
        handed = values[layer - 1, "state"] if layer else np.zeros(5)
        assert values[layer, "memory"] == pytest.approx(handed)
    assert drawn("fig1", made, tmp_path, "svg").stat().st_size > 1000


@pytest.mark.parametrize("figure", [name for name in PROBES if name.startswith("fig")])
def test_each_figure_draws(figure, made, tmp_path):
    assert drawn(figure, made, tmp_path, "svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("figure", PROBES)
def test_a_figure_reads_no_other_files_than_it_declares(figure, made, tmp_path):
    runs, folder = made
    chosen = with_declared_files(ROWS[figure], runs, folder, tmp_path / "results", seeds=(0, 1, 2))
    options = dict(scale="laptop", reported=REPORTED, results=tmp_path / "results", outputs=[tmp_path / "a.csv"])
    draw(ROWS[figure], chosen, **options)
    drawn(figure, made, tmp_path)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / f"{figure}.csv").read_text()


def test_the_papers_own_numbers_support_its_claims(made, tmp_path):
    """What it prints as printed, the rest made up as its text has it: a wrong sign or a wrong pair would show."""
    claims = [row for row in tables().claims if row["paper"] == "rmoe" and row["claim"] in ("10", "11", "12", "12b")]
    judge(claims, made[0], scale="laptop", reported=REPORTED, outputs=[tmp_path / "claims.csv", tmp_path / "claims.md"])
    table = pd.read_csv(tmp_path / "claims.csv", keep_default_na=False)
    assert len(table) == len(claims) > 80
    lost = table.loc[table["verdict"] != "holds", ["statement", "verdict"]].to_numpy().tolist()
    assert lost == []
    shown = table[table["reported_difference"] != ""]
    assert set(shown["metric"].str.partition("_at_")[0]) == {
        "mutual_information",
        "distant_information",
        "inner_balance",
        "outer_balance",
        "router_gradient",
        "drop_ratio",
    }
    page = pd.read_csv(REPORTED / "rmoe_fig3.csv").groupby("router")["value"].mean()
    first = shown[shown["metric"] == "mutual_information"].iloc[0]
    assert float(first["reported_left"]) == pytest.approx(page["RMoE"], abs=1e-3)
    assert float(first["reported_right"]) == pytest.approx(page["RMoE-NP"], abs=1e-3)


@pytest.fixture(scope="module")
def smoke(corpus, tmp_path_factory):  # noqa: F811
    """Four runs as scale smoke trains and probes them: the large ones with their monitors on, two small ones."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    own = Tables(config | {"tables": str(ROOT / "config"), "scale": "smoke"}, ROOT / "workflow/schemas")
    results, runs = tmp_path_factory.mktemp("smoke"), []
    for name in (
        "rmoe-900m-rmoe-p128",
        "rmoe-15b-120b-rmoe",
        "rmoe-enwik8-medium-rmoe",
        "rmoe-enwik8-medium-cosine-moe",
    ):
        folder = results / "runs" / name / "seed-0"
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_text(yaml.safe_dump(own.spec(name)))
        trained(folder, corpus)
        assert probe.main([str(folder), str(corpus), "--output", str(folder)]) == 0
        pd.DataFrame({"snapshot": ["last"], "step": [1]}).to_csv(folder / "validation.csv", index=False)
        runs.append(own.runs[name] | {"folder": str(folder.parent)})
    return runs, results


def of_smoke(figure, names, smoke, folder):
    runs, results = smoke
    chosen = [run for run in runs if run["run"] in names]
    options = dict(scale="smoke", reported=REPORTED, results=results)
    draw(
        ROWS[figure], chosen, outputs=[folder / "a.csv", folder / ("a.md" if "table" in figure else "a.svg")], **options
    )
    return pd.read_csv(folder / "a.csv")


@pytest.mark.slow
def test_a_training_at_scale_smoke_is_watched_and_probed(smoke, tmp_path):
    table = of_smoke("table11", ["rmoe-15b-120b-rmoe"], smoke, tmp_path).set_index(["row", "column"])
    measured = table["measured"].unstack()
    assert len(measured) == 7 and (measured[["router_gradient", "router_gradient_lm"]] > 0).all(axis=None)
    assert measured["drop_ratio"].between(0, 100).all() and set(measured["steps_here"]) == {2}
    assert (measured["router_gradient"] != measured["router_gradient_lm"]).all()
    data = of_smoke("fig5", ["rmoe-900m-rmoe-p128"], smoke, tmp_path)
    assert len(set(data["step"])) == 10 and data["similarity"].between(0.05, 3).all()
    small = ["rmoe-enwik8-medium-rmoe", "rmoe-enwik8-medium-cosine-moe"]
    for figure in ("fig6", "fig12", "fig8"):
        assert set(of_smoke(figure, small, smoke, tmp_path)["run"]) == set(small)
    for name in small:
        folder = smoke[1] / "runs" / name / "seed-0"
        start, end = (pd.read_csv(folder / "weights.csv")[column] for column in ("initial_norm", "norm"))
        assert (start > 0).all() and not np.allclose(start, end)  # training moved the map to the scores
        sizes = [(folder / file).stat().st_size for file in ("score_statistics.csv", "score_entropy.csv")]
        sizes += [(folder / file).stat().st_size for file in ("mutual_information.csv", "weights.csv")]
        assert sum(sizes) < 20_000
