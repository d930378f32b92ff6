"""Experts by domain of the probed test text (ReMoE, figures 9, 11 and 12)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.records import records
from moe.figures.routing_metrics import active_by_domain, domain_shares, domain_variance, probed_sentence
from moe.figures.style import BLACK, PALETTE, Picture, panels
from moe.figures.titles import headline, seeds_sentence


def middle(layers: int) -> int:
    """The layer that stands for ReMoE's layer 5 of 12 in a model of another depth."""
    return round(5 / 11 * (layers - 1))


def domain_shares_figure(spec, runs, *, scale, reported, results) -> Picture:
    """Share of each domain's tokens that an expert gets: rows of panels are layers, columns runs, dashed k/E.

    Column `x`: "ends" shows the first, a middle and the last layer (figure 9), "all" every layer (figure 11). Experts
    of two seeds have nothing in common, so the first seed is drawn; the CSV has all.
    """
    runs = sorted(runs, key=lambda run: run["router"] == "relu")  # the paper's order
    first = {run["run"]: domain_shares(records(run)[0]) for run in runs}
    layers = sorted({layer for wide in first.values() for layer in wide.index.get_level_values("layer")})
    if text(spec, "x") == "ends":
        layers = sorted({layers[0], layers[middle(len(layers))], layers[-1]})
    figure, axes = panels(len(layers), len(runs), width=8.2, height=1.0 + 1.25 * len(layers), sharex="col", sharey=True)
    for column, run in enumerate(runs):
        for row, layer in enumerate(layers):
            _bars(axes[row, column], first[run["run"]].loc[layer], int(run["top_k"]) / int(run["experts"]))
            axes[row, column].set_title(f"{run['label']}, layer {layer}")
        axes[-1, column].set_xlabel("expert")
    for row in range(len(layers)):
        axes[row, 0].set_ylabel("share")
    axes[0, -1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    data = pd.concat([_tidy(record, layers) for run in runs for record in records(run)], ignore_index=True)
    variances = [(run["label"], [domain_variance(record, "") for record in records(run)]) for run in runs]
    said = ", ".join(f"{label} {np.mean(values):.3f}" for label, values in variances)
    seeds = len(records(runs[0]))
    shown = "One seed." if seeds == 1 else f"Seed {records(runs[0])[0].seed} of {seeds} is drawn; the CSV has all."
    notes = [
        f"Dashed: k/E. Variance of the shares over domains, mean over all layers' experts, in 10⁻³: {said}.",
        shown,
    ]
    notes += [probed_sentence(records(runs[0])[0]), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _bars(axis, shares: pd.DataFrame, even: float) -> None:
    """Bars of experts (rows of `shares`), a colour a domain (its columns)."""
    width = 0.8 / shares.shape[1]
    for place, domain in enumerate(shares.columns):
        at = np.arange(len(shares)) + (place - (shares.shape[1] - 1) / 2) * width
        axis.bar(at, shares[domain], width=width, color=PALETTE[place % len(PALETTE)], label=domain, linewidth=0)
    axis.axhline(even, color=BLACK, linestyle="--", linewidth=0.8)
    axis.set_xticks(range(len(shares)), [str(expert) for expert in shares.index])


def _tidy(record, layers: list[int]) -> pd.DataFrame:
    shares = domain_shares(record).loc[layers].stack().rename("share").reset_index()
    shares.insert(0, "run", record.run["run"])
    shares.insert(1, "seed", record.seed)
    return shares


def domain_activity(spec, runs, *, scale, reported, results) -> Picture:
    """Mean number of experts that a token activates, by layer, a line a domain (figure 12); mean over seeds."""
    each = [record for run in runs for record in records(run)]
    stacked = pd.concat([active_by_domain(record).stack().rename(record.seed) for record in each], axis=1)
    stats = [mean_interval(row) for row in stacked.to_numpy()]
    data = stacked.index.to_frame(index=False)
    data["active"] = [mean for mean, _ in stats]
    data["interval"] = [np.nan if half is None else half for _, half in stats]
    data["seeds"] = stacked.shape[1]
    figure, axes = panels(1, 1, width=5.8, height=3.6)
    axis = axes[0, 0]
    for place, (domain, line) in enumerate(data.groupby("domain", sort=False)):
        errors = line["interval"] if line["interval"].notna().any() else None
        ink = PALETTE[place % len(PALETTE)]
        axis.errorbar(
            line["layer"], line["active"], yerr=errors, marker="o", markersize=4, capsize=2, color=ink, label=domain
        )
    axis.set(xlabel="layer", ylabel="active experts a token", xticks=sorted(set(data["layer"])))
    axis.legend()
    notes = [seeds_sentence([len(each)]), probed_sentence(each[0]), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])
