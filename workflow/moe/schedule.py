"""Learning rate as a function of the step, and how many steps some epochs are."""

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


def counted(spec: dict[str, Any], instructions: Path) -> dict[str, Any]:
    """`spec` of a fine-tuning with the steps of its epochs over a prepared set, a rest below a batch left out.

    instructions: the set's manifest.json.
    """
    training, examples = spec["training"], json.loads(instructions.read_text())["examples"]
    return spec | {"training": training | {"steps": max(1, int(training["epochs"] * examples / training["batch"]))}}
