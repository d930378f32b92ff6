"""What a step of several runs costs: by hand on a made-up clock, of models of shuffled windows or of running text."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import (
    END_OF_TEXT,
    SEQUENCE,
    SIZES,
    VOCABULARY,
    TinyCorpus,
    TinyRun,
    measured,
    tiny_run,
    write_corpus,
    write_run,
)

from moe.benchmark.contender import Contender
from moe.benchmark.cost import COLUMNS, by_setup, compare, peak
from moe.benchmark.turns import WARM
from moe.span import SpanDecoder

ROOT = Path(__file__).parent.parent
TRAINING = dict(steps=8, sequence=SEQUENCE, batch=4, micro_batch=2, learning_rate=1e-3, final_learning_rate=1e-3)
ROUTERS = ("rmoe", "smoe", "xmoe")
ROUNDS, SECONDS = 6, {"smoe": 2.0, "rmoe": 2.5, "xmoe": 1.0}
SPAN = dict(width=16, layers=2, heads=2, expert_width=16, experts=4, top_k=1, span=24)


class SpanRun(TinyRun):
    """A run of the model that remembers the text before a block."""

    def model(self, snapshot):
        torch.manual_seed(0)
        return SpanDecoder(VOCABULARY, router={"name": self.spec["model"]["router"]["name"]}, **SPAN).eval()


def run_of(router, kind=TinyRun, **training) -> TinyRun:
    text = TinyCorpus([(0, "the cat sat on the mat, and the dog sat on the cat. " * 12)])
    run = kind(*tiny_run(router, text))
    run.spec.update(setup="tiny", training=TRAINING | training)
    run.spec["model"] |= {"vocabulary": VOCABULARY, **SIZES}
    return run


def made_up_clock():
    """Seconds of three contenders in turns, twice as many in every other round; SMoE begins, who begins moves on."""
    now, names = 0.0, ["smoe", "rmoe", "xmoe"]
    for turn in range(WARM + ROUNDS):
        first = turn % 3
        for router in names[first:] + names[:first]:
            yield now
            now += (1 + turn % 2) * SECONDS[router]
            if turn >= WARM:  # the first rounds are not counted, and their end is not asked for
                yield now


@pytest.mark.parametrize(("kind", "streams"), [(TinyRun, False), (SpanRun, True)])
def test_each_run_stands_beside_smoe_in_paired_rounds(kind, streams):
    clock, memory = made_up_clock(), {"smoe": 2.0, "rmoe": 2.2, "xmoe": 1.0}
    runs = {router: run_of(router, kind, streams=streams) for router in ROUTERS}
    rows = compare(runs, memory, ROUNDS, lambda: next(clock))
    assert next(clock, None) is None and [row["run"] for row in rows] == ["smoe", "rmoe", "xmoe"]
    for row in rows:
        assert set(row) <= set(COLUMNS) and row["router"] == row["run"] and row["memory_gb"] == memory[row["run"]]
        # of as many rounds with the seconds above as with twice as many
        assert row["seconds_per_1k"] == pytest.approx(1500 * SECONDS[row["run"]])
    assert "extra_time_percent" not in rows[0] and "extra_memory_percent" not in rows[0]
    for row, extra, more in zip(rows[1:], (25.0, -50.0), (10.0, -50.0), strict=True):
        # a slow round is slow for both, so that the interval has no width
        assert [row[f"{name}_percent"] for name in ("extra_time", "low", "high")] == pytest.approx([extra] * 3)
        assert row["extra_memory_percent"] == pytest.approx(more)


def test_a_step_of_running_text_goes_on_where_the_step_before_ended():
    contender = Contender(run_of("smoe", SpanRun, streams=True))
    step, seen = contender.training(), []
    forward = contender.engine.module.forward

    def watched(tokens_BS, targets_BS, cache):
        seen.append((tokens_BS[:, 0].tolist(), [left.abs().sum().item() for left in cache]))
        return forward(tokens_BS, targets_BS, cache=cache)

    contender.engine.module.forward = watched
    for _ in range(2):
        step()
    assert [bool(left) for _, left in seen] == [False, False, True, True]  # two micro-batches a step
    text = contender.run.corpus.tokens("train")
    length = len(text) // 4
    assert seen[0][0] + seen[1][0] == text[: 4 * length : length].tolist()
    assert seen[2][0] + seen[3][0] == text[SEQUENCE : 4 * length : length].tolist() and END_OF_TEXT not in seen[2][0]


def test_memory_is_that_of_tensors_and_the_same_each_time():
    runs = {router: run_of(router) for router in ("smoe", "rmoe")}
    parameters = {router: sum(p.numel() for p in run.model("100%").parameters()) for router, run in runs.items()}
    peak(runs["smoe"])  # a process keeps something the first time, as a run's own process does each time
    first = {router: peak(run) for router, run in runs.items()}
    assert {router: peak(run) for router, run in runs.items()} == first
    for router, most in first.items():
        assert 16 * parameters[router] < 1e9 * most < 1e9, "weights, gradients and two moments in float32"
    assert 1e9 * (first["rmoe"] - first["smoe"]) > 16 * (parameters["rmoe"] - parameters["smoe"]) > 0


def test_the_command_measures_time_and_memory(tmp_path):
    corpus, folders = write_corpus(tmp_path / "local"), []
    for router in ("rmoe", "smoe"):
        folders.append(tmp_path / router)
        write_run(folders[-1], corpus, router)
        path = folders[-1] / "run.yaml"
        spec = yaml.safe_load(path.read_text()) | {"run": router, "setup": "tiny", "training": TRAINING}
        path.write_text(yaml.safe_dump(spec))
    smoe, rmoe = measured("moe.benchmark.cost", folders, tmp_path, tmp_path / "cost.csv")
    assert (smoe["run"], rmoe["run"]) == ("smoe", "rmoe") and smoe["extra_time_percent"] == ""
    assert float(rmoe["extra_time_percent"]) and rmoe["low_percent"] == ""  # two rounds have no interval
    for row in (smoe, rmoe):
        assert float(row["seconds_per_1k"]) > 0 and 0.00001 < float(row["memory_gb"]) < 1
    with pytest.raises(ValueError, match="setup tiny: 0 of 1 runs have the router smoe, expected one that the others"):
        by_setup(folders[:1])
