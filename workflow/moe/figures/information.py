"""What the scores of two layers share, as heat maps (RMoE, figures 3, 6 and 7)."""

import numpy as np
import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.probe_metrics import shared_information
from moe.figures.records import records, snapshots_of
from moe.figures.reported import attributes, find, load, parse_match, stems
from moe.figures.style import Picture, panels
from moe.figures.titles import called, headline, seeds_sentence

PAIR = ["layer_i", "layer_j"]
ACROSS = 3  # panels of a row


def information_maps(spec, runs, *, scale, reported, results) -> Picture:
    """Mutual information of each pair of layers below the diagonal, a panel a run; under it the paper's, if printed.

    Mean over seeds. The CSV has every pair, its interval over seeds, and the printed number of the pair of that name.
    """
    pages, match = load(reported, stems(text(spec, "reported"))), parse_match(text(spec, "match"))
    data = pd.concat([_pairs(run, pages, match) for run in runs], ignore_index=True)
    kinds = ["measured", "reported"] if data["reported"].notna().any() else ["measured"]
    across = min(ACROSS, len(runs))
    blocks = [runs[start : start + across] for start in range(0, len(runs), across)]
    lines = [(kind, block) for block in blocks for kind in kinds]
    figure, axes = panels(len(lines), across, width=2.5 * across + 0.8, height=0.6 + 2.4 * len(lines))
    most = max(data[kind].max() for kind in kinds)
    for row, (kind, block) in enumerate(lines):
        for column in range(across):
            axis = axes[row, column]
            if column >= len(block):
                axis.set_axis_off()
                continue
            whose = "ours" if kind == "measured" else "the paper's"
            values = data[data["run"] == block[column]["run"]]
            image = _map(axis, values, kind, most)
            axis.set_title(f"{called(['label'], block[column])}, {whose}")
    figure.colorbar(image, ax=axes.ravel().tolist(), label="nats", shrink=min(1.0, 2 / len(lines)))
    counted = records(runs[0])[0].read("mutual_information.csv")["tokens"].iloc[0]
    notes = ["Rows and columns: layers, from 0.", f"Mean over {counted:,} tokens of test text."]
    notes += [seeds_sentence(data["seeds"].dropna().astype(int), drawn=False), text(spec, "caption")]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def _pairs(run: dict, pages: list, match: dict) -> pd.DataFrame:
    """Pairs of layers below the diagonal: measured mean and interval, and what was printed, each where it is."""
    each = records(run)
    wide = {record.seed: shared_information(record).set_index(PAIR)["mutual_information"] for record in each}
    table = pd.DataFrame(wide)
    table = table[table.index.get_level_values(0) > table.index.get_level_values(1)]
    stats = [mean_interval(row) for row in table.to_numpy()]
    ours = pd.DataFrame({"measured": [m for m, _ in stats], "interval": [h for _, h in stats]}, index=table.index)
    ours["seeds"] = table.shape[1]
    theirs = pd.Series(_printed(run, snapshots_of(each[0])[-1], pages, match), dtype=float, name="reported")
    theirs.index = pd.MultiIndex.from_tuples(theirs.index, names=PAIR) if len(theirs) else table.index[:0]
    both = ours.astype({"interval": float}).join(theirs, how="outer").reset_index()
    both.insert(0, "run", run["run"])
    both.insert(1, "label", run["label"])
    return both


def _printed(run: dict, snapshot: str, pages: list, match: dict) -> dict[tuple[int, int], float]:
    pairs = {(row["layer_i"], row["layer_j"]) for page in pages for row in page}
    found = {}
    for i, j in sorted(pairs):
        one = find(pages, match | {"layer_i": f"={i}", "layer_j": f"={j}"}, attributes(run, snapshot), METRIC)
        if one:
            found[int(i), int(j)] = one.value
    return found


METRIC = "mutual_information"


def _map(axis, values: pd.DataFrame, kind: str, most: float):
    values = values[values[kind].notna()]
    layers = int(values["layer_i"].max()) + 1 if len(values) else 1
    grid = np.full((layers, layers), np.nan)
    grid[values["layer_i"], values["layer_j"]] = values[kind]
    image = axis.imshow(grid, cmap="viridis", vmin=0, vmax=max(most, 1e-9))
    if layers <= 8:
        for i, j, value in values[[*PAIR, kind]].itertuples(index=False):
            ink = "white" if value < 0.6 * most else "black"
            axis.text(j, i, f"{value:.2f}", size=5.5, ha="center", va="center", color=ink)
    ticks = range(0, layers, max(1, layers // 8))
    axis.set(xticks=ticks, yticks=ticks)
    axis.grid(False)
    return image
