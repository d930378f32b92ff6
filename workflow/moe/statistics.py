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


def domain_counts(routes: pd.DataFrame, occurrences: pd.DataFrame, *, layers: int, experts: int) -> pd.DataFrame:
    """Columns layer, domain, expert, routed (count), gate (sum), tokens (of the domain): every expert, idle ones too.

    routed / tokens is the share of a domain's tokens that an expert gets (ReMoE, figures 8, 9, 11); a layer's shares
    add up to its mean number of active experts (figure 12).
    """
    tokens = occurrences.groupby("domain", observed=True)["occurrences"].sum().rename("tokens")
    every = pd.MultiIndex.from_product(
        [range(layers), tokens.index, range(experts)], names=["layer", "domain", "expert"]
    )
    counts = routes.groupby(["layer", "domain", "expert"], observed=True)[["routed", "gate"]].sum()
    counts = counts.reindex(every, fill_value=0).reset_index()
    return counts.assign(tokens=counts["domain"].map(tokens).astype(int))


def token_activity(routes: pd.DataFrame, occurrences: pd.DataFrame, *, layers: int) -> pd.DataFrame:
    """Columns token, occurrences, active: experts that a token id activates, mean over its occurrences and layers.

    Figure 7 of ReMoE. An id that was routed nowhere has 0.
    """
    seen = occurrences.groupby("token")["occurrences"].sum()
    routed = routes.groupby("token")["routed"].sum().reindex(seen.index, fill_value=0)
    return pd.DataFrame({"occurrences": seen, "active": routed / (seen * max(1, layers))}).reset_index()


def top_tokens(routes: pd.DataFrame, occurrences: pd.DataFrame, *, count: int = 8, least: int = 10) -> pd.DataFrame:
    """Columns layer, expert, place, token, routed, occurrences, share: the tokens that an expert takes most faithfully.

    share = times routed there / occurrences of the id (ReMoE, table 12). Ids that occur fewer than `least` times are
    left out, for which a share of 1 says little; among equal shares the more frequent id comes first.
    """
    seen = occurrences.groupby("token")["occurrences"].sum()
    taken = routes.groupby(["layer", "expert", "token"])["routed"].sum().reset_index()
    taken["occurrences"] = taken["token"].map(seen).astype(int)
    taken["share"] = taken["routed"] / taken["occurrences"]
    taken = taken[taken["occurrences"] >= least]
    order = ["layer", "expert", "share", "occurrences", "token"]
    taken = taken.sort_values(order, ascending=[True, True, False, False, True])
    taken["place"] = taken.groupby(["layer", "expert"]).cumcount() + 1
    columns = ["layer", "expert", "place", "token", "routed", "occurrences", "share"]
    return taken.loc[taken["place"] <= count, columns].reset_index(drop=True)
