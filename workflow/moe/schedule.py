"""Learning rate as a function of the step."""

import math


def learning_rate(step: int, *, steps: int, peak: float, final: float, warmup: float) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up over the share `warmup`, then a cosine to `final`.

    The last step has a rate just above `final`; the step after the warm-up has `peak`.
    """
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))
