"""The three stages of ReLU routing (ReMoE, section 3.5), read from a series of sparsities."""

import numpy as np

WINDOW, BAND = 50, 0.02  # our choice: they let the oscillating alpha = 1.5 of table 4 settle too


def settling_steps(sparsity, target: float, window: int = WINDOW, band: float = BAND) -> int | None:
    """Number of steps of stages I and II, or None if the series does not settle.

    The first crossing of the target, from either side, after which the mean of the next `window` steps
    is within `band` of it. Not the first crossing as such: with lambda_0 = 1 that is step 8, the
    sparsity overshoots until step 92, and the paper counts 92 (table 3).
    """
    S = np.asarray(sparsity, dtype=float)
    above = target <= S
    for step in np.flatnonzero(above[1:] != above[:-1]) + 1:
        following = S[step : step + window]
        if len(following) == window and abs(following.mean() - target) <= band:
            return int(step)
    return None


def stage_bounds(sparsity, target: float) -> tuple[int, int | None]:
    """Number of steps before stage II and before stage III (None: not settled within the series).

    Stage I lasts while more than half of the experts are active on average (S < 1/2).
    """
    S = np.asarray(sparsity, dtype=float)
    settled = settling_steps(S, target)
    low = np.flatnonzero(S[: len(S) if settled is None else settled] < 0.5)
    return (int(low[-1]) + 1 if len(low) else 0), settled
