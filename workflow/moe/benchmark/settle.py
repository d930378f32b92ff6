"""A ReLU router brought to where it stays: half of its experts are active at the start, and a step then costs more."""

from collections.abc import Callable
from statistics import mean
from typing import Any

NEAR, SETTLED = 0.02, 0.01  # of the share of active experts: in one step, in the mean of the steps that follow it
LAST, LIMIT = 10, 400  # steps


def settle(step: Callable[[], Any], engine: Any, rate: float) -> None:
    """Train a model whose router steers its sparsity until that is met, then hold its weights; others stay untouched.

    The weights are held as soon as a step meets the target, and trained on unless the steps that follow meet it in
    their mean: a sparsity that swings around its target, as it does before its run's stage III, passes it often but
    stays nowhere. After LIMIT steps they are held as they are.
    step: trains once and leaves what `after_step` says as `step.statistics`. rate: the learning rate meanwhile.
    """
    model = engine.module
    if model.router is None or not hasattr(model.router.gates, "l1_lambda"):
        return
    left = LIMIT

    def off(steps: int) -> float:
        nonlocal left
        left -= steps
        sparsities = []
        for _ in range(steps):
            step()
            sparsities.append(step.statistics["sparsity"])
        return abs(mean(sparsities) - model.router.gates.target)

    set_rate(engine, rate)
    while left > 0:
        if off(1) < NEAR:
            set_rate(engine, 0.0)  # all the work goes on, but the activity stays
            if off(LAST) < SETTLED:
                return
            set_rate(engine, rate)
    set_rate(engine, 0.0)


def set_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of every parameter."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
