"""How evenly experts and layers are used (ReMoE, figure 8b to d), from the probed test text."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.probe_metrics import frequencies, selection_unevenness
from moe.figures.records import records
from moe.figures.routing_metrics import INACTIVE, expert_shares, idle_experts, layer_sparsity, probed_sentence
from moe.figures.sparsity import one_run
from moe.figures.style import BLACK, Picture, colours, panels
from moe.figures.titles import called, headline, seeds_sentence


def expert_heatmap(spec, runs, *, scale, reported, results) -> Picture:
    """Share of the tokens that each expert of each layer gets, one run; experts below 1/64 are marked inactive.

    Experts of two seeds have nothing in common, so the first seed is drawn; the CSV has all.
    """
    run = one_run(spec, runs)
    each = records(run)
    wide = expert_shares(each[0])
    figure, axes = panels(1, 1, width=5.6, height=1.2 + 0.28 * len(wide))
    image = axes[0, 0].imshow(
        wide.to_numpy(), cmap="viridis", vmin=0, vmax=max(wide.to_numpy().max(), 1e-9), aspect="auto"
    )
    for layer, expert in np.argwhere(wide.to_numpy() < INACTIVE):
        axes[0, 0].plot(expert, layer, marker="x", color="white", markersize=5, markeredgewidth=1)
    axes[0, 0].set(xlabel="expert", ylabel="layer", xticks=range(wide.shape[1]), yticks=range(len(wide)))
    axes[0, 0].grid(False)
    figure.colorbar(image, ax=axes[0, 0], label="share of the tokens")
    idle = mean_interval(idle_experts(record, "") for record in each)
    over = "" if idle[1] is None else f" ± {idle[1]:.1f} (95 % over {len(each)} seeds)"
    shown = "One seed." if len(each) == 1 else f"Seed {each[0].seed} of {len(each)} is drawn; the CSV has all."
    notes = [f"×: inactive, less than 1/64 of the tokens; {idle[0]:.1f} %{over} of all experts are.", shown]
    notes += [probed_sentence(each[0]), text(spec, "caption")]
    data = pd.concat([_tidy(record) for record in each], ignore_index=True)
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _tidy(record) -> pd.DataFrame:
    shares = expert_shares(record).stack().rename("share").reset_index()
    shares.insert(0, "seed", record.seed)
    return shares.assign(inactive=(shares["share"] < INACTIVE).astype(int))


def layer_sparsity_lines(runs: list[dict]) -> pd.DataFrame:
    """Mean over seeds of the sparsity of each layer, and half of its 95 % interval."""
    rows = []
    for run in runs:
        wide = pd.DataFrame({record.seed: layer_sparsity(record) for record in records(run)})
        for layer, values in wide.iterrows():
            mean, half = mean_interval(values)
            row = {"run": run["run"], "line": run["label"], "layer": layer}
            rows.append(row | {"sparsity": mean, "interval": half, "seeds": len(values)})
    return pd.DataFrame(rows)


def layer_sparsity_figure(spec, runs, *, scale, reported, results) -> Picture:
    """Share of zero gates by layer, a line a run (figure 8d)."""
    data = layer_sparsity_lines(runs)
    figure, axes = panels(1, 1, width=5.6, height=3.4)
    axis = axes[0, 0]
    for run, ink in zip(runs, colours(runs), strict=True):
        each = data[data["run"] == run["run"]]
        axis.errorbar(
            each["layer"],
            each["sparsity"],
            yerr=within_shares(each),
            marker="o",
            markersize=4,
            capsize=2,
            color=ink,
            label=each["line"].iloc[0],
        )
    target = {1 - int(run["top_k"]) / int(run["experts"]) for run in runs}
    for value in target:
        axis.axhline(value, color=BLACK, linestyle="--", linewidth=0.9)
    axis.set(xlabel="layer", ylabel="sparsity", xticks=sorted(set(data["layer"])))
    axis.legend()
    notes = [
        "Dashed: 1 − k/E; bars are cut at 0 and 1.",
        seeds_sentence(data["seeds"]),
        probed_sentence(records(runs[0])[0]),
        text(spec, "caption"),
    ]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def within_shares(each: pd.DataFrame) -> np.ndarray | None:
    """How far the bars of a line reach down and up, [2, layers], cut at 0 and 1: a share of gates has no more."""
    if not each["interval"].notna().any():
        return None
    half, share = each["interval"].to_numpy(dtype=float), each["sparsity"].to_numpy(dtype=float)
    return np.stack([np.minimum(half, share), np.minimum(half, 1 - share)])


def selection_frequencies(spec, runs, *, scale, reported, results) -> Picture:
    """How often each expert of each layer is chosen, a panel a run (RMoE, figure 12): shares of a layer's assignments.

    Experts of two seeds have nothing in common, so the first seed is drawn; the CSV has all.
    """
    across = min(4, len(runs))
    wide = {run["run"]: frequencies(records(run)[0]) for run in runs}
    rows = -(-len(runs) // across)
    layers = max(map(len, wide.values()))
    figure, axes = panels(rows, across, width=2.3 * across + 0.8, height=max(1.6, 0.8 + 0.17 * layers) * rows + 0.8)
    most = max(frame.to_numpy().max() for frame in wide.values())
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis, run in zip(axes.flat, runs, strict=False):
        grid = wide[run["run"]].to_numpy()
        image = axis.imshow(grid, cmap="viridis", vmin=0, vmax=most, aspect="auto")
        axis.set(title=called(["label"], run), xlabel="expert", ylabel="layer")
        axis.set_yticks(range(0, len(grid), max(1, len(grid) // 8)))
        axis.grid(False)
    figure.colorbar(image, ax=axes.ravel().tolist(), label="share of the layer's assignments")
    uneven = [(called(["label"], run), [selection_unevenness(r, "") for r in records(run)]) for run in runs]
    said = ", ".join(f"{label} {np.mean(values):.0f}" for label, values in uneven)
    seeds = len(records(runs[0]))
    shown = "One seed." if seeds == 1 else f"Seed {records(runs[0])[0].seed} of {seeds} is drawn; the CSV has all."
    notes = [f"Standard deviation over the experts of a layer, in % of their mean, mean over layers: {said}.", shown]
    notes += [probed_sentence(records(runs[0])[0]), text(spec, "caption")]
    data = pd.concat([_frequency(run, record) for run in runs for record in records(run)], ignore_index=True)
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _frequency(run: dict, record) -> pd.DataFrame:
    shares = frequencies(record).stack().rename("share").reset_index()
    shares.insert(0, "run", run["run"])
    shares.insert(1, "seed", record.seed)
    return shares
