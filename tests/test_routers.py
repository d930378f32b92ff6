"""Laws that every entry of ROUTERS obeys: registering a router is enough to be tested.

Shape letters: T tokens, D width, E experts.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.experts import Experts
from moe.routers import ROUTERS, build_router, check_router

LAYERS, D = 3, 16

every_router = pytest.mark.parametrize("name", ROUTERS)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31)).map(
    lambda drawn: (drawn[0], drawn[1], min(drawn[1], drawn[2]), drawn[3])
)  # tokens, experts, top_k, seed
HIDDEN_STATES = {
    "normal": lambda T: torch.randn(T, D),
    "huge": lambda T: torch.randn(T, D) * 1e4,
    "equal": lambda T: torch.ones(T, D),
    "zero": lambda T: torch.zeros(T, D),
    "negative": lambda T: -torch.rand(T, D) * 10,
}


def make(name, experts=8, top_k=2, seed=0):
    torch.manual_seed(seed)
    return build_router(name, layers=LAYERS, width=D, experts=experts, top_k=top_k)


def route(router, x_TD):
    """Routings of all layers, the memory handed on."""
    memory, routings = None, []
    for layer in range(LAYERS):
        routings.append(router(x_TD, layer, memory))
        memory = routings[-1].memory_TH
    return routings


@every_router
@pytest.mark.parametrize("kind", HIDDEN_STATES)
@given(shape=shapes)
@settings(max_examples=15, deadline=None)
def test_gates_are_tokens_by_experts_nonnegative_and_finite(name, kind, shape):
    T, E, k, seed = shape
    router = make(name, E, k, seed)
    for routing in route(router, HIDDEN_STATES[kind](T)):
        assert routing.gates_TE.shape == (T, E)
        assert (routing.gates_TE >= 0).all() and torch.isfinite(routing.gates_TE).all()
        assert routing.loss.ndim == 0 and torch.isfinite(routing.loss) and routing.loss >= 0
    statistics = router.after_step()
    assert 0 <= statistics["sparsity"] <= 1
    assert all(1 - 1e-9 <= statistics[f"load_{i}"] <= E or statistics[f"sparsity_{i}"] == 1 for i in range(LAYERS))


@pytest.mark.parametrize("name", [n for n in ROUTERS if ROUTERS[n]["gates"].__name__ == "TopK"])
@given(shape=shapes)
@settings(max_examples=25, deadline=None)
def test_top_k_routes_every_token_to_exactly_k_experts(name, shape):
    T, E, k, seed = shape
    for kind in HIDDEN_STATES.values():
        for routing in route(make(name, E, k, seed), kind(T)):
            assert ((routing.gates_TE > 0).sum(1) == k).all()


@every_router
def test_gradient_reaches_every_trainable_parameter(name):
    router = make(name, 8, 2)
    for _ in range(8):  # several batches, so that every expert is chosen somewhere
        x = torch.randn(64, D, requires_grad=True)  # frozen scores have a gradient to the tokens alone
        sum((r.gates_TE * torch.randn(64, 8)).sum() + r.loss for r in route(router, x)).backward()
    for parameter_name, parameter in router.named_parameters():
        if parameter_name == "memory.cell.weight_hh" and router.memory.passing == "none":
            continue  # multiplies a state that is always 0; the paper counts it all the same
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, parameter_name


@every_router
def test_the_routers_own_loss_reaches_its_weights(name):
    router = make(name, 8, 2)
    trained = {n: p for n, p in router.scores.named_parameters() if p.requires_grad}
    loss = sum(r.loss for r in route(router, torch.randn(64, D)))
    if not trained:  # frozen scores
        assert not loss.requires_grad
        return
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in trained.items()), name


@every_router
def test_no_gradient_reaches_a_frozen_parameter(name):
    router = make(name, 8, 2)
    x = torch.randn(64, D, requires_grad=True)
    sum((r.gates_TE * torch.randn(64, 8)).sum() + r.loss for r in route(router, x)).backward()
    assert all(p.grad is None for p in router.parameters() if not p.requires_grad)
    assert x.grad.abs().sum() > 0


@every_router
@given(shape=shapes, cut=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_a_later_token_changes_nothing_before_it(name, shape, cut):
    T, E, k, seed = shape
    router = make(name, E, k, seed).eval()
    x = torch.randn(T, D)
    other, first = x.clone(), round(cut * T)
    other[first:] = torch.randn(T - first, D)
    for a, b in zip(route(router, x), route(router, other), strict=True):
        torch.testing.assert_close(a.gates_TE[:first], b.gates_TE[:first])


@every_router
def test_gates_do_not_depend_on_how_tokens_are_batched(name):
    router, x = make(name).eval(), torch.randn(24, D)
    whole = route(router, x)
    parts = [route(router, part) for part in x.split(8)]
    for layer, routing in enumerate(whole):
        torch.testing.assert_close(routing.gates_TE, torch.cat([p[layer].gates_TE for p in parts]))


@every_router
def test_sparsity_and_state_do_not_depend_on_micro_batches(name):
    x, whole = torch.randn(24, D), make(name)
    split = copy.deepcopy(whole)
    for _ in range(3):
        route(whole, x)
        for part in x.split(8):
            route(split, part)
        assert whole.after_step() == split.after_step()
    assert whole.state_dict().keys() == split.state_dict().keys()


@every_router
def test_state_dict_round_trip_keeps_steering_state_to_the_bit_under_bfloat16(name):
    router = make(name)
    for _ in range(5):
        route(router, torch.randn(16, D))
        router.after_step()
    other = make(name, seed=1)
    other.load_state_dict(router.bfloat16().state_dict())
    mine, loaded = router.state_dict(), other.state_dict()
    for key in mine:
        if key.endswith("_extra_state"):
            assert mine[key] == loaded[key], key


@every_router
def test_a_step_may_follow_no_forward(name):
    assert make(name).after_step() == {}


@every_router
def test_evaluation_leaves_no_trace(name):
    router = make(name)
    before = copy.deepcopy(router.state_dict())
    route(router.eval(), torch.randn(16, D))
    assert router.train().after_step() == {}
    for key, value in router.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]


@every_router
def test_one_expert_of_one_with_gate_one_equals_the_feed_forward(name):
    router, experts = make(name, 1, 1).eval(), Experts(1, D, 24)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(10, D)
    gates = route(router, x)[0].gates_TE
    gate, up = (x @ experts.in_EDF[0]).chunk(2, -1)
    feed_forward = (torch.nn.functional.silu(gate) * up) @ experts.out_EFD[0]
    torch.testing.assert_close(experts(x, gates), gates * feed_forward)
    if "relu" not in name:
        torch.testing.assert_close(gates, torch.ones(10, 1))


@pytest.mark.parametrize("name", [n for n in ROUTERS if ROUTERS[n]["gates"].__name__ == "TopK"])
@given(experts=st.integers(1, 16), top_k=st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_balance_loss_is_its_coefficient_at_uniform_routing(name, experts, top_k):
    top_k = min(top_k, experts)
    gates = make(name, experts, top_k).gates
    # a score that is a rotation of itself per token: every expert is chosen equally often
    row = torch.linspace(0, 1, experts)
    scores = torch.stack([row.roll(shift) for shift in range(experts)])
    loss = gates(scores, 0)[1]
    torch.testing.assert_close(loss.item(), gates.weight, rtol=1e-5, atol=0)


def test_balance_loss_of_layers_is_their_sum_or_mean():
    x = torch.randn(32, D)
    torch.manual_seed(0)
    total = sum(r.loss for r in route(make("topk"), x))
    torch.manual_seed(0)
    router = build_router("topk", layers=LAYERS, width=D, experts=8, top_k=2, balance_layers="mean")
    router.load_state_dict(make("topk").state_dict())
    torch.testing.assert_close(sum(r.loss for r in route(router, x)), total / LAYERS)


def test_lambda_is_clamped_and_says_so():
    router = make("relu", 8, 8)  # target 0: any zero gate makes λ fall
    router.gates.l1_lambda = router.gates.bounds[0]
    route(router, torch.randn(16, D))
    statistics = router.after_step()
    assert statistics["l1_bound"] == 1 and router.gates.l1_lambda == router.gates.bounds[0]


def test_penalty_without_balancing_is_the_plain_l1_norm():
    torch.manual_seed(0)
    router = build_router("relu", layers=LAYERS, width=D, experts=8, top_k=1, balance=False, lambda_0=0.5)
    routing = router(torch.randn(16, D), 0)
    torch.testing.assert_close(routing.loss, 0.5 * routing.gates_TE.mean(0).sum())


def test_memory_passes_from_layer_to_layer_and_never_along_the_sequence():
    router, x = make("rmoe").eval(), torch.randn(6, D)
    together = route(router, x)
    alone = [route(router, token) for token in x.split(1)]
    for layer in range(LAYERS):
        torch.testing.assert_close(together[layer].gates_TE, torch.cat([a[layer].gates_TE for a in alone]))
    forgotten = router(x, 2, None).gates_TE
    assert not torch.allclose(together[2].gates_TE, forgotten)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("topkk", {}, "router 'topkk' is unknown; the nearest is 'topk'"),
        ("relu", {"lamda_0": 1}, "option 'lamda_0' is unknown to router 'relu'; the nearest is 'lambda_0'"),
        ("topk", {"state": 8}, "option 'state' is unknown to router 'topk'"),
    ],
)
def test_a_wrong_router_or_option_is_one_sentence(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_router(name, options)


@pytest.mark.parametrize(
    "options", [{"normalise": "some"}, {"balance_layers": "max"}, {"alpha": 0.9}, {"lambda_0": 0.0}, {"lambda_0": 1e9}]
)
def test_a_wrong_value_of_an_option_is_one_sentence(options):
    name = "relu" if {"alpha", "lambda_0"} & set(options) else "topk"
    with pytest.raises(ValueError, match=f"option {next(iter(options))} is .*, expected"):
        build_router(name, layers=1, width=D, experts=4, top_k=1, **options)
