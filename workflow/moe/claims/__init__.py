"""Which claims of the papers held: each row of config/claims.tsv judged from the runs' files.

A verdict is "holds", "contradicted" or "inconclusive". It comes with the measured difference, its
uncertainty (over seeds, or for one seed over the evaluation text) and the difference that was printed.
"""

from pathlib import Path

from moe.claims.check import KINDS, check_claims, files_judged, runs_judged

__all__ = ["KINDS", "check_claims", "files_judged", "judge", "runs_judged"]


def judge(claims: list[dict], runs: list[dict], *, scale: str, reported: Path, outputs: list) -> None:
    """Judge every row of config/claims.tsv and write the claims page.

    claims    rows of the table, dicts of text
    runs      all runs with their folders, as for moe.figures.draw
    scale     name of the scale, printed in the title
    reported  folder of the reported numbers (config/reported)
    outputs   paths to write: .csv (a line a part) and .md (the page)
    Errors: ValueError naming the row, the run or the missing file.
    """
    from moe.claims import page
    from moe.claims.verdicts import judged
    from moe.figures.texts import stand_ins

    parts, texts = judged(claims, runs, Path(reported)), stand_ins(runs_judged(claims, runs))
    for path in map(Path, outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = page.csv(parts) if path.suffix == ".csv" else page.markdown(parts, scale, texts)
        path.write_text(written, encoding="utf-8")
