"""The decoder: exactly the papers' sizes, causal, and what every table builds."""

from pathlib import Path

import pytest
import torch

from moe.accounting import forward_flops, parameter_counts, sequence_flops, training_flops, utilisation
from moe.model import IGNORED, Decoder
from moe.routers import ROUTERS, Routing, Sequences, options_of
from moe.routers.relu import ReLU
from moe.snapshots import build_model
from moe.tables import Tables, load_yaml

ROOT = Path(__file__).parent.parent
SMALL = dict(vocabulary=50, width=16, layers=2, heads=4, kv_heads=2, expert_width=24, init_std=0.2)
SHAPE = ("width", "layers", "heads", "kv_heads", "expert_width", "vocabulary")


def on_meta(**arguments):
    with torch.device("meta"):
        return Decoder(**arguments)


def setup(name):
    return load_yaml(ROOT / f"config/setups/{name}.yaml")


@pytest.mark.parametrize(
    ("name", "dense", "with_8_experts", "gflops"),
    [
        ("remoe-182m", 182_471_424, 777_087_744, 995),
        ("remoe-469m", 469_812_224, 2_583_938_048, 2873),
        ("remoe-978m", 978_396_672, 5_735_032_320, 5991),
    ],
)
def test_remoe_has_exactly_the_papers_parameters_and_gflops(name, dense, with_8_experts, gflops):
    model = setup(name)["model"]
    assert parameter_counts(on_meta(**model, router={"name": "none"}))["parameters"] == dense
    for router in ("topk", "relu"):
        counts = parameter_counts(on_meta(**model, router={"name": router}, experts=8))
        assert counts["parameters"] == with_8_experts
        for granularity in (2, 64):  # finer experts change the router alone
            finer = parameter_counts(on_meta(**model, router={"name": router}, experts=8, granularity=granularity))
            assert finer["parameters"] - finer["router_parameters"] == with_8_experts - counts["router_parameters"]
    assert round(training_flops(1024, **{k: model[k] for k in SHAPE}) / 1e9) == gflops


def test_dense_times_8_has_the_papers_parameters_and_gflops():
    model = setup("remoe-182m")["model"] | {"expert_width": 8 * 3072}
    assert parameter_counts(on_meta(**model, router={"name": "none"}))["parameters"] == 777_014_016
    assert round(training_flops(1024, **{k: model[k] for k in SHAPE}) / 1e9) == 4648


@pytest.mark.parametrize(("router", "more"), [("smoe", 0), ("rmoe", 3_588_864)])
def test_rmoe_has_exactly_the_parameters_of_its_shape(router, more):
    given = setup("rmoe-0.9b")
    counts = parameter_counts(on_meta(**given["model"], router={"name": router} | given["router"], experts=16, top_k=4))
    assert counts["embedding_parameters"] == 2 * 123_535_360
    assert counts["parameters"] - counts["embedding_parameters"] == 818_443_520 + more


@pytest.mark.parametrize(
    ("router", "total", "active"),
    [
        ("smoe", 14_940_963_072, 2_728_067_328),
        ("smoe-mlp", 14_953_817_088, 2_740_921_344),
        ("rmoe", 14_945_420_288, 2_732_524_544),
    ],
)
def test_our_shape_of_the_largest_model_has_15b_parameters_2_7b_of_them_active(router, total, active):
    """The paper gives these two numbers and no shape; what stands here is ours."""
    given = setup("rmoe-15b-120b")
    counts = parameter_counts(on_meta(**given["model"], router={"name": router} | given["router"], experts=64, top_k=6))
    assert (counts["parameters"], counts["active_parameters"]) == (total, active)
    assert round(total / 1e9) == 15 and round(active / 1e9, 1) == 2.7
    expert = 3 * 2304 * 1088
    assert total - active == 28 * 58 * expert


@pytest.mark.parametrize("shared", [0, 3])
def test_forward_flops_are_those_of_the_matrix_products(shared):
    """Counted by torch's own counter on a dense model (which does not see the causal halving either)."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Decoder(**SMALL, router={"name": "none"}, shared_experts=shared)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, 32, dtype=torch.long))
    assert counter.get_total_flops() == forward_flops(32, shared_experts=shared, **{k: SMALL[k] for k in SHAPE})


def test_flops_of_a_step_count_shared_experts_of_the_width_after_granularity():
    shape = {k: SMALL[k] for k in SHAPE}
    model = shape | {"granularity": 2, "shared_experts": 3}
    assert sequence_flops(model, 32, 1.5) == training_flops(32, active_experts=1.5 + 3 / 2, **shape)
    assert sequence_flops(shape, 32, 1.5) == training_flops(32, active_experts=1.5, **shape)


@pytest.mark.parametrize("granularity", [1, 2])
def test_shared_experts_are_the_sum_of_swiglus_that_every_token_takes(granularity):
    torch.manual_seed(0)
    sizes = SMALL | {"expert_width": 24, "experts": 4, "top_k": 2, "granularity": granularity}
    model = Decoder(**sizes, shared_experts=3, router={"name": "rmoe", "state": 8}).double().eval()
    block, width = model.blocks[0], 24 // granularity
    x_BSD = torch.randn(2, 5, 16, dtype=torch.float64)
    out_BSD, _ = block(x_BSD, model.router, 0, None, Sequences(torch.zeros(2, 5, dtype=torch.long)))
    shared, block.shared = block.shared, None
    without_BSD, _ = block(x_BSD, model.router, 0, None, Sequences(torch.zeros(2, 5, dtype=torch.long)))
    h_BSD = block.experts_norm(x_BSD + block.attention(block.attention_norm(x_BSD)))
    gate, up = shared.gate_up.weight.chunk(2)
    expected = 0
    for expert in range(3):
        rows = slice(expert * width, (expert + 1) * width)
        hidden = torch.nn.functional.silu(h_BSD @ gate[rows].t()) * (h_BSD @ up[rows].t())
        expected = expected + hidden @ shared.out.weight[:, rows].t()
    torch.testing.assert_close(out_BSD - without_BSD, expected)
    assert gate.shape[0] == 3 * width


def test_one_expert_and_a_shared_one_are_the_dense_model_with_a_shared_one():
    """The law of E = 1: a router with one expert and weight 1 is the feed-forward network."""
    torch.manual_seed(0)
    dense = Decoder(**SMALL, router={"name": "none"}, shared_experts=2).eval()
    routed = Decoder(**SMALL, router={"name": "smoe"}, shared_experts=2).eval()
    state = dense.state_dict()
    for layer, block in enumerate(dense.blocks):
        state[f"blocks.{layer}.experts.in_EDF"] = block.feed_forward.gate_up.weight.t()[None]
        state[f"blocks.{layer}.experts.out_EFD"] = block.feed_forward.out.weight.t()[None]
    routed.load_state_dict(state, strict=False)
    tokens = torch.randint(50, (2, 9))
    torch.testing.assert_close(routed(tokens), dense(tokens))


def test_padding_is_in_no_loss_and_takes_no_expert():
    torch.manual_seed(0)
    model = Decoder(**SMALL, router={"name": "rmoe", "state": 8}, experts=4, top_k=2, shared_experts=1).train()
    rows = [torch.randint(50, (n,)) for n in (9, 5)]
    one = [model(row[None, :-1], row[None, 1:]) for row in rows]
    targets = torch.full((2, 8), IGNORED)
    inputs, real = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.bool)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1], targets[i, : len(row) - 1], real[i, : len(row) - 1] = row[:-1], row[1:], True
    model.after_step()
    loss, _ = model(inputs, targets, real_BS=real)
    torch.testing.assert_close(loss, (8 * one[0][0] + 4 * one[1][0]) / 12)
    assert model.router.tokens_L == [12, 12] and model.router.active_LE.sum() == 2 * 12 * 2
    inputs[1, 4:] = 7  # whatever the padding is
    torch.testing.assert_close(model(inputs, targets, real_BS=real)[0], loss)
    targets[0, :6] = IGNORED  # a prompt
    losses = -model(rows[0][None, :-1])[0].log_softmax(-1).gather(-1, rows[0][1:, None])
    torch.testing.assert_close(model(inputs[:1], targets[:1], real_BS=real[:1])[0], losses[6:].mean())


@pytest.mark.parametrize("name", ROUTERS)
def test_one_expert_with_gate_1_is_the_dense_model(name):
    torch.manual_seed(0)
    model = Decoder(**SMALL, router={"name": name}).double().eval()
    dense = Decoder(**SMALL, router={"name": "none"}).double().eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("router.")}
    for layer in range(SMALL["layers"]):
        state[f"blocks.{layer}.feed_forward.gate_up.weight"] = state.pop(f"blocks.{layer}.experts.in_EDF")[0].T
        state[f"blocks.{layer}.feed_forward.out.weight"] = state.pop(f"blocks.{layer}.experts.out_EFD")[0].T
    dense.load_state_dict(state)
    tokens = torch.randint(50, (2, 24))
    if ROUTERS[name]["gates"] is ReLU:  # its gate is the score: set to 1
        model.router.forward = lambda x, *_: Routing(torch.ones(len(x), 1).double(), torch.zeros(()))
    torch.testing.assert_close(model(tokens), dense(tokens))


@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu", "paper"])
def test_every_run_of_every_scale_builds(scale):
    config = load_yaml(ROOT / "config/config.yaml") | {"scale": scale, "tables": str(ROOT / "config")}
    tables = Tables(config, ROOT / "workflow/schemas")
    for name in tables.runs:
        with torch.device("meta"):
            model = build_model(tables.spec(name))
        assert parameter_counts(model)["parameters"] > 0


@pytest.mark.parametrize("router", ["none", *ROUTERS])
def test_a_later_token_changes_no_earlier_logit(router):
    torch.manual_seed(0)
    experts = 1 if router == "none" else 4
    segments = {"segment": 4} if router != "none" and "segment" in options_of(router) else {}
    model = Decoder(**SMALL, router={"name": router} | segments, experts=experts).eval()
    tokens = torch.randint(50, (2, 12))
    other = tokens.clone()
    other[:, 7:] = torch.randint(50, (2, 5))
    torch.testing.assert_close(model(tokens)[:, :7], model(other)[:, :7])
    assert not torch.allclose(model(tokens)[:, 7:], model(other)[:, 7:])


def test_loss_is_the_mean_cross_entropy_of_the_logits():
    torch.manual_seed(0)
    model = Decoder(**SMALL, router={"name": "topk"}, experts=4).eval()
    tokens = torch.randint(50, (3, 9))
    loss, router_loss = model(tokens[:, :-1], tokens[:, 1:])
    log_probs = model(tokens[:, :-1]).log_softmax(-1)
    expected = -log_probs.gather(-1, tokens[:, 1:, None]).mean()
    torch.testing.assert_close(loss, expected)
    assert router_loss > 0


def test_activation_checkpointing_changes_no_loss_and_no_gradient():
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Decoder(**SMALL, router={"name": "rmoe", "state": 8}, experts=4, checkpointing=checkpointing).train()
        tokens = torch.randint(50, (2, 9))
        sum(model(tokens[:, :-1], tokens[:, 1:])).backward()
        results.append([p.grad for p in model.parameters()] + [model.after_step()["sparsity"]])
    torch.testing.assert_close(*results)


def test_rotary_positions_make_attention_relative():
    """Shifting the whole text by a few positions changes nothing that one token sees of another."""
    torch.manual_seed(0)
    model = Decoder(**SMALL, router={"name": "none"}).eval()
    attention = model.blocks[0].attention
    q = torch.randn(1, 1, 1, 4)
    at = lambda position: attention._rotate(q.expand(1, position + 1, 1, 4))[0, -1, 0]  # noqa: E731
    torch.testing.assert_close(at(3) @ at(5), at(10) @ at(12))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"granularity": 5}, "granularity 5 does not divide the expert width 24"),
        ({"heads": 3}, "heads do not divide the width"),
    ],
)
def test_a_shape_that_does_not_fit_is_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Decoder(**(SMALL | changes), router={"name": "topk"}, experts=4)


def test_utilisation_is_left_out_where_it_cannot_be_believed():
    assert utilisation(4e14, "NVIDIA H100 80GB HBM3") == pytest.approx(4e14 / 989e12)
    assert utilisation(4e14, "NVIDIA H100 PCIe") == pytest.approx(4e14 / 756e12)
    assert utilisation(4e14, "some CPU") is None
    assert utilisation(4e15, "NVIDIA H100") is None
