"""Figure 2 of ReMoE: top-k against ReLU, the gate as a function of one score."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.style import BLUE, RED, Picture, panels
from moe.figures.titles import headline


def gate_functions(spec, runs, *, scale, reported, results) -> Picture:
    """Weight of one expert while its score moves and all others stay.

    Reads results/{scale}/gate_functions.csv: score, topk, relu.
    """
    path = results / "gate_functions.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    data = pd.read_csv(path)
    figure, axes = panels(1, 2, width=7.2, height=3.5, sharex=True)
    for axis, column, name, colour in (
        (axes[0, 0], "topk", "(a) top-k after softmax", BLUE),
        (axes[0, 1], "relu", "(b) ReLU", RED),
    ):
        x, y = data["score"].to_numpy(), data[column].to_numpy()
        _draw(axis, x, y, colour)
        axis.set(title=name, xlabel="score of the expert", ylabel="weight of the expert")
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [text(spec, "caption")])


def _draw(axis, x, y, colour) -> None:
    """A line, broken where it jumps: an open dot on the value left, a full one on the value taken."""
    switched = np.flatnonzero((y[:-1] <= 0) != (y[1:] <= 0))
    spread = np.ptp(y) or 1.0
    jumps = [i for i in switched if abs(y[i + 1] - y[i]) > 0.05 * spread]
    for part in np.split(np.arange(len(x)), np.asarray(jumps, dtype=int) + 1):
        axis.plot(x[part], y[part], color=colour, linewidth=2, solid_capstyle="round")
    for i in jumps:
        axis.plot([x[i + 1]] * 2, [y[i], y[i + 1]], color=colour, linewidth=1, linestyle=":")
        axis.plot(x[i + 1], y[i], "o", color=colour, fillstyle="none", markersize=5)
        axis.plot(x[i + 1], y[i + 1], "o", color=colour, markersize=5)
        axis.annotate(
            "jump",
            (x[i + 1], (y[i] + y[i + 1]) / 2),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            size=8,
            color="#444444",
        )
    for i in set(switched) - set(jumps):
        axis.annotate(
            "continuous at 0",
            (x[i], 0),
            xytext=(-8, 14),
            textcoords="offset points",
            ha="right",
            size=8,
            color="#444444",
            arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.7},
        )
