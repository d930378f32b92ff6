"""Speeds of two finished runs: TFLOPS and differences by hand on a made-up clock, and the command end to end."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import SEQUENCE, SIZES, VOCABULARY, TinyRun, measured, tiny_run, write_corpus, write_run

from moe.benchmark.contender import Contender
from moe.benchmark.settle import settle
from moe.benchmark.speeds import COLUMNS, by_setup, compare
from moe.benchmark.turns import WARM
from moe.figures import speeds as drawn

ROOT = Path(__file__).parent.parent
TRAINING = dict(steps=8, sequence=SEQUENCE, batch=4, micro_batch=2, learning_rate=1e-3, final_learning_rate=1e-4)
ROUNDS, BASE, LEAD = 6, 4.0, {"training": 2.0, "inference": 0.8}  # seconds of top-k; how much faster ReLU is


def run_of(router) -> TinyRun:
    run = tiny_run(router)
    run.spec.update(setup="remoe-tiny", size="1M", training=TRAINING)
    run.spec["model"] |= {"vocabulary": VOCABULARY, **SIZES}
    return run


@pytest.fixture(scope="module", autouse=True)
def soon_settled():
    """A tiny random model never meets its target: give up early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe.benchmark.settle.LIMIT", 20)
        yield


def made_up_clock():
    """Seconds of two contenders who take turns, twice as many in every other round: a machine that slows down."""
    now = 0.0
    for lead in LEAD.values():
        for turn in range(WARM + ROUNDS):
            for router in ("topk", "relu") if turn % 2 == 0 else ("relu", "topk"):
                yield now
                now += (1 + turn % 2) * BASE / (lead if router == "relu" else 1.0)
                if turn >= WARM:  # the first rounds are not counted, and their end is not asked for
                    yield now


@pytest.fixture(scope="module")
def rows():
    clock = made_up_clock()
    found = compare({router: run_of(router) for router in ("topk", "relu")}, ROUNDS, lambda: next(clock))
    assert next(clock, None) is None
    return {(row["phase"], row["router"]): row for row in found}


def test_rows_are_those_that_the_table_reads(rows):
    assert list(rows) == [(phase, router) for phase in drawn.PHASES for router in drawn.MODELS]
    assert set(drawn.COLUMNS) | {"rounds", "device"} <= set(COLUMNS)
    for row in rows.values():
        assert set(row) <= set(COLUMNS) and (row["setup"], row["size"], row["rounds"]) == ("remoe-tiny", "1M", ROUNDS)


def test_tflops_are_nominal_flops_over_the_median_round(rows):
    # a token and layer: queries and output 32·32 each, keys and values 32·16 each, one expert's three matrices 32·64;
    # the head 32·257; scores and mixing of 16 positions
    forward = 2 * 16 * (2 * (3 * 32 * 32 + 3 * 32 * 64) + 32 * 257) + 4 * 16 * 16 * 32 * 2
    for phase, passes in (("training", 3), ("inference", 1)):
        for router, lead in (("topk", 1.0), ("relu", LEAD[phase])):
            median = 1.5 * BASE / lead  # of as many rounds with the seconds above as with twice as many
            assert rows[phase, router]["tflops"] == pytest.approx(4 * passes * forward / median / 1e12)


def test_differences_are_paired_so_that_a_slow_machine_cancels(rows):
    for phase, lead in LEAD.items():
        for name in ("difference_percent", "low_percent", "high_percent"):
            assert rows[phase, "relu"][name] == pytest.approx(100 * (lead - 1))
            assert rows[phase, "topk"].get(name) is None


def test_both_see_the_same_batches_in_either_phase():
    topk, relu = (Contender(run_of(router)) for router in ("topk", "relu"))
    for mine, other, again in zip(topk.batches(), relu.batches(), topk.batches(), strict=True):
        assert [(micro_BS.shape, memory) for micro_BS, memory in mine] == [((2, SEQUENCE + 1), {})] * 2
        for (a_BS, _), (b_BS, _), (c_BS, _) in zip(mine, other, again, strict=True):
            assert torch.equal(a_BS, b_BS) and torch.equal(a_BS, c_BS)
        break


def test_timing_leaves_the_weights_as_they_are():
    for router in ("topk", "relu"):
        contender = Contender(run_of(router))
        before = {name: p.detach().clone() for name, p in contender.engine.module.named_parameters()}
        contender.training()()
        contender.inference()()
        assert all(torch.equal(before[name], p) for name, p in contender.engine.module.named_parameters())


def test_a_relu_router_is_held_once_it_stays_at_its_target(monkeypatch):
    monkeypatch.setattr("moe.benchmark.settle.LIMIT", 100)
    contender, rates = Contender(run_of("relu")), []
    groups = contender.engine.optimizer.param_groups
    target = contender.engine.module.router.gates.target

    def step():
        rate = groups[0]["lr"]
        rates.append(rate)
        trained = sum(map(bool, rates))
        # a swing passes the target in the fifth step with the next batches 0.05 away from it, and meets it in the tenth
        off = 0.3 - 0.06 * trained if trained <= 6 else 0.03 * (10 - trained)
        step.statistics = {"sparsity": target + (0.05 if rate == 0 and trained == 5 else off)}

    settle(step, contender.engine, 0.3)
    assert rates == [0.3] * 5 + [0.0] * 10 + [0.3] * 5 + [0.0] * 10 and groups[0]["lr"] == 0.0


def test_a_relu_router_that_stays_nowhere_is_held_in_the_end():
    contender, rates = Contender(run_of("relu")), []
    groups = contender.engine.optimizer.param_groups

    def step():
        rates.append(groups[0]["lr"])
        step.statistics = {"sparsity": 0.0}

    settle(step, contender.engine, 0.3)
    assert rates == [0.3] * 20 and groups[0]["lr"] == 0.0


def test_the_command_writes_the_table(tmp_path):
    corpus = write_corpus(tmp_path / "local")
    folders = []
    for router in ("topk", "relu"):
        folders.append(tmp_path / router)
        write_run(folders[-1], corpus, router)
        path = folders[-1] / "run.yaml"
        spec = yaml.safe_load(path.read_text()) | {"setup": "remoe-tiny", "size": "1M", "training": TRAINING}
        path.write_text(yaml.safe_dump(spec))
    rows = measured("moe.benchmark.speeds", folders, tmp_path, tmp_path / "speed.csv")
    assert [(row["phase"], row["router"]) for row in rows] == [(p, m) for p in drawn.PHASES for m in drawn.MODELS]
    for row in rows:
        assert float(row["tflops"]) > 0 and row["low_percent"] == ""  # two rounds have no interval
        assert bool(row["difference_percent"]) == (row["router"] == "relu")
    with pytest.raises(ValueError, match="setup remoe-tiny: no run with router 'topk'"):
        by_setup(folders[1:])
    with pytest.raises(ValueError, match="router 'relu', expected one run of each of topk, relu a setup"):
        by_setup([*folders, folders[1]])
