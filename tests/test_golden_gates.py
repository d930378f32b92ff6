"""The public gates of RMoE's baselines (CompeteSMoE, HyperRouter, SMoE-Dropout) against ours; see test_golden.py.

Shape letters: T tokens, D width, E experts.
"""

import torch
from golden_cases import cases, choosing, experts_of, gradients, load, loaded_case, outputs_of, whole  # noqa: F401

from moe.routers import build_router
from moe.routers.topk import TopK, balance_loss, scheduled_top_k


def official_router(case, name, dtype, **options):
    """Our router of the case's sizes."""
    given = case.given
    sizes = dict(layers=1, width=given["hidden"], experts=given["E"], top_k=given["k"])
    return build_router(name, **sizes, **options).to(dtype).eval()


def compare_gate(case, router, named, dtype, prefix):
    """What all these gates have: scores, choice, weights, balance loss, and the gradients of the latter two."""
    given, x, scores = case.given, case.variable("x", dtype), outputs_of(router.scores)
    with choosing(experts_of(case["selected_map"], given["k"])):
        gates_TE = router(x, 0).gates_TE
    named = named | {"x": (x, whole)}
    outputs = {"gate": scores[0], "dense_score": gates_TE, "selected_map": gates_TE > 0}
    case.compare(outputs | gradients((gates_TE * case["U"]).sum(), named), prefix)
    if "balance" in case:  # 1/k of ours
        probs_TE = (scores[0] / given["balance_tau"]).softmax(-1)
        balance = balance_loss(probs_TE, gates_TE, given["k"], training=False) / given["k"]
        case.compare({"balance": balance} | gradients(balance, named, "balance_grad_"), prefix)


@cases("competesmoe/smoe_gate")
def test_smoe_gate_with_bias(case):
    for dtype, prefix in case.precisions():
        router = official_router(case, "smoe", dtype, bias=True)
        linear = router.scores.maps[0]
        load(case, named := {"weight": (linear.weight, whole), "bias": (linear.bias, whole)})
        compare_gate(case, router, named, dtype, prefix)


@cases("competesmoe/xmoe_gate", "competesmoe/stablemoe_gate")
def test_xmoe_and_cosine_gates(case):
    for dtype, prefix in case.precisions():
        xmoe = "reduction" in case
        options = {"reduced": case.given["dim"]} if xmoe else {}
        options |= dict(temperature=1.0, normalise_token=False)
        router = official_router(case, "xmoe" if xmoe else "cosine-moe", dtype, **options)
        cosine = router.scores.cosine if xmoe else router.scores
        load(case, named := {"embeddings": (cosine.experts_LEH[0], whole)})
        if xmoe:
            # the public XMoE rescales its embeddings to length 1.5 in place: its gradients are those at the rescaled
            # ones. Ours need no rescaling, since only directions count
            load(case, reduction := {"reduction": (router.scores.reductions[0].weight, whole)})
            embeddings, named = cosine.experts_LEH[0], named | reduction
            embeddings.data.copy_(1.5 * torch.nn.functional.normalize(embeddings.data, dim=-1))
            case.compare({"embeddings_after": embeddings}, prefix)
        compare_gate(case, router, named, dtype, prefix)


@cases("competesmoe/hyperrouter_gate")
def test_hypernetwork_gate(case):
    for dtype, prefix in case.precisions():
        router = official_router(case, "hypermoe", dtype, hidden=case.given["hyper_size"])
        network, first, _, second = router.scores.networks[0], *router.scores.networks[0]
        named = {"embedding": (router.scores.vectors[0], whole)}
        named |= {"w0": (first.weight, whole), "b0": (first.bias, whole)}
        named |= {"w2": (second.weight, whole), "b2": (second.bias, whole)}
        load(case, named)
        assert not any(weight.requires_grad for weight in network.parameters())
        made = outputs_of(network)
        compare_gate(case, router, named, dtype, prefix)
        made_ED = made[0].view(case.given["E"], -1)
        case.compare({"gate_weight": made_ED[:, :-1], "gate_bias": made_ED[:, -1]}, prefix)


@cases("competesmoe/random_gate")
def test_random_gate(case):
    for dtype, prefix in case.precisions():
        if "draws" in case:  # fresh random scores at every call
            compare_recorded(case, case["draws"].to(dtype), {}, prefix)
            continue
        router = official_router(case, "random-smoe", dtype, bias=True)
        linear = router.scores.maps[0]
        load(case, named := {"weight": (linear.weight, whole), "bias": (linear.bias, whole)})
        assert not any(weight.requires_grad for weight in router.parameters())
        compare_gate(case, router, named, dtype, prefix)


def compare_recorded(case, scores_TE, named, prefix):
    """The choice and the weights, given the scores that the official code drew or dropped at random."""
    gates = TopK(1, case.given["E"], case.given["k"], normalise="chosen")
    with choosing(experts_of(case["selected_map"], case.given["k"])):
        gates_TE = gates(scores_TE, 0).gates_TE
    case.compare({"gate": scores_TE, "dense_score": gates_TE, "selected_map": gates_TE > 0}, prefix)
    if named:
        case.compare(gradients((gates_TE * case["U"]).sum(), named), prefix)


@cases("competesmoe/dropout_gate")
def test_dropout_gate(case):
    for dtype, prefix in case.precisions():
        named = {name: (case.variable(name, dtype), whole) for name in ("x", "weight", "bias")}
        x, weight, bias = (tensor for tensor, _ in named.values())
        logits_TE = torch.nn.functional.linear(x.flatten(0, -2), weight, bias)
        case.compare({"logits": logits_TE}, prefix)
        kept = case["keep_mask"] / (1 - case.given["dropout"]) if case.given["training"] else 1
        compare_recorded(case, logits_TE * kept, named, prefix)


@cases("competesmoe/topk_schedule")
def test_schedule_of_k(case):
    given = case.given
    for mode in given["modes"]:
        curve, direction = mode.split("_")
        ends = (given["k_min"], given["k_max"])
        first, last = ends if direction == "increase" else ends[::-1]
        ks = [scheduled_top_k(int(step), given["total_steps"], first, last, curve) for step in case["step"]]
        case.compare({mode: ks})
