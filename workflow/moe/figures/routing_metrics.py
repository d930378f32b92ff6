"""Numbers of one seed that follow from how its last snapshot routes the test text (the probe's tables), and speeds.

Each function takes (record, snapshot) and gives a number, or None where the run cannot say it. Table `routing.csv` has
a row for each layer, domain and expert: `routed` of the domain's `tokens` went there.
"""

import math
from typing import TYPE_CHECKING

from moe.figures.intervals import NORMAL_95
from moe.figures.records import Record

if TYPE_CHECKING:
    import pandas as pd

INACTIVE = 1 / 64  # an expert with a smaller share of the tokens counts as inactive (ReMoE, figure 8)


def routing(record: Record) -> "pd.DataFrame":
    """routing.csv. Errors: ValueError if it is missing, or empty because the model is dense."""
    frame = record.read("routing.csv")
    if frame.empty:
        raise ValueError(f"run {record.run['run']}: routing.csv has no row, a dense model routes nothing.")
    return frame


def probed_sentence(record: Record) -> str:
    """How much text stands behind the numbers."""
    frame = routing(record)
    tokens = frame[(frame["layer"] == 0) & (frame["expert"] == 0)]["tokens"].sum()
    return f"{tokens:,} tokens of test text were probed."


def expert_shares(record: Record) -> "pd.DataFrame":
    """Share of all tokens that each expert gets, layers as rows, experts as columns."""
    sums = routing(record).groupby(["layer", "expert"])[["routed", "tokens"]].sum()
    return (sums["routed"] / sums["tokens"]).unstack("expert")


def domain_shares(record: Record) -> "pd.DataFrame":
    """Share of a domain's tokens that each expert gets, rows (layer, expert), columns domains in their own order."""
    frame = routing(record)
    shares = frame.assign(share=frame["routed"] / frame["tokens"])
    wide = shares.pivot(index=["layer", "expert"], columns="domain", values="share")
    return wide[list(dict.fromkeys(frame["domain"]))]


def active_by_domain(record: Record) -> "pd.DataFrame":
    """Mean number of experts that a token activates, layers as rows, domains as columns."""
    return domain_shares(record).groupby("layer").sum()


def layer_sparsity(record: Record) -> "pd.Series":
    """Share of zero gates by layer, over all domains."""
    return 1 - expert_shares(record).mean(axis=1)


def idle_experts(record: Record, snapshot: str) -> float | None:
    """% of all layers' experts that get less than 1/64 of the tokens."""
    return 100 * float((expert_shares(record) < INACTIVE).to_numpy().mean())


def layer_unevenness(record: Record, snapshot: str) -> float | None:
    """Standard deviation of the sparsity over the layers."""
    return float(layer_sparsity(record).std(ddof=0))


def domain_variance(record: Record, snapshot: str) -> float | None:
    """Variance over the domains of an expert's share of their tokens, mean over all layers' experts; in 10⁻³."""
    return 1e3 * float(domain_shares(record).var(axis=1, ddof=0).mean())


def domain_spread_with_depth(record: Record, snapshot: str) -> float | None:
    """Standard deviation over domains of the mean active experts: mean of the deeper half of the layers − first layer.

    None for a model of one layer.
    """
    spread = active_by_domain(record).std(axis=1, ddof=0)
    return float(spread.iloc[len(spread) // 2 :].mean() - spread.iloc[0]) if len(spread) > 1 else None


def token_activity(record: Record) -> "pd.DataFrame":
    """token_activity.csv: token, text, occurrences, active. Errors: ValueError if it is missing."""
    return record.read("token_activity.csv")


def rank_correlation(record: Record, snapshot: str) -> float | None:
    """Spearman's rank correlation of a token id's frequency and its mean active experts; None where one is constant."""
    ranks = token_activity(record)[["occurrences", "active"]].rank()
    value = ranks["occurrences"].corr(ranks["active"])
    return None if value != value else float(value)


def rank_correlation_error(record: Record, snapshot: str) -> float | None:
    """Its standard error over token ids, by Fisher's z with Bonett and Wright's (2000) variance (1 + r²/2)/(n − 3)."""
    r, n = rank_correlation(record, snapshot), len(token_activity(record))
    if r is None or n < 4:
        return None
    return (1 - r**2) * math.sqrt((1 + r**2 / 2) / (n - 3))


def speed(phase: str, column: str, record: Record, snapshot: str) -> float | None:
    """A column of results/{scale}/speed.csv for the run's setup and router; None where it was not measured."""
    import pandas as pd

    path = record.results / "speed.csv"
    if not path.is_file():
        return None
    frame = pd.read_csv(path)
    where = (frame["setup"] == record.run["setup"]) & (frame["router"] == record.run["router"])
    rows = frame[where & (frame["phase"] == phase)]
    value = rows[column].iloc[0] if len(rows) else math.nan
    return None if value != value else float(value)


def cost(column: str, record: Record, snapshot: str) -> float | None:
    """A column of results/{scale}/cost.csv for the run; None where it was not measured."""
    import pandas as pd

    path = record.results / "cost.csv"
    if not path.is_file():
        return None
    frame = pd.read_csv(path)
    rows = frame[frame["run"] == record.run["run"]]
    value = rows[column].iloc[0] if len(rows) else math.nan
    return None if value != value else float(value)


def extra_time_error(record: Record, snapshot: str) -> float | None:
    """Standard error of how much slower a run's step is, from its 95 % interval."""
    low, high = (cost(f"{side}_percent", record, snapshot) for side in ("low", "high"))
    return None if low is None or high is None else (high - low) / 2 / NORMAL_95


def speed_error(phase: str, record: Record, snapshot: str) -> float | None:
    """Standard error of a difference of speeds, from its 95 % interval."""
    low, high = (speed(phase, f"{side}_percent", record, snapshot) for side in ("low", "high"))
    return None if low is None or high is None else (high - low) / 2 / NORMAL_95
