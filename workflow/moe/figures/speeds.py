"""Speed of training and of inference, top-k against ReLU (ReMoE, table 7)."""

import pandas as pd

from moe.figures.check import text
from moe.figures.layout import Table
from moe.figures.reported import find, load, stems
from moe.figures.tables import cell_of
from moe.figures.titles import called, headline

PHASES = {"training": "train", "inference": "infer"}  # as measured -> as the reported metrics begin
MODELS = {"topk": "MoE", "relu": "ReMoE"}
COLUMNS = ["setup", "size", "phase", "router", "tflops", "difference_percent", "low_percent", "high_percent"]


def speeds(spec, runs, *, scale, reported, results) -> Table:
    """Rows are sizes (and degrees of tensor parallelism, as printed), columns TFLOPS and the difference in %.

    Reads results/{scale}/speed.csv where it is there: COLUMNS, active_experts, rounds, device; a row a setup, phase and
    router. What was not measured has its printed number alone.
    """
    frame = _measured(results / "speed.csv")
    pages = load(reported, stems(text(spec, "reported")))
    names, cells = [], []
    for size, parallel in dict.fromkeys((row["size"], row["tensor_parallel"]) for row in pages[0]):
        names.append(called(["size", "tensor_parallel"], {"size": size, "tensor_parallel": parallel}))
        match = {"size": f"={size}", "tensor_parallel": f"={parallel}"}
        for phase, begins in PHASES.items():
            rows = frame[(frame["size"] == size) & (frame["phase"] == phase)] if parallel == "1" else frame[:0]
            rows = rows[rows["setup"] == rows["setup"].iloc[0]] if len(rows) else rows
            rows = rows.set_index("router")
            for router, model in MODELS.items():
                printed = find(pages, {**match, "model": f"={model}"}, {}, f"{begins}_tflops")
                cells.append(_cell(names[-1], f"{phase} {model}", "TFLOPS", printed, rows, router, "tflops"))
            printed = find(pages, {**match, "model": "=ReMoE vs MoE"}, {}, f"{begins}_diff")
            cells.append(_cell(names[-1], f"{phase} difference", "%", printed, rows, "relu", "difference_percent"))
    columns = {c["column"]: (f"{c['column']} ({c['unit']})", 2) for c in cells}
    return Table(
        title=f"{headline(spec, scale)}: {text(spec, 'title')}",
        corner="size",
        rows=names,
        columns=columns,
        cells=cells,
        caption=text(spec, "caption"),
        notes=[_note(frame)],
    )


def _measured(path) -> pd.DataFrame:
    """speed.csv, or no row where nothing was measured. Errors: ValueError naming a missing column."""
    frame = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=[*COLUMNS, "rounds", "device"])
    for column in COLUMNS:
        if column not in frame:
            raise ValueError(f"{path} has no column {column!r}.")
    return frame


def _cell(row: str, column: str, unit: str, printed, rows: pd.DataFrame, router: str, source: str) -> dict:
    """A cell; of a difference the half-width of its interval, and the interval itself as a note."""
    known = router in rows.index and rows.loc[router, source] == rows.loc[router, source]
    cell = cell_of(row, column, unit, printed, [float(rows.loc[router, source])] if known else [])
    cell["seeds"] = None  # a matter of the machine and the shapes, not of a seed
    if known and source == "difference_percent":
        low, high = (float(rows.loc[router, f"{side}_percent"]) for side in ("low", "high"))
        cell["interval"] = (high - low) / 2
        note = f"95 % interval {low:.2f} to {high:.2f}"
        cell["note"] = "; ".join(filter(None, [cell["note"], note]))
    return cell


def _note(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "Not measured at this scale: only the printed numbers are shown."
    devices = ", ".join(sorted(set(map(str, frame.get("device", [])))))
    note = (
        f"Ours on {devices}, in paired rounds, ± half the 95 % interval. TFLOPS are the device's; the differences in % "
        "are what can be set beside the paper's."
    )
    if "active_experts" in frame:  # what a difference may owe to: nominal FLOPs count k
        active = sorted(frame.loc[frame["router"] == "relu", "active_experts"].round(2))
        note += f" ReLU's active experts a token: {active[0]:g} to {active[-1]:g}." if active else ""
    return note
