"""Numbers of one seed that follow from RMoE's probes: scores, experts and router weights, and what pulls at the router.

Each function takes (record, snapshot) last and gives a number, or None where the run cannot say it. Probes have one
snapshot, a run's last.
"""

from typing import TYPE_CHECKING

from moe.figures.records import Record
from moe.figures.routing_metrics import routing
from moe.schedule import windows

if TYPE_CHECKING:
    import pandas as pd

DISTANT = 0.5  # share of the model's layers that lies between two distant ones at least
PAPER_STEPS = 60_000  # of the run that RMoE's table 11 watches
PULL_STEPS = {"0.1k": 100} | {f"{n}0k": 10_000 * n for n in range(1, 7)}  # the rows of table 11
# column of metrics.csv (lb: by difference) -> header, unit, decimals, printed name
PULL = {
    "router_gradient": ("gradient of the whole loss", "", 4, "grad_norm_whole_loss"),
    "router_gradient_lm": ("gradient of the LM loss", "", 4, "grad_norm_lm_loss"),
    "router_gradient_lb": ("their difference", "", 4, "grad_norm_lb_loss"),
    "drop_ratio": ("drop ratio", "%", 2, "drop_ratio"),
}


def score_statistics(record: Record) -> "pd.DataFrame":
    """score_statistics.csv by (layer, statistic), `all` layers together too. Errors: ValueError if dense or missing."""
    frame = _filled(record, "score_statistics.csv")
    return frame.set_index(["layer", "statistic"])


def score(statistic: str, record: Record, snapshot: str) -> float | None:
    """Median over tokens and layers."""
    return float(score_statistics(record).loc[("all", statistic), "median"])


def shared_information(record: Record) -> "pd.DataFrame":
    """mutual_information.csv: layer_i ≥ layer_j, mutual_information in nats, its own entropy where they are equal."""
    return _filled(record, "mutual_information.csv")


def information(distance: float, record: Record, snapshot: str) -> float | None:
    """Mean over pairs of layers that are at least a share `distance` of the layers apart; None where there is none."""
    frame = shared_information(record)
    layers = int(frame["layer_i"].max()) + 1
    apart = frame["layer_i"] - frame["layer_j"]
    pairs = frame.loc[(apart > 0) & (apart >= distance * layers), "mutual_information"]
    return float(pairs.mean()) if len(pairs) else None


def printed_information(distance: float, rows: list[dict]) -> float:
    """The same of printed pairs."""
    layers = max(int(row["layer_i"]) for row in rows) + 1
    apart = [(int(row["layer_i"]) - int(row["layer_j"]), float(row["value"])) for row in rows]
    values = [value for gap, value in apart if gap >= distance * layers]
    return sum(values) / len(values)


def layer_weights(record: Record) -> "pd.DataFrame":
    """weights.csv, a row a layer. Errors: ValueError if dense or missing."""
    return _filled(record, "weights.csv").set_index("layer")


def weight(column: str, record: Record, snapshot: str) -> float | None:
    """Mean over layers of a column of weights.csv; None where the router has no such thing."""
    value = layer_weights(record)[column].mean()
    return None if value != value else float(value)


def frequencies(record: Record) -> "pd.DataFrame":
    """Share of the assignments of each layer (rows) that each expert (columns) gets; rows add up to 1."""
    counts = routing(record).groupby(["layer", "expert"])["routed"].sum().unstack("expert")
    return counts.div(counts.sum(axis=1).clip(lower=1), axis=0)


def selection_unevenness(record: Record, snapshot: str) -> float | None:
    """Standard deviation of the experts' frequencies over their mean, mean over layers, in %; 0: all alike."""
    shares = frequencies(record)
    return 100 * float((shares.std(axis=1, ddof=0) / shares.mean(axis=1)).mean())


def similarities(record: Record) -> "pd.DataFrame":
    """Similarity of experts by step (rows) and layer (columns), where it was measured; empty where it never was."""
    frame = record.steps().set_index("step")
    columns = {name: int(name.rpartition("_")[2]) for name in frame if name.startswith("similarity_")}
    return frame[list(columns)].rename(columns=columns).dropna(how="all")


def similarity(record: Record, snapshot: str, *, at: float, less: float | None = None) -> float | None:
    """Mean over layers of the experts' similarity after a share `at` of the steps (less that after another share)."""
    measured = similarities(record).mean(axis=1)
    if measured.empty:
        return None
    last = record.spec()["training"]["steps"]
    values = [measured.get(step_at(share, last)) for share in (at, less) if share is not None]
    if None in values:
        return None
    return float(values[0]) if less is None else float(values[0] - values[1])


def step_at(share: float, steps: int) -> int:
    """The step that a tenth of a schedule, or several, ends with."""
    return max(1, round(steps * round(100 * share) / 100))  # as spread_points rounds it


def pulls(record: Record) -> "pd.DataFrame":
    """Means of PULL over the steps measured at each point of the schedule, rows by the paper's step; % for ratios.

    Empty where nothing was measured, as for routers without weights.
    """
    import pandas as pd

    training, frame = record.spec()["training"], record.steps().set_index("step")
    points = training.get("gradient_points", [])
    rows = {}
    for share, steps in zip(
        points, windows(points, training["steps"], training.get("gradient_steps", 100)), strict=True
    ):
        if "router_gradient" in frame:
            means = frame.loc[frame.index.isin(steps), ["router_gradient", "router_gradient_lm", "drop_ratio"]].mean()
            rows[round(share * PAPER_STEPS)] = means.to_dict() | {"steps": len(steps), "last": steps[-1]}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if len(table):
        table["router_gradient_lb"] = table["router_gradient"] - table["router_gradient_lm"]
        table["drop_ratio"] *= 100
    return table


def pull(name: str, step: int, record: Record, snapshot: str) -> float | None:
    """A column of `pulls` at one of the paper's steps; None where it was not measured."""
    table = pulls(record)
    near = [place for place in table.index if abs(place - step) <= 0.01 * step]
    return float(table.loc[near[0], name]) if near else None


def _filled(record: Record, name: str) -> "pd.DataFrame":
    frame = record.read(name)
    if frame.empty:
        raise ValueError(f"run {record.run['run']}: {name} has no row, a dense model routes nothing.")
    return frame
