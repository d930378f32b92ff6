"""Training curves, read from every step's row of metrics.csv (ReMoE, figure 5)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.records import all_steps
from moe.figures.style import Picture, colour, counts, line, panels
from moe.figures.titles import headline, seeds_sentence

SMOOTHING = 0.02  # share of the steps that a smoothed point of a training curve averages


def curves(spec, runs, *, scale, reported, results) -> Picture:
    """A column of metrics.csv over training, one line a run (figure 5): the whole, and the end close by.

    Lines are running means over 2 % of the steps, averaged over seeds, with the 95 % interval as a band;
    the CSV has every step as it was logged beside the smoothed value.
    """
    x, y, hue = text(spec, "x"), text(spec, "y"), text(spec, "hue") or "label"
    data = pd.concat([_smoothed(all_steps(run), run, x, y, hue) for run in runs], ignore_index=True)
    figure, _ = panels(1, 2, width=7.2, height=3.8, width_ratios=[1.15, 1])
    whole, end = figure.axes
    seeds = []
    for position, run in enumerate(runs):
        each = data[data["run"] == run["run"]]
        wide = each.pivot(index=x, columns="seed", values="smoothed").dropna()
        seeds.append(wide.shape[1])
        stats = [mean_interval(row) for row in wide.to_numpy()]
        mean = np.array([m for m, _ in stats])
        for axis in (whole, end):
            ink = colour(run, position)
            line(axis, wide.index.to_numpy(), mean, color=ink, label=str(run[hue]))
            if wide.shape[1] > 1:
                half = np.array([h for _, h in stats])
                axis.fill_between(wide.index, mean - half, mean + half, color=ink, alpha=0.2, lw=0)
    whole.legend(title=None)
    whole.set(xlabel=x, ylabel=_axis_name(y), title="(a) the whole training")
    end.set(xlabel=x, title="(b) its last third, enlarged")
    _enlarge(end, data, x)
    counts(whole, end)
    notes = [
        f"Lines: running mean over {100 * SMOOTHING:.0f} % of the steps; the CSV has every step.",
        seeds_sentence(seeds),
        text(spec, "caption"),
    ]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _axis_name(column: str) -> str:
    names = {"loss": "training loss (nats/token)", "valid_loss": "validation loss (nats/token)"}
    return names.get(column, column.replace("_", " "))


def _smoothed(frame: pd.DataFrame, run: dict, x: str, y: str, hue: str) -> pd.DataFrame:
    frame = frame[frame[y].notna()]
    if frame.empty:
        raise ValueError(f"run {run['run']} has no value in column {y!r} of metrics.csv.")
    frame = frame[["run", "seed", *dict.fromkeys([x, y])]].assign(**{hue: run[hue]})
    window = max(1, round(SMOOTHING * len(frame) / frame["seed"].nunique()))
    frame["smoothed"] = frame.groupby("seed")[y].transform(lambda series: series.rolling(window, min_periods=1).mean())
    return frame


def _enlarge(axis, data: pd.DataFrame, x: str) -> None:
    """Limits that show the last third of the training and nothing else."""
    start = data[x].min() + 2 / 3 * (data[x].max() - data[x].min())
    late = data[data[x] >= start]["smoothed"]
    room = 0.08 * (late.max() - late.min()) or 0.01
    axis.set(xlim=(start, data[x].max()), ylim=(late.min() - room, late.max() + room))
