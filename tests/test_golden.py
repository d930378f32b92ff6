"""The official routers' inputs and outputs (tests/golden) against ours, at the tolerance stated with each tensor.

Which case checks what: every case of the groups below is one test; its name says group and case.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from moe.experts import Experts
from moe.model import Decoder
from moe.routers import build_router
from moe.routers.relu import ReLU, next_lambda
from moe.routers.topk import TopK, balance_loss, scheduled_top_k

ROOT = Path(__file__).parent / "golden"


def cases(*groups):
    """Parametrize over the cases of some groups."""
    paths = [path for group in groups for path in sorted((ROOT / group).glob("*.json"))]
    assert paths, groups
    return pytest.mark.parametrize("path", paths, ids=[str(p.relative_to(ROOT).with_suffix("")) for p in paths])


class Case:
    """A case's tensors by name, and the comparison that its description prescribes."""

    def __init__(self, path):
        self.meta = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))
        self.given = self.meta["hyperparameters"]

    def __getitem__(self, name):
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def check(self, name, mine, rows=None):
        """Compare `mine` with the stored tensor; rows: a mask of tokens to compare."""
        meta, reference = self.meta["tensors"][name], self.tensors[name].double()
        mine = torch.as_tensor(mine).detach().double().reshape(reference.shape)
        if rows is not None:
            mine, reference = mine[rows], reference[rows]
        difference = (mine - reference).abs()
        if meta["compare"] == "exact":
            assert (mine == reference).all(), name
        elif meta["compare"] == "elementwise_rel":
            assert (difference <= meta["rel"] * reference.abs()).all(), (name, difference.max())
        elif reference.numel():
            bound = meta["rel"] * reference.abs().max() + meta.get("abs", 0.0)
            assert difference.max() <= bound, (name, difference.max(), bound)


@pytest.fixture
def case(path):
    return Case(path)


def test_stored_vectors_are_whole():
    for entry in json.loads((ROOT / "MANIFEST.json").read_text())["list"]:
        for suffix, key in ((".safetensors", "sha256_safetensors"), (".json", "sha256_json")):
            content = (ROOT / (entry["case"] + suffix)).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry[key], entry["case"]


PRECISIONS = pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])


@cases("remoe/relu_router")
@PRECISIONS
def test_relu_router(case, double):
    given, prefix, dtype = case.given, "f64." if double else "", torch.float64 if double else torch.float32
    compared = 0
    for index, l1_lambda in enumerate(given["lambdas"]):
        names = [n for n in case.tensors if n.startswith(f"{prefix}lam{index}.") and not n.endswith(".lambda")]
        gates = ReLU(1, given["E"], given["k"], lambda_0=max(l1_lambda, 1e-20))
        gates.l1_lambda = case[f"lam{index}.lambda"].item()
        for cotangent in (case["R"].to(dtype), torch.zeros_like(case["R"], dtype=dtype)):
            x = case["x"].to(dtype).clone().requires_grad_()
            weight = case["weight"].to(dtype).clone().requires_grad_()
            logits = (x.flatten(0, -2) @ weight.t()).requires_grad_()
            logits.retain_grad()
            probs, loss, *_ = gates(logits, 0)
            ((probs * cotangent).sum() + given["aux_scale"] * loss).backward()
            measured = {"logits": logits, "probs": probs, f"lam{index}.l1_reg": loss}
            kind = "grad" if cotangent.any() else "reg_grad"
            for what, tensor in (("logits", logits), ("weight", weight), ("x", x)):
                measured[f"lam{index}.{kind}_{what}"] = tensor.grad
            for name in [*names, f"{prefix}logits", f"{prefix}probs"]:
                short = name.removeprefix(prefix)
                if name in case and short in measured:
                    case.check(name, measured[short])
                    compared += 1
    if not double:
        case.check("routing_map", probs > 0)
        case.check("tokens_per_expert", (probs > 0).sum(0))
        case.check("sparsity", (probs == 0).double().mean())
    assert compared or (double and not any(n.startswith("f64.") for n in case.tensors))


@cases("remoe/topk_router")
def test_topk_router(case):
    given = case.given
    gates = TopK(1, given["E"], given["k"], "none" if given["pre_softmax"] else "chosen", given["aux_loss_coeff"])
    certain = case["tie_rows"] == 0
    for kind, cotangent in (("grad", case["R"]), ("aux_grad", torch.zeros_like(case["R"]))):
        x, weight = case["x"].clone().requires_grad_(), case["weight"].clone().requires_grad_()
        logits = (x.flatten(0, -2) @ weight.t()).requires_grad_()
        logits.retain_grad()
        probs, loss, scores, _ = gates(logits, 0)
        ((probs * cotangent).sum() + given["aux_scale"] * loss).backward()
        case.check("logits", logits)
        case.check("scores", scores)
        case.check("probs", probs, rows=certain)
        case.check("routing_map", probs > 0, rows=certain)
        if certain.all():  # with ties the loss and the gradients go with the stored choice
            case.check("aux_loss", loss)
            case.check("tokens_per_expert", (probs > 0).sum(0))
            for what, tensor in (("logits", logits), ("weight", weight), ("x", x)):
                if f"{kind}_{what}" in case:
                    case.check(f"{kind}_{what}", tensor.grad)
        else:  # any choice among equals has the same weights
            torch.testing.assert_close(probs.sort(-1).values, case["probs"].sort(-1).values)


@cases("remoe/topk_router")
def test_topk_balance_loss_of_the_stored_choice(case):
    given = case.given
    logits = case["logits"].clone().requires_grad_()
    loss = balance_loss(logits.softmax(-1), case["routing_map"].float(), given["k"], training=False)
    loss = given["aux_loss_coeff"] * loss
    (given["aux_scale"] * loss).backward()
    case.check("aux_loss", loss)
    case.check("aux_grad_logits", logits.grad)


@cases("remoe/lambda_schedule")
def test_lambda_schedule(case):
    given, walk, directions = case.given, [case["lambda"][0].item()], []
    for sparsity in case["sparsity"].tolist():
        walk.append(next_lambda(walk[-1], sparsity, given["target"], given["alpha"]))
        directions.append(1 if walk[-1] > walk[-2] else -1)
    case.check("lambda", walk)
    case.check("direction", directions)


@cases("remoe/sparsity_average")
def test_sparsity_average(case):
    given, x = case.given, case["x"]
    router = build_router(
        "relu", layers=given["layers"], width=given["hidden"], experts=given["E"], top_k=given["k"],
        lambda_0=given["lambda0"], alpha=given["alpha"],
    ).train()  # fmt: skip
    for layer, weight in enumerate(case["weight"]):
        router.scores.maps[layer].weight.data = weight
    for rank in x.flatten(0, -5) if x.ndim > 5 else [x] if x.ndim == 4 else x:
        for micro in rank:
            for layer, x_TD in enumerate(micro):
                router(x_TD, layer)
    statistics = router.after_step()
    case.check("sparsity", statistics["sparsity"])
    case.check("lambda_next", router.gates.l1_lambda)


@cases("remoe/train_step")
@PRECISIONS
def test_train_step(case, double):
    given, dtype, prefix = case.given, *((torch.float64, "f64.") if double else (torch.float32, ""))
    router = build_router(
        "relu", layers=given["layers"], width=given["hidden"], experts=given["E"], top_k=given["k"],
        lambda_0=given["lambda0"], alpha=given["alpha"],
    ).to(dtype).train()  # fmt: skip
    # the official code keeps λ in float32
    router.gates.l1_lambda = case["lambda"][0].item()
    for layer, weight in enumerate(case["weight"]):
        router.scores.maps[layer].weight.data = weight.to(dtype)
    sparsities, lambdas, penalties, gradients = [], [router.gates.l1_lambda], [], []
    for step_x in case["x"].to(dtype):
        router.zero_grad()
        for micro_x in step_x:
            routings = [router(x_TD, layer) for layer, x_TD in enumerate(micro_x)]
            penalties += [r.loss for r in routings]
            used = sum((r.gates_TE * case["R"][layer]).sum() + r.loss for layer, r in enumerate(routings))
            (used / given["microbatches"]).backward()
        gradients.append(torch.stack([m.weight.grad.clone() for m in router.scores.maps]))
        sparsities.append(router.after_step()["sparsity"])
        lambdas.append(router.gates.l1_lambda)
        if double:  # compare each step at the λ that the float32 code really had
            router.gates.l1_lambda = case["lambda"][len(lambdas) - 1].item()
    if not double:
        case.check("sparsity", sparsities)
        case.check("lambda", lambdas)
    case.check(f"{prefix}l1_reg", torch.stack(penalties))
    case.check(f"{prefix}grad_weight", torch.stack(gradients))


@cases("remoe/moe_layer")
def test_remoe_layer(case):
    given = case.given
    x, weight = case["x"].clone().requires_grad_(), case["router_weight"].clone().requires_grad_()
    gates = (
        ReLU(1, given["E"], given["k"], lambda_0=case["lambda"].item())
        if given["router"] == "relu"
        else TopK(1, given["E"], given["k"], balance=given["aux_loss_coeff"])
    )
    experts = Experts(given["E"], given["hidden"], given["expert_ffn"])
    experts.in_EDF.data, experts.out_EFD.data = case["fc1"].mT.contiguous(), case["fc2"].mT.contiguous()
    x_TD = x.flatten(0, 1)
    gates_TE, loss, *_ = gates(x_TD @ weight.t(), 0)
    y = experts(x_TD, gates_TE)
    ((y * case["R"].flatten(0, 1)).sum() + given["aux_scale"] * loss).backward()
    case.check("routing_map", gates_TE > 0)
    case.check("probs", gates_TE)
    case.check("y", y)
    case.check("reg", loss)
    case.check("grad_x", x.grad)
    case.check("grad_router_weight", weight.grad)
    case.check("grad_fc1", experts.in_EDF.grad.mT)
    case.check("grad_fc2", experts.out_EFD.grad.mT)


ROUTER_OF = {"gru": "rmoe", "rnn": "rmoe-rnn", "linear": "smoe"}


def cell_gates(cell):
    """Our stacked matrices -> the official names of their slices (a GRU has three gates, an RNN one)."""
    gates = "rzn" if isinstance(cell, torch.nn.GRUCell) else "n"
    return {"ih": [f"i{g}" for g in gates], "hh": [f"h{g}" for g in gates]}


def load_cell(cell, case, prefix="cell."):
    """Give our cell the official one's weights."""
    cell.load_state_dict(
        {
            f"{kind}_{ours}": torch.cat([case[f"{prefix}{kind}_{gate}"] for gate in gates])
            for ours, gates in cell_gates(cell).items()
            for kind in ("weight", "bias")
        }
    )


def check_cell_gradients(case, cell, prefix):
    """Each gate's slice of the cell's gradients."""
    for ours, gates in cell_gates(cell).items():
        for kind in ("weight", "bias"):
            slices = getattr(cell, f"{kind}_{ours}").grad.chunk(len(gates))
            for gate, part in zip(gates, slices, strict=True):
                if f"{prefix}{kind}_{gate}" in case:
                    case.check(f"{prefix}{kind}_{gate}", part)


def recurrent_router(case, layers, width, state, experts, top_k, name="rmoe"):
    """Our router with the case's weights."""
    options = {} if name == "smoe" else {"state": state}
    router = build_router(name, layers=layers, width=width, experts=experts, top_k=top_k, **options)
    if router.memory is not None:
        load_cell(router.memory.cell, case)
    return router.eval()


@cases("rmoe/gru_cell", "rmoe/rnn_cell")
def test_cell(case):
    given, name = case.given, ROUTER_OF[case.meta["group"].removeprefix("rmoe/").removesuffix("_cell")]
    memory = build_router(name, layers=1, width=given["p"], experts=2, top_k=1, state=given["p"]).memory
    load_cell(memory.cell, case)
    memory.projectors[0].weight.data = torch.eye(given["p"])
    x, h = case["x"].clone().requires_grad_(), case["h"].clone().requires_grad_() if "h" in case else None
    if "steps" in given:
        states, state = [], None
        for step in x:
            state, _ = memory(step, 0, state)
            states.append(state)
        new = torch.stack(states)
        name = "h_all"
    else:
        new, name = memory(x, 0, h)[0], "h_new"
    (new * case["R"]).sum().backward()
    case.check(name, new)
    case.check("grad_x", x.grad)
    if h is not None:
        case.check("grad_h", h.grad)
    check_cell_gradients(case, memory.cell, "grad.cell.")


@cases("rmoe/block")
@pytest.mark.parametrize("loss", "ABC")
def test_rmoe_router_over_layers(case, loss):
    given = case.given
    name = ROUTER_OF[given["router_type"]]
    router = recurrent_router(case, given["layers"], given["hidden"], given["p"], given["E"], given["k"], name)
    for layer in range(given["layers"]):
        if name != "smoe":
            router.memory.projectors[layer].weight.data = case["weight1"][layer]
        router.scores.maps[layer].weight.data = case["weight2" if name != "smoe" else "gate"][layer]
    x, memory, routings = case["x"].clone().requires_grad_(), None, []
    for layer, x_TD in enumerate(x):
        routings.append(router(x_TD, layer, memory))
        memory = routings[-1].memory_TH
    dense, scores = torch.stack([r.gates_TE for r in routings]), torch.stack([r.scores_TE for r in routings])
    certain = case["tie_rows"] == 0
    case.check("softmax", scores)
    case.check("dense_weights", dense, rows=certain)
    weights = dense.sort(-1, descending=True).values[..., : given["k"]]
    case.check("weights", weights)
    if "state" in case:
        case.check("state", torch.stack([r.memory_TH for r in routings]))
    if f"full.{loss}.grad_x" not in case:
        assert loss != "A"
        return
    logits = torch.stack(
        [router.scores(r.memory_TH if name != "smoe" else x[i].flatten(0, 1), i) for i, r in enumerate(routings)]
    )
    case.check("router_logits", logits)
    objective = {
        "A": lambda: (logits * case["V"]).sum(),
        "B": lambda: (dense * case["U"]).sum(),
        "C": lambda: (dense[-1] * case["U"][-1]).sum(),
    }[loss]
    objective().backward()
    prefix = f"full.{loss}.grad_"
    case.check(f"{prefix}x", x.grad)
    maps = {"weight2" if name != "smoe" else "gate": router.scores.maps}
    if name != "smoe":
        maps["weight1"] = router.memory.projectors
        check_cell_gradients(case, router.memory.cell, f"{prefix}cell.")
    for stored, modules in maps.items():
        if prefix + stored in case:
            zero = torch.zeros_like(modules[0].weight)
            case.check(
                prefix + stored, torch.stack([zero if m.weight.grad is None else m.weight.grad for m in modules])
            )


@cases("rmoe/moe_layer")
def test_rmoe_layer(case):
    given = case.given
    name = ROUTER_OF[given["router_type"]]
    router = recurrent_router(case, 1, given["hidden"], given["p"], given["E"], given["k"], name)
    if name != "smoe":
        router.memory.projectors[0].weight.data = case["weight1"]
    router.scores.maps[0].weight.data = case["weight2" if name != "smoe" else "gate"]
    experts = Experts(given["E"], given["hidden"], given["expert_ffn"])
    experts.in_EDF.data = torch.cat([case["w1"], case["w3"]], 1).mT.contiguous()
    experts.out_EFD.data = case["w2"].mT.contiguous()
    x = case["x"].clone().requires_grad_()
    routing = router(x, 0, case["h_prev"] if "h_prev" in case else None)
    y = experts(x.flatten(0, 1), routing.gates_TE)
    if given["output_bias"]:  # a vector that the official layer may add; no setup of the paper uses it
        y = y + case["output_bias" if "output_bias" in case else "bias"]
    (y * case["R"].flatten(0, 1)).sum().backward()
    case.check("dense_weights", routing.gates_TE)
    case.check("y", y)
    case.check("grad_x", x.grad)
    if "h_new" in case:
        case.check("h_new", routing.memory_TH)
        check_cell_gradients(case, router.memory.cell, "grad.cell.")
    case.check("grad_weight2" if name != "smoe" else "grad_gate", router.scores.maps[0].weight.grad)
    gate, up = experts.in_EDF.grad.mT.chunk(2, 1)
    case.check("grad_w1", gate)
    case.check("grad_w3", up)
    case.check("grad_w2", experts.out_EFD.grad.mT)


@cases("rmoe/aux_loss")
def test_rmoe_balance_loss_is_k_times_ours_over_all_layers(case):
    given, logits = case.given, case["router_logits"].clone().requires_grad_()
    rows = logits.flatten(0, 1)
    chosen = torch.zeros_like(rows).scatter(-1, rows.topk(given["k"]).indices, 1.0)
    loss = given["k"] * balance_loss(rows.softmax(-1), chosen, given["k"], training=False)
    loss.backward()
    case.check("loss", loss)
    case.check("grad_logits", logits.grad)


@cases("rmoe/hf_model")
def test_rmoe_decoder(case):
    given, stored = case.given, lambda name: case[f"model.{name}"]
    model = Decoder(
        given["vocab"], given["hidden"], given["layers"], given["heads"], given["kv_heads"], given["expert_ffn"],
        {"name": "rmoe", "state": given["p"], "balance": 0.0}, given["E"], given["k"],
        rope_base=given["rope_theta"], norm_eps=given["rms_eps"],
    )  # fmt: skip
    model.embed.weight.data, model.head.weight.data = stored("model.embed_tokens.weight"), stored("lm_head.weight")
    model.norm.weight.data = stored("model.norm.weight")
    load_cell(model.router.memory.cell, case, "model.model.rnn_router.")
    for i, block in enumerate(model.blocks):
        at = f"model.layers.{i}."
        moe = f"{at}block_sparse_moe."
        block.attention.qkv.weight.data = torch.cat([stored(f"{at}self_attn.{p}_proj.weight") for p in "qkv"])
        block.attention.out.weight.data = stored(f"{at}self_attn.o_proj.weight")
        block.attention_norm.weight.data = stored(f"{at}input_layernorm.weight")
        block.experts_norm.weight.data = stored(f"{at}post_attention_layernorm.weight")
        model.router.memory.projectors[i].weight.data = stored(f"{moe}weight1")
        model.router.scores.maps[i].weight.data = stored(f"{moe}weight2")
        w1, w2, w3 = (
            torch.stack([stored(f"{moe}experts.{e}.w{n}.weight") for e in range(given["E"])]) for n in (1, 2, 3)
        )
        block.experts.in_EDF.data = torch.cat([w1, w3], 1).mT.contiguous()
        block.experts.out_EFD.data = w2.mT.contiguous()
    tokens, routings = case["input_ids"].long(), []
    logits = model.eval()(tokens, routings=routings)
    case.check("logits", logits)
    case.check("state", torch.stack([r.memory_TH for r in routings]))
    scores = torch.stack([model.router.scores(r.memory_TH, i) for i, r in enumerate(routings)])
    case.check("router_logits", scores)
    rows = scores.flatten(0, 1)
    chosen = torch.zeros_like(rows).scatter(-1, rows.topk(given["k"]).indices, 1.0)
    auxiliary = given["k"] * balance_loss(rows.softmax(-1), chosen, given["k"], training=False)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) + given["aux_coef"] * auxiliary
    loss.backward()
    case.check("aux_loss", auxiliary)
    case.check("loss", loss)
    for i in range(given["layers"]):
        prefix = f"grad.model.layers.{i}.block_sparse_moe."
        case.check(f"{prefix}weight1", model.router.memory.projectors[i].weight.grad)
        case.check(f"{prefix}weight2", model.router.scores.maps[i].weight.grad)
    check_cell_gradients(case, model.router.memory.cell, "grad.model.rnn_router.")


@cases("competesmoe/smoe_gate")
def test_smoe_gate_with_bias(case):
    given = case.given
    router = build_router(
        "smoe", layers=1, width=given["hidden"], experts=given["E"], top_k=given["k"], bias=True
    ).eval()
    linear = router.scores.maps[0]
    linear.weight.data, linear.bias.data = case["weight"].clone(), case["bias"].clone()
    x, certain = case["x"].clone().requires_grad_(), case["tie_rows"] == 0
    routing = router(x, 0)
    case.check("gate", linear(x))
    case.check("dense_score", routing.gates_TE, rows=certain)
    case.check("selected_map", routing.gates_TE > 0, rows=certain)
    # the public code's balance loss is 1/k of ours
    balance = balance_loss(routing.scores_TE, case["selected_map"].float(), given["k"], training=False) / given["k"]
    case.check("balance", balance)
    gradients = torch.autograd.grad(balance, [x, linear.weight, linear.bias], retain_graph=True)
    for name, gradient in zip(("x", "weight", "bias"), gradients, strict=True):
        if certain.all():
            case.check(f"balance_grad_{name}", gradient)
    if certain.all():
        (routing.gates_TE * case["U"]).sum().backward()
        for name, tensor in (("x", x), ("weight", linear.weight), ("bias", linear.bias)):
            if f"grad_{name}" in case:
                case.check(f"grad_{name}", tensor.grad)


def choose(case, router, scores):
    """What the competing public gates have in common: scores, choice, weights, balance loss and their gradients."""
    x, certain = case["x"].clone().requires_grad_(), case["tie_rows"] == 0
    routing = router(x, 0)
    case.check("gate", scores(x))
    case.check("dense_score", routing.gates_TE, rows=certain)
    case.check("selected_map", routing.gates_TE > 0, rows=certain)
    return x, routing


@cases("competesmoe/xmoe_gate", "competesmoe/stablemoe_gate")
def test_xmoe_and_cosine_gates(case):
    given, tau = case.given, case.given["balance_tau"]
    xmoe = "reduction" in case
    options = {"reduced": given["dim"]} if xmoe else {}
    router = build_router(
        "xmoe" if xmoe else "cosine-moe", layers=1, width=given["hidden"], experts=given["E"], top_k=given["k"],
        temperature=1.0, normalise_token=False, **options,
    ).eval()  # fmt: skip
    cosine = router.scores.cosine if xmoe else router.scores
    # the public XMoE rescales its embeddings to length 1.5 in place: its gradients are those at the rescaled ones
    cosine.experts_LEH[0].data = case["embeddings_after" if xmoe else "embeddings"].clone()
    if xmoe:
        router.scores.reductions[0].weight.data = case["reduction"].clone()
    x, routing = choose(case, router, lambda x: router.scores(x, 0))
    balance = balance_loss((router.scores(x, 0) / tau).softmax(-1), case["selected_map"].float(), given["k"], False)
    case.check("balance", balance / given["k"])
    weights = {"x": x, "embeddings": cosine.experts_LEH[0]}
    if xmoe:
        weights["reduction"] = router.scores.reductions[0].weight
    for prefix, value in (("balance_grad_", balance / given["k"]), ("grad_", (routing.gates_TE * case["U"]).sum())):
        gradients = torch.autograd.grad(value, list(weights.values()), retain_graph=True)
        for name, gradient in zip(weights, gradients, strict=True):
            case.check(prefix + name, gradient)


@cases("competesmoe/hyperrouter_gate")
def test_hypernetwork_gate(case):
    given = case.given
    router = build_router(
        "hypermoe", layers=1, width=given["hidden"], experts=given["E"], top_k=given["k"], hidden=given["hyper_size"]
    ).eval()
    first, _, second = router.scores.networks[0]
    first.weight.data, first.bias.data = case["w0"].clone(), case["b0"].clone()
    second.weight.data, second.bias.data = case["w2"].clone(), case["b2"].clone()
    router.scores.vectors[0].data = case["embedding"].clone()
    x, routing = choose(case, router, lambda x: router.scores(x, 0))
    (routing.gates_TE * case["U"]).sum().backward()
    case.check("grad_x", x.grad)
    case.check("grad_embedding", router.scores.vectors[0].grad)
    assert all(p.grad is None for p in router.scores.networks.parameters())


@cases("competesmoe/random_gate")
def test_random_gate(case):
    given = case.given
    if "frozen" not in given:  # fresh random scores at every call
        check_gates_of_recorded_scores(case, case["draws"])
        return
    router = build_router(
        "random-smoe", layers=1, width=given["hidden"], experts=given["E"], top_k=given["k"], bias=True
    ).eval()
    linear = router.scores.maps[0]
    linear.weight.data, linear.bias.data = case["weight"].clone(), case["bias"].clone()
    x, routing = choose(case, router, linear)
    balance = balance_loss(routing.scores_TE, case["selected_map"].float(), given["k"], False) / given["k"]
    case.check("balance", balance)
    case.check("balance_grad_x", torch.autograd.grad(balance, x, retain_graph=True)[0])
    case.check("grad_x", torch.autograd.grad((routing.gates_TE * case["U"]).sum(), x)[0])


def check_gates_of_recorded_scores(case, gate_TE):
    """The choice and the weights, given the scores that the official code drew or dropped at random."""
    case.check("gate", gate_TE)
    choice = TopK(1, case.given["E"], case.given["k"], normalise="chosen")(gate_TE, 0)
    certain = case["tie_rows"] == 0
    case.check("dense_score", choice.gates_TE, rows=certain)
    case.check("selected_map", choice.gates_TE > 0, rows=certain)
    return choice


@cases("competesmoe/dropout_gate")
def test_dropout_gate(case):
    names = ("x", "weight", "bias")
    x, weight, bias = (case[name].clone().requires_grad_() for name in names)
    logits = torch.nn.functional.linear(x, weight, bias)
    case.check("logits", logits)
    kept = case["keep_mask"] / (1 - case.given["dropout"]) if case.given["training"] else 1
    choice = check_gates_of_recorded_scores(case, logits * kept)
    if "grad_x" in case:
        gradients = torch.autograd.grad((choice.gates_TE * case["U"]).sum(), (x, weight, bias))
        for name, gradient in zip(names, gradients, strict=True):
            case.check(f"grad_{name}", gradient)


@cases("competesmoe/topk_schedule")
def test_schedule_of_k(case):
    given = case.given
    low, high, total = given["k_min"], given["k_max"], given["total_steps"]
    for mode in given["modes"]:
        curve, direction = mode.split("_")
        first, last = (low, high) if direction == "increase" else (high, low)
        ks = [scheduled_top_k(int(step), total, first, last, curve) for step in case["step"]]
        case.check(mode, torch.tensor(ks))


@cases("rmoe/block")
@pytest.mark.parametrize("mode", ["np", "detach"])
@pytest.mark.parametrize("loss", "ABC")
def test_rmoe_ablations_over_layers(case, mode, loss):
    given, name = case.given, ROUTER_OF[case.given["router_type"]]
    if name == "smoe":
        assert not any(n.startswith(f"{mode}.") for n in case.tensors)  # a linear router has nothing to ablate
        return
    router = recurrent_router(case, given["layers"], given["hidden"], given["p"], given["E"], given["k"], name)
    router.memory.passing = {"np": "none", "detach": "detach"}[mode]
    for layer in range(given["layers"]):
        router.memory.projectors[layer].weight.data = case["weight1"][layer]
        router.scores.maps[layer].weight.data = case["weight2"][layer]
    memory, routings = None, []
    for layer, x_TD in enumerate(case["x"]):
        routings.append(router(x_TD, layer, memory))
        memory = routings[-1].memory_TH
    dense = torch.stack([r.gates_TE for r in routings])
    logits = torch.stack([router.scores(r.memory_TH, i) for i, r in enumerate(routings)])
    if mode == "np":
        case.check("np.state", torch.stack([r.memory_TH for r in routings]))
        case.check("np.router_logits", logits)
    prefix = f"{mode}.{loss}.grad_"
    if not any(name.startswith(prefix) for name in case.tensors):
        assert loss != "A"
        return
    ties = case["tie_rows"].any() and loss != "A"
    assert not ties, "losses of an ambiguous choice are not stored"
    {
        "A": lambda: (logits * case["V"]).sum(),
        "B": lambda: (dense * case["U"]).sum(),
        "C": lambda: (dense[-1] * case["U"][-1]).sum(),
    }[loss]().backward()
    check_cell_gradients(case, router.memory.cell, f"{prefix}cell.")
    for stored, modules in (("weight1", router.memory.projectors), ("weight2", router.scores.maps)):
        zero = torch.zeros_like(modules[0].weight)
        gradients = [zero if m.weight.grad is None else m.weight.grad for m in modules]
        case.check(prefix + stored, torch.stack(gradients))
