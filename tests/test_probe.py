"""The probe: counts against a loop, statistics on cases known by hand."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import SEQUENCE, TinyCorpus, tiny_model, tiny_run, write_corpus, write_run

from moe import probe, score_statistics, statistics
from moe.routers import ROUTERS
from moe.score_statistics import ScoreTables
from moe.weights import WEIGHTS


def loop_counts(run):
    """{(layer, domain, token, expert): [routed, gate]} window by window, gate by gate."""
    counts, model = {}, run.model("10B")
    starts, domains = run.corpus.documents("test")
    for begin in range(0, len(run.corpus.flat) - SEQUENCE, SEQUENCE):
        routings, tokens = [], run.corpus.flat[begin : begin + SEQUENCE].tolist()
        model(torch.tensor([tokens]), routings=routings)
        for layer, routing in enumerate(routings):
            for place, token in enumerate(tokens):
                document = sum(start <= begin + place for start in starts) - 1
                for expert, gate in enumerate(routing.gates_TE[place].tolist()):
                    if gate:
                        key = (layer, int(domains[document]), token, expert)
                        seen = counts.setdefault(key, [0, 0.0])
                        seen[0] += 1
                        seen[1] += gate
    return counts


@pytest.mark.parametrize("router", list(ROUTERS))
def test_counts_are_those_of_a_loop(router):
    run = tiny_run(router)
    with torch.no_grad():
        expected = loop_counts(run)
    layers, occurrences = probe.probe(run, "10B")
    counted = {
        (layer, *map(int, row[:3])): row[3:]
        for layer, table in enumerate(layers)
        for row in table.itertuples(index=False, name=None)
    }
    assert counted.keys() == expected.keys()
    for key, (routed, gate) in expected.items():
        assert counted[key][0] == routed
        assert counted[key][1] == pytest.approx(gate, rel=1e-4)
    windows = (len(run.corpus.flat) - 1) // SEQUENCE
    assert occurrences["occurrences"].sum() == windows * SEQUENCE


def test_a_top_1_router_routes_every_token_once():
    layers, occurrences = probe.probe(tiny_run("topk"), "10B")
    for table in layers:
        routed = table.groupby(["domain", "token"])["routed"].sum()
        assert routed.tolist() == occurrences["occurrences"].tolist()


def test_adding_up_early_changes_nothing(monkeypatch):
    (one, _), _ = probe.probe(tiny_run("relu"), "10B")
    monkeypatch.setattr(probe, "PENDING_ROWS", 10)
    (other, _), _ = probe.probe(tiny_run("relu"), "10B")
    pd.testing.assert_frame_equal(one, other)


def test_probe_tokens_limits_the_text():
    _, occurrences = probe.probe(tiny_run(probe_tokens=3 * SEQUENCE + 5), "10B")
    assert occurrences["occurrences"].sum() == 3 * SEQUENCE


def test_files_have_the_columns_in_order_and_never_change(tmp_path):
    written = []
    for name in "ab":
        layers, occurrences = probe.probe(tiny_run("relu"), "10B")
        routes = [table.assign(layer=layer) for layer, table in enumerate(layers)]
        probe.write_parquet(tmp_path / name, probe.ROUTES, routes, ["prose", "code"])
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    table = pd.read_parquet(tmp_path / "a")
    assert list(table.columns) == statistics.ROUTES
    assert set(table["domain"]) == {"prose", "code"}
    keys = pq.read_table(tmp_path / "a").to_pandas()[["layer", "token"]]
    assert (keys["layer"].diff().dropna() >= 0).all()


def test_a_dense_run_gives_empty_tables_with_the_right_columns(tmp_path):
    layers, occurrences = probe.probe(tiny_run("none"), "10B")
    assert layers == []
    probe.write_parquet(tmp_path / "routes", probe.ROUTES, layers, ["prose", "code"])
    table = pd.read_parquet(tmp_path / "routes")
    assert list(table.columns) == statistics.ROUTES and table.empty
    assert list(occurrences.columns) == statistics.OCCURRENCES and not occurrences.empty


def test_a_split_shorter_than_a_window_is_an_error_of_one_sentence():
    with pytest.raises(ValueError, match="test has 5 tokens, fewer than one window of 16"):
        probe.probe(tiny_run(corpus=TinyCorpus([(0, "four")])), "10B")


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**31))
def test_counts_add_up_to_the_gates(tokens, experts, seed):
    random = np.random.default_rng(seed)
    gates_TE = random.random((tokens, experts)) * random.integers(0, 2, (tokens, experts))
    domain_T, token_T = random.integers(0, 3, tokens), random.integers(0, 5, tokens)
    counts = statistics.count_routes(gates_TE, domain_T, token_T, vocabulary=5)
    assert counts["routed"].sum() == (gates_TE != 0).sum()
    assert counts["gate"].sum() == pytest.approx(gates_TE.sum())
    assert counts["routed"].sum() == round((1 - statistics.sparsity(gates_TE)) * gates_TE.size)
    assert not counts.duplicated(["domain", "token", "expert"]).any()


def test_statistics_of_a_case_known_by_hand():
    # Four tokens, three experts. Domain 0 has two tokens: one with experts 0 and 1, one with expert 0.
    # Domain 1 has two tokens: one with expert 2, one with none.
    gates_TE = np.array([[0.5, 0.25, 0], [1, 0, 0], [0, 0, 2.0], [0, 0, 0]])
    domain_T, token_T = np.array([0, 0, 1, 1]), np.array([7, 7, 7, 8])
    routes = statistics.count_routes(gates_TE, domain_T, token_T, vocabulary=9)
    assert routes.to_dict("list") == {
        "domain": [0, 0, 1],
        "token": [7, 7, 7],
        "expert": [0, 1, 2],
        "routed": [2, 1, 1],
        "gate": [1.5, 0.25, 2.0],
    }
    assert statistics.sparsity(gates_TE) == 8 / 12
    occurrences = pd.DataFrame({"domain": [0, 1, 1], "token": [7, 7, 8], "occurrences": [2, 1, 1]})
    routes = routes.assign(layer=0)
    counts = statistics.domain_counts(routes, occurrences, layers=1, experts=3)
    assert (counts["routed"] / counts["tokens"]).tolist() == [1.0, 0.5, 0, 0, 0, 0.5]
    assert counts.groupby("domain")["routed"].sum().tolist() == [3, 1]  # figure 12: 1.5 and 0.5 a token
    activity = statistics.token_activity(routes, occurrences, layers=1)
    assert activity.to_dict("list") == {"token": [7, 8], "occurrences": [3, 1], "active": [4 / 3, 0.0]}
    top = statistics.top_tokens(routes, occurrences, least=3)
    assert top[["expert", "place", "token"]].values.tolist() == [[0, 1, 7], [1, 1, 7], [2, 1, 7]]
    assert top["share"].tolist() == [2 / 3, 1 / 3, 1 / 3]
    assert statistics.top_tokens(routes, occurrences, least=4).empty


def test_an_expert_lists_its_most_faithful_tokens_first():
    routes = pd.DataFrame(
        [(0, 0, t, 0, n, 1.0) for t, n in ((1, 20), (2, 30), (3, 9), (4, 15), (5, 1))], columns=statistics.ROUTES
    )
    occurrences = pd.DataFrame({"domain": 0, "token": [1, 2, 3, 4, 5], "occurrences": [20, 30, 9, 30, 10]})
    top = statistics.top_tokens(routes, occurrences, count=3)
    assert top["token"].tolist() == [2, 1, 4]  # 1.0 of 30, 1.0 of 20, 0.5 of 30; token 3 is too rare
    assert top["place"].tolist() == [1, 2, 3]


def check_scores_and_weights(folder, router):
    scores = pd.read_csv(folder / "score_statistics.csv")
    weights = pd.read_csv(folder / "weights.csv")
    information = pd.read_csv(folder / "mutual_information.csv")
    assert list(scores.columns) == score_statistics.STATISTICS and list(weights.columns) == WEIGHTS
    if router == "none":
        assert scores.empty and weights.empty and information.empty
        return
    assert set(scores["layer"]) == {"0", "1", "all"} and len(information) == 3
    assert scores.set_index(["layer", "statistic"]).loc[("0", "entropy"), "tokens"] == 64  # probe_tokens
    model = tiny_model(router)
    start = tiny_model(router, seed=1)  # of the run's own seed, built anew
    for layer, row in weights.iterrows():
        assert row["norm"] == pytest.approx(model.router.scores.maps[layer].weight.norm().item(), rel=1e-5)
        assert row["initial_norm"] == pytest.approx(start.router.scores.maps[layer].weight.norm().item(), rel=1e-5)
        assert row["similarity_of_random"] == 0.75 and 0.5 < row["expert_similarity"] < 1.5
    sizes = [path.stat().st_size for path in map(folder.joinpath, ("score_entropy.csv", "weights.csv"))]
    assert max(sizes) < 10_000


@pytest.mark.parametrize("router", list(ROUTERS))
def test_scores_are_the_softmax_over_all_experts(router):
    run = tiny_run(router)
    model = run.model("10B")
    seen = []
    model.router.scores and model.router.scores.register_forward_hook(lambda module, given, made: seen.append(made))
    tables = ScoreTables(10**6)
    probe.probe(run, "10B", model=model, scores=tables)
    made = tables.tables()["score_statistics.csv"].set_index(["layer", "statistic"])
    if not seen:  # hash routing has no scores but its choice
        assert made.loc[(0, "entropy"), "mean"] == 0 and made.loc[(0, "outer_balance"), "mean"] == 1
        return
    raw = [torch.cat(seen[layer::2]) for layer in range(2)]
    if "residual_weight" in ROUTERS[router]:  # np-r: with the residual in
        raw[1] = raw[1] + ROUTERS[router]["residual_weight"] * raw[0]
    for layer, scores in enumerate(raw):
        expected = torch.distributions.Categorical(logits=scores.double()).entropy()
        assert made.loc[(layer, "entropy"), "mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
        assert made.loc[(layer, "entropy"), "median"] == pytest.approx(expected.quantile(0.5).item(), rel=1e-4)


def test_the_command_writes_the_small_tables_and_the_whole_on_demand(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    for router in ("relu", "none"):
        folder = tmp_path / router
        write_run(folder, corpus, router)
        assert probe.main([str(folder), str(tmp_path / "corpus"), "--output", str(folder)]) == 0
        assert not (folder / "routing.parquet").exists()
        assert probe.main([str(folder), str(tmp_path / "corpus"), "--output", str(folder), "--whole"]) == 0
        routing = pd.read_csv(folder / "routing.csv")
        activity = pd.read_csv(folder / "token_activity.csv", keep_default_na=False)
        whole = pd.read_parquet(folder / "routing.parquet")
        assert routing["routed"].sum() == whole["routed"].sum()
        assert activity["occurrences"].sum() == pd.read_parquet(folder / "occurrences.parquet")["occurrences"].sum()
        assert len(routing) == (2 * 2 * 4 if router == "relu" else 0)  # layers, domains, experts
        assert (activity["text"] != "").all()
        check_scores_and_weights(folder, router)
        assert list(pd.read_csv(folder / "top_tokens.csv").columns)[:5] == [
            "layer",
            "expert",
            "place",
            "token",
            "text",
        ]
