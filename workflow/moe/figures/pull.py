"""What pulls at a router, and what a capacity would drop, over training (RMoE, table 11)."""

from moe.figures.check import text
from moe.figures.layout import Table
from moe.figures.probe_metrics import PULL, pulls
from moe.figures.records import records
from moe.figures.reported import attributes, find, load, parse_match, stems
from moe.figures.style import short
from moe.figures.tables import cell_of
from moe.figures.titles import called, headline, seeds_sentence


def router_pull(spec, runs, *, scale, reported, results) -> Table:
    """Rows are runs at the points of the schedule, named by the paper's step; columns the means of what was measured.

    The CSV also has the steps of this scale's schedule that each mean begins and ends with, and how many they are.
    """
    pages, match = load(reported, stems(text(spec, "reported"))), parse_match(text(spec, "match"))
    names, cells, spans = [], [], {}
    for run in runs:
        tables = [pulls(record) for record in records(run)]
        for step in tables[0].index:
            names.append(f"{called(['label'], run)}, {short(step)} steps")
            for column, (_, unit, _, metric) in PULL.items():
                printed = find(pages, match | {"step": f"={step}"}, attributes(run), metric)
                measured = [float(table.loc[step, column]) if step in table.index else None for table in tables]
                cells.append(cell_of(names[-1], column, unit, printed, measured))
            last, length = (int(tables[0].loc[step, column]) for column in ("last", "steps"))
            spans.setdefault(f"{short(step)} steps", {})[f"{last - length + 1} to {last}"] = True
            for column, own in (("first", last - length + 1), ("last", last), ("steps", length)):
                cells.append(cell_of(names[-1], f"{column}_here", "steps", None, [float(own)]))
    columns = {name: (header + (f" ({unit})" if unit else ""), n) for name, (header, unit, n, _) in PULL.items()}
    means = "; ".join(f"{name}: {' or '.join(each)}" for name, each in spans.items())
    notes = [f"Means over these steps of this schedule (in the paper over 100): {means}."] if spans else []
    share = "A row names the paper's step and is the same share of this schedule; where that is too short for the mean"
    notes.append(f"{share}, it is of the first steps.")
    notes.append(seeds_sentence(cell["seeds"] for cell in cells if cell["seeds"] and cell["printed"]))
    if scale != "paper":
        notes.append(f"Model, corpus and schedule are those of scale {scale}.")
    return Table(
        title=f"{headline(spec, scale)}: {text(spec, 'title')}",
        corner="router, step of the paper",
        rows=names,
        columns=columns,
        cells=cells,
        caption=text(spec, "caption"),
        notes=notes,
    )
