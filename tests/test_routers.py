"""Laws that every entry of ROUTERS obeys: registering a router is enough to be tested.

Shape letters: T tokens, D width, E experts.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe.experts import Experts
from moe.routers import ROUTERS, Sequences, build_router, check_router, options_of
from moe.routers.sparse_mixer import SparseMixer

LAYERS, D = 3, 16
SEGMENT = 8  # of routers that have segments
GATES_OF = {name: recipe["gates"].__name__ for name, recipe in ROUTERS.items()}

every_router = pytest.mark.parametrize("name", ROUTERS)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31)).map(
    lambda drawn: (drawn[0], drawn[1], min(drawn[1], drawn[2]), drawn[3])
)  # tokens, experts, top_k, seed
few_shapes = st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31)).map(
    lambda drawn: (drawn[0], drawn[1], min(drawn[1], drawn[2]), drawn[3])
)
ties = st.sampled_from(["none", "tokens", "experts"])  # all tokens are one; all scores are equal
HIDDEN_STATES = {
    "normal": lambda T: torch.randn(T, D),
    "huge": lambda T: torch.randn(T, D) * 1e4,
    "equal": lambda T: torch.ones(T, D),
    "zero": lambda T: torch.zeros(T, D),
    "negative": lambda T: -torch.rand(T, D) * 10,
}


def make(name, experts=8, top_k=2, seed=0):
    torch.manual_seed(seed)
    options = {"segment": SEGMENT} if "segment" in options_of(name) else {}
    return build_router(name, layers=LAYERS, width=D, experts=experts, top_k=top_k, **options)


def tokens(T, ties="none"):
    """Hidden states [T, D], drawn; without a difference between the tokens, or between the scores of the experts."""
    x_TD = torch.randn(1 if ties == "tokens" else T, D).repeat(T if ties == "tokens" else 1, 1)
    return x_TD * (ties != "experts")


def route(router, x_TD, batch=1, first_id=0):
    """Routings of all layers, the memory handed on; token ids count on from first_id."""
    sequences = Sequences(torch.arange(first_id, first_id + len(x_TD)).view(batch, -1))
    memory, routings = None, []
    for layer in range(LAYERS):
        routings.append(router(x_TD, layer, memory, sequences))
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


@pytest.mark.parametrize("name", [n for n in ROUTERS if GATES_OF[n] in ("TopK", "SparseMixer", "LossFree", "Hash")])
@given(shape=shapes)
@settings(max_examples=25, deadline=None)
def test_top_k_routes_every_token_to_exactly_k_experts(name, shape):
    T, E, k, seed = shape
    for kind in HIDDEN_STATES.values():
        for routing in route(make(name, E, k, seed), kind(T)):
            assert ((routing.gates_TE > 0).sum(1) == k).all()


@every_router
@given(shape=few_shapes.filter(lambda shape: shape[1] > 1), ties=st.sampled_from(["none", "tokens"]))
@example(shape=(64, 8, 2, 0), ties="none")
@example(shape=(1, 4, 2, 0), ties="none")
@settings(max_examples=4, deadline=None)
def test_gradient_reaches_every_trainable_parameter(name, shape, ties):
    T, E, k, seed = shape
    if GATES_OF[name] == "SparseMixer":
        k = min(k, E - 1)  # who takes all has no choice to balance, and a pick with one candidate has no gradient
    router = make(name, E, k, seed)
    T += SEGMENT * router.gates.merges  # a first segment has no gradient, nor has the choice among one expert
    for _ in range(8):  # several batches, so that every expert is chosen somewhere
        x = tokens(T, ties).requires_grad_()  # frozen scores have a gradient to the tokens alone
        total = sum((r.gates_TE * torch.randn(T, E)).sum() + r.loss for r in route(router, x))
        if total.requires_grad:  # hash routing has nothing to learn
            total.backward()
    for parameter_name, parameter in router.named_parameters():
        if parameter_name == "memory.cell.weight_hh" and router.memory.passing == "none":
            continue  # multiplies a state that is always 0; the paper counts it all the same
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, parameter_name


@every_router
def test_the_routers_own_loss_reaches_its_weights(name):
    router = make(name, 8, 2)
    loss = sum(r.loss for r in route(router, torch.randn(64, D)))
    if GATES_OF[name] not in ("TopK", "ReLU", "SparseMixer"):  # these want no loss
        assert loss == 0 and not loss.requires_grad
        return
    trained = {n: p for n, p in router.scores.named_parameters() if p.requires_grad}
    if not trained:  # frozen scores
        assert not loss.requires_grad
        return
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in trained.items()), name


@every_router
def test_no_gradient_reaches_a_frozen_parameter(name):
    router = make(name, 8, 2)
    x = torch.randn(64, D, requires_grad=True)
    total = sum((r.gates_TE * torch.randn(64, 8)).sum() + r.loss for r in route(router, x))
    if GATES_OF[name] == "Hash":
        assert not total.requires_grad
        return
    total.backward()
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
    if router.gates.merges and first < SEGMENT:
        return  # the first segment is merged by its own tokens; see the test of Lory
    for a, b in zip(route(router, x), route(router, other), strict=True):
        torch.testing.assert_close(a.gates_TE[:first], b.gates_TE[:first])


@every_router
def test_only_expert_choice_leaks_in_training(name):
    router, x = make(name), torch.randn(32, D)
    other = torch.cat([x[:20], torch.randn(12, D)])
    leaked = False
    for a, b in zip(routed_with_the_same_noise(router, x), routed_with_the_same_noise(router, other), strict=True):
        leaked |= not torch.allclose(a.gates_TE[:20], b.gates_TE[:20])
    assert leaked == router.gates.leaks == (GATES_OF[name] == "ExpertChoice")


def routed_with_the_same_noise(router, x_TD):
    torch.manual_seed(5)
    return route(router, x_TD)


def over_batches(test):
    """A law over a few shapes, batches and ties; always over a batch of plain tokens and over T = 1 with ties."""
    test = given(batch=st.integers(1, 4), shape=few_shapes, ties=ties)(test)
    test = example(batch=3, shape=(8, 8, 2, 0), ties="none")(test)
    return every_router(example(batch=3, shape=(1, 4, 2, 0), ties="experts")(test))


@over_batches
@settings(max_examples=4, deadline=None)
def test_gates_do_not_depend_on_how_tokens_are_batched(name, batch, shape, ties):
    T, E, k, seed = shape
    router = make(name, E, k, seed).double().eval()
    x = tokens(batch * T, ties).double()
    whole = route(router, x, batch=batch)
    parts = [route(router, part, first_id=T * i) for i, part in enumerate(x.split(T))]
    for layer, routing in enumerate(whole):
        torch.testing.assert_close(routing.gates_TE, torch.cat([p[layer].gates_TE for p in parts]))


@over_batches
@settings(max_examples=3, deadline=None)
def test_sparsity_and_state_do_not_depend_on_micro_batches(name, batch, shape, ties):
    T, E, k, seed = shape
    whole = make(name, E, k, seed).double()
    x, split = tokens(batch * T, ties).double(), copy.deepcopy(whole)
    for _ in range(3):
        route(whole, x, batch=batch)
        for i, part in enumerate(x.split(T)):
            route(split, part, first_id=T * i)
        together, apart = whole.after_step(), split.after_step()
        if GATES_OF[name] == "SparseMixer":  # draws other samples, as many
            together, apart = ({k: v for k, v in s.items() if "load" not in k} for s in (together, apart))
        assert together == apart
    mine, other = whole.state_dict(), split.state_dict()
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


@every_router
@given(shape=few_shapes, ties=ties)
@example(shape=(16, 8, 2, 0), ties="none")
@settings(max_examples=3, deadline=None)
def test_state_dict_round_trip_keeps_steering_state_to_the_bit_under_bfloat16(name, shape, ties):
    T, E, k, seed = shape
    router = make(name, E, k, seed)
    for _ in range(5):
        route(router, tokens(T, ties))
        router.after_step()
    other = make(name, E, k, seed=seed + 1)
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
@given(T=st.integers(1, 20), seed=st.integers(0, 2**31), ties=ties)
@example(T=10, seed=0, ties="none")
@example(T=1, seed=0, ties="none")
@settings(max_examples=3, deadline=None)
def test_one_expert_of_one_with_gate_one_equals_the_feed_forward(name, T, seed, ties):
    router, experts = make(name, 1, 1, seed).eval(), Experts(1, D, 24)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = tokens(T, ties)
    routing = route(router, x)[0]
    gates = routing.gates_TE
    gate, up = (x @ experts.in_EDF[0]).chunk(2, -1)
    feed_forward = (torch.nn.functional.silu(gate) * up) @ experts.out_EFD[0]
    torch.testing.assert_close(experts(x, gates, routing.segments), gates * feed_forward, rtol=1e-4, atol=1e-4)
    if GATES_OF[name] != "ReLU":
        torch.testing.assert_close(gates, torch.ones(T, 1))


@pytest.mark.parametrize("name", [n for n in ROUTERS if GATES_OF[n] == "TopK"])
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
    assert statistics["l1_bound"] == -1 and router.gates.l1_lambda == router.gates.bounds[0]


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


def gates_as_a_function_of(router, layers, x_TD):
    """(f, inputs) for gradcheck: gates and losses of `layers`, of the tokens and every trainable parameter."""
    trained = {n: p.detach().clone().requires_grad_() for n, p in router.named_parameters() if p.requires_grad}
    sequences = Sequences(torch.arange(len(x_TD)).view(2, -1))
    memory_before = None
    if layers[0] > 0:
        with torch.no_grad():
            memory_before = router(x_TD, layers[0] - 1, None, sequences).memory_TH

    def gates(x_TD, *values):
        memory, outputs = memory_before, []
        for layer in layers:
            state = dict(zip(trained, values, strict=True))
            routing = torch.func.functional_call(router, state, (x_TD, layer, memory, sequences))
            memory = routing.memory_TH
            outputs += [routing.gates_TE.view(2, -1, 4)[:, SEGMENT * router.gates.merges :], routing.loss]
        return tuple(output for output in outputs if output.requires_grad)

    return gates, (x_TD.clone().requires_grad_(), *trained.values())


@every_router
def test_gradients_of_one_layer_in_double_precision(name):
    if GATES_OF[name] == "Hash":
        return  # nothing to differentiate: another test
    router, x = make(name, 4, 2, seed=1).double(), torch.randn(4 * SEGMENT, D, dtype=torch.float64)
    # a sampled weight has by intent the gradient of another value in training
    router.train(GATES_OF[name] != "SparseMixer")
    if GATES_OF[name] == "ReLU":
        router.gates.l1_lambda = 0.5  # at 1e-8 an error in the penalty would not show
    gates, inputs = gates_as_a_function_of(router, [1], x)
    assert torch.autograd.gradcheck(gates, inputs, fast_mode=True)


@every_router
def test_gradients_through_all_layers_in_double_precision(name):
    detached = {"passing": "detach", "detach_residual": True}
    if GATES_OF[name] == "Hash" or any(ROUTERS[name].get(key) == value for key, value in detached.items()):
        return  # stopped gradients are not those of the function
    router, x = make(name, 4, 2, seed=2).double(), torch.randn(4 * SEGMENT, D, dtype=torch.float64)
    router.train(GATES_OF[name] != "SparseMixer")
    gates, inputs = gates_as_a_function_of(router, range(LAYERS), x)
    assert torch.autograd.gradcheck(gates, inputs, fast_mode=True)


PARTS_OF = {part: {r[part] for r in ROUTERS.values() if part in r} for part in ("memory", "scores", "gates")}
COMBINATIONS = {
    "-".join(part.__name__ for part in (memory, scores, gates) if part): (memory, scores, gates)
    for memory in [None, *sorted(PARTS_OF["memory"], key=str)]
    for scores in sorted(PARTS_OF["scores"], key=str)
    for gates in sorted(PARTS_OF["gates"], key=str)
    if gates.reads_scores
}


@pytest.mark.parametrize(("memory", "scores", "gates"), COMBINATIONS.values(), ids=COMBINATIONS)
def test_every_combination_of_parts_routes_and_learns(monkeypatch, memory, scores, gates):
    recipe = dict(scores=scores, gates=gates) | ({"memory": memory} if memory else {})
    monkeypatch.setitem(ROUTERS, "combined", recipe)
    router = make("combined")
    for _ in range(8):  # several batches, so that every expert is chosen somewhere
        total = 0
        for routing in route(router, torch.randn(64, D, requires_grad=True)):
            assert (routing.gates_TE >= 0).all() and torch.isfinite(routing.gates_TE).all()
            total = total + (routing.gates_TE * torch.randn(64, 8)).sum() + routing.loss
        total.backward()
    for name, parameter in router.named_parameters():
        if name == "memory.cell.weight_hh" and router.memory.passing == "none":
            continue  # multiplies a state that is always 0
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name
    assert router.after_step()["sparsity"] < 1


@pytest.mark.parametrize("extra", ["memory", "scores"])
def test_a_combination_without_sense_is_one_sentence(monkeypatch, extra):
    part = ROUTERS["rmoe"][extra]
    monkeypatch.setitem(ROUTERS, "hash-and-more", ROUTERS["hash"] | {extra: part})
    with pytest.raises(ValueError, match="router 'hash-and-more': Hash gates read no scores, so neither"):
        make("hash-and-more")


def test_gates_without_the_scores_they_read_are_one_sentence(monkeypatch):
    monkeypatch.setitem(ROUTERS, "blind", {"gates": ROUTERS["relu"]["gates"]})
    with pytest.raises(ValueError, match="router 'blind': ReLU gates read scores, and there are none"):
        make("blind")


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


# What single routers promise besides.


def test_hash_routes_by_id_modulo_experts():
    ids = torch.tensor([[0, 7, 8, 9], [800, 3, 3, 11]])
    gates_TE = make("hash", 8, 1)(torch.randn(8, D), 1, None, Sequences(ids)).gates_TE
    assert gates_TE.argmax(1).tolist() == [0, 7, 0, 1, 0, 3, 3, 3] and (gates_TE.sum(1) == 1).all()
    with pytest.raises(ValueError, match="hash routing reads token ids"):
        make("hash")(torch.randn(8, D), 0)


@given(batch=st.integers(1, 4), positions=st.integers(1, 24), experts=st.integers(1, 8), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_every_expert_takes_its_capacity_of_each_sequence(batch, positions, experts, seed):
    router = make("expert-choice", experts, 1, seed)
    gates_TE = route(router, torch.randn(batch * positions, D), batch)[0].gates_TE
    taken_BE = (gates_TE > 0).view(batch, positions, experts).sum(1)
    assert (taken_BE == min(positions, max(1, round(positions / experts)))).all()


def test_expert_choice_takes_the_largest_probabilities_and_evaluates_by_token():
    router, x = make("expert-choice", 4, 1), torch.randn(16, D)
    probs = router.scores(x, 0).softmax(-1)
    expected = torch.zeros_like(probs)
    for sequence in range(2):
        for expert in range(4):
            rows = sorted(range(8 * sequence, 8 * sequence + 8), key=lambda t: -probs[t, expert])[:2]
            for t in rows:
                expected[t, expert] = probs[t, expert]
    torch.testing.assert_close(route(router, x, batch=2)[0].gates_TE, expected)
    router.eval()
    by_token = route(router, x, batch=2)[0].gates_TE
    torch.testing.assert_close(by_token, torch.where(probs == probs.amax(1, keepdim=True), probs, 0))
    router.gates.evaluate_leaky = True
    torch.testing.assert_close(route(router, x, batch=2)[0].gates_TE, expected)


def test_expert_choice_over_the_micro_batch_ignores_where_sequences_end():
    torch.manual_seed(0)
    router = build_router("expert-choice", layers=LAYERS, width=D, experts=4, top_k=1, scope="micro-batch")
    x = torch.randn(16, D)
    torch.testing.assert_close(route(router, x, batch=4)[0].gates_TE, route(router, x)[0].gates_TE)


class TestSparseMixer:
    scores = torch.tensor([[3.0, 2.99, 2.9, -1.0], [-1.0, -1.01, -1.5, -9.0], [0.0, 0.0, 0.0, 0.0]])

    def test_candidates_are_within_two_epsilon_of_the_largest(self):
        mixer = SparseMixer(1, 4, 1).eval()
        # (3 − 2.99)/3 = 0.0033 and (−1 + 1.01)/1.01 = 0.0099 are within 0.02, (3 − 2.9)/3 = 0.033 is not
        gates = mixer(self.scores, 0).gates_TE
        pair = torch.tensor([0.01, 0.0]).softmax(0)[0].item()
        torch.testing.assert_close(gates.amax(1), torch.tensor([pair, pair, 0.25]))
        assert gates[0].argmax() == 0 and gates[1].argmax() == 0

    def test_second_pick_masks_the_first(self):
        gates = SparseMixer(1, 4, 2).eval()(self.scores, 0).gates_TE
        # of row 0 the second pick is among what is left: 2.99 alone (2.9 is 0.030 away)
        assert gates[0, 0] < 1 and gates[0, 1] == 1 and (gates[0, 2:] == 0).all()

    def test_samples_follow_the_candidates_and_phi(self):
        torch.manual_seed(0)
        mixer, n = SparseMixer(1, 2, 1).train(), 40_000
        scores = torch.tensor([1.01, 1.0]).expand(n, 2)
        gates = mixer(scores, 0).gates_TE
        p = scores[0].softmax(0)
        second = gates[:, 1] > 0
        assert abs(second.double().mean() - p[1]) < 0.01
        torch.testing.assert_close(gates[~second, 0], p[0].expand(int((~second).sum())))
        whole = (gates[second, 1] - p[1]).abs() < 1e-6
        torch.testing.assert_close(gates[second, 1][~whole], (p[1] / 3).expand(int((~whole).sum())))
        assert abs(whole.double().mean() - 0.25) < 0.02

    @given(seed=st.integers(0, 2**31), top_k=st.integers(1, 3))
    @settings(max_examples=40, deadline=None)
    def test_backward_is_grins_formula(self, seed, top_k):
        torch.manual_seed(seed)
        mixer = SparseMixer(1, 5, top_k, epsilon=0.2, balance=0.0).train()
        scores = (1 + 0.3 * torch.randn(20, 5, dtype=torch.float64)).requires_grad_()
        weight_gradient = torch.randn(20, 5, dtype=torch.float64)
        gates = mixer(scores, 0).gates_TE
        (gradient,) = torch.autograd.grad((gates * weight_gradient).sum(), scores)
        expected = torch.zeros_like(scores)
        for t in range(20):
            # which experts were picked, in which order: try all orders that give the gates
            expected[t] = min(
                (self.formula(scores[t].detach(), order, weight_gradient[t]) for order in self.orders(gates[t])),
                key=lambda g: (g - gradient[t]).abs().max(),
            )
        torch.testing.assert_close(gradient, expected)

    @staticmethod
    def orders(gates):
        return itertools.permutations(gates.nonzero().flatten().tolist())

    @staticmethod
    def formula(s, order, weight_gradient):
        """∂L/∂s = −g·p̃, plus g at the chosen expert; g = m · ∂L/∂weight."""
        left, total = s.clone(), torch.zeros_like(s)
        for e in order:
            top = left.max()
            keep = (top - left) <= 2 * 0.2 * torch.maximum(left.abs(), top)
            p = torch.where(keep & left.isfinite(), s, -torch.inf).softmax(0)
            g = p[e] * weight_gradient[e]
            total = total - g * p
            total[e] += g
            left[e] = -torch.inf
        return total


class TestLory:
    def test_a_segment_is_merged_by_the_one_before(self):
        router, x = make("lory", 4, 1), torch.randn(40, D)
        routing = route(router, x, batch=2)[0]
        assert routing.segments == [8, 8, 4] * 2
        for sequence in range(2):
            own = x[20 * sequence : 20 * sequence + 20]
            mean = [router.scores(part.mean(0, keepdim=True), 0).softmax(-1) for part in own.split(8)]
            for j, part in enumerate(routing.gates_TE[20 * sequence : 20 * sequence + 20].split(8)):
                torch.testing.assert_close(part, mean[max(j - 1, 0)].expand(len(part), 4))

    def test_the_first_segment_stops_the_gradient_and_sees_itself(self):
        router, x = make("lory", 4, 1), torch.randn(24, D, requires_grad=True)
        gates = route(router, x)[0].gates_TE
        (gradient,) = torch.autograd.grad(gates[8:, 0].sum(), x, retain_graph=True)
        assert (gradient[:16].abs().sum(1) > 0).all() and (gradient[16:] == 0).all()
        assert torch.autograd.grad(gates[:, 0].sum(), x)[0][16:].abs().sum() == 0
        other = x.detach().clone()
        other[6] += 1
        assert not torch.allclose(route(router, other)[0].gates_TE[:6], gates[:6])

    def test_a_prompt_is_routed_once(self):
        router, x = make("lory", 4, 1).eval(), torch.randn(20, D)
        sequences = Sequences(torch.zeros(2, 10, dtype=torch.long), torch.tensor([3, 7]))
        routing = router(x, 0, None, sequences)
        for row, prompt in ((0, 3), (1, 7)):
            expected = router.scores(x[10 * row : 10 * row + prompt].mean(0, keepdim=True), 0).softmax(-1)
            torch.testing.assert_close(routing.gates_TE[10 * row : 10 * row + 10], expected.expand(10, 4))
        assert routing.segments == [10, 10]

    def test_compute_is_dense_plus_the_merge(self):
        router = make("lory", 4, 1)
        route(router, torch.randn(16, D))
        assert router.after_step()["active_experts"] == 1 + 4 / SEGMENT


def test_loss_free_biases_even_out_the_load():
    router = make("loss-free", 4, 1)
    router.gates.rate = 0.01
    x = torch.randn(256, D) + 1.5  # a common direction makes some experts popular
    route(router, x)
    before = router.after_step()["load_0"]
    for _ in range(200):
        route(router, x)
        after = router.after_step()
    assert after["load_0"] < 1.2 < before
    bias = router.gates.bias_LE
    assert bias.dtype == torch.float32 and torch.equal(bias, router.bfloat16().gates.bias_LE)


def test_loss_free_bias_steers_the_choice_and_not_the_weight():
    gates = make("loss-free", 4, 1).gates
    gates.set_extra_state({"bias": [[0, 0, 0, 9.0]] * LAYERS})
    scores = torch.randn(10, 4)
    torch.testing.assert_close(gates(scores, 0).gates_TE[:, 3], scores.softmax(-1)[:, 3])


@pytest.mark.parametrize("name", ["rmoe-np-r0.5", "rmoe-np-r1.0"])
def test_residual_adds_the_previous_layers_own_scores(name):
    router, x = make(name).eval(), torch.randn(6, D)
    alone = [router.scores(router.memory(x, layer, None)[0], layer) for layer in range(LAYERS)]
    alpha = router.memory.weight
    assert alpha == float(name[-3:])
    for layer, routing in enumerate(route(router, x)):
        expected = alone[layer] + (alpha * alone[layer - 1] if layer else 0)
        torch.testing.assert_close(routing.scores_TE, expected.softmax(-1))


def test_residual_of_distributions_is_their_normalised_sum():
    torch.manual_seed(0)
    router = build_router("rmoe-np-r0.5", layers=LAYERS, width=D, experts=8, top_k=2, residual="softmax").eval()
    x = torch.randn(6, D)
    one, two = (router.scores(router.memory(x, layer, None)[0], layer).softmax(-1) for layer in (0, 1))
    torch.testing.assert_close(route(router, x)[1].scores_TE, (two + 0.5 * one) / 1.5)


@pytest.mark.parametrize("detached", [False, True])
def test_gradient_passes_the_residual_unless_detached(detached):
    router, x = make("rmoe-np-r1.0" + "-detach-r" * detached), torch.randn(6, D)
    routing = route(router, x)[1]
    (routing.gates_TE * torch.randn(6, 8)).sum().backward()
    reached = router.scores.maps[0].weight.grad is not None
    assert reached != detached


def test_near_dense_warm_up_takes_three_quarters_and_then_k():
    torch.manual_seed(0)
    router = build_router("topk", layers=LAYERS, width=D, experts=8, top_k=1, warmup_steps=2)
    seen = []
    for _ in range(4):
        route(router, torch.randn(16, D))
        seen.append(round((1 - router.after_step()["sparsity"]) * 8))
    assert seen == [6, 6, 1, 1]
    later = build_router("topk", layers=LAYERS, width=D, experts=8, top_k=1, warmup_steps=9)
    later.load_state_dict(router.state_dict())
    assert later.gates.step == 4 and later.gates.top_k == 6


@pytest.mark.parametrize(("experts", "top_k", "expected"), [(8, 1, 6), (32, 1, 24), (128, 1, 96), (4, 4, 4), (1, 1, 1)])
def test_warm_up_is_three_quarters_of_the_experts(experts, top_k, expected):
    assert make("topk", experts, top_k).gates.warmup_top_k == expected
