"""The decoder: exactly the papers' sizes, causal, and what every table builds."""

from pathlib import Path

import pytest
import torch

from moe.accounting import forward_flops, parameter_counts, training_flops, utilisation
from moe.model import Decoder
from moe.routers import ROUTERS, Routing, options_of
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


def test_forward_flops_are_those_of_the_matrix_products():
    """Counted by torch's own counter on a dense model (which does not see the causal halving either)."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Decoder(**SMALL, router={"name": "none"})
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, 32, dtype=torch.long))
    assert counter.get_total_flops() == forward_flops(32, **{k: SMALL[k] for k in SHAPE})


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
