"""A ReLU router brought to where it stays: half of its experts are active at the start, and a step then costs more."""

from collections import deque
from collections.abc import Callable
from statistics import mean
from typing import Any

SETTLED = 0.02  # of the share of active experts, in the last step and in the mean of the last ones
LAST, LIMIT = 10, 400  # steps


def settle(step: Callable[[], Any], engine: Any, rate: float) -> None:
    """Train a model whose router steers its sparsity until that is met, then hold its weights; others stay untouched.

    step: trains once and leaves what `after_step` says as `step.statistics`. rate: the learning rate meanwhile.
    """
    model = engine.module
    if model.router is None or not hasattr(model.router.gates, "l1_lambda"):
        return
    set_rate(engine, rate)
    off = deque(maxlen=LAST)
    for _ in range(LIMIT):
        step()
        off.append(step.statistics["sparsity"] - model.router.gates.target)
        # one step alone may be met on the way past the target
        if len(off) == LAST and max(abs(off[-1]), abs(mean(off))) < SETTLED:
            break
    set_rate(engine, 0.0)  # all the work goes on, but the activity stays


def set_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of every parameter."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
