"""RMoE's official cells, routers, layer, balance loss and language model against ours; test_golden.py lists them.

Shape letters: T tokens, D width, H state, E experts, K chosen experts, L layers.
"""

from functools import partial

import torch
from golden_cases import cases, choosing, gradients, load, loaded_case, outputs_of, transposed, whole  # noqa: F401
from torch.nn import functional as F

from moe.experts import Experts
from moe.model import Decoder
from moe.routers import build_router
from moe.routers.topk import TopK

ROUTER_OF = {"gru": "rmoe", "rnn": "rmoe-rnn", "linear": "smoe"}
PASSING = {"full": "full", "detach": "detach", "np": "none"}  # modes of the block -> our option


def slice_of(tensor, index, count):
    """One of the equal parts that rows are stacked of."""
    return tensor.chunk(count, -2 if tensor.ndim > 1 else 0)[index]


def named_cell(router, prefix="cell."):
    """Our stacked matrices as the official slices (a GRU has three gates, an RNN one); none without a memory."""
    if router.memory is None:
        return {}
    cell = router.memory.cell
    gates = "rzn" if isinstance(cell, torch.nn.GRUCell) else "n"
    return {
        f"{prefix}{kind}_{which}{gate}": (
            getattr(cell, f"{kind}_{which}h"),
            partial(slice_of, index=i, count=len(gates)),
        )
        for which in "ih"
        for kind in ("weight", "bias")
        for i, gate in enumerate(gates)
    }


def named_maps(router, layer):
    """The matrices of one layer: a projector and a map of the state, or one map of the token."""
    score = router.scores.maps[layer].weight
    if router.memory is None:
        return {"gate": (score, whole)}
    return {"weight1": (router.memory.projectors[layer].weight, whole), "weight2": (score, whole)}


def official_router(case, dtype, layers=1, passing="full"):
    """Our router of the case's type and sizes."""
    given, name = case.given, ROUTER_OF[case.given["router_type"]]
    options = {} if name == "smoe" else {"state": given["p"], "passing": passing}
    sizes = dict(layers=layers, width=given["hidden"], experts=given["E"], top_k=given["k"])
    return build_router(name, **sizes, **options).to(dtype).eval()


def in_order(gates_TE, stored_TK):
    """Our experts in decreasing order of weight, and these weights; experts of equal weight in the stored order."""
    weights_TK, experts_TK = (part[..., : stored_TK.shape[-1]] for part in gates_TE.sort(-1, descending=True))
    stored_TK = stored_TK.long()
    same = (gates_TE.gather(-1, stored_TK) - weights_TK).abs() <= 1e-5 * weights_TK
    return torch.where(same.all(-1, keepdim=True), stored_TK, experts_TK), weights_TK


@cases("rmoe/gru_cell", "rmoe/rnn_cell")
def test_cell(case):
    state = case.given["p"]
    name = ROUTER_OF[case.meta["group"].removeprefix("rmoe/").removesuffix("_cell")]
    for dtype, prefix in case.precisions():
        router = build_router(name, layers=1, width=state, experts=2, top_k=1, state=state).to(dtype)
        load(case, named := named_cell(router))
        router.memory.projectors[0].weight.data.copy_(torch.eye(state))
        x, h = case.variable("x", dtype), case.variable("h", dtype) if "h" in case else None
        states, memory = [], h
        for step in x if "h_all" in case else [x]:
            memory = router.memory(step.flatten(0, -2), 0, memory)[1]
            states.append(memory)
        new = torch.stack(states)
        case.compare({"h_new": new, "h_all": new}, prefix)
        objective = (new.view_as(case["R"]) * case["R"]).sum()
        inputs = {"x": (x, whole)} | ({} if h is None else {"h": (h, whole)})
        case.compare(gradients(objective, inputs) | gradients(objective, named, "grad."), prefix)


def objectives(case, logits_LTE, gates_LTE):
    """The scalars whose gradients are stored."""
    return {
        "A": (logits_LTE * case["V"]).sum(),
        "B": (gates_LTE * case["U"]).sum(),
        "C": (gates_LTE[-1] * case["U"][-1]).sum(),
    }


def block_gradients(case, value, router, x):
    """Of x, of the matrices of each layer, stacked, and of the cell that all layers share."""
    layers = [gradients(value, named_maps(router, layer)) for layer in range(router.layers)]
    stacked = {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
    return gradients(value, named_cell(router) | {"x": (x, whole)}) | stacked


def run_block(case, dtype, mode):
    """Outputs of a pass through all layers of the router, logits and gates as well; and (router, x) for gradients."""
    given = case.given
    router = official_router(case, dtype, given["layers"], PASSING[mode])
    load(case, named_cell(router))
    for layer in range(given["layers"]):
        for name, (weight, _) in named_maps(router, layer).items():
            weight.data.copy_(case[name][layer])
    x, memory, routings, logits = case.variable("x", dtype), None, [], outputs_of(router.scores)
    projected = [outputs_of(layer) for layer in router.memory.projectors] if router.memory is not None else []
    stored_LTK = case["np.selected" if mode == "np" else "selected"]
    with choosing(*stored_LTK):
        for layer, x_TD in enumerate(x):
            routings.append(router(x_TD, layer, memory))
            memory = routings[-1].memory_TH
    outputs = {"router_logits": torch.stack(logits), "dense_weights": torch.stack([r.gates_TE for r in routings])}
    outputs["softmax"] = torch.stack([r.scores_TE for r in routings])
    outputs["selected"], outputs["weights"] = in_order(outputs["dense_weights"], stored_LTK)
    if router.memory is not None:
        outputs["state"] = torch.stack([r.memory_TH for r in routings])
        outputs["x_proj"] = torch.stack([seen[0] for seen in projected])
    return outputs, router, x


@cases("rmoe/block")
def test_router_over_layers_and_its_ablations(case):
    for dtype, prefix in case.precisions():
        for mode in sorted({n.removeprefix("f64.").split(".")[0] for n in case.results if ".grad_" in n}):
            outputs, router, x = run_block(case, dtype, mode)
            case.compare(outputs, prefix + ("" if mode == "full" else f"{mode}."))
            for loss, value in objectives(case, outputs["router_logits"], outputs["dense_weights"]).items():
                found = block_gradients(case, value, router, x)
                case.compare(found, f"{prefix}{mode}.{loss}.")
                if loss == "C" and mode != "full":  # nothing but the recurrence leads to earlier layers
                    assert not found["grad_weight1"][:-1].any() and not found["grad_x"][:-1].any()


@cases("rmoe/moe_layer")
def test_rmoe_layer(case):
    given = case.given
    assert given["activation"] == "silu", "the experts of our decoders have no other activation"
    for dtype, prefix in case.precisions():
        router = official_router(case, dtype)
        experts = Experts(given["E"], given["hidden"], given["expert_ffn"]).to(dtype)
        named = named_maps(router, 0) | named_experts(experts)
        load(case, named)
        load(case, cell := named_cell(router))
        x, logits = case.variable("x", dtype), outputs_of(router.scores)
        named |= {"x": (x, whole)}
        if "h_prev" in case:
            named |= {"h_prev": (case.variable("h_prev", dtype), whole)}
        with choosing(case["selected"]):
            routing = router(x, 0, named["h_prev"][0] if "h_prev" in named else None)
        y = experts(x.flatten(0, -2), routing.gates_TE).view_as(x)
        if given["output_bias"]:  # a vector that the official layer may add; no setup of the paper uses it
            named |= {"bias": (case.variable("bias", dtype), whole)}
            y = y + named["bias"][0]
        selected_TK, weights_TK = in_order(routing.gates_TE, case["selected"])
        outputs = {"router_logits": logits[0], "selected": selected_TK, "weights": weights_TK}
        outputs |= {"dense_weights": routing.gates_TE, "y": y}
        outputs |= {} if router.memory is None else {"h_new": routing.memory_TH}
        objective = (y * case["R"]).sum()
        case.compare(outputs | gradients(objective, named) | gradients(objective, cell, "grad."), prefix)


def named_experts(experts):
    """w1 (gate) and w3 (up), which we keep side by side, and w2 (out), as stacks of [out, in]."""
    return {
        "w1": (experts.in_EDF, lambda t: t.mT.chunk(2, 1)[0]),
        "w3": (experts.in_EDF, lambda t: t.mT.chunk(2, 1)[1]),
        "w2": (experts.out_EFD, transposed),
    }


def official_balance_loss(logits_LTE, top_k):
    """RMoE's loss over all layers at once: k times ours of their tokens together."""
    gates = TopK(1, logits_LTE.shape[-1], top_k, normalise="chosen", balance=float(top_k))
    return gates(logits_LTE.flatten(0, 1), 0).loss


@cases("rmoe/aux_loss")
def test_rmoe_balance_loss_is_k_times_ours_over_all_layers(case):
    for dtype, prefix in case.precisions():
        logits = case.variable("router_logits", dtype)
        loss = official_balance_loss(logits, case.given["k"])
        case.compare({"loss": loss} | gradients(loss, {"logits": (logits, whole)}), prefix)


def named_decoder(model):
    """Every parameter of the decoder under its official name."""
    named = {
        "model.embed_tokens.weight": (model.embed.weight, whole),
        "lm_head.weight": (model.head.weight, whole),
        "model.norm.weight": (model.norm.weight, whole),
    }
    named |= named_cell(model.router, "model.rnn_router.")
    for i, block in enumerate(model.blocks):
        at, attention = f"model.layers.{i}.", block.attention
        out, (width, rows) = attention.out.weight, (block.attention.out.weight.shape[1], attention.qkv.weight.shape[0])
        sizes = [width, (rows - width) // 2, (rows - width) // 2]
        for j, part in enumerate("qkv"):
            view = partial(lambda t, j, sizes: t.split(sizes)[j], j=j, sizes=sizes)
            named[f"{at}self_attn.{part}_proj.weight"] = attention.qkv.weight, view
        named[f"{at}self_attn.o_proj.weight"] = out, whole
        named[f"{at}input_layernorm.weight"] = block.attention_norm.weight, whole
        named[f"{at}post_attention_layernorm.weight"] = block.experts_norm.weight, whole
        for name, entry in named_maps(model.router, i).items():
            named[f"{at}block_sparse_moe.{name}" + (".weight" if name == "gate" else "")] = entry
        for name, (weight, view) in named_experts(block.experts).items():
            for e in range(len(weight)):
                one = partial(lambda t, view, e: view(t)[e], view=view, e=e)
                named[f"{at}block_sparse_moe.experts.{e}.{name}.weight"] = weight, one
    return named


@cases("rmoe/hf_model")
def test_rmoe_decoder(case):
    given, tokens = case.given, case["input_ids"].long()
    name = ROUTER_OF[given["router_type"]]
    router = {"name": name, "balance": 0.0} | ({} if name == "smoe" else {"state": given["p"]})
    for dtype, prefix in case.precisions():
        model = Decoder(
            given["vocab"], given["hidden"], given["layers"], given["heads"], given["kv_heads"], given["expert_ffn"],
            router, given["E"], given["k"], rope_base=given["rope_theta"], norm_eps=given["rms_eps"],
        ).to(dtype).eval()  # fmt: skip
        load(case, named := named_decoder(model), "model.")
        scores, routings = outputs_of(model.router.scores), []
        into, out_of = ([outputs_of(getattr(b, part)) for b in model.blocks] for part in ("experts_norm", "experts"))
        with choosing(*case["selected"]):
            logits = model(tokens, routings=routings)
        scores_LTE, gates_LTE = torch.stack(scores), torch.stack([r.gates_TE for r in routings])
        with choosing(case["selected"].flatten(0, 1)):
            auxiliary = official_balance_loss(scores_LTE, given["k"])
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) + given["aux_coef"] * auxiliary
        outputs = {"moe_in": torch.stack([seen[0] for seen in into]), "logits": logits, "loss": loss}
        outputs |= {"moe_out": torch.stack([seen[0] for seen in out_of]), "aux_loss": auxiliary}
        outputs |= {"router_logits": scores_LTE, "selected": in_order(gates_LTE, case["selected"])[0]}
        if model.router.memory is not None:
            outputs["state"] = torch.stack([r.memory_TH for r in routings])
        case.compare(outputs | gradients(loss, named, "grad."), prefix)
