"""The parts that were written for speed equal their plain forms, forward and backward, in double precision too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moe import experts, loss
from moe.attention import BLOCK, Attention, causal_attention
from moe.experts import swiglu
from moe.loss import head_loss
from moe.norms import RMSNorm


def gradients(value, inputs):
    return torch.autograd.grad((value * torch.arange(value.numel()).view(value.shape).sin()).sum(), inputs)


@given(tokens=st.integers(1, 20), words=st.integers(1, 30), chunk=st.integers(1, 200), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_head_loss_is_the_cross_entropy_of_the_logits(tokens, words, chunk, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(words, 8, requires_grad=True)
    targets = torch.randint(words, (tokens,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.CHUNK, "cpu", 4 * chunk)
        mine = head_loss(x, weight, targets)
    reference = F.cross_entropy(x @ weight.t(), targets)
    torch.testing.assert_close(mine, reference)
    for a, b in zip(*(torch.autograd.grad(3 * value, [x, weight]) for value in (mine, reference)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_head_loss_with_a_bias_has_the_right_gradients():
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,))]
    targets = torch.randint(7, (5,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.CHUNK, "cpu", 8 * 14)  # two tokens at a time, and one
        assert torch.autograd.gradcheck(lambda x, weight, bias: head_loss(x, weight, targets, bias), inputs)
        mine = head_loss(*inputs[:2], targets, inputs[2])
    torch.testing.assert_close(mine, F.cross_entropy(F.linear(*inputs), targets))


def test_head_loss_of_extreme_logits_is_finite_and_exact():
    x, targets = torch.tensor([[1e4], [-1e4], [0.0]]), torch.tensor([0, 0, 1])
    weight = torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(head_loss(x, weight, targets), F.cross_entropy(x @ weight.t(), targets))


def test_head_loss_without_gradients_makes_none():
    with torch.no_grad():
        value = head_loss(torch.randn(5, 4), torch.randn(7, 4), torch.randint(7, (5,)))
    assert not value.requires_grad


@pytest.mark.parametrize("chunk", [300, 128, 1])
def test_head_loss_in_bfloat16_sums_in_float32(chunk, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(loss.CHUNK, "cpu", 2 * 50 * chunk)
    x, weight, targets = torch.randn(300, 16), torch.randn(50, 16) * 0.1, torch.randint(50, (300,))
    halves = x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    value = head_loss(*halves, targets)
    assert value.dtype == torch.float32
    exact = [h.detach().float().requires_grad_() for h in halves]
    reference = head_loss(*exact, targets)
    assert value.item() == pytest.approx(reference.item(), rel=1e-3)
    for mine, other in zip(*(torch.autograd.grad(v, i) for v, i in ((value, halves), (reference, exact))), strict=True):
        assert (mine.float() - other).norm() < 1e-2 * other.norm()


@given(
    positions=st.integers(1, 3 * BLOCK), kv_heads=st.integers(1, 3), group=st.integers(1, 3), seed=st.integers(0, 2**31)
)
@settings(max_examples=25, deadline=None)
def test_attention_in_blocks_is_pytorchs(positions, kv_heads, group, seed):
    torch.manual_seed(seed)
    heads = kv_heads * group
    q, k, v = (torch.randn(2, positions, n, 8).transpose(1, 2).requires_grad_() for n in (heads, kv_heads, kv_heads))
    mine = causal_attention(q, k, v)
    reference = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(mine, [q, k, v]), gradients(reference, [q, k, v]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(causal_attention(q, k, v), reference, rtol=1e-4, atol=1e-5)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_in_double_precision(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(loss.CHUNK, "cpu", 8 * 15)
    targets = torch.randint(5, (7,))
    assert torch.autograd.gradcheck(lambda x, w: head_loss(x, w, targets), (double(7, 3), double(5, 3)))
    assert torch.autograd.gradcheck(swiglu, (double(4, 6),))
    norm = RMSNorm(5, eps=1e-5).double()
    assert torch.autograd.gradcheck(lambda x, w: norm_with(norm, w)(x), (double(2, 3, 5), double(5)))
    monkeypatch.setattr("moe.attention.BLOCK", 3)
    attention = Attention(8, 2, 1, 1e4).double()
    assert torch.autograd.gradcheck(attention, (double(2, 7, 8),))
    assert torch.autograd.gradcheck(causal_attention, (double(2, 4, 7, 2), double(2, 2, 7, 2), double(2, 2, 7, 2)))


@pytest.mark.parametrize("shape", [(6, 10), (3, 2, 10), (1, 10), (0, 10)])
@pytest.mark.parametrize("cached", [2**20, 20, 7, 1])
def test_swiglu_is_silu_of_one_half_times_the_other(shape, cached, monkeypatch):
    monkeypatch.setattr(experts, "CACHED", cached)  # numbers of a part: all, two rows, or fewer than one row
    both = torch.randn(shape, requires_grad=True)
    gate, up = both.chunk(2, -1)
    torch.testing.assert_close(swiglu(both), F.silu(gate) * up)
    for a, b in zip(gradients(swiglu(both), [both]), gradients(F.silu(gate) * up, [both]), strict=True):
        torch.testing.assert_close(a, b)


def norm_with(norm, weight):
    """The norm as a function that reads `weight` in the place of its own."""
    return lambda x: torch.func.functional_call(norm, {"weight": weight}, (x,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_norm_is_pytorchs(dtype, tolerance):
    torch.manual_seed(0)
    norm = RMSNorm(32, eps=1e-5)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    norm, x = norm.to(dtype), (3 * torch.randn(2, 5, 32)).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    reference = F.rms_norm(exact[0], (32,), exact[1], 1e-5)
    pairs = [(norm(x), reference), *zip(gradients(norm(x), [x, norm.weight]), gradients(reference, exact), strict=True)]
    for mine, other in pairs:
        assert (mine.double() - other).norm() < tolerance * other.norm()
    with torch.no_grad():
        assert (norm(x).double() - reference).norm() < tolerance * reference.norm()


def test_positions_turn_pairs_of_features_by_their_angle():
    attention = Attention(8, 2, 1, 100.0)
    x = torch.randn(1, 5, 3, 4)
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(
        torch.ones(5, 1, 2), torch.arange(5.0)[:, None, None] * torch.tensor([1.0, 0.1])
    )
    torch.testing.assert_close(attention._rotate(x), torch.cat([turned.real, turned.imag], -1))
