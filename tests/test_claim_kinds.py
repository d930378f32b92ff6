"""Each kind of claim on results whose numbers are chosen by hand, row by row of a made-up claims.tsv."""

import numpy as np
import pandas as pd
import pytest
from made_results import REPORTED, make_run, rows

from moe.claims import check_claims, files_judged, runs_judged
from moe.claims.compare import compare, contrast, slope_weights
from moe.claims.verdicts import CONTRADICTED, HOLDS, INCONCLUSIVE, judged
from moe.figures.metrics import METRICS
from moe.figures.reported import number

ROWS = {run["run"]: run for run in rows()}
EXPERTS = {4: "-e4", 8: "", 16: "-e16"}
RELU = "setup == 'remoe-182m' and router == 'relu' and granularity == 1 and balanced == 'yes' and experts <= 16"
MATCHED = "setup == 'remoe-182m' and matches != '' and granularity == 1 and experts <= 16"
CLAIM = {"paper": "remoe", "claim": "1", "part": "a", "says": "words", "statement": "words", "metric": "valid_loss"}


def results(folder, losses, seeds=(0, 1, 2), **options):
    """Runs (name -> loss) with these validation losses."""
    return [make_run(folder, ROWS[name], seeds=seeds, loss=loss, **options) for name, loss in losses.items()]


def family(prefix, losses):
    return {f"{prefix}{EXPERTS[e]}": loss for e, loss in zip(EXPERTS, losses, strict=True)}


def verdict(row, runs):
    row = {**CLAIM, **row}
    check_claims([row], rows(), REPORTED)
    return judged([row], runs, REPORTED)[0]


SLOPE = {"kind": "slope-below", "left": RELU, "right": MATCHED, "along": "experts"}


@pytest.mark.parametrize(
    ("relu", "margin", "said"),
    [
        ([2.0, 1.9, 1.8], "", HOLDS),  # −0.1 a doubling against −0.05
        ([2.0, 1.98, 1.96], "", CONTRADICTED),
        ([2.0, 1.98, 1.96], "0.04", HOLDS),  # 0.03 above, and 0.04 are allowed
        ([2.0, 1.98, 1.96], "0.02", CONTRADICTED),
    ],
)
def test_slopes_of_two_families(relu, margin, said, tmp_path):
    runs = results(tmp_path, family("remoe-182m-relu", relu) | family("remoe-182m-topk-matched", [2.1, 2.05, 2.0]))
    part = verdict({**SLOPE, "margin": margin}, runs)
    assert part["measured_left"] == pytest.approx((relu[2] - relu[0]) / 2)
    assert part["measured_right"] == pytest.approx(-0.05)
    assert (part["verdict"], part["unit"]) == (said, "nats/token per doubling of experts")


def test_a_slope_below_a_number(tmp_path):
    runs = results(tmp_path, family("remoe-182m-relu", [2.0, 1.99, 1.99]))
    part = verdict({**SLOPE, "right": "0"}, runs)
    assert part["difference"] == pytest.approx(-0.005) and part["verdict"] == HOLDS


def test_slope_weights_give_numpys_slope():
    values = np.array([3.0, 1.0, 2.0, 5.0])
    places = [4.0, 8.0, 32.0, 64.0]
    assert np.dot(slope_weights(places), values) == pytest.approx(np.polyfit(np.log2(places), values, 1)[0])
    assert slope_weights([0.0, 1.0]) == [-1.0, 1.0]  # without and with balancing


def test_sizes_as_numbers():
    assert [number(word) for word in ("182M", "0.91B", 8, "1e-16", "yes", "no")] == [182e6, 0.91e9, 8, 1e-16, 1, 0]
    with pytest.raises(ValueError):
        number("ReMoE")


def test_one_seed_has_the_uncertainty_of_its_windows_also_for_slopes(tmp_path):
    runs = results(tmp_path, family("remoe-182m-relu", [2.0, 1.9, 1.8]), seeds=(0,))
    frames = []
    for run in runs:  # every run its own noise by window
        path = tmp_path / "runs" / run["run"] / "seed-0/validation_windows.csv"
        frame = pd.read_csv(path)
        frame["loss"] += np.random.default_rng(len(frames)).normal(0, 0.1, len(frame))
        frame.to_csv(path, index=False)
        frames.append(frame["loss"].to_numpy())
    part = verdict({**SLOPE, "right": "0"}, runs)
    each = (frames[2] - frames[0]) / 2
    assert part["interval"] == pytest.approx(1.959964 * each.std(ddof=1) / np.sqrt(len(each)), rel=1e-5)
    assert part["uncertainty"].startswith("one seed; ±")


@pytest.mark.parametrize(
    ("losses", "said"), [([2.0, 2.004, 2.009], HOLDS), ([2.0, 2.004, 2.02], CONTRADICTED), ([2.0, 2.0, 2.0], HOLDS)]
)
def test_spread_is_the_largest_difference(losses, said, tmp_path):
    runs = results(tmp_path, family("remoe-182m-relu", losses))
    part = verdict({"kind": "spread", "left": RELU, "margin": "0.01"}, runs)
    assert part["difference"] == pytest.approx(max(losses) - min(losses), abs=1e-9)
    assert part["verdict"] == said


@pytest.mark.parametrize(
    ("losses", "falls", "rises"),
    [([2.0, 1.9, 1.8], HOLDS, CONTRADICTED), ([2.0, 1.9, 1.95], CONTRADICTED, CONTRADICTED)],
)
def test_each_step_has_to_go_the_claimed_way(losses, falls, rises, tmp_path):
    runs = results(tmp_path, family("remoe-182m-relu", losses))
    for kind, said in (("falls", falls), ("rises", rises)):
        part = verdict({"kind": kind, "left": RELU, "along": "experts"}, runs)
        assert part["verdict"] == said
        assert part["difference"] == pytest.approx(losses[-1] - losses[0])
        assert part["note"].endswith(f"in order of the runs: {' → '.join(f'{x:.3f}' for x in losses)}")


def test_a_run_that_never_settles_took_longer_than_it_was_watched(tmp_path):
    short, long = (ROWS[f"remoe-182m-10b-relu{name}"] for name in ("", "-alpha-1-05"))
    settled = make_run(tmp_path, short, seeds=(0, 1, 2), snapshots=("10B",))
    never = make_run(tmp_path, long, seeds=(0, 1, 2), snapshots=("10B",), settled=10_000)
    row = {"kind": "greater", "left": f"run == '{long['run']}'", "right": f"run == '{short['run']}'"}
    part = verdict({**row, "metric": "settling_steps"}, [settled, never])
    assert (part["measured_left"], part["verdict"]) == (250, HOLDS) and "did not settle" in part["note"]
    early = make_run(tmp_path / "b", long, seeds=(0, 1, 2), steps=100, snapshots=("10B",), settled=10_000)
    assert compare(early, settled, "settling_steps", "10B", set()).difference is None  # watched for 50 steps only
    assert compare(early, never, "settling_steps", "10B", set()).difference is None  # which is longer is not known


def test_near_another_run(tmp_path):
    runs = results(tmp_path, {"remoe-182m-relu": 2.0, "remoe-182m-topk": 2.03})
    row = {"kind": "near", "left": "run == 'remoe-182m-relu'", "right": "run == 'remoe-182m-topk'"}
    for margin, said in (("0.04", HOLDS), ("0.02", CONTRADICTED)):
        part = verdict({**row, "margin": margin}, runs)
        assert part["verdict"] == said and part["difference"] == pytest.approx(-0.03)


@pytest.mark.parametrize(
    ("kind", "times", "said"),
    [("times-less", "2", HOLDS), ("times-less", "3", CONTRADICTED), ("times-greater", "3", HOLDS)],
)
def test_times_another_run(kind, times, said, tmp_path):
    runs = results(tmp_path, {"remoe-182m-relu": 1.0, "remoe-182m-topk": 2.5})
    row = {"kind": kind, "left": "run == 'remoe-182m-relu'", "right": "run == 'remoe-182m-topk'", "margin": times}
    part = verdict(row, runs)
    assert part["verdict"] == said and part["measured_left"] == pytest.approx(float(times))
    with pytest.raises(ValueError, match="column margin: '' is no positive number"):
        verdict(row | {"margin": ""}, runs)


def test_without_a_known_uncertainty_one_seed_decides_nothing(tmp_path):
    runs = results(tmp_path, {"remoe-182m-relu": 2.0, "remoe-182m-relu-unbalanced": 2.0}, seeds=(0,))
    row = {"kind": "less", "left": "run == 'remoe-182m-relu'", "right": "run == 'remoe-182m-relu-unbalanced'"}
    part = verdict({**row, "metric": "idle_experts"}, runs)
    assert part["difference"] == -37.5 and part["verdict"] == INCONCLUSIVE
    assert part["uncertainty"] == "one seed; no uncertainty known"


def test_a_correlation_of_one_seed_has_the_uncertainty_of_its_tokens(tmp_path):
    runs = results(tmp_path, {"remoe-182m-relu": 2.0}, seeds=(0,))
    row = {"kind": "less", "left": "run == 'remoe-182m-relu'", "right": "0", "metric": "rank_correlation"}
    part = verdict(row, runs)
    r = part["measured_left"]
    assert part["interval"] == pytest.approx(1.96 * (1 - r**2) * np.sqrt((1 + r**2 / 2) / 197), rel=1e-3)
    assert part["verdict"] == HOLDS


def test_a_claim_names_the_files_that_it_is_judged_from():
    row = {**CLAIM, "kind": "less", "left": "run == 'remoe-182m-relu'", "right": "run == 'remoe-182m-topk'"}
    assert files_judged(row) == (["run.yaml", "validation.csv", "validation_windows.csv"], [])
    seed, _ = files_judged({**row, "metric": "mean_accuracy"})
    assert seed == ["run.yaml", "samples.csv", "scores.csv", "validation.csv"]
    assert files_judged({**row, "metric": "training_speed"}) == (["run.yaml", "validation.csv"], ["speed.csv"])
    assert [run["run"] for run in runs_judged([row], rows())] == ["remoe-182m-relu", "remoe-182m-topk"]


@pytest.mark.parametrize("name", [n for n, metric in METRICS.items() if not n.endswith("mean_accuracy")])
def test_every_metric_reads_no_other_files_than_it_names(name, tmp_path):
    """Files that a metric does not name are taken away, and it must not notice."""
    metric = METRICS[name]
    ours = {"score_statistics.csv", "mutual_information.csv", "weights.csv"} & set(metric.files)
    run = ROWS["rmoe-enwik8-medium-smoe" if ours else "remoe-182m-relu"]
    made = make_run(tmp_path, run, snapshots=("30B",))
    folder = tmp_path / "runs" / run["run"] / "seed-0"
    from moe.figures.records import records

    before = metric.read(records(made)[0], "30B")
    for path in folder.iterdir():
        if path.name not in metric.files:
            path.unlink()
    assert metric.read(records(made)[0], "30B") == before


def test_weights_and_numbers_add_up(tmp_path):
    runs = results(tmp_path, family("remoe-182m-relu", [2.0, 1.9, 1.8]))
    terms = [(runs[0], 1.0), (runs[1], -2.0), (runs[2], 1.0)]
    measured = contrast(terms, 0.5, "valid_loss", "30B", set())
    assert measured.difference == pytest.approx(-0.5) and measured.right == 0.5
