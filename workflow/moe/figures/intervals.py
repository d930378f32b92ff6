"""Means over seeds and their 95 % intervals; paired differences over the evaluation text."""

import math

import numpy as np


def mean_interval(values) -> tuple[float, float | None]:
    """Mean and half-width of its 95 % t interval over seeds; None as half-width of a single value."""
    from scipy.stats import t

    values = np.asarray(list(values), dtype=float)
    if len(values) < 2:
        return float(values.mean()), None
    error = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(t.ppf(0.975, len(values) - 1) * error)


def paired_error(differences_by_task: list) -> float | None:
    """Standard error of a mean over tasks of mean paired differences (one list of documents a task).

    Documents are independent, tasks are separate texts: Var = 1/K^2 * sum_k s_k^2 / n_k. None where a
    task has fewer than two documents.
    """
    tasks = [np.asarray(list(task), dtype=float) for task in differences_by_task]
    if not tasks or any(len(task) < 2 for task in tasks):
        return None
    variances = [task.var(ddof=1) / len(task) for task in tasks]
    return math.sqrt(sum(variances)) / len(tasks)


NORMAL_95 = 1.959963984540054  # half-width of a normal 95 % interval in standard errors
