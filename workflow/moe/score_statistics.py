"""How the experts' scores of a token are distributed, and what those of two layers share (RMoE's section 5).

Scores are probabilities over all E experts here. Pure functions of NumPy arrays, and `ScoreTables`, which collects them
over a text.

Letters: T tokens, E experts, L layers, W words of 64 bits that hold a bit an expert.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

EDGES = np.linspace(0, 1, 100)  # of the 99 bins of a score (appendix A.4.2's code)
SAMPLE = 2**20  # tokens behind the tables at most, fewer where E² is large: every n-th token of a longer text
PAIRS = 2**30  # pairs of experts that are compared at most, tokens · E²
AT_ONCE = 2**23  # of them in memory at a time
ENTROPY_BINS = 50  # of the histogram of entropies
QUANTILES = {"least": 0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "most": 1}
STATISTICS = ["layer", "statistic", "tokens", "mean", *QUANTILES]
HISTOGRAM = ["layer", "low", "high", "tokens"]
INFORMATION = ["layer_i", "layer_j", "mutual_information", "tokens"]
POOLED = "all"  # what column `layer` says of all layers together
TINY = np.finfo(np.float32).tiny


def entropy(scores_TE: np.ndarray) -> np.ndarray:
    """−Σ_e p ln p of each token's scores, [T] in nats: 0 where one expert has all, ln E where they are equal."""
    scores_TE = np.asarray(scores_TE, dtype=np.float64)
    return -(scores_TE * np.log(np.maximum(scores_TE, TINY))).sum(1)


def inner_balance(scores_TE: np.ndarray) -> np.ndarray:
    """Largest over second largest score of each token, [T]; 1 where there is one expert; 0 counts as tiny."""
    scores_TE = np.asarray(scores_TE, dtype=np.float64)
    if scores_TE.shape[1] == 1:
        return np.ones(len(scores_TE))
    two_T2 = np.partition(scores_TE, -2, axis=1)[:, -2:]
    return two_T2[:, 1] / np.maximum(two_T2[:, 0], TINY)


def outer_balance(scores_TE: np.ndarray, gates_TE: np.ndarray) -> np.ndarray:
    """Sum of the chosen experts' scores of each token, [T]; chosen are those whose gate is not zero."""
    return np.where(np.asarray(gates_TE) > 0, np.asarray(scores_TE, dtype=np.float64), 0).sum(1)


def binmates(scores_TE: np.ndarray) -> np.ndarray:
    """For each token and expert the experts whose score lies in the same bin, as a set of bits, uint64 [T, E, W]."""
    bin_TE = np.digitize(scores_TE, EDGES)
    experts = bin_TE.shape[1]
    room = np.zeros((*bin_TE.shape, -experts % 64), dtype=bool)
    same_TEE = np.concatenate([bin_TE[:, :, None] == bin_TE[:, None, :], room], axis=2)
    return np.packbits(same_TEE, axis=2).view(np.uint64)


def joint_entropies(mates_LTEW: list[np.ndarray]) -> np.ndarray:
    """Entropy of the pairs of bins of two layers, summed over tokens, [L, L] in nats; a layer's own on the diagonal.

    Of a token the E experts are E draws of a pair of bins. A pair that n experts share has probability n/E and n
    experts, so its entropy is ln E less the mean over experts of ln n.
    """
    layers, (tokens, experts, _) = len(mates_LTEW), mates_LTEW[0].shape
    logarithm = np.log(np.maximum(1, np.arange(experts + 1)))
    sums_LL = np.zeros((layers, layers))
    for i in range(layers):
        for j in range(i + 1):
            shared_TE = np.bitwise_count(mates_LTEW[i] & mates_LTEW[j]).sum(2, dtype=np.int64)
            counts = np.bincount(shared_TE.ravel(), minlength=experts + 1)
            sums_LL[i, j] = sums_LL[j, i] = tokens * np.log(experts) - counts @ logarithm / experts
    return sums_LL


def mutual_information(scores_LTE: list[np.ndarray]) -> np.ndarray:
    """Mutual information of the binned scores of two layers, mean over tokens, [L, L] in nats (RMoE, figure 3).

    For each token scikit-learn's mutual_info_score of both layers' lists of E bins, which np.digitize gives. On the
    diagonal a layer's own entropy of bins.
    """
    return information_of(joint_entropies([binmates(scores_TE) for scores_TE in scores_LTE]) / len(scores_LTE[0]))


def information_of(joint_LL: np.ndarray) -> np.ndarray:
    """H_i + H_j − H_ij."""
    own_L = np.diagonal(joint_LL)
    return own_L[:, None] + own_L[None, :] - joint_LL


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean and quantiles."""
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return {"tokens": len(values), "mean": values.mean()} | dict(zip(QUANTILES, quantiles, strict=True))


class ScoreTables:
    """Collects the statistics over a text of `tokens` tokens: all of them, or every n-th."""

    def __init__(self, tokens: int):
        self.length, self.every, self.seen, self.tokens = tokens, 1, 0, 0
        self.columns: dict[str, list[list[np.ndarray]]] = {}  # statistic -> layer -> parts
        self.joint_LL: np.ndarray | None = None
        self.experts = 0

    def add(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Scores and gates, [T, E] each, of every layer for the next T tokens of the text."""
        tokens, experts = layers[0][0].shape
        if self.joint_LL is None:
            self.every = max(1, -(-self.length // max(1, min(SAMPLE, PAIRS // experts**2))))
            self.joint_LL, self.experts = np.zeros((len(layers), len(layers))), experts
            names = ("entropy", "inner_balance", "outer_balance")
            self.columns = {name: [[] for _ in layers] for name in names}
        rows = slice(-self.seen % self.every, None, self.every)
        self.seen += tokens
        sampled = [(scores_TE[rows], gates_TE[rows]) for scores_TE, gates_TE in layers]
        self.tokens += len(sampled[0][0])
        for layer, (scores_TE, gates_TE) in enumerate(sampled):
            self.columns["entropy"][layer].append(entropy(scores_TE))
            self.columns["inner_balance"][layer].append(inner_balance(scores_TE))
            self.columns["outer_balance"][layer].append(outer_balance(scores_TE, gates_TE))
        chunk = max(1, AT_ONCE // experts**2)
        for start in range(0, len(sampled[0][0]), chunk):
            mates = [binmates(scores_TE[start : start + chunk]) for scores_TE, _ in sampled]
            self.joint_LL += joint_entropies(mates)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by file name, without rows where nothing was added; six digits are more than a figure shows."""
        values = {name: [np.concatenate(parts) for parts in layers] for name, layers in self.columns.items()}
        statistics = pd.DataFrame(self._statistics(values), columns=STATISTICS)
        histogram = pd.DataFrame(self._histogram(values.get("entropy", [])), columns=HISTOGRAM)
        information = pd.DataFrame(self._information(), columns=INFORMATION)
        files = {"score_statistics.csv": statistics, "score_entropy.csv": histogram}
        files["mutual_information.csv"] = information
        return files

    def _statistics(self, values: dict[str, list[np.ndarray]]) -> Iterator[dict]:
        for name, layers in values.items():
            for layer, each in [*enumerate(layers), (POOLED, np.concatenate(layers))]:
                yield {"layer": layer, "statistic": name} | {k: _short(v) for k, v in summary(each).items()}

    def _histogram(self, layers: list[np.ndarray]) -> Iterator[dict]:
        edges = np.linspace(0, np.log(max(2, self.experts)), ENTROPY_BINS + 1)
        for layer, values in enumerate(layers):
            counts, _ = np.histogram(np.clip(values, 0, edges[-1]), edges)
            for place in np.flatnonzero(counts):
                low, high = _short(edges[place]), _short(edges[place + 1])
                yield {"layer": layer, "low": low, "high": high, "tokens": counts[place]}

    def _information(self) -> Iterator[dict]:
        if self.joint_LL is None:
            return
        information_LL = information_of(self.joint_LL / self.tokens)
        for i in range(len(information_LL)):
            for j in range(i + 1):
                value = _short(max(0.0, information_LL[i, j]))
                yield {"layer_i": i, "layer_j": j, "mutual_information": value, "tokens": self.tokens}


def _short(value: float) -> float | int:
    return value if isinstance(value, int | np.integer) else float(f"{value:.6g}")
