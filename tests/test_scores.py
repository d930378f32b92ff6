"""Statistics of scores, experts and router weights, on cases whose answer is known by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from moe import score_statistics
from moe.expert_statistics import (
    drop_ratio,
    expert_similarity,
    selection_frequencies,
    similarity_of_random,
    weight_norm,
)
from moe.score_statistics import ScoreTables, entropy, inner_balance, mutual_information, outer_balance

UNIFORM = np.full((3, 4), 0.25)
ONE_HOT = np.eye(4)[[2, 0]]
PAIRED, CROSSED = np.array([[0.1, 0.1, 0.4, 0.4]]), np.array([[0.1, 0.4, 0.1, 0.4]])  # four experts, two bins of two


def drawn(tokens, experts, seed):
    return np.random.default_rng(seed).dirichlet(np.full(experts, 0.3), tokens)


def test_entropy_is_nothing_for_one_hot_scores_and_ln_e_for_uniform_ones():
    assert entropy(ONE_HOT).tolist() == [0, 0]
    assert entropy(UNIFORM) == pytest.approx([np.log(4)] * 3)
    assert entropy(np.array([[0.5, 0.5, 0, 0]])) == pytest.approx([np.log(2)])


def test_balances_by_hand():
    scores = np.array([[0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    gates = np.array([[0, 0.75, 0.25, 0], [0, 0.5, 0.5, 0]])
    assert inner_balance(scores) == pytest.approx([3, 1])
    assert outer_balance(scores, gates) == pytest.approx([0.8, 0.5])
    assert np.isfinite(inner_balance(ONE_HOT)).all() and (inner_balance(ONE_HOT) > 1e37).all()
    assert inner_balance(np.ones((2, 1))).tolist() == [1, 1]


def test_independent_layers_share_nothing():
    assert mutual_information([PAIRED, CROSSED])[0, 1] == pytest.approx(0)
    assert mutual_information([drawn(5, 4, 0), np.full((5, 4), 0.25)])[1, 0] == pytest.approx(0)


def test_identical_layers_share_the_entropy_of_their_bins():
    information = mutual_information([PAIRED, PAIRED, np.array([[0.05, 0.15, 0.3, 0.5]])])
    assert information[0, 1] == pytest.approx(np.log(2)) and information[0, 0] == pytest.approx(np.log(2))
    assert information[2, 2] == pytest.approx(np.log(4))  # every expert in a bin of its own
    assert information[2, 0] == pytest.approx(np.log(2))


@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 16, 64, 70]), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_mutual_information_is_scikit_learns_mean_over_tokens(tokens, experts, seed):
    a, b = drawn(tokens, experts, seed), drawn(tokens, experts, seed + 1)
    edges = np.linspace(0, 1, 100)
    each = [mutual_info_score(np.digitize(p, edges), np.digitize(q, edges)) for p, q in zip(a, b, strict=True)]
    assert mutual_information([a, b])[1, 0] == pytest.approx(np.mean(each), abs=1e-9)


def collected(layers, gates, parts, tokens=None):
    tables = ScoreTables(tokens or len(layers[0]))
    for rows in np.array_split(np.arange(len(layers[0])), parts):
        tables.add([(scores[rows], chosen[rows]) for scores, chosen in zip(layers, gates, strict=True)])
    return tables.tables()


def test_tables_are_the_functions_over_the_whole_text_however_it_is_cut(monkeypatch):
    layers = [drawn(50, 8, seed) for seed in range(3)]
    gates = [scores * (scores >= np.sort(scores, 1)[:, -2:-1]) for scores in layers]
    tables = collected(layers, gates, 1)
    statistics = tables["score_statistics.csv"].set_index(["layer", "statistic"])
    pooled = np.concatenate([inner_balance(scores) for scores in layers])
    assert statistics.loc[("all", "inner_balance"), "median"] == pytest.approx(np.median(pooled), rel=1e-5)
    assert statistics.loc[(1, "entropy"), "q25"] == pytest.approx(np.quantile(entropy(layers[1]), 0.25), rel=1e-5)
    assert statistics.loc[(2, "outer_balance"), "mean"] == pytest.approx(outer_balance(layers[2], gates[2]).mean())
    information = tables["mutual_information.csv"].set_index(["layer_i", "layer_j"])["mutual_information"]
    assert information[2, 0] == pytest.approx(mutual_information(layers)[2, 0], rel=1e-5)
    assert list(information.index) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    histogram = tables["score_entropy.csv"]
    assert histogram.groupby("layer")["tokens"].sum().tolist() == [50, 50, 50]
    row = histogram.iloc[0]
    inside = (entropy(layers[0]) >= row["low"]) & (entropy(layers[0]) < row["high"])
    assert inside.sum() == row["tokens"]
    monkeypatch.setattr(score_statistics, "AT_ONCE", 8**2 * 3)
    for name, table in collected(layers, gates, 7).items():
        pd.testing.assert_frame_equal(table, tables[name])


def test_a_long_text_counts_every_nth_token(monkeypatch):
    monkeypatch.setattr(score_statistics, "SAMPLE", 20)
    layers = [drawn(50, 4, 0)]
    table = collected(layers, layers, 9)["score_statistics.csv"].set_index(["layer", "statistic"])
    assert table.loc[(0, "entropy"), "tokens"] == 17
    assert table.loc[(0, "entropy"), "mean"] == pytest.approx(entropy(layers[0][::3]).mean(), rel=1e-5)


def test_nothing_collected_gives_empty_tables_with_their_columns():
    tables = ScoreTables(10).tables()
    assert [list(table) for table in tables.values()] == [
        score_statistics.STATISTICS,
        score_statistics.HISTOGRAM,
        score_statistics.INFORMATION,
    ]
    assert all(table.empty for table in tables.values())


def test_identical_experts_are_as_alike_as_they_have_matrices():
    vectors = np.random.default_rng(0).normal(size=(3, 1, 8)).repeat(5, axis=1)
    assert expert_similarity(vectors) == pytest.approx(3)
    assert expert_similarity(2 * vectors[:2]) == pytest.approx(2)


def test_random_experts_are_alike_to_themselves_alone():
    vectors = np.random.default_rng(0).normal(size=(3, 16, 20_000))
    assert expert_similarity(vectors) == pytest.approx(3 / 16, abs=0.01)
    assert similarity_of_random(3, 16) == 0.1875 and similarity_of_random(2, 16) == 0.125
    orthogonal = np.eye(4)[None].repeat(2, axis=0)
    assert expert_similarity(orthogonal) == pytest.approx(2 / 4)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_similarity_is_the_mean_of_all_products_of_two_experts(matrices, experts, seed):
    vectors = np.random.default_rng(seed).normal(size=(matrices, experts, 6))
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    whole = np.concatenate(list(unit), axis=1)  # [E, M·D]
    assert expert_similarity(vectors) == pytest.approx((whole @ whole.T).mean())


def test_drop_ratio_by_hand():
    assert drop_ratio([[4, 4, 4, 4]]) == 0
    assert drop_ratio([[16, 0, 0, 0]]) == 12 / 16  # one expert takes its share of 4
    assert drop_ratio([[6, 2, 4, 4], [4, 4, 4, 4]]) == pytest.approx((2 / 16 + 0) / 2)
    assert drop_ratio([[0, 0]]) == 0


def test_norm_and_spread_of_a_known_matrix():
    assert weight_norm([[3, 0], [0, 4]]) == (5, pytest.approx(np.std([3, 0, 0, 4])))


def test_frequencies_of_a_layer_add_up_to_one():
    assert selection_frequencies([[3, 1], [0, 0]]).tolist() == [[0.75, 0.25], [0, 0]]
