"""Numbers of experts and of the router's weights (RMoE, section 5 and appendix): pure functions of NumPy arrays.

Letters: E experts, D width, M matrices of an expert, H what the scores read, L layers.
"""

import numpy as np


def expert_similarity(vectors_MED: list[np.ndarray]) -> float:
    """Mean product of two experts, each with itself included, not divided by M (RMoE, figures 5 and 13).

    vectors_MED: of each of an expert's M matrices (3 with SwiGLU, 2 in the small models) its mean over the hidden axis,
    [E, D]. Each vector gets length 1, those of an expert stand one after another. M where all experts are the same,
    about M/E where they are random; biases do not count.
    """
    whole = 0.0
    for vectors_ED in vectors_MED:
        vectors_ED = np.asarray(vectors_ED, dtype=np.float64)
        lengths_E1 = np.linalg.norm(vectors_ED, axis=1, keepdims=True)
        # the mean of all products of two vectors is the square of their mean vector
        whole += float(np.square((vectors_ED / np.maximum(lengths_E1, np.finfo(np.float64).tiny)).mean(0)).sum())
    return whole


def similarity_of_random(matrices: int, experts: int) -> float:
    """What experts with nothing in common have: each is like itself alone."""
    return matrices / experts


def weight_norm(weight_EH: np.ndarray) -> tuple[float, float]:
    """Frobenius norm of a map to the scores, and the standard deviation of its entries (RMoE, figure 11)."""
    weight_EH = np.asarray(weight_EH, dtype=np.float64)
    return float(np.linalg.norm(weight_EH)), float(weight_EH.std())


def drop_ratio(counts_LE: np.ndarray) -> float:
    """Share of a batch's assignments that a capacity factor of 1.0 would drop, mean over layers (RMoE, table 11).

    counts_LE: assignments of each expert; of the k·T of a layer an expert would take at most k·T/E.
    """
    counts_LE = np.asarray(counts_LE, dtype=np.float64)
    whole_L1 = counts_LE.sum(1, keepdims=True)
    beyond_LE = np.maximum(0, counts_LE - whole_L1 / counts_LE.shape[1])
    return float((beyond_LE.sum(1) / np.maximum(1, whole_L1[:, 0])).mean())


def selection_frequencies(counts_LE: np.ndarray) -> np.ndarray:
    """Share of a layer's assignments that each expert gets, [L, E]; rows add up to 1 (RMoE, figure 12)."""
    counts_LE = np.asarray(counts_LE, dtype=np.float64)
    return counts_LE / np.maximum(1, counts_LE.sum(1, keepdims=True))
