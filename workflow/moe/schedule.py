"""Learning rate as a function of the step, points of a schedule, and how many steps some epochs are."""

import json
import math
from pathlib import Path
from typing import Any


def learning_rate(step: int, *, steps: int, peak: float, final: float, warmup: float) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up over the share `warmup`, then a cosine to `final`.

    The last step has a rate just above `final`; the step after the warm-up has `peak`.
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def spread_points(points: int, steps: int) -> list[int]:
    """The steps (from 1 on) at the ends of so many equal parts of a schedule; fewer where it has fewer steps."""
    return sorted({max(1, round(steps * point / points)) for point in range(1, points + 1)})


def windows(points: list[float], steps: int, length: int) -> list[range]:
    """Of each point of a schedule, a share of its steps, the `length` steps (from 1 on) that end there.

    Windows of early points begin with step 1 and have the same length. One is never longer than the schedule.
    """
    length = min(length, steps)
    ends = [max(length, round(point * steps)) for point in points]
    return [range(end - length + 1, end + 1) for end in ends]


def counted(spec: dict[str, Any], instructions: Path) -> dict[str, Any]:
    """`spec` of a fine-tuning with the steps of its epochs over a prepared set, a rest below a batch left out.

    instructions: the set's manifest.json.
    """
    training, examples = spec["training"], json.loads(instructions.read_text())["examples"]
    return spec | {"training": training | {"steps": max(1, int(training["epochs"] * examples / training["batch"]))}}
