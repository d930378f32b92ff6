"""Options of routers: the same laws with each of them, each formula by hand, values that make no sense.

Shape letters: T tokens, D width, E experts, K chosen experts.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from test_routers import HIDDEN_STATES, LAYERS, ROUTERS, D, make, route, shapes

from moe.routers import build_router, check_router, options_of
from moe.routers.expert_choice import ExpertChoice
from moe.routers.hashing import Hash
from moe.routers.loss_free import LossFree
from moe.routers.memory import GRU, LSTM, ScoreResidual
from moe.routers.relu import ReLU
from moe.routers.scores import Cosine, XMoE
from moe.routers.sparse_mixer import SparseMixer
from moe.routers.topk import TopK, balance_loss

VARIANTS = [
    ("topk", dict(normalise="chosen", balance_layers="mean")),
    ("topk", dict(balance=0.0)),
    ("topk", dict(warmup_steps=4)),
    ("topk", dict(warmup_steps=4, warmup_curve="linear")),
    ("topk", dict(warmup_steps=4, warmup_curve="cosine", warmup_top_k=3)),
    ("relu", dict(balance=False)),
    ("relu", dict(lambda_0=1.0, alpha=1.5)),
    ("expert-choice", dict(scope="micro-batch")),
    ("sparsemixer-v2", dict(balance_layers="mean", epsilon=0.1)),
    ("loss-free", dict(affinity="sigmoid")),
    ("loss-free", dict(normalise="chosen")),
    ("loss-free", dict(affinity="sigmoid", normalise="chosen", rate=0.5)),
    ("smoe", dict(bias=True)),
    ("smoe-mlp", dict(hidden=8)),
    ("cosine-moe", dict(normalise_token=False, temperature=1.0)),
    ("xmoe", dict(reduced=8)),
    ("xmoe", dict(reduced=32, normalise_token=False)),
    ("rmoe", dict(state=256)),
    ("rmoe", dict(state=512, bias=True)),
    ("rmoe-rnn", dict(state=8, passing="none")),
    ("rmoe-lstm", dict(state=8, passing="none")),
    ("rmoe-lstm", dict(state=8, passing="detach")),
    ("rmoe-np-r0.5", dict(state=8, residual="softmax")),
    ("rmoe-np-r1.0", dict(state=8, residual="softmax", detach_residual=True)),
    ("rmoe-np-r1.0", dict(state=8, residual="softmax", residual_weight=0.0)),
]
NAMES = [f"{name} {' '.join(f'{k}={v}' for k, v in options.items())}" for name, options in VARIANTS]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=NAMES)
EXTREMES = HIDDEN_STATES | {"enormous": lambda T: torch.randn(T, D) * 1e6}


def build(name, options, experts=8, top_k=2, seed=0):
    torch.manual_seed(seed)
    return build_router(name, layers=LAYERS, width=D, experts=experts, top_k=top_k, **options)


@every_variant
@pytest.mark.parametrize("kind", EXTREMES)
@given(shape=shapes)
@settings(max_examples=5, deadline=None)
def test_gates_and_gradients_are_finite(name, options, kind, shape):
    T, E, k, seed = shape
    if options.get("warmup_top_k", 0) > E:
        return
    router = build(name, options, E, k, seed)
    total = 0
    for routing in route(router, EXTREMES[kind](T)):
        assert routing.gates_TE.shape == (T, E) and (routing.gates_TE >= 0).all()
        assert torch.isfinite(routing.gates_TE).all() and torch.isfinite(routing.loss) and routing.loss >= 0
        total = total + routing.gates_TE.sum() + routing.loss
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in router.parameters() if p.grad is not None)


@every_variant
def test_every_parameter_learns(name, options):
    router = build(name, options)
    for _ in range(8):
        total = sum((r.gates_TE * torch.randn(64, 8)).sum() + r.loss for r in route(router, torch.randn(64, D)))
        total.backward()
    for parameter, value in router.named_parameters():
        if parameter == "memory.cell.weight_hh" and router.memory.passing == "none":
            continue  # multiplies a state that is always 0
        assert value.grad.abs().sum() > 0, parameter


@every_variant
def test_evaluation_is_causal_and_survives_a_round_trip_in_bfloat16(name, options):
    router, x = build(name, options), torch.randn(40, D)
    for _ in range(3):
        route(router, x)
        router.after_step()
    copied = build(name, options, seed=1)
    copied.load_state_dict(router.bfloat16().state_dict())
    assert [copied.gates.get_extra_state()] == [router.gates.get_extra_state()] if has_state(router) else True
    router, copied = router.float().eval(), copied.float().eval()
    later = torch.cat([x[:20], torch.randn(20, D)])
    for a, b, c in zip(route(router, x), route(router, later), route(copied, x), strict=True):
        torch.testing.assert_close(a.gates_TE[:20], b.gates_TE[:20])
        torch.testing.assert_close(a.gates_TE, c.gates_TE)


def has_state(router):
    return type(router.gates).get_extra_state is not torch.nn.Module.get_extra_state


def test_every_option_with_words_is_varied():
    """A new option of the kind that chooses between formulas must be listed above."""
    varied = {key for _, options in VARIANTS for key in options}
    words = {key for name in ROUTERS for key, default in options_of(name).items() if isinstance(default, str | bool)}
    assert words <= varied


def test_the_papers_defaults():
    said = {
        "relu": dict(lambda_0=1e-8, alpha=1.2, balance=True),
        "topk": dict(balance=1e-2, normalise="none", balance_layers="sum", warmup_steps=0),
        "sparsemixer-v2": dict(epsilon=0.01, balance=1e-2),
        "lory": dict(segment=256),
        "expert-choice": dict(scope="sequence"),
        "loss-free": dict(rate=1e-3),
        "xmoe": dict(reduced=16, temperature=0.3, normalise_token=True),
        "cosine-moe": dict(temperature=0.3, normalise_token=True),
        "smoe-mlp": dict(hidden=256),
        "rmoe": dict(state=128),
    }
    for name, options in said.items():
        assert options_of(name).items() >= options.items(), name
    assert {name: recipe.get("normalise", "none") for name, recipe in ROUTERS.items() if "smoe" in name} == {
        "smoe": "chosen", "smoe-mlp": "chosen", "random-smoe": "chosen",
    }  # fmt: skip


@pytest.mark.parametrize("normalise", ["none", "chosen"])
def test_top_k_chooses_by_scores_where_probabilities_underflow(normalise):
    scores = torch.tensor([[0.0, -400.0, -300.0, -200.0, -150.0]])
    for gates in (TopK(1, 5, 2, normalise=normalise), ExpertChoice(1, 5, 2).eval()):
        assert gates(scores, 0).gates_TE.nonzero()[:, 1].tolist() == [0, 4]
    steep = torch.randn(500, 16) * 100
    chosen = TopK(1, 16, 4, normalise=normalise)(steep, 0).gates_TE > 0
    assert (chosen == torch.zeros(500, 16, dtype=bool).scatter(1, steep.topk(4).indices, True)).all()


def test_experts_choose_by_logarithms_where_probabilities_underflow():
    scores = torch.randn(64, 8) * 1e4
    chosen = ExpertChoice(1, 8, 2)(scores, 0).gates_TE > 0
    best = scores.double().log_softmax(-1).topk(64 * 2 // 8, dim=0).indices
    assert (chosen == torch.zeros(64, 8, dtype=bool).scatter(0, best, True)).all()


@pytest.mark.parametrize(("positions", "experts", "top_k"), [(16, 4, 2), (20, 8, 3), (6, 4, 4), (2, 8, 1)])
def test_expert_choice_has_the_capacity_of_k_experts_a_token(positions, experts, top_k):
    gates = ExpertChoice(1, experts, top_k)(torch.randn(positions, experts), 0).gates_TE
    capacity = min(positions, max(1, round(positions * top_k / experts)))
    assert (gates > 0).sum(0).tolist() == [capacity] * experts


def test_a_softmax_residual_is_the_normalised_sum_of_distributions_with_finite_gradients():
    memory = ScoreResidual(2, D, state=4, residual_weight=0.5, residual="softmax")
    s, previous = torch.randn(5, 6), torch.randn(5, 6)
    mixed = memory.mix(s, previous)[0].softmax(-1)
    torch.testing.assert_close(mixed, (s.softmax(-1) + 0.5 * previous.softmax(-1)) / 1.5)
    steep = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    memory.mix(steep, steep)[0].softmax(-1)[0, 0].backward()
    assert torch.isfinite(steep.grad).all()


def test_relu_gates_refuse_logarithms_of_probabilities(monkeypatch):
    monkeypatch.setitem(ROUTERS, "both", ROUTERS["relu"] | {"memory": ScoreResidual})
    make("both")
    with pytest.raises(ValueError, match="router 'both': ReLU gates cut scores at zero, and residual 'softmax'"):
        build("both", dict(residual="softmax"))


@pytest.mark.parametrize("affinity", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", ["none", "chosen"])
def test_loss_free_weighs_by_affinity_and_moves_its_bias_by_a_sign(affinity, normalise):
    gates, scores = LossFree(1, 4, 2, affinity=affinity, normalise=normalise, rate=0.25), torch.randn(10, 4)
    a = scores.softmax(-1) if affinity == "softmax" else scores.sigmoid()
    expected = torch.zeros(10, 4).scatter(1, a.topk(2).indices, a.topk(2).values)
    expected = expected / expected.sum(1, keepdim=True) if normalise == "chosen" else expected
    torch.testing.assert_close(gates(scores, 0).gates_TE, expected)
    gates.after_step(0.5, torch.tensor([[9, 1, 5, 5]]))
    assert gates.bias_LE.tolist() == [[-0.25, 0.25, 0.0, 0.0]]
    weights = gates(torch.full((1, 4), -1e4), 0).gates_TE
    assert torch.isfinite(weights).all() and (weights > 0).sum() == 2


def test_lambda_stays_within_its_bounds_and_says_so():
    gates = ReLU(1, 4, 1, lambda_0=0.9, lambda_max=1.0, lambda_min=0.8)
    assert gates.after_step(0.0, torch.zeros(1, 4)) == {"l1_lambda": 0.9, "l1_bound": 1.0} and gates.l1_lambda == 1.0
    assert gates.after_step(0.0, torch.zeros(1, 4))["l1_bound"] == 1.0 and gates.l1_lambda == 1.0
    for _ in range(2):
        last = gates.after_step(1.0, torch.zeros(1, 4))
    assert gates.l1_lambda == 0.8 and last["l1_bound"] == -1.0
    assert [gates.after_step(S, torch.zeros(1, 4))["l1_bound"] for S in (0.0, 1.0, 1.0)] == [0.0, 0.0, -1.0]


def test_hash_with_several_experts_shares_the_weight():
    from moe.routers import Sequences

    gates = Hash(1, 6, 2)(None, 0, Sequences(torch.tensor([[0, 1, 2, 7]]))).gates_TE
    assert [row.nonzero()[:, 0].tolist() for row in gates] == [[0, 1], [2, 3], [4, 5], [2, 3]]
    assert (gates[gates > 0] == 0.5).all()


def test_an_lstm_hands_on_both_of_its_states():
    memory = LSTM(2, D, state=4)
    x = [torch.randn(3, D, requires_grad=True) for _ in range(2)]
    read, passed = memory(x[0], 0, None)
    zero = torch.zeros(3, 4)
    h, c = memory.cell(memory.projectors[0](x[0]), (zero, zero))
    torch.testing.assert_close((read, *passed), (h, h, c))
    torch.testing.assert_close(memory(x[1], 1, passed)[0], memory.cell(memory.projectors[1](x[1]), (h, c))[0])


@pytest.mark.parametrize("cell", [GRU, LSTM])
def test_a_detached_state_passes_values_and_no_gradient(cell):
    torch.manual_seed(0)
    passing, detached = (cell(2, D, state=4, passing=kind) for kind in ("full", "detach"))
    detached.load_state_dict(passing.state_dict())
    x, results = torch.randn(3, D), []
    for memory in (passing, detached):
        read, _ = memory(x, 1, memory(x, 0, None)[1])
        read.sum().backward()
        results.append((read, memory.projectors[0].weight.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].abs().sum() > 0 and results[1][1] is None


def test_cosine_scores_are_the_angle_over_the_temperature():
    scores, h = Cosine(1, D, 5, temperature=0.5), torch.randn(7, D)
    directions = scores.experts_LEH[0]
    expected = torch.nn.functional.cosine_similarity(h[:, None], directions[None], dim=-1) / 0.5
    torch.testing.assert_close(scores(h, 0), expected)
    torch.testing.assert_close(directions @ directions.T, 0.32**2 * torch.eye(5), atol=1e-6, rtol=0)
    reduced = XMoE(1, D, 5, reduced=8)
    torch.testing.assert_close(reduced(h, 0), reduced.cosine(reduced.reductions[0](h), 0))
    assert reduced.reductions[0].weight.shape == (8, D) and reduced.reductions[0].bias is None


def test_the_balance_loss_of_sampled_experts_has_its_coefficient():
    scores = torch.randn(50, 4)
    for layers, mean in itertools.product((1, 4), (False, True)):
        gates = SparseMixer(layers, 4, 1, balance=0.5, balance_layers="mean" if mean else "sum")
        choice = gates(scores, 0)
        expected = 0.5 * balance_loss(scores.softmax(-1), choice.gates_TE, 1, True) / (layers if mean else 1)
        torch.testing.assert_close(choice.loss, expected)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("cosine-moe", {"temperature": 0.0}, "option temperature is 0.0, expected a number above 0"),
        ("xmoe", {"temperature": -1.0}, "option temperature is -1.0"),
        ("topk", {"balance": -0.1}, "option balance is -0.1, expected a number from 0 on"),
        ("topk", {"balance": float("nan")}, "option balance is nan"),
        ("sparsemixer-v2", {"balance_layers": "max"}, "option balance_layers is 'max', expected one of sum, mean"),
        ("sparsemixer-v2", {"epsilon": float("inf")}, "option epsilon is inf"),
        ("relu", {"alpha": float("inf")}, "option alpha is inf, expected a number above 1"),
        ("relu", {"lambda_min": 1.0, "lambda_max": 0.1}, "option lambda_min is 1.0, expected above 0 and at most"),
        ("relu", {"lambda_0": 0.0}, "option lambda_0 is 0.0"),
        ("loss-free", {"rate": float("inf")}, "option rate is inf"),
        ("rmoe-np-r0.5", {"residual_weight": -1.0}, "option residual_weight is -1.0"),
    ],
)  # fmt: skip
def test_a_value_without_sense_is_one_sentence(name, options, says):
    with pytest.raises(ValueError) as error:
        check_router(name, options, layers=LAYERS, width=D, experts=8, top_k=2)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("top_k", [0, 5, -1])
@pytest.mark.parametrize("name", ROUTERS)
def test_more_experts_a_token_than_there_are_is_one_sentence(name, top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}, expected at least 1 and at most the 4 experts"):
        make(name, 4, top_k)
