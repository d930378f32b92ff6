"""How alike the experts of a layer are, over training and at its end (RMoE, figures 5 and 13)."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from moe.figures.check import text
from moe.figures.groups import panels_of
from moe.figures.intervals import mean_interval
from moe.figures.probe_metrics import layer_weights, similarities
from moe.figures.records import records, total_experts
from moe.figures.style import BLACK, Picture, colours, panels, short
from moe.figures.titles import called, headline, seeds_sentence

MATRICES = {"decoder": 3, "span": 2}  # of an expert: with SwiGLU, and in RMoE's small model


def similarity_over_training(spec, runs, *, scale, reported, results) -> Picture:
    """At each measured step a box over the layers, the mean marked, a colour a run; mean over seeds, layer by layer.

    Dashed: experts that have nothing in common. A run without a measured step is named and has no box.
    """
    data = pd.concat([_over_training(run) for run in runs], ignore_index=True)
    steps = sorted(set(data["step"]))
    figure, axes = panels(1, 1, width=7.2, height=3.6)
    axis, width = axes[0, 0], 0.8 / len(runs)
    for place, (run, ink) in enumerate(zip(runs, colours(runs), strict=True)):
        each = data[data["run"] == run["run"]]
        boxes = [each.loc[each["step"] == step, "similarity"].to_numpy() for step in steps]
        at = np.arange(len(steps)) + (place - (len(runs) - 1) / 2) * width
        kept = [i for i, box in enumerate(boxes) if len(box)]
        _boxes(axis, [boxes[i] for i in kept], at[kept], 0.85 * width, ink, called(["label"], run))
        matrices = MATRICES[records(run)[0].spec()["model"].get("kind", "decoder")]
        axis.axhline(matrices / total_experts(run), color=BLACK, linestyle="--", linewidth=0.9)
    axis.set_xticks(range(len(steps)), [short(step) for step in steps])
    axis.set(xlabel="step", ylabel="similarity of the experts")
    if axis.get_legend_handles_labels()[0]:
        axis.legend()
    without = [run["run"] for run in runs if run["run"] not in set(data["run"])]
    notes = ["Boxes: quartiles over the layers, triangles: their mean; dashed: random experts."]
    notes += [f"Not measured: {', '.join(without)}."] if without else []
    notes += [seeds_sentence(data["seeds"], drawn=False), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _boxes(axis, values: list, at, width: float, ink: str, name: str) -> None:
    if not values:
        return
    line = {"color": ink, "linewidth": 1}
    mean = {"marker": "^", "markerfacecolor": "white", "markeredgecolor": ink, "markersize": 4}
    box = {"facecolor": "none", "edgecolor": ink, "linewidth": 1}
    options = {"showmeans": True, "showfliers": False, "patch_artist": True, "manage_ticks": False}
    axis.boxplot(
        values,
        positions=at,
        widths=width,
        boxprops=box,
        whiskerprops=line,
        capprops=line,
        medianprops=line,
        meanprops=mean,
        **options,
    )
    axis.plot([], [], color=ink, label=name)


def _over_training(run: dict) -> pd.DataFrame:
    """Columns run, label, step, layer, similarity (mean over seeds), interval, seeds."""
    each = records(run)
    wide = pd.concat([similarities(record).stack().rename(record.seed) for record in each], axis=1)
    return _mean_of_seeds(wide.rename_axis(["step", "layer"]), run, "similarity")


def similarity_by_layer(spec, runs, *, scale, reported, results) -> Picture:
    """Similarity at the end by layer, a line a run, a panel a group of routers (column `x`); dashed: random experts."""
    groups = panels_of(text(spec, "x").split(), runs)
    hue = (text(spec, "hue") or "label").split()
    data = pd.concat([_by_layer(run) for run in runs], ignore_index=True)
    inks = dict(zip([run["run"] for run in runs], colours(runs), strict=True))
    figure, axes = panels(1, len(groups), width=3.9 * len(groups) + 0.6, height=4.0, sharey=True)
    for axis, group in zip(axes[0], groups, strict=True):
        for run in group:
            each = data[data["run"] == run["run"]]
            errors = each["interval"] if each["interval"].notna().any() else None
            options = {"marker": "o", "markersize": 4, "capsize": 2, "color": inks[run["run"]]}
            axis.errorbar(each["layer"], each["similarity"], yerr=errors, label=called(hue, run), **options)
        random = layer_weights(records(group[0])[0])["similarity_of_random"].iloc[0]
        axis.axhline(random, color=BLACK, linestyle="--", linewidth=0.9)
        axis.set(xlabel="layer", xticks=sorted(set(data["layer"])))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=7)
    axes[0, 0].set_ylabel("similarity of the experts")
    notes = ["Dashed: random experts.", seeds_sentence(data["seeds"]), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _by_layer(run: dict) -> pd.DataFrame:
    wide = pd.DataFrame({record.seed: layer_weights(record)["expert_similarity"] for record in records(run)})
    return _mean_of_seeds(wide, run, "similarity")


def _mean_of_seeds(wide: pd.DataFrame, run: dict, column: str) -> pd.DataFrame:
    """A row an index of `wide`, whose columns are seeds, with the mean and the half-width of its interval."""
    stats = [mean_interval(row) for row in wide.to_numpy()]
    frame = wide.index.to_frame(index=False).assign(**{column: [mean for mean, _ in stats]})
    frame["interval"] = [np.nan if half is None else half for _, half in stats]
    frame.insert(0, "run", run["run"])
    frame.insert(1, "label", run["label"])
    return frame.assign(seeds=wide.shape[1])


def router_weights(spec, runs, *, scale, reported, results) -> Picture:
    """Norm and standard deviation of the last map to the scores by layer: a row of panels a size, a line a run.

    Dotted, in the same colour: the value before the first step; mean over seeds.
    """
    sizes = list(dict.fromkeys(run["size"] for run in runs))
    columns = {"norm": "norm", "std": "standard deviation"}
    data = pd.concat([_weights(run, columns) for run in runs], ignore_index=True)
    figure, axes = panels(len(sizes), 2, width=7.2, height=0.4 + 1.9 * len(sizes))
    for row, size in enumerate(sizes):
        some = [run for run in runs if run["size"] == size]
        for run, ink in zip(some, colours(some), strict=True):
            each = data[data["run"] == run["run"]]
            for axis, column in zip(axes[row], columns, strict=True):
                errors = each[f"{column}_interval"] if each[f"{column}_interval"].notna().any() else None
                options = {"marker": "o", "markersize": 3, "capsize": 2, "color": ink, "label": called(["label"], run)}
                axis.errorbar(each["layer"], each[column], yerr=errors, **options)
                axis.plot(each["layer"], each[f"initial_{column}"], color=ink, linestyle=":", linewidth=1)
        for axis, (_, name) in zip(axes[row], columns.items(), strict=True):
            axis.set(title=f"{size}: {name}", ylim=(0, None))
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    axes[0, 1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    notes = ["Dotted: before the first step.", seeds_sentence(data["seeds"]), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _weights(run: dict, columns: dict) -> pd.DataFrame:
    tables = {record.seed: layer_weights(record) for record in records(run)}
    frames = []
    for column in columns:
        wide = pd.DataFrame({seed: table[column] for seed, table in tables.items()})
        start = pd.DataFrame({seed: table[f"initial_{column}"] for seed, table in tables.items()}).mean(axis=1)
        frame = _mean_of_seeds(wide, run, column).rename(columns={"interval": f"{column}_interval"})
        frames.append(frame.assign(**{f"initial_{column}": start.to_numpy()}))
    shared = ["run", "label", "layer", "seeds"]
    both = frames[0].merge(frames[1], on=shared)
    both.insert(2, "size", run["size"])
    return both[[*(c for c in both if c != "seeds"), "seeds"]]
