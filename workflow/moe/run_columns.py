"""Columns that queries and matches may name besides those of runs.tsv: a router's options, defaults filled in."""

from typing import Any

# router -> the cell of its memory, as RMoE's table 6 names it; here for the same reason as the options below.
CELLS = {"rmoe-rnn": "RNN", "rmoe-lstm": "LSTM"}
CELLS |= dict.fromkeys(("rmoe", "rmoe-shared-projector", "rmoe-np", "rmoe-detach", "rmoe-xmoe", "rmoe-relu"), "GRU")
CELLS |= {f"rmoe-np-r{weight}{detach}": "GRU" for weight in (0.5, 1.0) for detach in ("", "-detach-r")}
SHARED = "rmoe-shared-projector"  # the router without a projector of each layer's own

# router -> its options that are shown, with their defaults. They stand here as well as in the routers because a query
# is read without torch, which the routers need; a test compares both.
SHOWN_OPTIONS = {
    "relu": {"lambda_0": 1e-8, "alpha": 1.2, "balance": True},
    "topk": {"warmup_steps": 0, "balance": 1e-2},
    "xmoe": {"reduced": 16},
    "rmoe-xmoe": {"reduced": 16},
}


def shown_options(router: str, options: dict[str, Any]) -> dict[str, Any]:
    """lambda_0, alpha, warmup_steps, reduced (None where the router has none) and balanced ("yes", "no" or "").

    They are the paper's numbers, before a scale divides any of them. Of the memory: recurrent ("yes" or "no"), its cell
    (GRU, RNN, LSTM or none) and its projector (L-proj, S-proj or none), in the words of RMoE's tables 2 and 6.
    """
    known = SHOWN_OPTIONS.get(router, {})
    filled = known | {key: value for key, value in options.items() if key in known}
    balanced = ("yes" if filled["balance"] else "no") if "balance" in filled else ""
    shown = {key: filled.get(key) for key in ("lambda_0", "alpha", "warmup_steps", "reduced")} | {"balanced": balanced}
    cell = CELLS.get(router, "none")
    projector = "none" if cell == "none" else "S-proj" if router == SHARED else "L-proj"
    return shown | {"recurrent": "no" if cell == "none" else "yes", "cell": cell, "projector": projector}
