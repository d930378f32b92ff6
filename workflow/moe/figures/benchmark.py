"""The benchmark's table and figure, from its CSV alone."""

from pathlib import Path

import pandas as pd

from moe.figures.style import BLUE, RED, Picture, panels

TITLES = {
    "routers": "train step by router, over top-k with the same normalisation",
    "experts": "experts alone, over a dense feed-forward of equal active FLOPs",
    "peers": "whole train step, over the fastest peer in the same precision",
    "mfu": "train step at the papers' sizes, over top-k",
}
COLUMNS = {
    "contender": "",
    "dtype": "precision",
    "tokens_per_second": "tokens/s",
    "ratio": "ratio",
    "interval": "95 % interval",
    "baseline": "over",
    "active_experts": "active experts",
    "peak_memory_mib": "peak MiB",
    "mfu": "MFU",
    "host_syncs": "host waits",
}
FORMATS = {"tokens_per_second": "{:,.0f}", "ratio": "{:.2f}", "active_experts": "{:.2f}", "peak_memory_mib": "{:,.0f}"}
FORMATS |= {"mfu": "{:.1%}", "host_syncs": "{:.0f}"}


def draw_benchmark(table: Path, outputs: list[Path]) -> None:
    """Write the table (.md) and the picture of ratios (.svg, .png, .csv) of a benchmark's CSV.

    Raises ValueError where the file has no rows.
    """
    frame = pd.read_csv(table)
    if frame.empty:
        raise ValueError(f"{table}: has no rows, so there is nothing to draw")
    for path in map(Path, outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            path.write_text(markdown(frame), encoding="utf-8")
        else:
            picture(frame).write(path)


def markdown(frame: pd.DataFrame) -> str:
    """A table a part; ratios above 1 are faster than what they are over."""
    made = frame.iloc[0]
    threads = f"{made['threads']} threads, torch {made['torch']}, commit {made['commit']}"
    lines = [f"# Benchmark on {made['device']}", "", f"{threads}. Medians of paired rounds, measured in turns.", ""]
    for part, rows in frame.groupby("part", sort=False):
        rows = rows.assign(interval=[_interval(row) for _, row in rows.iterrows()])
        columns = [name for name in COLUMNS if name in rows and rows[name].notna().any()]
        lines += [f"## {TITLES[part].capitalize()}", "", "| " + " | ".join(COLUMNS[c] for c in columns) + " |"]
        lines += ["|" + "|".join("---:" if c in FORMATS else "---" for c in columns) + "|"]
        for _, row in rows.iterrows():
            lines.append("| " + " | ".join(_cell(row[c], c) for c in columns) + " |")
        lines.append("")
    return "\n".join(lines)


def picture(frame: pd.DataFrame) -> Picture:
    """Ratios with their intervals, a panel a part."""
    rated = frame[frame["ratio"].notna()]
    parts = [part for part in TITLES if part in set(rated["part"])]
    heights = [1 + (rated["part"] == part).sum() for part in parts]
    options = {"gridspec_kw": {"height_ratios": heights}}
    figure, axes = panels(len(parts), 1, height=0.6 + 0.19 * sum(heights), **options)
    for axis, part in zip(axes[:, 0], parts, strict=True):
        rows = rated[rated["part"] == part].iloc[::-1]
        names = [_name(row) for _, row in rows.iterrows()]
        colours = [RED if row["contender"].startswith("ours") else BLUE for _, row in rows.iterrows()]
        around = [rows["ratio"] - rows["ratio_low"].fillna(rows["ratio"]), rows["ratio_high"].fillna(rows["ratio"])]
        around[1] = around[1] - rows["ratio"]
        axis.errorbar(rows["ratio"], range(len(rows)), xerr=around, fmt="none", ecolor="#888888", elinewidth=1)
        axis.scatter(rows["ratio"], range(len(rows)), c=colours, s=14, zorder=3)
        axis.set_xlim(0, 1.6 * max(1.0, rows["ratio"].max()))  # a hiccup of the machine may stretch an interval further
        axis.axvline(1, color="#444444", linewidth=0.8, linestyle="--")
        axis.set_yticks(range(len(rows)), names)
        axis.set_title(TITLES[part])
        axis.set_xlabel("ratio of speeds")
    note = "Paired ratios within a turn, with 95 % intervals of their median; to the right of 1 is faster."
    return Picture(figure, rated, f"benchmark, {frame.iloc[0]['device']}", "How fast a train step is", [note])


def _name(row: pd.Series) -> str:
    """What was timed; how many experts were active, where it says, since a step costs what they do."""
    active = f", {row['active_experts']:.2f} active" if pd.notna(row["active_experts"]) else ""
    return f"{row['contender']} ({row['dtype']}{active})"


def _interval(row: pd.Series) -> str | None:
    return f"{row['ratio_low']:.2f} – {row['ratio_high']:.2f}" if pd.notna(row["ratio_low"]) else None


def _cell(value, column: str) -> str:
    if value is None or pd.isna(value):
        return ""
    return FORMATS.get(column, "{}").format(value)
