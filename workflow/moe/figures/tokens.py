"""Token ids and the experts that they activate (ReMoE, figure 7 and table 12), from the probed test text."""

import pandas as pd

from moe.figures.check import text
from moe.figures.domains import middle
from moe.figures.intervals import mean_interval
from moe.figures.layout import plain
from moe.figures.listing import Listing, code
from moe.figures.records import records
from moe.figures.reported import load, stems
from moe.figures.routing_metrics import rank_correlation, token_activity
from moe.figures.sparsity import one_run
from moe.figures.style import BLUE, RED, Picture, panels
from moe.figures.titles import headline


def token_activity_figure(spec, runs, *, scale, reported, results) -> Picture:
    """Mean active experts of each token id, ids sorted by it, and their frequency (log), of the first seed."""
    run = one_run(spec, runs)
    each = records(run)
    data = token_activity(each[0]).sort_values(["active", "token"], ignore_index=True)
    figure, axes = panels(2, 1, width=6.4, height=4.4, sharex=True)
    order = range(len(data))
    axes[0, 0].plot(order, data["active"], color=RED, rasterized=len(data) > 5000)
    axes[0, 0].set(ylabel="active experts", title="(a) mean over occurrences and layers")
    dots = {"markersize": 1.5, "alpha": 0.4, "rasterized": True}
    axes[1, 0].plot(order, data["occurrences"], ".", color=BLUE, **dots)
    window = max(1, len(data) // 50)
    smooth = data["occurrences"].rolling(window, center=True, min_periods=1).median()
    axes[1, 0].plot(order, smooth, color=BLUE, linewidth=1.2, rasterized=len(data) > 5000)
    axes[1, 0].set(yscale="log", ylabel="occurrences", xlabel="token ids, sorted by their active experts")
    axes[1, 0].set_title("(b) frequency in the probed text (line: running median)")
    mean, half = mean_interval(rank_correlation(record, "") or 0 for record in each)
    over = " (one seed)" if half is None else f" ± {half:.3f} (95 % over {len(each)} seeds)"
    size = f"{len(data)} ids in {data['occurrences'].sum():,} tokens"
    notes = [
        f"Rank correlation of frequency and active experts: {plain(mean, 3)}{over}; {size}.",
        text(spec, "caption"),
    ]
    return Picture(figure, data, headline(spec, scale), text(spec, "title"), [" ".join(notes)])


def faithful_tokens(spec, runs, *, scale, reported, results) -> Listing:
    """For each expert of a middle layer the tokens that it takes most faithfully, beside the paper's (table 12).

    Experts have no order that two trainings share: a row sets side by side what happens to have one number.
    """
    run = one_run(spec, runs)
    record = records(run)[0]
    frame = record.read("top_tokens.csv")
    (page,) = load(reported, stems(text(spec, "reported")))
    layers = sorted(set(frame["layer"]))
    layer = layers[middle(len(layers))] if layers else 0
    ours = frame[frame["layer"] == layer]
    rows, cells = [], []
    for expert in range(int(run["experts"]) * int(run["granularity"])):
        theirs = [line for line in page if int(line["expert"]) == expert]
        mine = ours[ours["expert"] == expert].to_dict("records")
        lists = [f"{code(line['token'])} {line['value']}" for line in theirs]
        found = [f"{code(_text(line))} {100 * line['share']:.2f}" for line in mine]
        rows.append([str(expert), ", ".join(lists), ", ".join(found)])
        for place in range(max(len(theirs), len(mine))):
            cells.append({"layer": layer, "expert": expert, "place": place + 1, **_cell(place, theirs, mine)})
    several = "One seed." if len(records(run)) == 1 else f"Seed {record.seed} of {len(records(run))}."
    return Listing(
        title=f"{headline(spec, scale)}: {text(spec, 'title')}",
        heads=["expert", "the paper's tokens of layer 5 (%)", f"ours, of layer {layer} (%)"],
        rows=rows,
        data=pd.DataFrame(cells),
        notes=[text(spec, "caption"), f"Ours: layer {layer} of {len(layers)} (counted from 0). {several}"],
    )


def _text(line: dict) -> str:
    return line["text"] if isinstance(line["text"], str) else ""


def _cell(place: int, theirs: list[dict], mine: list[dict]) -> dict:
    """What stands at one place of an expert's list, printed and measured."""
    cell = dict.fromkeys(["reported_token", "reported", "token", "text", "routed", "occurrences", "share"])
    if place < len(theirs):
        cell |= {"reported_token": theirs[place]["token"], "reported": theirs[place]["value"]}
    if place < len(mine):
        line = mine[place]
        cell |= {key: line[key] for key in ("token", "routed", "occurrences")}
        cell |= {"text": _text(line), "share": 100 * line["share"]}
    return cell
