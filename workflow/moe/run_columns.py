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


def shown_options(router: str, options: dict[str, Any]) -> dict[str, Any]:
    """lambda_0, alpha, warmup_steps, reduced (None for routers without it) and balanced ("yes", "no" or "").

    They are the paper's numbers, before a scale divides any of them.
    """
    known = SHOWN_OPTIONS.get(router, {})
    filled = known | {key: value for key, value in options.items() if key in known}
    balanced = ("yes" if filled["balance"] else "no") if "balance" in filled else ""
    return {key: filled.get(key) for key in ("lambda_0", "alpha", "warmup_steps", "reduced")} | {"balanced": balanced}
