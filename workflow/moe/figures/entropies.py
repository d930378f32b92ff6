"""How sure a router is: the entropy of its scores, token by token (RMoE, figures 4, 8, 9 and 10)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.groups import panels_of
from moe.figures.intervals import mean_interval
from moe.figures.probe_metrics import score_statistics
from moe.figures.records import records, total_experts
from moe.figures.style import BLACK, Picture, colours, panels
from moe.figures.titles import called, headline, seeds_sentence

QUANTILES = ["q05", "q25", "median", "q75", "q95"]


def entropy_violins(spec, runs, *, scale, reported, results) -> Picture:
    """Distribution over tokens and layers of the entropy, a violin a run with its quartiles; mean over seeds.

    Column `x` names the groups of routers, a panel each; `hue` the columns of the runs that name a violin. The CSV has
    the histograms of all layers together, and the quantiles by layer with the interval of the median over seeds.
    """
    hue = (text(spec, "hue") or "label").split()
    groups = panels_of(text(spec, "x").split(), runs)
    most = max(map(len, groups))
    options = {"width_ratios": [len(group) + 0.6 for group in groups], "sharey": True}
    figure, axes = panels(1, len(groups), width=max(5.0, 1.1 + 0.85 * sum(map(len, groups))), height=4.2, **options)
    inks = dict(zip([run["run"] for run in runs], colours(runs), strict=True))
    frames = {run["run"]: _measured(run, called(hue, run)) for run in runs}
    for axis, group in zip(axes[0], groups, strict=True):
        for place, run in enumerate(group):
            _violin(axis, place, *frames[run["run"]], inks[run["run"]])
        names = [called(hue, run) for run in group]
        turned = {"rotation": 30, "ha": "right"} if most > 3 else {}
        axis.set_xticks(range(len(group)), names, **turned)
        axis.axhline(np.log(total_experts(group[0])), color=BLACK, linestyle="--", linewidth=0.8)
        axis.grid(axis="x", visible=False)
    axes[0, 0].set(ylabel="entropy of the scores (nats)", ylim=(0, None))
    data = pd.concat([part for both in frames.values() for part in both], ignore_index=True)
    tokens = score_statistics(records(runs[0])[0]).loc[("all", "entropy"), "tokens"]
    notes = ["Bars: quartiles, dots: medians; dashed: ln E, where all experts score the same."]
    notes += [f"{int(tokens):,} pairs of a token of test text and a layer."]
    notes += [seeds_sentence(data["seeds"], drawn=False), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _measured(run: dict, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Histogram over all layers (low, high, share), and quantiles by layer, both means over seeds."""
    each = records(run)
    shares = []
    for record in each:
        counts = record.read("score_entropy.csv").groupby(["low", "high"])["tokens"].sum()
        shares.append((counts / counts.sum()).rename(record.seed))
    histogram = pd.concat(shares, axis=1).fillna(0).mean(axis=1).rename("share").reset_index()
    histogram = histogram.assign(layer="all", seeds=len(each))
    rows = []
    tables = [score_statistics(record).xs("entropy", level="statistic") for record in each]
    for layer in tables[0].index:
        row = {column: np.mean([table.loc[layer, column] for table in tables]) for column in QUANTILES}
        row["interval"] = mean_interval(table.loc[layer, "median"] for table in tables)[1]
        rows.append({"layer": layer, "seeds": len(each)} | row)
    quantiles = pd.DataFrame(rows).astype({"interval": float})
    for frame in (histogram, quantiles):
        frame.insert(0, "run", run["run"])
        frame.insert(1, "line", name)
    return histogram, quantiles


def _violin(axis, place: int, histogram: pd.DataFrame, quantiles: pd.DataFrame, ink: str) -> None:
    shape = histogram.sort_values("low")
    for low, high, share in shape[["low", "high", "share"]].itertuples(index=False):
        half = 0.45 * share / shape["share"].max()
        axis.fill_betweenx([low, high], place - half, place + half, color=ink, alpha=0.45, linewidth=0)
    row = quantiles[quantiles["layer"] == "all"].iloc[0]
    axis.plot([place, place], [row["q05"], row["q95"]], color=BLACK, linewidth=0.8)
    axis.plot([place, place], [row["q25"], row["q75"]], color=BLACK, linewidth=3, solid_capstyle="butt")
    axis.plot(place, row["median"], "o", color="white", markeredgecolor=BLACK, markersize=4)
