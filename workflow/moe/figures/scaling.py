"""A metric against a size of the model: ours in one panel, the printed numbers beside it (ReMoE, figure 6)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.metrics import METRICS
from moe.figures.records import records, snapshots_of
from moe.figures.reported import attributes, find, load, number, parse_match, stems
from moe.figures.style import Picture, colours, panels
from moe.figures.titles import headline, seeds_sentence

AXES = {"size": "active parameters at the paper's size", "experts": "experts E", "granularity": "granularity G"}
AXES |= {"layers": "layers at the paper's size"}


def scaling(spec, runs, *, scale, reported, results) -> Picture:
    """One line a label over the column `x` of the runs; a label with a single run is a level (the dense models)."""
    x, y = text(spec, "x"), text(spec, "y")
    metric = METRICS[y]
    pages, match = load(reported, stems(text(spec, "reported"))), parse_match(text(spec, "match"))
    rows, seeds = [], []
    for run in runs:
        each = records(run)
        snapshot = snapshots_of(each[0])[-1]
        values = [metric.read(record, snapshot) for record in each]
        mean, half = mean_interval(values) if None not in values else (None, None)
        printed = find(pages, match, attributes(run, snapshot, metric.split), metric.printed)
        seeds.append(len(values))
        row = {"label": run["label"], x: run[x], "at": number(run[x]), "measured": mean, "interval": half}
        rows.append(row | {"reported": printed.value if printed else None, "seeds": len(values), "run": run["run"]})
    data = pd.DataFrame(rows)
    data[["measured", "interval", "reported"]] = data[["measured", "interval", "reported"]].astype(float)
    figure, axes = panels(1, 2, width=8.4, height=3.6, sharex=True)
    named = data.drop_duplicates("label")
    inks = dict(zip(named["label"], colours([runs[i] for i in named.index]), strict=True))
    for axis, column, title in zip(axes[0], ("measured", "reported"), ("(a) ours", "(b) the paper's"), strict=True):
        for label, points in data.groupby("label", sort=False):
            _line(axis, points.sort_values("at"), column, inks[label], label)
        ticks = data.drop_duplicates("at").sort_values("at")
        several = ticks[ticks["label"].map(data["label"].value_counts()) > 1]
        ticks = several if len(several) else ticks
        axis.set_xscale("log")
        axis.set_xticks(ticks["at"], [str(value) for value in ticks[x]])
        axis.minorticks_off()
        axis.set(title=title, xlabel=AXES.get(x, x))
    axes[0, 0].set_ylabel(f"{metric.header} ({metric.unit})")
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), bbox_to_anchor=(1.02, 1), loc="upper left")
    notes = ["The axes of the two panels differ.", seeds_sentence(seeds), text(spec, "caption")]
    data = data.drop(columns="at")
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _line(axis, points: pd.DataFrame, column: str, ink: str, label: str) -> None:
    points = points[points[column].notna()]
    if len(points) == 1:  # a level, dashed where it is not on the axis of sizes
        value, half = points[column].iloc[0], points["interval"].iloc[0]
        axis.axhline(value, color=ink, linestyle="--", linewidth=1.1, label=label)
        if column == "measured" and np.isfinite(half):
            axis.axhspan(value - half, value + half, color=ink, alpha=0.12, linewidth=0)
        return
    errors = points["interval"].to_numpy() if column == "measured" and points["interval"].notna().any() else None
    axis.errorbar(
        points["at"], points[column], yerr=errors, color=ink, marker="o", markersize=4, capsize=2, label=label
    )
