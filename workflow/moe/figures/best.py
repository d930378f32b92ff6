"""A table of runs of which several share a row: the best one is shown (RMoE's table 7, fine-tuned by variant)."""

from moe.figures.check import text
from moe.figures.intervals import mean_interval
from moe.figures.layout import Table
from moe.figures.metrics import LOCAL, columns_of, metric_of
from moe.figures.records import Record, records
from moe.figures.reported import attributes
from moe.figures.tables import rows_of, table_of
from moe.figures.titles import called

# what makes a run the best, where every run of the table has it; else the next
MEASURES = (("mean_accuracy", 1), ("local_mean_accuracy", 1), ("valid_loss", -1))


def best_table(spec, runs, *, scale, reported, results) -> Table:
    """As tables.runs_table; of runs with the same name in x the one with the best mean over seeds is the row."""
    seeds = {run["run"]: records(run) for run in runs}
    rows = rows_of(spec, runs, seeds, reported)
    columns = columns_of(text(spec, "y"), [r for each in seeds.values() for r in each])
    measure, values = _measured(rows, seeds, [column for column in columns if "/" in column])
    groups: dict[str, list[int]] = {}
    for place, (run, snapshot) in enumerate(rows):
        groups.setdefault(called(text(spec, "x").split(), attributes(run, snapshot)), []).append(place)
    best = [max(places, key=values.__getitem__) for places in groups.values()]
    chosen = [
        f"{name}: {rows[place][0]['frozen']}"
        for (name, places), place in zip(groups.items(), best, strict=True)
        if len(places) > 1
    ]
    table = table_of(spec, [rows[place] for place in best], seeds, scale=scale, reported=reported)
    if chosen:
        header = metric_of(measure, []).header + ("†" if measure.startswith(LOCAL) else "")
        table.notes.append(f"Frozen in the best variant here, by {header}: {'; '.join(chosen)}.")
    return table


def _measured(rows, seeds: dict[str, list[Record]], tasks: list[str]) -> tuple[str, list[float]]:
    """The first measure that every row has, and its value of each row, larger for better."""
    for measure, sign in MEASURES:
        metric = metric_of(measure, tasks)
        values = [[metric.read(record, snapshot) for record in seeds[run["run"]]] for run, snapshot in rows]
        if all(value is not None for each in values for value in each):
            return measure, [sign * mean_interval(each)[0] for each in values]
    raise ValueError(f"{rows[0][0]['run']}: has no {MEASURES[-1][0]} to tell the best by.")
