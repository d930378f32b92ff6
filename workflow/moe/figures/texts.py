"""Which text the numbers of a table, a figure or the claims page are of, said from the runs' own run.yaml."""

from moe.figures.records import Record, records

STREAMS = 8  # in which running text is scored (moe.finished)


def stand_ins(runs: list[dict]) -> str:
    """Which corpora stand for those of the setups at scale paper (column `corpus` of a run); "" where none does.

    Errors: ValueError if a run.yaml is missing.
    """
    pairs = {(records(run)[0].spec()["corpus"], run["corpus"]): True for run in runs}
    said = [f"{here} in the place of {own}" for here, own in pairs if here != own]
    if not said:
        return ""
    return f"Text here: {', '.join(said)}; losses, bits, perplexities and whatever is probed are of that text."


def scored_parts(runs: list[dict]) -> str:
    """How much of the held-out text was scored, where `evaluation.windows` lets a run score a part; else "".

    Errors: ValueError if run.yaml or validation.csv is missing.
    """
    parts = dict.fromkeys(filter(None, (_part(records(run)[0]) for run in runs)))
    return f"Held-out losses are of a part of each split: {'; '.join(parts)}." if parts else ""


def _part(record: Record) -> str:
    """ "8 excerpts of 16,384 tokens (131,072 in all)"; of windows how many there are. Empty for a whole split."""
    spec = record.spec()
    limit, training = spec.get("evaluation", {}).get("windows"), spec["training"]
    scored, length = int(record.read("validation.csv")["windows"].max()), training["sequence"]
    if training.get("streams"):  # each reads the beginning of its own eighth of the split
        if limit is None or scored < max(1, limit // STREAMS) * STREAMS:
            return ""
        return f"{STREAMS} excerpts of {scored // STREAMS * length:,} tokens ({scored * length:,} in all)"
    if limit is None or scored < limit:
        return ""
    return f"{scored:,} windows of {length:,} tokens ({scored * length:,} in all), spread evenly"
