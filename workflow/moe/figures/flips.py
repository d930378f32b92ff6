"""How often a step of training switches an expert of a token on or off (ReMoE, figure 10)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.records import records, total_experts
from moe.figures.style import ROUTER_COLOURS, Picture, counts, panels
from moe.figures.titles import called, headline, seeds_sentence

DASHES = ["-", "--", ":", "-."]


def flips(spec, runs, *, scale, reported, results) -> Picture:
    """Flip rate, and flip count = E · flip rate, over training: colour is the router, dashes the number of experts.

    Flip rate of a step: mean over layers, tokens and experts of |mask − mask one optimiser step before|, on fixed
    calibration text; measured in some steps only. A run too short for any such step has no line, and is named.
    The axis is logarithmic and intervals may reach zero: they are shaded by the same factor up and down.
    """
    x = text(spec, "x")
    data = pd.concat([_measured(run, x) for run in runs], ignore_index=True)
    figure, axes = panels(1, 2, width=8.2, height=3.4)
    sizes = sorted({total_experts(run) for run in runs})
    for run in runs:
        each = data[data["run"] == run["run"]]
        style = DASHES[sizes.index(total_experts(run)) % len(DASHES)]
        for axis, column in zip(axes[0], ("flip_rate", "flip_count"), strict=True):
            options = {"color": ROUTER_COLOURS.get(run["router"]), "linestyle": style, "linewidth": 1.2}
            axis.plot(each[x], each[column], label=called(["label", "experts"], run), **options)
            half = each[f"{column}_interval"].to_numpy(dtype=float)
            if np.isfinite(half).any():
                high = each[column] + half
                axis.fill_between(each[x], each[column] ** 2 / high, high, alpha=0.15, lw=0, color=options["color"])
    axes[0, 0].set(title="(a) flip rate", xlabel=x, ylabel="share of (layer, token, expert)", yscale="log")
    axes[0, 1].set(title="(b) flip count", xlabel=x, ylabel="experts per token and layer", yscale="log")
    axes[0, 1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    counts(*axes[0])
    without = [run["run"] for run in runs if run["run"] not in set(data["run"])]
    notes = [f"Too short for a step where flips are measured: {', '.join(without)}."] if without else []
    shaded = len(data) and data["seeds"].max() > 1
    notes += [seeds_sentence(data["seeds"]), *(["Shaded by the same factor up and down."] if shaded else [])]
    notes += [text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _measured(run: dict, x: str) -> pd.DataFrame:
    """Mean and half of the 95 % interval over seeds, at every measured step."""
    rates = {}
    for record in records(run):
        frame = record.steps().set_index(x)
        rates[record.seed] = frame["flip_rate"].dropna() if "flip_rate" in frame else pd.Series(dtype=float)
    wide = pd.DataFrame(rates).dropna()
    stats = [mean_interval(row) for row in wide.to_numpy()]
    points = pd.DataFrame({"run": run["run"], "label": run["label"], "experts": run["experts"], x: wide.index})
    experts = total_experts(run)
    for column, factor in (("flip_rate", 1), ("flip_count", experts)):
        points[column] = [factor * m for m, _ in stats]
        points[f"{column}_interval"] = [np.nan if h is None else factor * h for _, h in stats]
    return points.assign(seeds=wide.shape[1])
