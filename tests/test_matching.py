"""Compute-matched runs: extra steps from the measured activity of the run to match."""

import pytest

from moe.matching import match, step_flops

MODEL = dict(width=64, layers=3, heads=4, kv_heads=2, expert_width=256, vocabulary=1024, experts=8, top_k=1)


def spec(run, granularity=1, steps=10):
    training = {"steps": steps, "sequence": 128, "batch": 4, "learning_rate": 1e-3}
    return {"run": run, "model": MODEL | {"granularity": granularity}, "training": training}


def metrics(path, activity):
    path.write_text("step,active_experts\n" + "".join(f"{i},{a}\n" for i, a in enumerate(activity, start=1)))
    return path


@pytest.mark.parametrize("granularity", [1, 4])
def test_extra_steps_are_the_extra_compute_in_steps_of_our_own(granularity, tmp_path):
    active = [8 * granularity] * 20 + [4 * granularity] * 20 + [granularity] * 60
    relu, topk = spec("relu", granularity, steps=100), spec("topk", granularity, steps=100)
    matched = match(topk, relu, metrics(tmp_path / "metrics.csv", active))
    one = step_flops(topk, granularity)
    expected = sum(step_flops(relu, a) - one for a in active) / one
    assert matched["matching"]["extra_steps"] == round(expected) > 5
    assert matched["training"] == topk["training"] | {"steps": 100 + round(expected)}
    assert matched["matching"]["run"] == "relu" and topk["training"]["steps"] == 100


def test_a_sparser_run_shortens_nothing(tmp_path):
    same = match(spec("topk"), spec("relu"), metrics(tmp_path / "metrics.csv", [0.5] * 10))
    assert same["training"]["steps"] == 10 and same["matching"]["extra_steps"] == 0


def test_flops_of_a_step_count_experts_of_the_width_after_granularity():
    assert step_flops(spec("a"), 2) == step_flops(spec("a", granularity=4), 8)
