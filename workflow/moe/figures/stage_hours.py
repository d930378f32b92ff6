"""Hours of training by stage (ReMoE, table 6)."""

import numpy as np

from moe.figures.check import text
from moe.figures.layout import Table
from moe.figures.metrics import METRICS
from moe.figures.records import records, snapshots_of, target_sparsity
from moe.figures.reported import attributes, find, load, parse_match, stems
from moe.figures.stages import stage_bounds
from moe.figures.step_metrics import early_time, sparsities
from moe.figures.tables import cell_of
from moe.figures.titles import headline, seeds_sentence

STAGES = ("I", "II", "III", "total")


def stage_hours(spec, runs, *, scale, reported, results) -> Table:
    """A row a run: hours of each stage, and (CSV alone) its steps; stages are those of the ReLU run of the same seed.

    Errors: ValueError unless the query selects exactly one ReLU run.
    """
    relu = [run for run in runs if run["router"] == "relu"]
    if len(relu) != 1:
        where = f"{spec['paper']}/{spec['figure']}"
        raise ValueError(f"{where}: kind stage-hours needs one ReLU run, its query selects {len(relu)}.")
    edges = {}
    for record in records(relu[0]):
        second, third = stage_bounds(sparsities(record), target_sparsity(record.run))
        steps = len(record.steps())
        third = steps if third is None else third
        edges[record.seed] = {"I": (0, second), "II": (second, third), "III": (third, steps), "total": (0, steps)}
    pages, match = load(reported, stems(text(spec, "reported"))), parse_match(text(spec, "match"))
    rows, cells = [], []
    for run in sorted(runs, key=lambda run: run["router"] == "relu"):
        each = [record for record in records(run) if record.seed in edges]
        values = attributes(run, snapshots_of(each[0])[-1])
        rows.append(str(run["label"]))
        for stage in STAGES:
            printed = find(pages, {**match, "stage": f"={stage}"}, values, "train_time")
            spans = [edges[record.seed][stage] for record in each]
            hours = [_hours(record, *span) for record, span in zip(each, spans, strict=True)]
            cells.append(cell_of(rows[-1], stage, "hours", printed, hours))
            counted = [float(end - start) for start, end in spans]
            cells.append(cell_of(rows[-1], f"steps of {stage}", "steps", None, counted))
        metric = METRICS["early_time"]
        shares = [early_time(record, "") if run is relu[0] else None for record in each]
        printed = find(pages, match, values, metric.printed) if run is relu[0] else None
        cells.append(cell_of(rows[-1], "early_time", metric.unit, printed, shares))
    columns = {stage: (f"stage {stage} (hours)" if stage != "total" else "total (hours)", 4) for stage in STAGES}
    columns["early_time"] = (f"{METRICS['early_time'].header} ({METRICS['early_time'].unit})", 2)
    lengths = [np.mean([edge[stage][1] - edge[stage][0] for edge in edges.values()]) for stage in STAGES]
    said = ", ".join(f"{stage}: {length:g}" for stage, length in zip(STAGES, lengths, strict=True))
    notes = [f"Steps of the stages here (mean over seeds): {said}.", seeds_sentence([len(edges)])]
    return Table(
        title=f"{headline(spec, scale)}: {text(spec, 'title')}",
        corner="label",
        rows=rows,
        columns=columns,
        cells=cells,
        caption=text(spec, "caption"),
        notes=notes,
    )


def _hours(record, start: int, end: int) -> float:
    """Hours of the steps after `start` up to `end`, counted from the first step."""
    return float(record.steps()["seconds"].to_numpy(dtype=float)[start:end].sum() / 3600)
