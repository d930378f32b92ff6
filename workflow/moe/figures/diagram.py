"""The two routings side by side, of a few tokens (ReMoE, figure 1)."""

import pandas as pd

from moe.figures.check import text
from moe.figures.style import BLUE, RED, Picture, panels
from moe.figures.titles import headline

GREY = "#bbbbbb"


def routing_example(spec, runs, *, scale, reported, results) -> Picture:
    """Tokens left, experts right; a line for each weight that is not zero, as thick as it is large.

    Reads results/{scale}/routing_example.csv: token, expert, score, topk, relu; a row a pair, made by both routers from
    the same scores.
    """
    path = results / "routing_example.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    data = pd.read_csv(path)
    figure, axes = panels(1, 2, width=7.2, height=3.6)
    k = int((data["topk"] > 0).groupby(data["token"]).sum().max())
    largest = "the largest" if k == 1 else f"the {k} largest"
    names = (f"(a) top-k: softmax, then {largest}", "(b) ReLU: what is above zero")
    for axis, column, name, ink in zip(axes[0], ("topk", "relu"), names, (BLUE, RED), strict=True):
        _draw(axis, data, column, ink)
        axis.set_title(name)
    active = (data["relu"] > 0).groupby(data["token"]).sum()
    note = f"ReLU activates {active.min()} to {active.max()} experts a token here, top-k always {k}."
    notes = [note, text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _draw(axis, data: pd.DataFrame, column: str, ink: str) -> None:
    """One routing as a graph; y counts downwards."""
    tokens, experts = sorted(set(data["token"])), sorted(set(data["expert"]))
    places = {kind: _spread(len(names)) for kind, names in (("token", tokens), ("expert", experts))}
    most = data[column].max() or 1
    for row in data.to_dict("records"):
        ends = [places["token"][tokens.index(row["token"])], places["expert"][experts.index(row["expert"])]]
        if row[column] <= 0:
            axis.plot([0, 1], ends, color=GREY, linewidth=0.5, linestyle=":", zorder=1)
            continue
        axis.plot([0, 1], ends, color=ink, linewidth=0.8 + 3.5 * row[column] / most, alpha=0.8, zorder=2)
        y = 0.72 * ends[0] + 0.28 * ends[1]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axis.text(0.28, y, f"{row[column]:.2f}", size=7, ha="center", va="center", zorder=3, bbox=box)
    used = set(data.loc[data[column] > 0, "expert"])
    for x, kind, names in ((0, "token", tokens), (1, "expert", experts)):
        for name, y in zip(names, places[kind], strict=True):
            idle = kind == "expert" and name not in used
            box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": GREY if idle else "#444444"}
            axis.text(
                x,
                y,
                f"{kind} {name}",
                size=8,
                ha="center",
                va="center",
                zorder=4,
                bbox=box,
                color=GREY if idle else "#222222",
            )
    axis.set(xlim=(-0.25, 1.25), ylim=(-0.62, 0.62))
    axis.set_axis_off()


def _spread(count: int) -> list[float]:
    """Places of so many boxes from top to bottom."""
    return [0.5 - (i + 0.5) / count for i in range(count)]
