"""Training curves, read from every step's row of metrics.csv (ReMoE, figures 5, 8a and 13)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.records import records
from moe.figures.style import Picture, colours, counts, line, panels
from moe.figures.titles import called, headline, seeds_sentence

SMOOTHING = 0.02  # share of the steps that a smoothed point of a training curve averages
POINTS = 400  # of a line: neighbouring ones overlap in what they average


def curves(spec, runs, *, scale, reported, results) -> Picture:
    """A column of metrics.csv over training, one line a run: the whole, and the end close by.

    Lines are running means over 2 % of the steps, averaged over seeds, with the 95 % interval as a band; the CSV has
    the points that are drawn. `hue` names the columns of the runs that name the lines.
    """
    x, y, hue = text(spec, "x"), text(spec, "y"), (text(spec, "hue") or "label").split()
    data = pd.concat([_averaged(run, x, y, called(hue, run)) for run in runs], ignore_index=True)
    figure, _ = panels(1, 2, width=7.2, height=3.8, width_ratios=[1.15, 1])
    whole, end = figure.axes
    for run, ink in zip(runs, colours(runs), strict=True):
        each = data[data["run"] == run["run"]]
        at, mean, half = (each[column].to_numpy(dtype=float) for column in (x, "mean", "interval"))
        for axis in (whole, end):
            line(axis, at, mean, color=ink, label=called(hue, run))
            if not np.isnan(half).all():
                axis.fill_between(at, mean - half, mean + half, color=ink, alpha=0.2, lw=0)
    whole.legend(title=None)
    whole.set(xlabel=x, ylabel=_axis_name(y), title="(a) the whole training")
    end.set(xlabel=x, title="(b) its last third, enlarged")
    _enlarge(end, data, x)
    counts(whole, end)
    notes = [
        f"Lines: running mean over {100 * SMOOTHING:.0f} % of the steps; every step is in metrics.csv.",
        seeds_sentence(data["seeds"]),
        text(spec, "caption"),
    ]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _axis_name(column: str) -> str:
    names = {"loss": "training loss (nats/token)", "valid_loss": "validation loss (nats/token)"}
    return names.get(column, column.replace("_", " "))


def _averaged(run: dict, x: str, y: str, name: str) -> pd.DataFrame:
    """At most POINTS points of a run's line: x, mean and half of the 95 % interval over seeds, number of seeds."""
    smoothed = {}
    for record in records(run):
        frame = record.steps()
        frame = frame[frame[y].notna()]
        if frame.empty:
            raise ValueError(f"run {run['run']} has no value in column {y!r} of metrics.csv.")
        window = max(1, round(SMOOTHING * len(frame)))
        smoothed[record.seed] = frame.set_index(x)[y].rolling(window, min_periods=1).mean()
    wide = pd.DataFrame(smoothed).dropna()
    places = np.unique(np.linspace(0, len(wide) - 1, min(POINTS, len(wide))).round().astype(int))
    wide = wide.iloc[places]
    stats = [mean_interval(row) for row in wide.to_numpy()]
    half = [np.nan if h is None else h for _, h in stats]
    points = pd.DataFrame({x: wide.index, "mean": [m for m, _ in stats], "interval": half, "seeds": wide.shape[1]})
    points.insert(0, "run", run["run"])
    points.insert(1, "line", name)
    return points


def _enlarge(axis, data: pd.DataFrame, x: str) -> None:
    """Limits that show the last third of the training and nothing else."""
    start = data[x].min() + 2 / 3 * (data[x].max() - data[x].min())
    late = data[data[x] >= start]["mean"]
    room = 0.08 * (late.max() - late.min()) or 0.01
    axis.set(xlim=(start, data[x].max()), ylim=(late.min() - room, late.max() + room))
