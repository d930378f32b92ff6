"""Grouped dispatch against a loop over experts that a child could check."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.experts import Experts, combine, round_up, route_pairs
from moe.routers import ROUTERS, Sequences, build_router, options_of

D, F = 16, 24  # widths of model and expert


def dumb(experts, x_TD, gates_TE):
    """Every expert on every token, weighed."""
    outputs = []
    for w_in, w_out in zip(experts.in_EDF, experts.out_EFD, strict=True):
        gate, up = (x_TD @ w_in).chunk(2, -1)
        outputs.append((torch.nn.functional.silu(gate) * up) @ w_out)
    return sum(gates_TE[:, e, None] * y for e, y in enumerate(outputs))


def make(T, E, seed, dtype=torch.float32, width=D, expert_width=F):
    torch.manual_seed(seed)
    experts = Experts(E, width, expert_width).to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gates = torch.randn(T, E, dtype=dtype).relu()
    return experts, torch.randn(T, width, dtype=dtype), gates


CASES = {
    "some tokens without experts": lambda g: g * (torch.rand(g.shape[0], 1) < 0.5),
    "some experts without tokens": lambda g: g * (torch.rand(1, g.shape[1]) < 0.5),
    "nothing routed": lambda g: g * 0,
    "one expert gets all": lambda g: torch.nn.functional.one_hot(torch.zeros(len(g), dtype=int), g.shape[1]).to(g),
    "every expert": lambda g: g + 0.1,
    "as drawn": lambda g: g,
}


@pytest.mark.parametrize("case", CASES)
@given(T=st.integers(1, 30), E=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_dispatch_equals_a_loop_over_experts_forward_and_backward(case, T, E, seed):
    experts, x, gates = make(T, E, seed)
    gates = CASES[case](gates).detach()
    results = []
    for apply in (experts, lambda x, g: dumb(experts, x, g)):
        inputs = x.clone().requires_grad_(), gates.clone().requires_grad_()
        y = apply(*inputs)
        gradients = torch.autograd.grad((y * torch.arange(D)).sum(), [*inputs, *experts.parameters()])
        # a gate that is zero is not routed: its gradient is not defined by the sum over active experts
        results.append([y, gradients[0], gradients[1] * (gates > 0), *gradients[2:]])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def dumb_merged(experts, x_TD, gates_TE):
    """Every token through one expert of the weights Σ_e gate_te · W_e."""
    outputs = []
    for x_D, gates_E in zip(x_TD, gates_TE, strict=True):
        w_in, w_out = (torch.einsum("e,eio->io", gates_E, w) for w in (experts.in_EDF, experts.out_EFD))
        gate, up = (x_D @ w_in).chunk(2)
        outputs.append((torch.nn.functional.silu(gate) * up) @ w_out)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", ROUTERS)
@given(T=st.integers(1, 12), E=st.integers(1, 6), k=st.integers(1, 6), seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_dispatch_by_a_routers_own_gates_equals_a_loop_forward_and_backward(name, T, E, k, seed):
    experts, x, _ = make(T, E, seed, torch.float64)
    segment = {"segment": 4} if "segment" in options_of(name) else {}
    router = build_router(name, layers=2, width=D, experts=E, top_k=min(k, E), **segment).double()
    sequences = Sequences(torch.arange(T).view(1, T))
    x.requires_grad_()
    memory = router(x, 0, None, sequences).memory_TH
    routing = router(x, 1, memory, sequences)  # once: a router that samples would choose others
    wanted = [x, *experts.parameters(), *(p for p in router.parameters() if p.requires_grad)]
    results = []
    loop = dumb if routing.segments is None else dumb_merged
    for y in (experts(x, routing.gates_TE, routing.segments), loop(experts, x, routing.gates_TE)):
        total = (y * torch.arange(1, D + 1)).sum()
        gradients = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        results.append([y, *gradients])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("segments", [[7], [3, 4], [1, 1, 5]])
def test_merged_experts_are_a_loop_over_segments_forward_and_backward(segments):
    experts, x, gates = make(7, 4, 0, torch.float64)
    ends = torch.tensor(segments).cumsum(0).tolist()
    rows = torch.rand(len(segments), 4, dtype=torch.float64)
    gates = rows.repeat_interleave(torch.tensor(segments), 0)
    results = []

    def loop(x, gates):
        parts = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            w_in, w_out = (sum(gates[end - 1, e] * w[e] for e in range(4)) for w in experts.parameters())
            gate, up = (x[start:end] @ w_in).chunk(2, -1)
            parts.append((torch.nn.functional.silu(gate) * up) @ w_out)
        return torch.cat(parts)

    for apply in (lambda x, g: experts(x, g, segments), loop):
        inputs = x.clone().requires_grad_(), gates.clone().requires_grad_()
        y = apply(*inputs)
        results.append([y, *torch.autograd.grad((y * torch.arange(D)).sum(), [*inputs, *experts.parameters()])])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)
    inputs = x.clone().requires_grad_(), gates.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, g: experts(x, g, segments), inputs)


def test_gradients_in_double_precision():
    experts, x, gates = make(7, 4, 0, torch.float64)
    gates = (gates * 0.9 + 0.05 * (gates > 0)).requires_grad_()
    weights = [p.detach().requires_grad_() for p in experts.parameters()]

    def apply(x, gates, w_in, w_out):
        return torch.func.functional_call(experts, {"in_EDF": w_in, "out_EFD": w_out}, (x, gates * (gates > 0.04)))

    assert torch.autograd.gradcheck(apply, (x.requires_grad_(), gates, *weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "expert_width"), [(16, 1), (6, 3), (5, 8), (16, 2)])
def test_very_fine_experts_whose_rows_are_no_whole_16_bytes(width, expert_width, dtype):
    experts, x_TD, gates_TE = make(20, 5, 0, dtype, width, expert_width)
    mine, other = experts(x_TD, gates_TE), dumb(experts, x_TD, gates_TE)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(y.float().square().sum(), list(experts.parameters())) for y in (mine, other)]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def test_a_token_without_experts_gets_zeros_and_no_gradient():
    experts, x, gates = make(5, 3, 1)
    gates[2] = 0
    x.requires_grad_()
    y = experts(x, gates)
    y.sum().backward()
    assert (y[2] == 0).all() and (x.grad[2] == 0).all()


def test_bfloat16_is_close_to_float32():
    experts, x, gates = make(64, 4, 2)
    reference = experts(x, gates)
    half = experts.bfloat16()(x.bfloat16(), gates).float()
    assert (half - reference).norm() / reference.norm() < 2e-2


def test_pairs_are_sorted_by_expert_and_linear_in_what_is_routed():
    gates = torch.zeros(1000, 64)
    gates[3, 5], gates[7, 5], gates[1, 0] = 0.5, 0.25, 1.0
    pairs = route_pairs(gates)
    assert pairs.token_N.tolist() == [1, 3, 7] and pairs.gate_N.tolist() == [1.0, 0.5, 0.25]
    assert pairs.ends_E.tolist() == [1] * 5 + [3] * 59


@pytest.mark.parametrize("case", CASES)
@given(T=st.integers(1, 300), E=st.integers(1, 5), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_filled_pairs_give_the_same_sums_and_gradients(case, T, E, seed):
    experts, x, gates = make(T, E, seed, torch.float64)
    gates = CASES[case](gates).detach()
    results = []
    for fill in (False, True):
        inputs = x.clone().requires_grad_(), gates.clone().requires_grad_()
        pairs = route_pairs(inputs[1], fill)
        y = combine(experts.apply_sorted(inputs[0].index_select(0, pairs.token_N), pairs.ends_E), pairs, T)
        results.append([y, *torch.autograd.grad((y * torch.arange(D)).sum(), [*inputs, *experts.parameters()])])
    for plain, filled in zip(*results, strict=True):
        torch.testing.assert_close(filled, plain)
    rows = pairs.ends_E.diff(prepend=pairs.ends_E.new_zeros(1)).tolist()
    assert rows == [round_up(n) for n in (gates > 0).sum(0).tolist()]


def test_few_numbers_of_rows_and_little_waste():
    assert all(rows <= round_up(rows) <= rows * 17 / 16 for rows in range(5000))
    assert len({round_up(rows) for rows in range(1024, 2049)}) == 17


class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the elements of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and not func.is_view:
                self.elements += made.numel()
                self.largest = max(self.largest, made.numel())
        return result


def allocated(T, E, k=2):
    experts, x, _ = make(T, E, 0)
    gates = torch.zeros(T, E).scatter(1, torch.rand(T, E).topk(k).indices, 0.5)
    x.requires_grad_()
    with Allocations() as seen:
        experts(x, gates).sum().backward()
    return seen


def test_memory_of_dispatch_is_linear_in_routed_tokens_and_no_table_of_tokens_experts_and_capacity():
    weights = 3 * D * F
    for E in (8, 16, 64):
        once, twice = allocated(256, E), allocated(512, E)
        # what grows with the tokens doubles (the weights' gradients and sums over experts stay)
        assert twice.elements - once.elements <= once.elements
        assert twice.largest <= max(512 * 2 * 2 * F, 512 * E, E * weights)
    few, many = allocated(512, 8), allocated(512, 64)
    per_expert = 3 * (512 + 2 * weights)  # masks of gates and weights' gradients; never T · k · width more an expert
    assert many.elements - few.elements <= 56 * per_expert
