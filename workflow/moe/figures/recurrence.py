"""RMoE's router as a diagram: what one token's memory is, layer by layer (RMoE, figure 1)."""

import pandas as pd

from moe.figures.check import text
from moe.figures.style import BLUE, RED, Picture, panels
from moe.figures.titles import headline

GREY, BOX = "#888888", {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#444444"}
ROOM = 1.0  # between two layers


def recurrent_router(spec, runs, *, scale, reported, results) -> Picture:
    """Layers from left to right; up: input, projector, cell, scores, experts; across: the state that is handed on.

    Reads results/{scale}/recurrent_example.csv: layer, part, place, value; made by the router itself.
    """
    path = results / "recurrent_example.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    data = pd.read_csv(path)
    figure, axes = panels(1, 1, width=7.6, height=4.4)
    axis = axes[0, 0]
    layers = sorted(set(data["layer"]))
    reach = data.loc[~data["part"].isin(["score", "weight"]), "value"].abs().max()
    for layer in layers:
        parts = {name: frame["value"].to_numpy() for name, frame in data[data["layer"] == layer].groupby("part")}
        _layer(axis, layer, parts, reach)
        _arrow(axis, (layer - 0.62 * ROOM, 2), (layer - 0.2, 2), RED)
    _arrow(axis, (layers[-1] + 0.2, 2), (layers[-1] + 0.42 * ROOM, 2), RED)
    axis.text(-0.66, 2, "h = 0", size=8, ha="right", va="center", color=RED)
    first = data[(data["layer"] == layers[0]) & (data["part"] == "weight")]
    chosen = int((first["value"] > 0).sum())
    axis.set(xlim=(-0.95, layers[-1] + 0.6), ylim=(-0.45, 4.75))
    axis.set_axis_off()
    note = f"Strips: vectors of one token, blue below and red above zero. Bars: scores over the {len(first)} experts, "
    note += f"filled where chosen ({chosen}), with the weight of each."
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [f"{note} {text(spec, 'caption')}"])


def _layer(axis, at: int, parts: dict, reach: float) -> None:
    """One layer's column, upwards."""
    _strip(axis, at, 0, parts["input"], reach)
    axis.text(at, -0.25, f"x of layer {at}", size=8, ha="center", va="center")
    for y, name in ((1, "projector P"), (2, "GRU, shared"), (3, "map to scores")):
        axis.text(at, y, f"{name}{'' if y == 2 else f' of layer {at}'}", size=7.5, ha="center", va="center", bbox=BOX)
        _arrow(axis, (at, y - 0.82), (at, y - 0.2), GREY)
    _strip(axis, at + 0.26, 1.5, parts["projected"], reach, width=0.3)
    _strip(axis, at + 0.62, 2.3, parts["state"], reach, width=0.3)
    axis.text(at + 0.62, 2.52, f"h of layer {at}", size=7.5, ha="center", va="center", color=RED)
    _arrow(axis, (at, 3.2), (at, 3.45), GREY)
    scores, weights = parts["score"], parts["weight"]
    for place, (score, weight) in enumerate(zip(scores, weights, strict=True)):
        x = at + (place - (len(scores) - 1) / 2) * 0.17
        height = 0.75 * score / max(scores.max(), 1e-9)
        axis.bar(x, height, width=0.13, bottom=3.5, color=BLUE if weight > 0 else "white", edgecolor=BLUE, linewidth=1)
        if weight > 0:
            axis.text(x, 3.54 + height, f"{weight:.2f}", size=7, ha="center", va="bottom")
    axis.text(at, 4.68, f"experts of layer {at}", size=8, ha="center", va="center")


def _strip(axis, at: float, y: float, values, reach: float, width: float = 0.6) -> None:
    """A vector as a row of coloured cells around `at`."""
    left, right = at - width / 2, at + width / 2
    options = {"cmap": "coolwarm", "vmin": -reach, "vmax": reach, "aspect": "auto", "zorder": 3}
    axis.imshow(values[None, :], extent=(left, right, y - 0.07, y + 0.07), **options)


def _arrow(axis, start: tuple[float, float], end: tuple[float, float], ink: str) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": ink, "linewidth": 1.2})
