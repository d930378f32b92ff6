"""Pure functions of gates, and of the tidy tables that the probe counts from them.

Letters: T tokens, E experts, N routed (token, expert) pairs. A gate of zero means not routed. Nothing here needs torch:
arrays are NumPy's (a CPU tensor will do), tables are pandas'.
"""

import numpy as np
import pandas as pd

ROUTES = ["layer", "domain", "token", "expert", "routed", "gate"]
OCCURRENCES = ["domain", "token", "occurrences"]


def sparsity(gates_TE: np.ndarray) -> float:
    """Share of gates that are zero (S in section 3.3 of ReMoE); top-k routing has 1 − k/E."""
    return float(np.mean(np.asarray(gates_TE) == 0))


def pair_keys(
    domain_T: np.ndarray, token_T: np.ndarray, expert_T: np.ndarray, *, vocabulary: int, experts: int
) -> np.ndarray:
    """One int64 per (domain, token, expert), ordered like the triples themselves."""
    return (domain_T.astype(np.int64) * vocabulary + token_T) * experts + expert_T


def count_routes(gates_TE: np.ndarray, domain_T: np.ndarray, token_T: np.ndarray, *, vocabulary: int) -> pd.DataFrame:
    """How often, and with what summed gate, each token id of each domain was routed to each expert.

    Columns domain (index), token (id), expert, routed (count), gate (sum); sorted; only what was routed at all.
    """
    gates_TE = np.asarray(gates_TE, dtype=np.float64)
    place_N, expert_N = np.nonzero(gates_TE)
    experts = gates_TE.shape[1]
    key_N = pair_keys(domain_T[place_N], token_T[place_N], expert_N, vocabulary=vocabulary, experts=experts)
    key, inverse_N, routed = np.unique(key_N, return_inverse=True, return_counts=True)
    gate = np.bincount(inverse_N, weights=gates_TE[place_N, expert_N], minlength=len(key))
    pair, expert = np.divmod(key, experts)
    domain, token = np.divmod(pair, vocabulary)
    return pd.DataFrame({"domain": domain, "token": token, "expert": expert, "routed": routed, "gate": gate})


def routed_shares(routes: pd.DataFrame, occurrences: pd.DataFrame) -> pd.DataFrame:
    """Share of a domain's tokens that each expert of each layer gets: layer, domain, expert, share (ReMoE, fig 9).

    A layer's shares add up to its mean number of active experts. An expert that got nothing has no row.
    """
    tokens = occurrences.groupby("domain", observed=True)["occurrences"].sum()
    keys = ["layer", "domain", "expert"]
    shares = routes.groupby(keys, observed=True)["routed"].sum().rename("share").reset_index()
    shares["share"] /= shares["domain"].map(tokens).astype(float)
    return shares


def active_experts(routes: pd.DataFrame, occurrences: pd.DataFrame) -> pd.DataFrame:
    """Mean number of experts that a token of a domain activates in a layer: layer, domain, active (ReMoE, fig 12)."""
    shares = routed_shares(routes, occurrences)
    sums = shares.groupby(["layer", "domain"], observed=True)["share"].sum()
    return sums.rename("active").reset_index()
