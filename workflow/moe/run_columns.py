"""Columns that queries and matches may name besides those of runs.tsv: a router's options, defaults filled in."""

from typing import Any

# router -> its options that are shown, with their defaults. They stand here as well as in the routers because a query
# is read without torch, which the routers need; a test compares both.
SHOWN_OPTIONS = {
    "relu": {"lambda_0": 1e-8, "alpha": 1.2, "balance": True},
    "topk": {"warmup_steps": 0, "balance": 1e-2},
    "xmoe": {"reduced": 16},
    "rmoe-xmoe": {"reduced": 16},
}


# router -> its recurrent cell (a test compares with the routers); p by default
CELLS = {name: "GRU" for name in ("rmoe", "rmoe-shared-projector", "rmoe-np", "rmoe-detach", "rmoe-xmoe", "rmoe-relu")}
CELLS |= {name: "GRU" for r in ("0.5", "1.0") for name in (f"rmoe-np-r{r}", f"rmoe-np-r{r}-detach-r")}
CELLS |= {"rmoe-rnn": "RNN", "rmoe-lstm": "LSTM"}
STATE = 128
SHARED = "rmoe-shared-projector"  # the router without a projector of each layer's own


def cell_of(router: str) -> str:
    """The recurrent cell of a router as RMoE's tables name it; "" where there is none."""
    return CELLS.get(router, "")


def shown_memory(router: str, options: dict[str, Any]) -> dict[str, Any]:
    """cell and projector (GRU, RNN, LSTM; L-proj, S-proj; "none" without one), state (the paper's p) and recurrent.

    The words are those of RMoE's tables 2 and 6.
    """
    cell = cell_of(router)
    shown = {"cell": cell or "none", "state": options.get("state", STATE) if cell else None}
    projector = "none" if not cell else "S-proj" if router == SHARED else "L-proj"
    return shown | {"projector": projector, "recurrent": "yes" if cell else "no"}


def shown_start(row: dict[str, Any]) -> dict[str, str]:
    """base and at (the run and snapshot that a fine-tuned run starts from, else ""), stage, frozen and frozen_part.

    frozen: what fine-tuning left as it was, in the paper's words; frozen_part: `router` where that is anything.
    """
    frozen = row.get("frozen", "none")
    start = {"base": row.get("base", ""), "at": row.get("at", ""), "frozen": frozen}
    start |= {"stage": "sft" if start["base"] else "pretrain"}
    return start | {"frozen_part": "none" if frozen == "none" else "router"}


def shown_options(router: str, options: dict[str, Any]) -> dict[str, Any]:
    """lambda_0, alpha, warmup_steps, reduced (None for routers without it) and balanced ("yes", "no" or "").

    They are the paper's numbers, before a scale divides any of them.
    """
    known = SHOWN_OPTIONS.get(router, {})
    filled = known | {key: value for key, value in options.items() if key in known}
    balanced = ("yes" if filled["balance"] else "no") if "balance" in filled else ""
    return {key: filled.get(key) for key in ("lambda_0", "alpha", "warmup_steps", "reduced")} | {"balanced": balanced}
