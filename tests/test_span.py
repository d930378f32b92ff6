"""RMoE's small model: its attention against a loop, its cache against one long block, its experts, its golden layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import case, cases  # noqa: F401 (a fixture)

from moe.accounting import parameter_counts
from moe.experts import ReLUExperts
from moe.routers import ROUTERS
from moe.snapshots import build_model
from moe.span import SpanBlock, SpanDecoder, _router
from moe.span_attention import _band, _masked, band, keep, skewed, span_attention
from moe.tables import Tables, load_yaml

ROOT = Path(__file__).parent.parent
PRINTED = {
    "rmoe-enwik8-small": {"smoe": 15_319_165, "rmoe": 15_608_701},
    "rmoe-enwik8-medium": {"smoe": 36_076_813, "rmoe": 36_508_685},
}

SMALL = dict(vocabulary=50, width=16, layers=3, heads=4, expert_width=24, span=7)
EVERY = ["none", *ROUTERS]
LEAKING = {"lory"}  # its first segment's experts come from the whole of that segment


def model(router="smoe", dropout=0.0, **changes):
    torch.manual_seed(0)
    experts = dict(experts=1) if router == "none" else dict(experts=4, top_k=2)
    options = {"segment": 4} if router == "lory" else {}
    return SpanDecoder(**(SMALL | experts | changes), router={"name": router} | options, dropout=dropout)


def looked_up(q_BHSC, k_BHPC, v_BHPC, positions_CW):
    """Every query looks at each of the `span` states before it, one after another."""
    span, rows = positions_CW.shape[1], []
    for s in range(q_BHSC.shape[2]):
        place = span + s  # of the query itself among the keys
        logits, values = [], []
        for distance in range(span, 0, -1):
            q, k = q_BHSC[:, :, s], k_BHPC[:, :, place - distance]
            logits.append((q * k).sum(-1) + q @ positions_CW[:, span - distance])
            values.append(v_BHPC[:, :, place - distance])
        weights = (torch.stack(logits, -1) / q_BHSC.shape[3] ** 0.5).softmax(-1)
        rows.append(torch.einsum("bhw,wbhc->bhc", weights, torch.stack(values)))
    return torch.stack(rows, 2)


def drawn(S, W, seed, B=2, H=3, C=4):
    torch.manual_seed(seed)
    shapes = (B, H, S, C), (B, H, S + W, C), (B, H, S + W, C), (C, W)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@given(S=st.integers(1, 9), W=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_attention_is_that_of_a_loop_over_the_states_before_each_token(S, W, seed):
    inputs = drawn(S, W, seed)
    results = []
    for attend in (span_attention, looked_up, lambda *inputs: _masked(*inputs, 0.0)):
        y = attend(*inputs)
        results.append([y, *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).sin()).sum(), inputs)])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[2], results[1])


def test_attention_over_several_chunks_of_queries():
    inputs = drawn(150, 20, 0, B=1, H=2)  # 64 queries a chunk
    torch.testing.assert_close(span_attention(*inputs), looked_up(*inputs))


def test_attention_has_the_right_gradients():
    assert torch.autograd.gradcheck(span_attention, drawn(3, 5, 1, B=1, H=2))


def test_attention_has_the_right_gradients_where_weights_are_dropped():
    def attend(*inputs):
        torch.manual_seed(3)
        return _band(*inputs, 0.4)

    inputs = drawn(3, 5, 1, B=1, H=2)
    assert torch.autograd.gradcheck(attend, inputs)
    q, k, v, positions = inputs
    torch.manual_seed(3)
    kept, scale = keep(torch.empty(2, 3, 5), 0.4)
    scores = band((q @ k.mT).flatten(0, 1)) + (q @ positions).flatten(0, 1)
    weights = (scores / 2).softmax(-1) * kept * scale  # C = 4
    seen = torch.stack([v[0, :, i : i + 5] for i in range(3)], 1)
    torch.testing.assert_close(attend(*inputs)[0], torch.einsum("nqw,nqwc->nqc", weights, seen))


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9])
def test_so_many_are_dropped_and_the_mean_stays(dropout):
    torch.manual_seed(0)
    kept, scale = keep(torch.empty(400, 999), dropout)
    share = kept.double().mean()
    deviation = (dropout * (1 - dropout)) ** 0.5
    assert abs(share - (1 - dropout)) <= 5 * deviation / kept.numel() ** 0.5 + 2**-17
    assert float(share) * scale == pytest.approx(1.0, abs=0.02)
    lanes = kept.flatten()[: kept.numel() // 4 * 4].view(-1, 4).double()  # four share a number, and are independent
    correlations = torch.corrcoef(lanes.T) if dropout else torch.eye(4)
    assert (correlations - torch.eye(4)).abs().max() < 5 / len(lanes) ** 0.5


def test_rows_are_moved_by_their_number():
    moved = skewed(torch.arange(1.0, 7).view(1, 1, 2, 3))[0, 0]
    assert moved.tolist() == [[1, 2, 3, -torch.inf, -torch.inf], [-torch.inf, 4, 5, 6, -torch.inf]]


def peak(length, span, backward):
    """Bytes that the attention holds at most beyond its inputs, as PyTorch counts what it takes and gives back."""
    inputs = drawn(length, span, 0, B=1, H=1)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        y = span_attention(*inputs)
        if backward:
            torch.autograd.grad(y, inputs, torch.ones_like(y))
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]).max()


@pytest.mark.parametrize("path", [_band, _masked], ids=["CPU", "GPU"])
@pytest.mark.parametrize("backward", [False, True])
def test_memory_of_attention_is_linear_in_text_and_span(path, backward, monkeypatch):
    monkeypatch.setattr("moe.span_attention._band", path)  # of a CPU, where this test measures
    once = peak(4096, 256, backward)
    assert 8 < once / (4096 * 256) < 16, "a weight, of eight bytes, for each token and place of its span; not two"
    assert peak(8192, 256, backward) < 2.1 * once
    assert peak(4096, 512, backward) < 2.1 * once


@pytest.mark.parametrize("router", EVERY)
@pytest.mark.parametrize("cuts", [(5, 10), (1, 2, 15), (13,)])
def test_a_text_in_blocks_with_the_cache_is_the_text_in_one_block(router, cuts):
    if router in ("lory", "expert-choice"):
        pytest.skip("routes a block as a whole, wherever it begins")
    one, tokens = model(router).double().eval(), torch.randint(50, (2, 20))
    with torch.no_grad():
        whole = one(tokens)
        cache, parts = [], []
        for block in torch.tensor_split(tokens, cuts, 1):
            parts.append(one(block, cache=cache))
            assert [tuple(left.shape) for left in cache] == [(2, 7, 16)] * 3
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_the_cache_holds_each_layers_inputs_without_gradient():
    one, tokens, cache = model(), torch.randint(50, (2, 3)), []
    sum(one(tokens, tokens, cache=cache)).backward()
    assert not any(left.requires_grad for left in cache)
    torch.testing.assert_close(cache[0][:, -3:], one.embed(tokens).detach())
    assert (cache[0][:, :4] == 0).all()  # before the start of the text
    assert (one.positions_CW.grad != 0).any()


@pytest.mark.parametrize("router", EVERY)
def test_a_token_changes_no_earlier_logit(router):
    if router in LEAKING:
        pytest.skip("its first segment sees itself whole")
    one, tokens = model(router).double().eval(), torch.randint(50, (2, 12))
    other = tokens.clone()
    other[:, 7] = (tokens[:, 7] + 1) % 50
    with torch.no_grad():
        before, after = one(tokens), one(other)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_attention_sees_exactly_the_span_before_a_token_and_not_the_token():
    attention = SpanBlock(16, 4, 8, None, 0.0).attention.double()
    x, before = torch.randn(1, 12, 16).double().requires_grad_(), torch.randn(1, 7, 16).double().requires_grad_()
    y = attention(x, before, torch.randn(4, 7).double())
    # the query reads its own state; what it attends to shows in the values: keep queries fixed
    q = attention.query(x).detach().unflatten(-1, (4, 4)).transpose(1, 2)
    seen = torch.cat([before, x], 1)
    k, v = attention.key_value(seen).unflatten(-1, (8, 4)).transpose(1, 2).chunk(2, 1)
    y = span_attention(q, k, v, torch.randn(4, 7).double())
    past, own = torch.autograd.grad(y[:, :, 9].sum(), [before, x])
    assert (past == 0).all()  # position 9 sees 2 … 8
    assert [i for i in range(12) if (own[0, i] != 0).any()] == list(range(2, 9))


@pytest.mark.parametrize("router", EVERY)
def test_every_router_trains_a_step_in_it(router):
    one = model(router, dropout=0.1).train()
    optimizer = torch.optim.Adam([p for p in one.parameters() if p.requires_grad], lr=1e-3)
    tokens, cache = torch.randint(50, (2, 27)), []
    for start in (0, 13):
        loss, router_loss = one(tokens[:, start : start + 13], tokens[:, start + 1 : start + 14], cache=cache)
        (loss + router_loss).backward()
        missing = [name for name, p in one.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing and loss.isfinite()
        optimizer.step()
        optimizer.zero_grad()
        one.after_step()


def test_activation_checkpointing_changes_no_loss_no_gradient_and_no_cache():
    results = []
    for checkpointing in (False, True):
        one, cache = model("rmoe", checkpointing=checkpointing).train(), []
        tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
        sum(one(tokens[:, :-1], tokens[:, 1:], cache=cache)).backward()
        results.append([p.grad for p in one.parameters()] + cache)
    torch.testing.assert_close(*results)


def test_logits_of_some_places_are_those_of_all():
    network, tokens = model(), torch.arange(12).view(2, 6)
    places_N = torch.tensor([3, 7, 11])
    some, every = network(tokens, places_N=places_N), network(tokens).flatten(0, 1)
    torch.testing.assert_close(some, every[places_N])


def test_loss_is_the_mean_cross_entropy_of_the_logits():
    one, tokens = model().double().eval(), torch.randint(50, (3, 9))
    one.head.bias.data.normal_()
    loss, _ = one(tokens[:, :-1], tokens[:, 1:])
    log_probs = one(tokens[:, :-1]).log_softmax(-1)
    torch.testing.assert_close(loss, -log_probs.gather(-1, tokens[:, 1:, None]).mean())
    assert torch.autograd.grad(loss, one.head.bias)[0].abs().sum() > 0


def test_everything_starts_as_the_public_code_has_it():
    one = model("smoe", width=64, expert_width=32, span=128, vocabulary=400)
    bound = (64 * 32) ** -0.5
    for block in one.blocks:
        for weight in (block.experts.in_EDF, block.experts.out_EFD):
            assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not block.experts.in_bias_EF.any() and not block.experts.out_bias_ED.any()
        assert block.attention.query.weight.abs().max() <= 64**-0.5
    assert one.embed.weight.std().item() == pytest.approx(1, rel=0.05)
    assert one.positions_CW.std().item() == pytest.approx(1, rel=0.05)


def test_dropout_is_of_training_alone():
    one, tokens = model(dropout=0.5), torch.randint(50, (2, 9))
    assert not torch.equal(one.train()(tokens), one(tokens))
    assert torch.equal(one.eval()(tokens), one(tokens))


@pytest.mark.parametrize("changes", [{"granularity": 5}, {"heads": 3}])
def test_a_shape_that_does_not_fit_is_one_sentence(changes):
    with pytest.raises(ValueError, match="divide"):
        model(**changes)


def dumb(experts, x_TD, gates_TE):
    """Every expert on every token, weighed."""
    weights = zip(*experts.parameters(), strict=True)
    outputs = [(x_TD @ w_in + b_in).relu() @ w_out + b_out for w_in, b_in, w_out, b_out in weights]
    return sum(gates_TE[:, e, None] * y for e, y in enumerate(outputs))


@given(T=st.integers(1, 30), E=st.integers(1, 9), kept=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_experts_with_biases_are_a_loop_over_experts(T, E, kept, seed):
    torch.manual_seed(seed)
    experts = ReLUExperts(E, 8, 12)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, gates = torch.randn(T, 8, requires_grad=True), torch.rand(T, E) * (torch.rand(T, E) < kept)
    results = []
    for apply in (experts, lambda x, g: dumb(experts, x, g)):
        y = apply(x, gates)
        results.append([y, *torch.autograd.grad((y * torch.arange(8)).sum(), [x, *experts.parameters()])])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_experts_with_biases_have_the_right_gradients():
    torch.manual_seed(0)
    experts = ReLUExperts(3, 4, 5).double()
    names, weights = zip(*experts.named_parameters(), strict=True)
    gates = torch.rand(6, 3).double() * (torch.rand(6, 3) < 0.6)

    def apply(x, *weights):
        return torch.func.functional_call(experts, dict(zip(names, weights, strict=True)), (x, gates))

    inputs = torch.randn(6, 4).double(), *(torch.randn_like(weight) for weight in weights)
    assert torch.autograd.gradcheck(apply, [one.requires_grad_() for one in inputs])


def test_merged_experts_with_biases_are_one_expert_of_the_mean_weights():
    torch.manual_seed(0)
    experts, x = ReLUExperts(3, 4, 5).double(), torch.randn(6, 4).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    gates = torch.tensor([[0.2, 0.3, 0.5]]).double().expand(6, 3)
    w_in, b_in, w_out, b_out = (torch.einsum("e,e...->...", gates[0], p) for p in experts.parameters())
    torch.testing.assert_close(experts(x, gates, [4, 2]), (x @ w_in + b_in).relu() @ w_out + b_out)


@cases("competesmoe/moe_layer")
def test_public_layer(case):  # noqa: F811
    given, xmoe = case.given, case.given["gate"] == "xmoe"
    names = {"name": "xmoe", "reduced": 8, "temperature": 1.0, "normalise_token": False} if xmoe else {"name": "smoe"}
    router = _router(names, layers=1, width=given["hidden"], experts=given["E"], top_k=given["k"])
    block = SpanBlock(given["hidden"], 2, given["inner"], given["E"], 0.0)
    experts = block.experts
    experts.in_EDF.data, experts.out_EFD.data = case["U1"].mT.contiguous(), case["U2"].mT.contiguous()
    experts.in_bias_EF.data, experts.out_bias_ED.data = case["c1"].clone(), case["c2"].clone()
    for norm, name in ((block.experts_norm, "inner"), (block.norm, "outer")):
        norm.weight.data, norm.bias.data = case[f"ln_{name}_weight"], case[f"ln_{name}_bias"]
    gate = load_gate(case, router, xmoe)
    x = case["x"].clone().requires_grad_()
    core, routing = block.feed(x, router, 0)
    inner = block.experts_norm(x + block.dropout(core))
    y = block.norm(x + inner)
    (y * case["R"]).sum().backward()
    measured = {"dense_score": routing.gates_TE, "core": core, "ff_out": inner, "y": y, "grad_x": x.grad}
    measured |= {f"grad_{name}": tensor.grad for name, tensor in gate.items()}
    measured |= {"grad_U1": experts.in_EDF.grad.mT, "grad_U2": experts.out_EFD.grad.mT}
    measured |= {"grad_c1": experts.in_bias_EF.grad, "grad_c2": experts.out_bias_ED.grad}
    stored = {name for name, meta in case.meta["tensors"].items() if meta["role"] in ("output", "gradient")}
    assert stored <= measured.keys(), stored - measured.keys()
    for name in stored:
        case.check(name, measured[name])


def load_gate(case, router, xmoe):  # noqa: F811
    """Give the router the case's weights; the parameters by the stored names."""
    if not xmoe:
        linear = router.scores.maps[0]
        linear.weight.data, linear.bias.data = case["gate_weight"].clone(), case["gate_bias"].clone()
        return {"gate_weight": linear.weight, "gate_bias": linear.bias}
    reduction, embeddings = router.scores.reductions[0].weight, router.scores.cosine.experts_LEH[0]
    # the public XMoE rescales its embeddings to length 1.5 in place: its gradients are those at the rescaled ones
    embeddings.data = 1.5 * torch.nn.functional.normalize(case["embeddings"], dim=-1)
    reduction.data = case["reduction"].clone()
    return {"reduction": reduction, "embeddings": embeddings}


@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu", "paper"])
def test_setups_of_the_model_build_at_every_scale(scale):
    config = load_yaml(ROOT / "config/config.yaml") | {"scale": scale, "tables": str(ROOT / "config")}
    tables = Tables(config, ROOT / "workflow/schemas")
    names = [name for name in tables.setups if name not in tables.decoders]
    assert len(names) == 7
    for name in names:
        for router in ("smoe", "rmoe"):
            spec = tables.scaled[name]
            arguments = spec["model"] | {"experts": 16, "top_k": 2, "router": {"name": router} | spec["router"]}
            with torch.device("meta"):
                counts = parameter_counts(build_model({"model": arguments}))
            if scale == "paper" and name in PRINTED:
                norms = spec["model"]["layers"] * 2 * spec["model"]["width"]  # counted, never applied
                assert counts["parameters"] + norms == PRINTED[name][router]
