"""Laws of tables and figures, on fabricated results."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_results import make_results, make_run, remoe
from scipy import stats

from moe.figures import KINDS, draw, select
from moe.figures.intervals import mean_interval, paired_error
from moe.figures.layout import latex, signed
from moe.figures.metrics import METRICS
from moe.figures.reported import attributes, find, load, parse_match, same
from moe.figures.stages import settling_steps, stage_bounds
from moe.figures.style import Picture
from moe.figures.texts import STREAMS, scored_parts, stand_ins
from moe.figures.titles import headline, seeds_sentence

ROOT = Path(__file__).parent.parent
REPORTED = ROOT / "config/reported"
FIGURES = pd.read_csv(ROOT / "config/figures.tsv", sep="\t", dtype=str, keep_default_na=False)
ROWS = {f"{row['paper']}/{row['figure']}": row for row in FIGURES.to_dict("records")}
TABLES = [name for name in ROWS if "/table" in name]
PICTURES = [name for name in ROWS if "/fig" in name]
numbers = st.floats(-1e3, 1e3)


NOT_MEASURED = ("remoe/table12",)  # shares of other tokens


def drawn(name, runs, results, folder, suffixes, scale="laptop"):
    """Draw one row; returns the paths, by suffix."""
    row = ROWS[name] if isinstance(name, str) else name
    paths = {s: folder / row["paper"] / f"{row['figure']}.{s}" for s in suffixes.split()}
    chosen = select(row["runs"], runs)
    draw(row, chosen, scale=scale, reported=REPORTED, results=results, outputs=list(paths.values()))
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One seed of each run of the slice: (rows of the runs, folder)."""
    folder = tmp_path_factory.mktemp("one")
    return make_results(folder), folder


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """Three seeds of each run."""
    folder = tmp_path_factory.mktemp("three")
    return make_results(folder, seeds=(0, 1, 2)), folder


def cells(paths):
    return pd.read_csv(paths["csv"], dtype={"interval": str, "printed": str}).set_index(["row", "column"])


# --- intervals ---


@given(st.lists(numbers, min_size=2, max_size=8))
def test_interval_is_scipys_t_interval(values):
    mean, half = mean_interval(values)
    error = stats.sem(values)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert mean - half == pytest.approx(low, rel=1e-6, abs=1e-6)
        assert mean + half == pytest.approx(high, rel=1e-6, abs=1e-6)


@given(st.lists(numbers, min_size=2, max_size=8), numbers)
def test_a_constant_shift_moves_the_mean_and_not_the_interval(values, shift):
    mean, half = mean_interval(values)
    moved, same_half = mean_interval([v + shift for v in values])
    assert moved == pytest.approx(mean + shift, abs=1e-6)
    assert same_half == pytest.approx(half, abs=1e-6)


def test_one_value_has_no_interval():
    assert mean_interval([3.0]) == (3.0, None)


def test_paired_error_of_one_task_is_the_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    assert paired_error([values]) == pytest.approx(stats.sem(values))
    assert paired_error([values, [1.0]]) is None
    assert paired_error([values, values]) == pytest.approx(stats.sem(values) / np.sqrt(2))


# --- stages and settling time ---


def test_settling_time_is_the_first_crossing_that_stays():
    rise = np.concatenate([np.linspace(0.4, 0.87, 110), np.full(200, 0.875)])
    assert settling_steps(rise, 0.875) == 110


def test_an_overshoot_counts_until_the_series_comes_back():
    # lambda_0 = 1: above the target from step 8 on, back at step 92, which the paper counts
    S = np.concatenate([np.linspace(0.5, 0.86, 8), np.full(84, 0.99), np.full(200, 0.874)])
    assert settling_steps(S, 0.875) == 92


def test_an_oscillation_around_the_target_settles():
    t = np.arange(400)
    S = np.where(t < 60, 0.5, 0.875 + 0.05 * np.sin(t))
    assert settling_steps(S, 0.875) in range(58, 66)


@pytest.mark.parametrize(
    "series",
    [np.full(300, 0.5), np.linspace(0.4, 0.9, 40), np.r_[np.full(99, 0.5), np.full(99, 0.99)]],
    ids=["stays dense", "shorter than the window", "stays too sparse"],
)
def test_what_never_settles_has_no_settling_time(series):
    assert settling_steps(series, 0.875) is None


@given(st.integers(1, 80), st.integers(1, 80))
def test_stages_are_in_order_and_cut_at_a_half(first, second):
    S = np.r_[np.full(first, 0.4), np.full(second, 0.7), np.full(100, 0.876)]
    assert stage_bounds(S, 0.875) == (first, first + second)


# --- reported numbers ---


def test_printed_numbers_are_matched_by_columns():
    pages = load(REPORTED, ["remoe_table8"])
    match = parse_match("{router: router, size: size, experts: experts, tokens: snapshot}")
    relu = find(pages, match, attributes(remoe("relu", "ReMoE"), "30B"), "average")
    dense = find(pages, match, attributes(remoe("none", "Dense", 1), "30B"), "average")
    assert (relu.text, relu.where, dense.text) == ("40.03", "table 8", "38.20")
    assert find(pages, match, attributes(remoe("relu", "ReMoE"), "10B"), "average") is None


@pytest.mark.parametrize(
    ("stem", "match", "change", "metric", "printed"),
    [
        ("remoe_table9", "{router: router, experts: experts}", {"experts": 32}, "average", "41.58"),
        (
            "remoe_table10",
            "{router: router, granularity: granularity}",
            {"granularity": 64},
            "average",
            "41.69",
        ),
        (
            "remoe_table3",
            "{lambda0: lambda_0}",
            {"lambda_0": 1e-16},
            "settling_time",
            "138",
        ),
        (
            "rmoe_table6",
            "{router: label, cell: cell, split: =test, dataset: =enwik8}",
            {},
            "bpc",
            None,
        ),
        (
            "rmoe_table4",
            "{router: label, size: =medium, split: =test}",
            {"label": "RMoE"},
            "bpc",
            "1.116",
        ),
    ],
)
def test_later_tables_need_rows_only(stem, match, change, metric, printed):
    values = attributes({**remoe("relu", "ReMoE"), **change})
    found = find(load(REPORTED, [stem]), parse_match(match), values, metric)
    assert (found and found.text) == printed


def test_a_match_that_fits_several_numbers_is_refused():
    pages = load(REPORTED, ["remoe_table8"])
    with pytest.raises(ValueError, match="several printed numbers"):
        find(pages, {"router": "router"}, attributes(remoe("relu", "ReMoE")), "average")


def test_the_readme_of_the_reported_numbers_counts_every_file():
    readme = (REPORTED / "README.md").read_text()
    for path in REPORTED.glob("*.csv"):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        noted = (rows["note"] != "").sum()
        assert f"| `{path.name}` | {len(rows)} | {noted} |" in readme


@given(st.integers(-(10**6), 10**6))
def test_numbers_are_compared_as_numbers(value):
    assert same(f"{value}.0", value) and same(str(value), float(value))
    assert not same(str(value), value + 1) and not same("none", value)


# --- tables ---


def test_difference_is_measured_minus_reported_and_empty_where_not_run(made, tmp_path):
    for name in TABLES:
        if name in NOT_MEASURED:
            continue
        table = pd.read_csv(drawn(name, *made, tmp_path, "csv")["csv"])
        both = table.dropna(subset=["reported", "measured"])
        # these print nothing but tasks that were not run
        assert len(both) or name in ("remoe/table11", "rmoe/table7", "rmoe/table12")
        assert np.allclose(both["difference"], both["measured"] - both["reported"].astype(float))
        one = table[table["reported"].isna() | table["measured"].isna()]
        assert one["difference"].isna().all()


def test_tasks_that_were_not_run_are_empty_and_named(made, tmp_path):
    paths = drawn("remoe/table2", *made, tmp_path, "csv md tex")
    table = cells(paths)
    assert table.loc[("ReMoE", "arc_easy/acc"), "reported"] == 46.68
    assert pd.isna(table.loc[("ReMoE", "arc_easy/acc"), "measured"])
    assert pd.isna(table.loc[("ReMoE", "mean_accuracy"), "measured"])
    assert table.loc[("ReMoE", "local_cloze/acc"), "interval"] == "one seed"
    assert pd.isna(table.loc[("ReMoE", "local_cloze/acc"), "reported"])
    text = paths["md"].read_text()
    assert "arc_challenge/acc" in text and "not run" in text and "local_cloze†" in text


def test_table2_sets_the_families_of_topk_apart(made, tmp_path):
    table = cells(drawn("remoe/table2", *made, tmp_path, "csv"))
    assert table.loc[("dMoE", "mean_accuracy"), "reported"] == 39.67  # not 39.53 of the longer run
    assert table.loc[("dMoE", "valid_loss"), "reported"] == 1.937
    assert table.loc[("Dense", "valid_loss"), ["reported", "printed"]].tolist() == [
        2.042,
        "figure 6a",
    ]


def test_a_mean_needs_all_of_its_tasks(tmp_path):
    tasks = dict.fromkeys(["arc_challenge", "arc_easy", "boolq", "hellaswag", "lambada_openai", "piqa", "race"], 20)
    run = remoe("relu", "ReMoE")
    spec = {**ROWS["remoe/table2"], "runs": "router == 'relu'"}
    whole = make_run(tmp_path / "whole", run, tasks=tasks)
    table = cells(drawn(spec, [whole], tmp_path, tmp_path / "a", "csv"))
    each = table["measured"].iloc[:7]
    assert table.loc[("ReMoE", "mean_accuracy"), "measured"] == pytest.approx(each.mean())
    del tasks["race"]
    part = make_run(tmp_path / "part", run, tasks=tasks)
    table = cells(drawn(spec, [part], tmp_path, tmp_path / "b", "csv"))
    assert table["measured"].iloc[:6].notna().all()
    assert pd.isna(table.loc[("ReMoE", "mean_accuracy"), "measured"])


def test_several_seeds_give_a_mean_and_an_interval(seeded, tmp_path):
    runs, folder = seeded
    table = cells(drawn("remoe/table2", runs, folder, tmp_path, "csv"))
    losses = [pd.read_csv(folder / f"runs/remoe-182m-relu/seed-{s}/validation.csv")["loss"].iloc[-1] for s in range(3)]
    cell = table.loc[("ReMoE", "valid_loss")]
    mean, half = mean_interval(losses)
    assert (cell["seeds"], cell["measured"]) == (3, pytest.approx(mean))
    assert float(cell["interval"]) == pytest.approx(half)


def test_seeds_of_the_run_restrict_what_is_read(seeded, tmp_path):
    runs = [{**run, "seeds": [1]} for run in seeded[0]]
    table = cells(drawn("remoe/table2", runs, seeded[1], tmp_path, "csv"))
    assert table.loc[("ReMoE", "valid_loss"), "seeds"] == 1


RMOE_TABLE3 = [
    f"{snapshot}, {label}{tuned}"
    for snapshot in ("20B", "40B")
    for label, frozen in (("SMoE", "gate"), ("RMoE", "router+gru"))
    for tuned in ("", ", fine-tuned, nothing frozen", f", fine-tuned, {frozen} frozen")
]


def test_rmoe_table3_is_ordered_as_in_the_paper(made, tmp_path):
    table = cells(drawn("rmoe/table3", *made, tmp_path, "csv"))
    rows = list(dict.fromkeys(row for row, _ in table.index))
    assert rows == RMOE_TABLE3
    assert table.loc[("40B, RMoE", "mean_accuracy"), "reported"] == 55.31
    assert table.loc[("20B, SMoE", "seconds_per_step"), "reported"] == 48.87
    assert table.loc[("20B, SMoE", "seconds_per_step"), "measured"] == pytest.approx(0.1)


def test_rows_follow_the_paper_whatever_the_order_of_the_runs(made, tmp_path):
    runs, folder = made
    table = cells(drawn("remoe/table2", runs[::-1], folder, tmp_path, "csv"))
    order = ["Dense", "Hash", "Lory", "SparseMixer-v2", "EC", "dMoE", "ReMoE"]
    assert list(dict.fromkeys(row for row, _ in table.index)) == order
    table = cells(drawn("rmoe/table3", runs[::-1], folder, tmp_path, "csv"))
    rows = list(dict.fromkeys(row for row, _ in table.index))
    assert rows == RMOE_TABLE3


def test_backbones_beside_the_paper_and_the_shapes_of_the_scale(made, tmp_path):
    table = cells(drawn("remoe/table1", *made, tmp_path, "csv"))
    assert table.loc[("182M", "active_params"), "measured"] == pytest.approx(182.471424)
    assert table.loc[("978M", "total_params"), "reported"] == 5730
    assert pd.isna(table.loc[("182M at scale laptop", "hidden_size"), "reported"])


@pytest.mark.parametrize("name", TABLES)
def test_every_table_names_its_scale_in_every_form(name, made, tmp_path):
    paths = drawn(name, *made, tmp_path, "csv md tex")
    title = headline(ROWS[name], "laptop")
    assert "at scale laptop (not the paper's size)" in title
    assert title in paths["md"].read_text() and title in paths["tex"].read_text()
    tex = paths["tex"].read_text()
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert tex.count("{") == tex.count("}")
    body = tex.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    widths = {line.count("&") - line.count(r"\&") for line in body.splitlines() if "&" in line}
    assert len(widths) == 1


def test_titles():
    assert headline({"paper": "remoe", "figure": "table2"}, "laptop") == (
        "Table 2 of ReMoE at scale laptop (not the paper's size)"
    )
    assert headline({"paper": "rmoe", "figure": "fig13"}, "paper") == ("Figure 13 of RMoE at scale paper")
    assert headline({"paper": "rmoe", "figure": "extra-crossing"}, "gpu").startswith(
        "Extra table (crossing) beyond RMoE at"
    )


def test_numbers_in_words():
    assert (signed(-0.0001, 2), signed(0.5, 1), signed(-2, 0)) == ("0.00", "+0.5", "−2")
    assert latex("5 % of a_b & ±") == r"5 \% of a\_b \& $\pm$"


def test_intervals_are_named_where_they_are():
    assert seeds_sentence([3, 3]) == "Mean of 3 seeds ± 95 % interval (t distribution)."
    assert "±" not in seeds_sentence([3], drawn=False) and "stand in the CSV" in seeds_sentence([3], drawn=False)
    assert seeds_sentence([1], drawn=False) == seeds_sentence([1])


# --- which text ---


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name]["runs"]])
def test_a_text_that_stands_for_another_is_named_under_everything(name, made, tmp_path, monkeypatch):
    """At scale laptop every run reads another corpus than its setup."""
    drawn_ones, runs = [], select(ROWS[name]["runs"], made[0])
    monkeypatch.setattr(Picture, "write", lambda self, path: drawn_ones.append(self.notes))
    suffix = "svg" if "/fig" in name else "md"
    path = drawn(name, *made, tmp_path, suffix)[suffix]
    notes = " ".join(map(str, drawn_ones[0])) if drawn_ones else path.read_text()
    said = stand_ins(runs)
    assert said in notes and said.startswith("Text here: local-")
    assert all(f" in the place of {run['corpus']}" in said for run in runs)


def of_spec(folder, change):
    """A run whose run.yaml is changed, of 64 windows of validation."""
    run = make_run(folder, remoe("relu", "ReMoE"))
    path = folder / "runs/remoe-182m-relu/seed-0/run.yaml"
    spec = yaml.safe_load(path.read_text())
    change(spec)
    path.write_text(yaml.safe_dump(spec))
    return [run]


def test_the_setups_own_corpus_needs_no_word(tmp_path):
    assert stand_ins(of_spec(tmp_path, lambda spec: spec.update(corpus=remoe("relu", "ReMoE")["corpus"]))) == ""
    assert stand_ins([]) == ""


def test_the_part_of_the_text_that_was_scored_is_said(tmp_path):
    from moe import finished

    def asked(windows, **training):
        def change(spec):
            spec["evaluation"]["windows"] = windows
            spec["training"] |= {"sequence": 100} | training

        return scored_parts(of_spec(tmp_path / f"{windows}{training}", change))

    assert asked(64).endswith("a part of each split: 64 windows of 100 tokens (6,400 in all), spread evenly.")
    assert asked(65) == "" and asked(None) == "", "fewer than were asked for are the whole split"
    assert asked(70, streams=True).endswith(": 8 excerpts of 800 tokens (6,400 in all).")
    assert asked(72, streams=True) == "" and asked(None, streams=True) == ""
    assert STREAMS == finished.STREAMS


# --- figures ---


@pytest.mark.parametrize("name", PICTURES)
def test_a_figure_drawn_again_is_the_same_to_the_byte(name, made, tmp_path):
    first = drawn(name, *made, tmp_path / "a", "svg png csv")
    again = drawn(name, *made, tmp_path / "b", "svg png csv")
    for suffix, path in first.items():
        assert path.read_bytes() == again[suffix].read_bytes(), suffix
    assert headline(ROWS[name], "laptop") in first["svg"].read_text()  # the SVG's own title
    assert first["png"].read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", PICTURES)
def test_figures_take_several_seeds_and_short_runs(name, seeded, tmp_path):
    assert len(pd.read_csv(drawn(name, *seeded, tmp_path, "svg csv")["csv"]))
    short = make_results(tmp_path / "short", steps=12)
    assert len(pd.read_csv(drawn(name, short, tmp_path / "short", tmp_path, "png csv")["csv"]))


def test_fig3_has_every_step_and_the_moments_from_step_100_on(made, tmp_path):
    data = pd.read_csv(drawn("remoe/fig3", *made, tmp_path, "csv")["csv"])
    metrics = pd.read_csv(made[1] / "runs/remoe-182m-relu/seed-0/metrics.csv")
    assert np.allclose(data["sparsity"], metrics["sparsity"], rtol=1e-5)


def test_fig4_separates_the_loss_from_its_coefficient(made, tmp_path):
    data = pd.read_csv(drawn("remoe/fig4", *made, tmp_path, "csv")["csv"])
    assert np.allclose(data["l_reg"] * data["l1_lambda"], data["lambda_l_reg"])


def test_a_missing_file_of_a_run_is_named(made, tmp_path):
    runs = [{**run, "folder": str(tmp_path / "none")} for run in made[0]]
    with pytest.raises(ValueError, match="run remoe-182m-relu: .*no seed-"):
        drawn("remoe/fig3", runs, made[1], tmp_path, "svg")
    (tmp_path / "none/seed-0").mkdir(parents=True)
    with pytest.raises(ValueError, match="metrics.csv is missing"):
        drawn("remoe/fig3", runs, made[1], tmp_path, "svg")
    with pytest.raises(ValueError, match="backbones.csv is missing"):
        drawn("remoe/table1", made[0], tmp_path, tmp_path, "md")


def test_every_kind_and_metric_is_there():
    import importlib

    for kind in KINDS.values():
        module, function = kind.draws.split(":")
        assert callable(getattr(importlib.import_module(f"moe.figures.{module}"), function))
    assert all(metric.header and callable(metric.read) for metric in METRICS.values())


def test_importing_the_checks_is_cheap():
    heavy = ["torch", "pandas", "matplotlib", "seaborn", "scipy"]
    code = f"import sys, moe.figures, moe.claims; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "workflow",
    )
    assert out.stdout.strip() == "[]"
