"""ReMoE's official routers, schedule of λ and layer against ours; test_golden.py lists who checks what.

Shape letters: T tokens, D width, E experts, F expert width.
"""

import torch
from golden_cases import cases, choosing, experts_of, gradients, load, loaded_case, outputs_of, transposed, whole  # noqa: F401

from moe.experts import Experts
from moe.routers import build_router
from moe.routers.relu import ReLU

UNBOUND = dict(lambda_min=1e-300, lambda_max=1e300)  # the official λ knows no bounds


def official_router(case, dtype, kind="relu", layers=1, **options):
    """Our router of the case's sizes, in training; and its weights under the official name."""
    given = case.given
    sizes = dict(layers=layers, width=given["hidden"], experts=given["E"], top_k=given["k"])
    options |= UNBOUND if kind == "relu" else {}
    return build_router(kind, **sizes, **options).to(dtype).train()


def set_weights(case, router):
    """The stored weight of every layer, [L, E, D]."""
    for layer, weight_ED in zip(router.scores.maps, case["weight"], strict=True):
        layer.weight.data.copy_(weight_ED)


@cases("remoe/relu_router")
def test_relu_router(case):
    given = case.given
    for dtype, prefix in case.precisions():
        router, x = official_router(case, dtype), case.variable("x", dtype)
        load(case, named := {"weight": (router.scores.maps[0].weight, whole)})
        numbers = range(len(given["lambdas"]))
        assert {n.split(".")[-2] for n in case.tensors if n.endswith(".lambda")} == {f"lam{i}" for i in numbers}
        for i in numbers:
            router.gates.l1_lambda = case[f"lam{i}.lambda"].item()
            routing = router(x, 0)
            gates_TE, penalty = routing.gates_TE, given["aux_scale"] * routing.loss
            named |= {"x": (x, whole), "logits": (routing.scores_TE, whole)}
            case.compare({"logits": routing.scores_TE, "probs": gates_TE}, prefix)
            case.compare({"routing_map": gates_TE > 0, "tokens_per_expert": (gates_TE > 0).sum(0)}, prefix)
            case.compare({f"lam{i}.l1_reg": routing.loss, "sparsity": router.after_step()["sparsity"]}, prefix)
            case.compare(gradients((gates_TE * case["R"]).sum() + penalty, named, f"lam{i}.grad_"), prefix)
            case.compare(gradients(penalty, named, f"lam{i}.reg_grad_"), prefix)


@cases("remoe/topk_router")
def test_topk_router(case):
    given = case.given
    for dtype, prefix in case.precisions():
        normalise = "none" if given["pre_softmax"] else "chosen"
        router = official_router(case, dtype, "topk", normalise=normalise, balance=given["aux_loss_coeff"])
        x, logits = case.variable("x", dtype), outputs_of(router.scores)
        load(case, named := {"weight": (router.scores.maps[0].weight, whole)})
        with choosing(experts_of(case["routing_map"], given["k"])):
            routing = router(x, 0)
        gates_TE, loss = routing.gates_TE, given["aux_scale"] * routing.loss
        named |= {"x": (x, whole), "logits": (logits[0], whole)}
        case.compare({"logits": logits[0], "scores": routing.scores_TE, "probs": gates_TE}, prefix)
        case.compare({"routing_map": gates_TE > 0, "tokens_per_expert": (gates_TE > 0).sum(0)}, prefix)
        case.compare({"aux_loss": routing.loss}, prefix)
        case.compare(gradients((gates_TE * case["R"]).sum() + loss, named), prefix)
        case.compare(gradients(loss, named, "aux_grad_"), prefix)


@cases("remoe/lambda_schedule")
def test_lambda_schedule(case):
    given, first = case.given, case["lambda"][0].item()
    gates = ReLU(1, given["E"], given["k"], lambda_0=first, alpha=given["alpha"], **UNBOUND)
    walk = [first]
    for sparsity in case["sparsity"].tolist():
        assert gates.after_step(sparsity, None)["l1_lambda"] == walk[-1]
        walk.append(gates.l1_lambda)
    steps = zip(walk, walk[1:], strict=False)
    case.compare({"lambda": walk, "direction": [1 if after > before else -1 for before, after in steps]})


@cases("remoe/sparsity_average")
def test_sparsity_average(case):
    given = case.given
    start = dict(layers=given["layers"], lambda_0=given["lambda0"], alpha=given["alpha"])
    together, alone = (official_router(case, torch.float32, **start) for _ in range(2))
    calls = []
    for router in (together, alone):
        set_weights(case, router)
    for rank in case["x"]:  # one process: the ranks' tokens one after another
        for micro in rank:
            for layer, x_TD in enumerate(micro):
                together(x_TD, layer)
                alone(x_TD, layer)
                calls.append(alone.after_step()["sparsity"])
    sparsity = together.after_step()["sparsity"]
    case.compare({"per_call_sparsity": calls, "sparsity": sparsity, "lambda_next": together.gates.l1_lambda})


@cases("remoe/train_step")
def test_train_step(case):
    given, micros = case.given, case.given["microbatches"]
    for dtype, prefix in case.precisions():
        start = dict(layers=given["layers"], lambda_0=case["lambda"][0].item(), alpha=given["alpha"])
        router = official_router(case, dtype, **start)
        set_weights(case, router)
        weights, R = [layer.weight for layer in router.scores.maps], case["R"].to(dtype)
        # a float32 number in the official code: exact only where micro-batches are a power of two
        penalty_share = torch.tensor(1 / micros, dtype=torch.float32).item()
        sparsities, lambdas, penalties, steps = [], [router.gates.l1_lambda], [], []
        for step_x in case["x"].to(dtype):
            objective = 0.0
            for micro_x in step_x:
                routings = [router(x_TD, layer) for layer, x_TD in enumerate(micro_x)]
                penalties += [r.loss for r in routings]
                objective += sum((r.gates_TE * R[layer]).sum() for layer, r in enumerate(routings)) / micros
                objective += penalty_share * sum(r.loss for r in routings)
            steps.append(torch.stack(torch.autograd.grad(objective, weights)))
            sparsities.append(router.after_step()["sparsity"])
            lambdas.append(router.gates.l1_lambda)
            if prefix:  # compare each step at the λ that the float32 code really had
                router.gates.l1_lambda = case["lambda"][len(lambdas) - 1].item()
        case.compare({"sparsity": sparsities, "lambda": lambdas}, prefix)
        case.compare({"l1_reg": torch.stack(penalties), "grad_weight": torch.stack(steps)}, prefix)


@cases("remoe/moe_layer")
def test_remoe_layer(case):
    given = case.given
    for dtype, prefix in case.precisions():
        if given["router"] == "relu":
            router, choices = official_router(case, dtype), ()
            router.gates.l1_lambda = case["lambda"].item()
        else:
            normalise = {"topk pre-softmax": "none", "topk post-softmax": "chosen"}[given["router"]]
            router = official_router(case, dtype, "topk", normalise=normalise, balance=given["aux_loss_coeff"])
            choices = (experts_of(case["routing_map"], given["k"]),)
        experts, x = Experts(given["E"], given["hidden"], given["expert_ffn"]).to(dtype), case.variable("x", dtype)
        named = {"router_weight": (router.scores.maps[0].weight, whole)}
        named |= {"fc1": (experts.in_EDF, transposed), "fc2": (experts.out_EFD, transposed)}
        load(case, named)
        with choosing(*choices):
            routing = router(x, 0)
        y = experts(x.flatten(0, -2), routing.gates_TE).view_as(x)
        assert not y.flatten(0, -2)[given["tokens_without_expert"]].any()
        case.compare({"routing_map": routing.gates_TE > 0, "probs": routing.gates_TE}, prefix)
        case.compare({"y": y, "reg": routing.loss}, prefix)
        objective = (y * case["R"]).sum() + given["aux_scale"] * routing.loss
        case.compare(gradients(objective, named | {"x": (x, whole)}), prefix)
