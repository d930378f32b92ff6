"""Tables of runs against what the paper printed, and the table of backbones."""

import pandas as pd

from moe.figures.check import text
from moe.figures.intervals import NORMAL_95, mean_interval
from moe.figures.kinds import BACKBONE
from moe.figures.layout import Table
from moe.figures.metrics import LOCAL, columns_of, metric_of
from moe.figures.records import records, snapshots_of
from moe.figures.reported import attributes, find, load, parse_match, place, stems
from moe.figures.titles import called, corner, headline, seeds_sentence

BACKBONE_HEADERS = {
    "active_params": ("dense parameters (million)", 3),
    "total_params": ("with E = 8 (million)", 3),
    "flops_per_sequence": ("GFLOPs a sequence", 2),
    "hidden_size": ("width", 0),
    "num_layers": ("layers", 0),
    "num_heads": ("heads", 0),
    "num_query_groups": ("KV groups", 0),
}


def runs_table(spec, runs, *, scale, reported, results) -> Table:
    """Rows are runs (at one or several snapshots), columns are metrics.

    A column `corpus:metric` is of the run on that corpus alone, so that runs that differ in it share a row. A cell of
    the CSV has the printed number, the measured mean over seeds, their difference (measured − reported) and the
    half-width of the 95 % interval. What was not run is empty.
    """
    seeds = {run["run"]: records(run) for run in runs}
    return table_of(spec, rows_of(spec, runs, seeds, reported), seeds, scale=scale, reported=reported)


def table_of(spec, rows: list[tuple[dict, str]], seeds: dict, *, scale, reported) -> Table:
    """The table of these (run, snapshot); seeds: run -> its records, of all that the row of figures.tsv selects."""
    columns = columns_of(text(spec, "y"), [r for each in seeds.values() for r in each])
    tasks = [column for column in columns if "/" in column]
    metrics = {column: metric_of(column.rpartition(":")[2], tasks) for column in columns}
    pages = load(reported, stems(text(spec, "reported")))
    match = parse_match(text(spec, "match"))
    named, cells = {}, []
    for run, snapshot in rows:
        named.setdefault(called(text(spec, "x").split(), attributes(run, snapshot)), []).append((run, snapshot))
    for name, each in named.items():
        for column, metric in metrics.items():
            of = column.rpartition(":")[0]
            mine = [(run, snapshot) for run, snapshot in each if of in ("", run["corpus"])]
            if len(mine) > 1:
                where = f"{spec['paper']}/{spec['figure']}"
                raise ValueError(f"{where}: two rows are called {name!r}; name more columns in x.")
            for run, snapshot in mine:
                printed = find(pages, match, attributes(run, snapshot, metric.split), metric.printed)
                cells.append(_cell(name, column, metric, printed, seeds[run["run"]], snapshot))
    return Table(
        title=f"{headline(spec, scale)}: {text(spec, 'title')}",
        corner=corner(text(spec, "x")),
        rows=list(named),
        columns={c: (_header(c, metric), metric.decimals) for c, metric in metrics.items() if not metric.csv_only},
        cells=cells,
        caption=text(spec, "caption"),
        notes=_notes(cells, metrics, scale),
    )


def rows_of(spec, runs, seeds, reported) -> list[tuple[dict, str]]:
    """(run, snapshot) of every row, in the paper's order; grouped by snapshot where `x` begins with it.

    A fine-tuned run has one snapshot, and is shown if that is asked for. Errors: ValueError for any other without one.
    """
    pages, match = load(reported, stems(text(spec, "reported"))), parse_match(text(spec, "match"))
    asked = text(spec, "snapshots").split()
    rows = []
    for run in runs:
        made = snapshots_of(seeds[run["run"]][0])
        missing = [label for label in asked if label not in made]
        if missing and (missing == asked or not run["base"]):
            problem = f"has no snapshot {missing[0]!r}, only {', '.join(made)}"
            raise ValueError(f"{spec['paper']}/{spec['figure']}: run {run['run']} {problem}.")
        rows += [(run, label) for label in (asked or made[-1:]) if label in made]
    rows.sort(key=lambda row: place(pages, match, attributes(*row)))
    if text(spec, "x").startswith("snapshot"):
        order = list(dict.fromkeys(asked or (label for _, label in rows)))
        rows.sort(key=lambda row: order.index(row[1]))
    return rows


def _cell(row: str, column: str, metric, printed, each: list, snapshot: str) -> dict:
    """A cell of several seeds; what was measured on the machine is one value with an interval of its own."""
    if not metric.of_scale:
        return cell_of(row, column, metric.unit, printed, [metric.read(record, snapshot) for record in each])
    cell = cell_of(row, column, metric.unit, printed, [metric.read(each[0], snapshot)]) | {"seeds": None}
    error = metric.error(each[0], snapshot) if metric.error else None
    return cell | {"interval": None if error is None else NORMAL_95 * error}


def cell_of(row: str, column: str, unit: str, printed, measured: list) -> dict:
    """One tidy record; measured, difference and interval are None unless every seed has a value."""
    known = bool(measured) and all(value is not None for value in measured)
    mean, half = mean_interval(measured) if known else (None, None)
    return {
        "row": row,
        "column": column,
        "unit": printed.unit if printed else unit,
        "reported": printed.value if printed else None,
        "text": printed.text if printed else None,
        "measured": mean,
        "difference": mean - printed.value if known and printed else None,
        "seeds": len(measured) if known else None,
        "interval": half,
        "printed": printed.where if printed else None,
        "note": printed.note if printed else None,
    }


def _header(column: str, metric) -> str:
    mark, of = "†" if column.startswith(LOCAL) else "", column.rpartition(":")[0]
    return (f"{of}, " if of else "") + f"{metric.header}{mark}" + (f" ({metric.unit})" if metric.unit else "")


def _notes(cells: list[dict], metrics: dict, scale: str) -> list[str]:
    ran = {cell["column"] for cell in cells if cell["measured"] is not None}
    empty = [c for c, metric in metrics.items() if c not in ran and ("/" in c or metric.task)]
    notes = []
    if any(cell["reported"] is not None for cell in cells):
        notes.append("Lines: the number that the paper printed, ours, and their difference (ours − paper).")
    notes.append(seeds_sentence(cell["seeds"] for cell in cells if cell["seeds"]))
    if empty:
        notes.append(f"Left empty, because not run here (no data or no time): {', '.join(empty)}.")
        if "mean_accuracy" in metrics:
            notes.append("The mean is left empty unless all of its tasks were run.")
    if any(c.startswith(LOCAL) for c in metrics):
        notes.append(
            "† Tasks of this project, made from held-out text of the corpus; they are none of the "
            "benchmarks of the paper, and the paper has no number for them."
        )
    if any(cell["column"] == "settling_steps" and cell["measured"] is None for cell in cells):
        notes.append("No settling time: the sparsity does not come to stay within 0.02 of its target (in every seed).")
    if scale != "paper" and any(cell["difference"] is not None for cell in cells):
        notes.append(
            f"Model, corpus and schedule are those of scale {scale}; the differences set them beside "
            "the paper's and are no failure to reproduce it."
        )
    return notes


def backbones_table(spec, runs, *, scale, reported, results) -> Table:
    """The models of a paper at its own size, beside what it printed, and their shapes at this scale.

    Reads results/{scale}/backbones.csv: paper, setup, size, scale_of_row and the columns of BACKBONE.
    """
    path = results / "backbones.csv"
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    frame = pd.read_csv(path, keep_default_na=False)
    chosen = text(spec, "y").split()
    for column in ["paper", "setup", "size", "scale_of_row", *(BACKBONE[c][0] for c in chosen)]:
        if column not in frame:
            raise ValueError(f"{path} has no column {column!r}.")
    pages = load(reported, stems(text(spec, "reported")))
    match = parse_match(text(spec, "match"))
    frame = frame[frame["paper"] == spec["paper"]]
    frame = frame.sort_values("scale_of_row", key=lambda s: s != "paper", kind="stable")
    names, cells = [], []
    for row in frame.drop_duplicates(["size", "scale_of_row"]).to_dict("records"):
        own = row["scale_of_row"] == "paper"
        names.append(f"{row['size']}" if own else f"{row['size']} at scale {row['scale_of_row']}")
        for column in chosen:
            source, factor = BACKBONE[column]
            printed = find(pages, match, row, column) if own else None
            cells.append(cell_of(names[-1], column, "", printed, [float(row[source]) * factor]))
            cells[-1]["seeds"] = None  # computed from the shape, not measured
    notes = ["Ours are computed from the shapes; the paper cuts its numbers instead of rounding."]
    if any(" at scale " in name for name in names):
        notes.append(f"Rows 'at scale {scale}' are what the same setup means at this scale.")
    return Table(
        title=f"{headline(spec, scale)}: {text(spec, 'title')}",
        corner="size",
        rows=names,
        columns={c: BACKBONE_HEADERS[c] for c in chosen},
        cells=cells,
        caption=text(spec, "caption"),
        notes=notes,
    )
