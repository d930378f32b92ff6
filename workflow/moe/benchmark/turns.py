"""Contenders timed in turns, and paired ratios of their times."""

import statistics
import time
from collections.abc import Callable
from math import comb
from typing import NamedTuple

import torch

WARM = 5  # rounds until the process has the memory that its steps take, and machine code for their shapes


class Ratio(NamedTuple):
    """Median of the paired ratios, and a 95 % interval for it (order statistics; None with too few rounds)."""

    median: float
    low: float | None
    high: float | None


def in_turns(contenders: dict[str, Callable[[], None]], rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after WARM rounds that are not counted; who begins moves on."""
    names, seconds = list(contenders), {name: [] for name in contenders}
    for turn in range(WARM + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wait()
            began = clock()
            contenders[name]()
            wait()
            if turn >= WARM:
                seconds[name].append(clock() - began)
    return seconds


def speed_ratio(mine: list[float], other: list[float]) -> Ratio:
    """How many times as fast `mine` is as `other`, paired by round."""
    ratios = sorted(b / a for a, b in zip(mine, other, strict=True))
    n = len(ratios)
    # the k-th smallest and k-th largest hold the median unless k - 1 or fewer of n fair coins fall on one side
    k, tail = 0, comb(n, 0) / 2**n
    while tail <= 0.025:
        k += 1
        tail += comb(n, k) / 2**n
    low, high = (ratios[k - 1], ratios[n - k]) if k else (None, None)
    return Ratio(statistics.median(ratios), low, high)


def wait() -> None:
    """Until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
