"""Tables and figures of both papers, drawn from the files of finished runs; never imports torch.

A row of config/figures.tsv names a *kind*; `kinds.KINDS` says what draws it. The drawing modules are
imported only when something is drawn, so that checking the tables stays cheap.
"""

from importlib import import_module
from pathlib import Path

from moe.figures.check import check_figures, select
from moe.figures.inputs import files_drawn, shows_held_out
from moe.figures.kinds import KINDS
from moe.figures.texts import scored_parts, stand_ins
from moe.wrong import wrong

__all__ = ["KINDS", "check_figures", "draw", "files_drawn", "select"]


def draw(spec: dict, runs: list[dict], *, scale: str, reported: Path, results: Path, outputs: list) -> None:
    """Draw one row of config/figures.tsv.

    spec      the row, as a dict of text
    runs      the runs that its query selects, in the order of runs.tsv: the columns of runs.tsv, those
              of the setup (paper, size, ...) and "folder", the path that holds seed-*/; "seeds", a list
              of ints, restricts the seeds (default: every seed-* found)
    scale     name of the scale, printed in every title
    reported  folder of the reported numbers (config/reported)
    results   folder results/{scale}, for the kinds that need no run
    outputs   paths to write; the suffix says what: .csv .md .tex of a table, .svg .png .csv of a figure
    Errors: ValueError naming the row, the run or the missing file.
    """
    kind, row = spec["kind"], f"{spec['paper']}/{spec['figure']}"
    if kind not in KINDS:
        raise wrong("config/figures.tsv", row, "kind", kind, "is no kind of figure", KINDS)
    module, function = KINDS[kind].draws.split(":")
    made = getattr(import_module(f"moe.figures.{module}"), function)(
        spec, runs, scale=scale, reported=Path(reported), results=Path(results)
    )
    made.notes += filter(None, [stand_ins(runs), scored_parts(runs) if shows_held_out(spec) else ""])
    for path in map(Path, outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write(path)
    if hasattr(made, "close"):
        made.close()
