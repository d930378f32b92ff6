"""Which routers share a panel where a figure shows several groups of them, or the whole of what its row selects."""

from moe.figures.kinds import GROUPS


def panels_of(words: list[str], runs: list[dict]) -> list[list[dict]]:
    """The runs of each panel, in their order, by the groups of column x. Errors: ValueError for an empty one."""
    shown = [[run for run in runs if not GROUPS[word] or run["router"] in GROUPS[word]] for word in words]
    empty = next((word for word, some in zip(words, shown, strict=True) if not some), None)
    if empty is not None:
        raise ValueError(f"config/figures.tsv: no run of the row is of the routers of group {empty!r} in column x.")
    return shown
